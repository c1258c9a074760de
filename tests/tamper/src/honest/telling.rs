//! Logs that nobody has touched and that tell themselves what somebody must look at: numbers that a host lost, and clocks that were
//! set. Out goes an export, and what each verifier must find in it.

use anyhow::Result;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::{Hash, TreeState};

use super::{Honest, Made, Maker, together};
use crate::dice::Dice;

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3600 * SECOND_US;
/// How many events a log has lost.
const LOST: u64 = 4;

/// An export, and the findings that it must have: each a kind, the log's origin, an epoch, the first and last number, and what it
/// is about.
pub struct Told {
    pub honest: Honest,
    pub findings: Vec<(&'static str, String, u32, u64, u64, &'static str)>,
}

/// Three logs: one of which a host lost events, and said so; the same without a word; one of which the clock was set forth and
/// back with the agent's word, and back without it, and which was silent once.
pub fn telling(seed: u64) -> Result<Told> {
    let mut dice = Dice::new(seed);
    let witness = SigningKey::from_seed(&dice.bytes());
    let (mut logs, mut findings) = (Vec::new(), Vec::new());
    for (at, kind) in [(0, "gap"), (1, "deleted")] {
        let (log, first, last) = Maker::new(&mut dice, &witness, at)?.loses(&mut dice, kind == "gap")?;
        findings.push((kind, log.origin.to_string(), 2, first, last, "log"));
        logs.push(log);
    }
    let log = Maker::new(&mut dice, &witness, 2)?.sets_its_clock(&mut dice)?;
    for (kind, first, last) in
        [("clock_step", 3, 3), ("clock_step", 6, 6), ("clock_step", 8, 8), ("silence", 9, 10)]
    {
        findings.push((kind, log.origin.to_string(), 1, first, last, "time"));
    }
    logs.push(log);
    Ok(Told { honest: together(logs, &witness)?, findings })
}

impl Maker<'_> {
    /// These events as one batch: of each its name, its detail, and how long after the one before it.
    fn batch_of(&mut self, events: &[(&str, String, i64)]) -> Result<()> {
        let (before, first_seq) = (self.tree.clone(), self.seq);
        let (mut rows, mut leaves): (Vec<Vec<u8>>, Vec<Hash>) = (Vec::new(), Vec::new());
        for (name, detail, later_us) in events {
            self.time_us = self.time_us.saturating_add_signed(*later_us);
            let canonical = self.said(name, detail);
            leaves.push(self.tree.push(&canonical));
            rows.push(canonical);
        }
        self.seal(&before, first_seq, &leaves, &rows)
    }

    /// An epoch; then one with the same key, some numbers further on, as a host begins it that lost its last segment.
    fn loses(mut self, dice: &mut Dice, tells: bool) -> Result<(Made, u64, u64)> {
        let note = |dice: &mut Dice| ("agent.note", detail(dice), SECOND_US);
        let mut keys = vec![self.stored_key("")?];
        self.batch_of(&[note(dice), note(dice), note(dice)])?;
        let (first, last) = (self.seq, self.seq + LOST - 1);
        self.seq += LOST;
        self.tree = TreeState::begin(2, self.seq);
        keys.push(self.stored_key("")?);
        let begun = format!("{{\"epoch\":\"2\",\"first_seq\":\"{}\",\"reason\":\"lost\"}}", self.seq);
        let begun = if tells { ("log.epoch_begun", begun, SECOND_US) } else { note(dice) };
        self.batch_of(&[begun, note(dice), ("agent.stopped", detail(dice), SECOND_US)])?;
        Ok((self.made(keys, Vec::new(), 0), first, last))
    }

    /// The clock is set in each way.
    fn sets_its_clock(mut self, dice: &mut Dice) -> Result<Made> {
        let keys = vec![self.stored_key("")?];
        let note = |dice: &mut Dice, later_us: i64| ("agent.note", detail(dice), later_us);
        let step = |by_us: i64| {
            ("clock.step", format!("{{\"step_us\":\"{by_us}\",\"wall_us\":\"1\"}}"), by_us + SECOND_US)
        };
        // An hour forth and an hour back, as the agent saw: each is told once, and is no silence.
        self.batch_of(&[note(dice, 0), note(dice, SECOND_US), note(dice, SECOND_US), step(HOUR_US)])?;
        self.batch_of(&[
            note(dice, SECOND_US),
            note(dice, SECOND_US),
            step(-HOUR_US),
            note(dice, SECOND_US),
        ])?;
        // Back without a word; then no heartbeat for an hour.
        self.batch_of(&[
            note(dice, -HOUR_US),
            note(dice, SECOND_US),
            note(dice, HOUR_US),
            ("agent.stopped", detail(dice), SECOND_US),
        ])?;
        Ok(self.made(keys, Vec::new(), 0))
    }
}

fn detail(dice: &mut Dice) -> String {
    format!("{{\"text\":\"{:x}\"}}", dice.roll())
}
