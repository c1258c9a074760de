//! `cargo xtask bench load`: what clients that mean harm, in a job of their own, cost another job's client.
//!
//! In: the times of its calls, from `weir_tests::load`, in pairs of windows, one without and one with the attack. Out: for each
//! attack the middle of the pairs' ratios of p99. It must never be part of the tests: what else a machine does decides it, too.

use anyhow::{Result, bail};
use weir_tests::load::{ATTACKS, Scene, p99};
use weir_tests::places::{binaries, take_binaries_of};

use crate::progress::{cargo, say, shown};
use crate::setup::{self, Needs};

/// A good client's p99 stays below this many times what it is without the attack.
const BOUND: f64 = 2.0;
/// Calls of one window, with an attack or without: nine of them are above its p99.
const CALLS: usize = 1000;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many pairs of windows of each attack; a pair takes about three seconds.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Take the programs as they were built last.
    #[arg(long)]
    built: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let setup = setup::prepare(Needs { world: true, ..Needs::none() })?;
    // What is measured is what users run.
    if !options.built {
        shown(cargo(&setup).args(["build", "--release", "-p", "weir", "--bins"]))?;
    }
    take_binaries_of(binaries()?.with_file_name("release"));
    let mut scene = Scene::start()?;
    scene.window(CALLS)?;
    let mut pairs = ATTACKS.map(|_| Vec::new());
    for round in 1..=options.rounds {
        say(format_args!("bench load: round {round} of {}", options.rounds));
        for (attack, pairs) in ATTACKS.iter().zip(&mut pairs) {
            let (quiet, attacked) = (scene.window(CALLS)?, scene.window_with(attack, CALLS)?);
            pairs.push(Pair { quiet: p99(&quiet), attacked: p99(&attacked) });
        }
    }
    println!(
        "{:<14} {:>8} {:>8} {:>8}   p99 with / without, of {} pairs",
        "attack", "middle", "low", "high", options.rounds
    );
    let mut above = Vec::new();
    for (attack, pairs) in ATTACKS.iter().zip(&pairs) {
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|part| quantile(pairs, part));
        println!("{attack:<14} {middle:>8.2} {low:>8.2} {high:>8.2}");
        if middle >= BOUND {
            above.push(*attack);
        }
    }
    if !above.is_empty() {
        bail!("{} x or more: {}", BOUND, above.join(", "));
    }
    Ok(())
}

/// Two windows, one after the other: their p99 in microseconds.
#[derive(Debug, Clone, Copy)]
struct Pair {
    quiet: u64,
    attacked: u64,
}

/// Of each pair its own ratio: what else the machine does touches one pair, or both of its windows.
fn quantile(pairs: &[Pair], part: f64) -> f64 {
    let mut ratios: Vec<f64> =
        pairs.iter().map(|pair| pair.attacked as f64 / pair.quiet.max(1) as f64).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let at = (ratios.len().saturating_sub(1)) as f64 * part;
    ratios.get(at.round() as usize).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_pair_counts_whatever_one_pair_was() {
        let pair = |attacked| Pair { quiet: 100, attacked };
        let pairs = [pair(120), pair(9000), pair(110), pair(130), pair(90)];
        assert!((quantile(&pairs, 0.5) - 1.2).abs() < 1e-9);
    }
}
