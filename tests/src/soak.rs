//! How many faults a test injects, and from which seed: few in every test run, many by `cargo xtask soak`.
//!
//! In: the environment, by [`CASES_VARIABLE`] and [`SEED_VARIABLE`]. Out: numbers drawn from the seed, and lines on stdout by
//! which `cargo xtask soak` knows how far a test has come. A test takes all its chances from here, so that what it found can
//! be had again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How many cases a test is to run.
pub const CASES_VARIABLE: &str = "WEIR_CASES";
/// From which seed on they are drawn.
pub const SEED_VARIABLE: &str = "WEIR_SEED";
/// What a line for `cargo xtask soak` begins with.
pub const MARK: &str = "@soak ";
/// How often a test says how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// The cases of one kind of fault.
#[derive(Debug)]
pub struct Soak {
    kind: &'static str,
    cases: u64,
    seed: u64,
    done: u64,
    told: Instant,
}

impl Soak {
    /// `few` cases from `seed` on, unless the environment says otherwise.
    pub fn of(kind: &'static str, few: u64, seed: u64) -> Result<Self> {
        let (cases, seed) = (named(CASES_VARIABLE, few)?, named(SEED_VARIABLE, seed)?);
        println!(
            "{kind}: {cases} cases from seed {seed} on; {CASES_VARIABLE} and {SEED_VARIABLE} set others"
        );
        let soak = Self { kind, cases, seed, done: 0, told: Instant::now() };
        soak.tell();
        Ok(soak)
    }

    pub fn cases(&self) -> u64 {
        self.cases
    }

    /// The first case's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next case's seed; none when all have been run. With that seed and one case, it is had again.
    pub fn next_seed(&self) -> Option<u64> {
        (self.done < self.cases).then(|| self.seed.wrapping_add(self.done))
    }

    /// So many more cases were run, and held.
    pub fn held(&mut self, cases: u64) {
        self.done += cases;
        if self.told.elapsed() >= TOLD_EVERY || self.done >= self.cases {
            self.told = Instant::now();
            self.tell();
        }
    }

    fn tell(&self) {
        let Self { kind, cases, done, seed, .. } = self;
        println!("{MARK}{{\"kind\":\"{kind}\",\"done\":{done},\"cases\":{cases},\"seed\":{seed}}}");
    }
}

fn named(variable: &str, otherwise: u64) -> Result<u64> {
    let Ok(text) = std::env::var(variable) else { return Ok(otherwise) };
    text.trim().parse().with_context(|| format!("{variable}={text} is no whole number"))
}

/// Sebastiano Vigna's splitmix64: small, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Draw(pub u64);

impl Draw {
    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any().checked_rem(end).unwrap_or(0)
    }

    /// One of several.
    pub fn one_of<T: Copy>(&mut self, several: &[T]) -> Option<T> {
        several.get(usize::try_from(self.below(several.len() as u64)).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_cases_end() {
        let drawn = |seed| (0..5).map(|_| Draw(seed).below(1000)).collect::<Vec<_>>();
        assert_eq!(drawn(7), drawn(7));
        assert_eq!(Draw(1).below(0), 0);
        let mut soak = Soak { kind: "none", cases: 2, seed: 40, done: 0, told: Instant::now() };
        let mut seeds = Vec::new();
        while let Some(seed) = soak.next_seed() {
            seeds.push(seed);
            soak.held(1);
        }
        assert_eq!(seeds, [40, 41]);
    }
}
