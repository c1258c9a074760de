//! Untouched logs as agents and a collector make them: keys of each epoch, batches with their checkpoints, cosigned; idle
//! checkpoints between them; and what an auditor holds of them.

mod telling;

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine};
use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::export::{MANIFEST, Manifest, VERSION, write};
use weir_core::evidence::key::{SigningKey, VerifyingKey};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::rotation::Rotation;
use weir_core::evidence::tombstone;
use weir_core::evidence::verify::{
    Item, Pin, Scope, StoredBatch, StoredCheckpoint, StoredEvent, StoredKey, Tombstone, Trust,
};
use weir_core::evidence::{Hash, TreeState, leaf_hash};
use weir_core::ids::{Boot, Origin};

pub use telling::{Told, telling};

use crate::dice::Dice;

/// The name of the witness.
pub const WITNESS: &str = "collector.example/witness";
/// When the first event was written: 22 November 2026.
const BEGAN_US: u64 = 1_795_300_000_000_000;
/// Microseconds between two heartbeats.
const HEARTBEAT_US: u64 = 60_000_000;

/// An export's contents, and who may believe them.
#[derive(Debug, Clone)]
pub struct Honest {
    pub manifest: Manifest,
    /// The lines of its logs.
    pub lines: Vec<u8>,
    pub trust: Trust,
}

/// How large the logs are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub logs: usize,
    pub batches: usize,
    pub events: usize,
}

impl Size {
    /// Small enough for thousands of cases.
    pub const SMALL: Self = Self { logs: 3, batches: 4, events: 12 };
}

/// Makes logs: the first of one epoch, the second with a changed key, the third with events from before there were trees and
/// some that a policy retired; and so on.
pub fn make(seed: u64, size: Size) -> Result<Honest> {
    let mut dice = Dice::new(seed);
    let witness = SigningKey::from_seed(&dice.bytes());
    let mut logs = Vec::new();
    for at in 0..size.logs {
        logs.push(Maker::new(&mut dice, &witness, at)?.run(&mut dice, size, at)?);
    }
    together(logs, &witness)
}

/// Logs, as one export and what is believed of it.
fn together(mut logs: Vec<Made>, witness: &SigningKey) -> Result<Honest> {
    logs.sort_by(|a, b| a.origin.cmp(&b.origin));
    let (mut lines, mut pins, mut until) = (Vec::new(), Vec::new(), 0);
    for log in logs {
        lines.extend_from_slice(&log.out);
        until = until.max(log.alive_us);
        pins.push(log.pin);
    }
    let trust = Trust { v: 1, witnesses: vec![witness.cosigning(WITNESS)?], heartbeat_s: 60, logs: pins };
    let made_us = i64::try_from(until)? + 1_000_000;
    let manifest = Manifest { weir_export: VERSION, scope: Scope::All, of: String::new(), made_us };
    Ok(Honest { manifest, lines, trust })
}

struct Maker<'w> {
    witness: &'w SigningKey,
    origin: Origin,
    boot: Boot,
    name: LogName,
    key: SigningKey,
    tree: TreeState,
    seq: u64,
    time_us: u64,
    out: Vec<u8>,
    pin: Pin,
}

struct Made {
    origin: Origin,
    out: Vec<u8>,
    pin: Pin,
    /// When a log that goes on was last heard of.
    alive_us: u64,
}

/// What stands behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    More,
    Stopped,
    /// Heartbeats that are not sent yet.
    Idle,
}

impl<'w> Maker<'w> {
    fn new(dice: &mut Dice, witness: &'w SigningKey, at: usize) -> Result<Self> {
        let origin = Origin::from_random(dice.bytes());
        let name =
            LogName { tenant: "demo".into(), host: format!("runner-{at}"), origin: origin.clone(), epoch: 1 };
        let key = SigningKey::from_seed(&dice.bytes());
        let pinned: VerifyingKey = key.verifying(&name.to_string())?;
        Ok(Self {
            witness,
            boot: Boot::from_random(dice.bytes()),
            tree: TreeState::begin(1, 0),
            seq: 0,
            time_us: BEGAN_US,
            out: Vec::new(),
            pin: Pin { key: pinned, first_seq: 0, stored: None, witnessed: None, also: Vec::new() },
            origin,
            name,
            key,
        })
    }

    fn run(mut self, dice: &mut Dice, size: Size, at: usize) -> Result<Made> {
        let rotates = at % 3 == 1;
        let retires = at % 3 == 2;
        let mut keys = vec![self.stored_key("")?];
        if retires {
            self.before_trees(4);
            self.pin.first_seq = self.seq;
            self.tree = TreeState::begin(1, self.seq);
            keys = vec![self.stored_key("")?];
        }
        let mut stones = Vec::new();
        for batch in 0..size.batches {
            let turns = rotates && batch + 1 == size.batches / 2;
            let next = turns.then(|| SigningKey::from_seed(&dice.bytes()));
            let retired = retires && batch == 1;
            let end = match (batch + 1 == size.batches, at) {
                (false, _) => End::More,
                (true, 0) => End::Idle,
                (true, _) => End::Stopped,
            };
            let (first, last) = self.batch(dice, size.events, next.as_ref(), retired, end)?;
            if retired {
                stones.push(self.tombstone(first, last)?);
            }
            if let Some(next) = next {
                let rotation = Rotation::next(self.name.at_epoch(self.tree.epoch), self.seq, &next)?;
                let note = rotation.signed(&self.key, &next)?.to_string();
                self.tree = TreeState::begin(self.tree.epoch + 1, self.seq);
                self.key = next;
                keys.push(self.stored_key(&note)?);
            }
        }
        let alive_us = if at == 0 { self.time_us } else { 0 };
        Ok(self.made(keys, stones, alive_us))
    }

    /// The whole log: its keys and tombstones stand before all else.
    fn made(self, keys: Vec<StoredKey>, stones: Vec<Tombstone>, alive_us: u64) -> Made {
        let mut out = Vec::new();
        write(&Item::Log { origin: self.origin.clone() }, &mut out);
        for key in keys {
            write(&Item::Key(key), &mut out);
        }
        for stone in stones {
            write(&Item::Tombstone(stone), &mut out);
        }
        out.extend_from_slice(&self.out);
        Made { origin: self.origin, out, pin: self.pin, alive_us }
    }

    fn stored_key(&self, rotation: &str) -> Result<StoredKey> {
        let name = self.name.at_epoch(self.tree.epoch).to_string();
        Ok(StoredKey {
            epoch: self.tree.epoch,
            first_seq: self.tree.first_seq,
            key: self.key.verifying(&name)?.to_string(),
            rotation: rotation.to_owned(),
        })
    }

    fn event(&mut self, name: &str, text: &str) -> Vec<u8> {
        self.said(name, &format!("{{\"text\":\"{text}\"}}"))
    }

    /// An agent's event with this detail, an object with sorted names.
    fn said(&mut self, name: &str, detail: &str) -> Vec<u8> {
        let Self { origin, boot, seq, time_us, name: log, .. } = self;
        let host = &log.host;
        let bytes = format!(
            "{{\"body\":{{\"detail\":{detail},\"kind\":\"agent\",\"name\":\"{name}\"}},\"boot\":\"{boot}\",\
             \"host\":\"{host}\",\"origin\":\"{origin}\",\"seq\":{seq},\"tenant\":\"demo\",\"time_us\":{time_us},\"v\":1}}"
        );
        self.seq += 1;
        bytes.into_bytes()
    }

    /// Events of epoch 0.
    fn before_trees(&mut self, count: usize) {
        for _ in 0..count {
            let (seq, canonical) = (self.seq, self.event("agent.note", "of an older version"));
            let event =
                StoredEvent { epoch: 0, seq, canonical: &canonical, leaf_hash: leaf_hash(&canonical) };
            write(&Item::Event(event), &mut self.out);
            self.time_us += 1_000_000;
        }
    }

    /// A batch, the checkpoints in it, and behind some of them an idle one.
    fn batch(
        &mut self,
        dice: &mut Dice,
        events: usize,
        turns: Option<&SigningKey>,
        retired: bool,
        end: End,
    ) -> Result<(u64, u64)> {
        let before = self.tree.clone();
        let first_seq = self.seq;
        let (mut rows, mut leaves): (Vec<Vec<u8>>, Vec<Hash>) = (Vec::new(), Vec::new());
        for at in 0..events {
            let calm = dice.below(8) == 0;
            self.time_us += if calm { HEARTBEAT_US } else { 1 + dice.roll() % 5_000_000 };
            let name = match (at + 1 == events, turns.is_some(), end) {
                (true, true, _) => "key.rotated",
                (true, _, End::Stopped) => "agent.stopped",
                _ if calm => "heartbeat",
                _ => "agent.note",
            };
            let canonical = self.event(name, &format!("{:x}", dice.roll()));
            leaves.push(self.tree.push(&canonical));
            rows.push(canonical);
            if calm && at + 1 < events {
                self.checkpoint(true)?;
            }
        }
        self.seal(&before, first_seq, &leaves, if retired { &[] } else { &rows })?;
        if end == End::Idle {
            // The agent lives on, and its heartbeats were witnessed and not sent.
            self.time_us += HEARTBEAT_US;
            let canonical = self.event("heartbeat", "");
            self.tree.push(&canonical);
            self.checkpoint(true)?;
            self.pin.witnessed =
                Some(Checkpoint::of(&self.name, &self.tree, self.time_us).signed(&self.key)?.to_string());
            self.seq -= 1;
        }
        Ok((first_seq, self.seq - 1))
    }

    /// A batch of these leaves, with the events that are still there of it.
    fn seal(&mut self, before: &TreeState, first_seq: u64, leaves: &[Hash], rows: &[Vec<u8>]) -> Result<()> {
        let note = Checkpoint::of(&self.name, &self.tree, self.time_us).signed(&self.key)?;
        self.checkpoint(false)?;
        let base64 = |hashes: &[Hash]| BASE64_STANDARD.encode(hashes.concat());
        let batch = StoredBatch {
            epoch: self.tree.epoch,
            epoch_first_seq: self.tree.first_seq,
            first_seq,
            last_seq: self.seq - 1,
            size: self.tree.frontier.size(),
            root: base64(&[self.tree.frontier.root()]),
            frontier: base64(before.frontier.nodes()),
            leaves: base64(leaves),
            note: note.to_string(),
            only: None,
        };
        write(&Item::Batch(batch), &mut self.out);
        for (seq, (canonical, leaf)) in (first_seq..).zip(rows.iter().zip(leaves)) {
            let event = StoredEvent { epoch: self.tree.epoch, seq, canonical, leaf_hash: *leaf };
            write(&Item::Event(event), &mut self.out);
        }
        self.pin.stored = Some(note.to_string());
        Ok(())
    }

    /// A checkpoint of the tree as it is, cosigned.
    fn checkpoint(&mut self, idle: bool) -> Result<()> {
        let checkpoint = Checkpoint::of(&self.name, &self.tree, self.time_us);
        let mut note: SignedNote = checkpoint.signed(&self.key)?;
        note.cosign(self.witness, WITNESS, self.time_us / 1_000_000 + 1)?;
        let stored = StoredCheckpoint {
            epoch: self.tree.epoch,
            first_seq: self.tree.first_seq,
            size: checkpoint.size,
            root: BASE64_STANDARD.encode(checkpoint.root),
            idle,
            note: note.to_string(),
        };
        write(&Item::Checkpoint(stored), &mut self.out);
        Ok(())
    }

    fn tombstone(&self, first_seq: u64, last_seq: u64) -> Result<Tombstone> {
        let policy = "keep-90-days".to_owned();
        let stone = tombstone::Tombstone {
            log: self.name.at_epoch(self.tree.epoch),
            first_seq,
            last_seq,
            policy: policy.clone(),
            time_us: self.time_us,
        };
        let note = stone.signed(self.witness, WITNESS)?.to_string();
        Ok(Tombstone { epoch: self.tree.epoch, first_seq, last_seq, policy, note })
    }
}

/// Writes an export as a tar file: the manifest, then its lines.
pub fn tar(manifest: &Manifest, lines: &[u8], to: impl std::io::Write) -> Result<()> {
    let mut tar = tar::Builder::new(to);
    for (name, bytes) in [(MANIFEST, &*serde_json::to_vec(manifest)?), ("log/000001", lines)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes)?;
    }
    Ok(tar.into_inner()?.flush()?)
}
