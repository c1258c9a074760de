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
pub const BEGINNINGS: u64 = 16;

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

/// Untouched exports, always the same.
pub fn beginnings() -> Result<Vec<Honest>> {
    (0..BEGINNINGS).map(|at| make(at, Size::SMALL)).collect()
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

/// Makes the case of a seed. Neighbouring seeds do different things.
pub fn case(beginnings: &[Honest], seed: u64) -> Result<Case> {
    let mut dice = Dice::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let of = dice.below(beginnings.len());
    let act: Act =
        usize::try_from(seed).ok().and_then(|seed| ACTS.get(seed % ACTS.len())).copied().context("no act")?;
    let untouched = &beginnings.get(of).context("no such beginning")?.lines;
    let mut changed = lines::read(untouched)?;
    let done = change(act, &mut changed, &mut dice)?;
    let lines = lines::write(&changed);
    ensure!(&lines != untouched, "seed {seed}: {} changed nothing", act.name());
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

impl Tally {
    /// Makes the case of a seed, and verifies it.
    pub fn run(&mut self, beginnings: &[Honest], seed: u64) -> Result<(Case, Report)> {
        let case = case(beginnings, seed)?;
        let honest = beginnings.get(case.of).context("no such beginning")?;
        let report = verify(&case.lines, &honest.trust, honest.manifest.scope, honest.manifest.made_us)?;
        let named = names(&report, &case.done);
        let of_act = self.acts.entry(case.done.act.name()).or_default();
        of_act.0 += 1;
        of_act.1 += u64::from(named);
        if !named {
            self.missed.push(format!("seed {seed}: {:?}: {:?}", case.done, places(&report)));
        }
        Ok((case, report))
    }
}
