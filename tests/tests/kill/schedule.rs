//! When what is killed: drawn from seeds, so that a schedule can be had again.

use anyhow::{Context, Result};
use weir_tests::soak::Draw;

/// The seeds that are used unless the environment names others; one for each round.
const SEEDS: [u64; 3] = [11, 23, 42];
/// Names other seeds, separated by commas.
pub const SEED_VARIABLE: &str = "WEIR_KILL_SEED";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Agent,
    Collector,
    Store,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Agent, Self::Collector, Self::Store];
}

/// The moment of a kill.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// In the midst of the load: so many more calls were executed, and then so many microseconds.
    Load { calls: usize, then_us: u64 },
    /// While records are on their way to the store: so many microseconds after a segment was sealed.
    Shipping { then_us: u64 },
    /// While another part is down, which was killed so many calls before.
    WhileDown { other: Part, calls: usize, then_us: u64 },
}

#[derive(Debug, Clone, Copy)]
pub struct Kill {
    pub part: Part,
    pub moment: Moment,
    /// The part stays down until so many more calls have been executed; the agent, until clients have been turned away.
    pub down_for_calls: usize,
}

/// The seeds to use.
pub fn seeds() -> Result<Vec<u64>> {
    let Ok(named) = std::env::var(SEED_VARIABLE) else { return Ok(SEEDS.to_vec()) };
    let seeds = named.split(',').map(|seed| seed.trim().parse().context("a seed is a number"));
    seeds.collect::<Result<_>>().with_context(|| format!("{SEED_VARIABLE}={named}"))
}

/// The kills of a round: each part once, in a drawn order. Over three rounds each part gets each kind of moment,
/// whatever the seeds.
pub fn round(number: usize, seed: u64) -> Vec<Kill> {
    let mut draw = Draw(seed);
    let mut kills: Vec<Kill> =
        Part::ALL.iter().zip(number..).map(|(&part, kind)| kill(part, kind % 3, &mut draw)).collect();
    for last in (1..kills.len()).rev() {
        kills.swap(last, draw.below(last as u64 + 1) as usize);
    }
    kills
}

fn kill(part: Part, kind: usize, draw: &mut Draw) -> Kill {
    let calls = draw.below(60) as usize;
    let moment = match kind {
        0 => Moment::Load { calls, then_us: draw.below(1_000_000) },
        1 => shipping(draw),
        _ => {
            // Without the agent no call would be in flight, so it is never the one that is down already.
            let other = match part {
                Part::Collector => Part::Store,
                Part::Store => Part::Collector,
                Part::Agent => [Part::Collector, Part::Store][draw.below(2) as usize],
            };
            Moment::WhileDown { other, calls, then_us: draw.below(500_000) }
        }
    };
    Kill { part, moment, down_for_calls: draw.below(60) as usize }
}

/// The agent looks for sealed segments every 100 ms; then reading, sending and storing one takes as long again.
/// The moments at which a segment is stored and not yet acknowledged are short.
pub fn shipping(draw: &mut Draw) -> Moment {
    Moment::Shipping { then_us: 30_000 + draw.below(200_000) }
}

#[test]
fn a_seed_gives_the_same_schedule_again_and_three_rounds_give_each_part_each_moment() {
    use std::collections::BTreeSet;
    for seed in 0..50 {
        let told = |number| format!("{:?}", round(number, seed));
        let mut moments = BTreeSet::new();
        for number in 0..3 {
            assert_eq!(told(number), told(number));
            moments.extend(
                round(number, seed)
                    .iter()
                    .map(|kill| format!("{:?} {:.4}", kill.part, format!("{:?}", kill.moment))),
            );
        }
        assert_eq!(moments.len(), 9, "{moments:?}");
    }
}
