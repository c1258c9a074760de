//! Cases: a count and a seed come in, what was found of each goes out.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use weir_core::evidence::export::read;
use weir_core::evidence::verify::{Finding, Report, Scope, Trust, Verifier};

use crate::change::{ACTS, Act, Done, change};
use crate::dice::Dice;
use crate::honest::{Honest, Size, make};
use crate::lines;

/// How many untouched exports the cases begin with: signing takes longer than all else.
pub const BEGINNINGS: usize = 16;

/// What a verifier found, as both verifiers say it.
pub type Place = (String, String, u64, u64, u64, String);

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    pub done: Done,
    /// The changed lines.
    pub lines: Vec<u8>,
    /// Which of the beginnings.
    pub of: usize,
}

/// Verifies an export's lines.
pub fn verify(bytes: &[u8], trust: &Trust, scope: Scope, until_us: i64) -> Result<Report> {
    let mut verifier = Verifier::new(trust, scope, None)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match read(rest) {
            Ok(Some((item, taken))) => {
                verifier.take(item, Some(until_us));
                rest = &rest[taken..];
            }
            Ok(None) => {
                verifier.unreadable("it ends in the middle of a line");
                break;
            }
            Err(error) => {
                verifier.unreadable(&error.to_string());
                break;
            }
        }
    }
    Ok(verifier.end(Some(until_us)))
}

/// The findings of a report, without their words.
pub fn places(report: &Report) -> Vec<Place> {
    let place = |one: &Finding| {
        let kind = format!("{}{}", one.kind.as_str(), if one.fault { "" } else { " (expected)" });
        (kind, one.origin.clone(), u64::from(one.epoch), one.first_seq, one.last_seq, one.what.clone())
    };
    report.findings.iter().map(place).collect()
}

/// Untouched exports.
pub fn beginnings(seed: u64) -> Result<Vec<Honest>> {
    (0..BEGINNINGS as u64).map(|at| make(seed.wrapping_mul(1_000).wrapping_add(at), Size::SMALL)).collect()
}

/// Whether the report names what was done, and its place.
pub fn names(report: &Report, done: &Done) -> bool {
    report.findings.iter().any(|one| {
        one.fault
            && done.act.shows_as().contains(&one.kind.as_str())
            && one.origin == done.origin
            && one.first_seq <= done.last_seq
            && one.last_seq >= done.first_seq
    })
}

/// Makes the case of a number.
pub fn case(beginnings: &[Honest], seed: u64, number: usize) -> Result<Case> {
    let mut dice = Dice::new(seed ^ (number as u64).wrapping_mul(0x9e37_79b9));
    let of = dice.below(beginnings.len());
    let act: Act = ACTS[number % ACTS.len()];
    let untouched = &beginnings[of].lines;
    let mut changed = lines::read(untouched)?;
    let done = change(act, &mut changed, &mut dice)?;
    let lines = lines::write(&changed);
    ensure!(&lines != untouched, "case {number} of {} changed nothing", act.name());
    Ok(Case { done, lines, of })
}

/// What came of all cases.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// By what was done: how many, and how many were found with their place.
    pub acts: BTreeMap<&'static str, (u64, u64)>,
    /// Those that were not.
    pub missed: Vec<String>,
}

/// Runs cases, and tells each to `each`.
pub fn run(
    count: usize,
    seed: u64,
    mut each: impl FnMut(usize, &Case, &Honest, &Report) -> Result<()>,
) -> Result<Tally> {
    let beginnings = beginnings(seed)?;
    let mut tally = Tally::default();
    for number in 0..count {
        let case = case(&beginnings, seed, number)?;
        let honest = beginnings.get(case.of).context("no such beginning")?;
        let report = verify(&case.lines, &honest.trust, honest.manifest.scope, honest.manifest.made_us)?;
        let named = names(&report, &case.done);
        let of_act = tally.acts.entry(case.done.act.name()).or_default();
        of_act.0 += 1;
        of_act.1 += u64::from(named);
        if !named {
            tally.missed.push(format!(
                "case {number} of seed {seed}: {:?}: {:?}",
                case.done,
                places(&report)
            ));
        }
        each(number, &case, honest, &report)?;
    }
    Ok(tally)
}
