//! A segment's bytes come in, a [`Segment`] goes out: whole frames, dense, of one log, and the checkpoints those of the leaves.
//! Whether the right key signed them, and what else is known of the log, is judged behind.

use std::sync::Arc;

use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::{Hash, TreeState, leaf_hash};
use weir_core::ids::Origin;
use weir_core::record::Stored;
use weir_core::segment::{Frame, FrameKind, MAX_EVENTS, Reader, batch_digest};
use weir_core::wire::{Reason, Refusal};

use crate::agent::Agent;
use crate::ingest::refusal;
use crate::rows::{Batch, EventRow, Place};
use crate::witness::judge::{Fault, FaultReason, Run};

/// The most checkpoints of one segment: one each second of the longest that a segment may stay open.
const MAX_CHECKPOINTS: usize = 4096;

/// A segment, read and found whole.
pub(super) struct Segment {
    pub origin: Origin,
    pub epoch: u32,
    pub first_seq: u64,
    pub last_seq: u64,
    pub digest: String,
    pub rows: Vec<EventRow>,
    /// Of an epoch from 1 on.
    pub proof: Option<Proof>,
}

/// What a segment brings to prove itself.
pub(super) struct Proof {
    pub run: Run,
    /// All its checkpoints; the last is over all events.
    pub notes: Arc<[SignedNote]>,
    /// What is wrong with their roots; told once it is known who signed them.
    pub fault: Option<Fault>,
}

impl Proof {
    /// The last checkpoint as it was signed.
    pub fn note(&self) -> Option<&SignedNote> {
        self.notes.last()
    }
}

fn malformed(message: impl Into<String>) -> Refusal {
    refusal(Reason::Malformed, message)
}

/// What stands in a segment, before any of it is understood.
struct Frames<'s> {
    first_seq: u64,
    tree: Option<TreeState>,
    events: Vec<&'s [u8]>,
    /// And how many events stood before each.
    notes: Vec<(usize, SignedNote)>,
}

impl<'s> Frames<'s> {
    fn read(bytes: &'s [u8]) -> Result<Self, Refusal> {
        let mut reader = Reader::new(bytes).map_err(|e| malformed(e.to_string()))?;
        let first_seq = reader.first_seq();
        let mut frames = Self { first_seq, tree: None, events: Vec::new(), notes: Vec::new() };
        for (at, frame) in reader.by_ref().enumerate() {
            frames.take(at, frame.map_err(|e| malformed(e.to_string()))?)?;
        }
        if frames.events.is_empty() {
            return Err(malformed("the segment holds no event"));
        }
        if frames.tree.is_some() && frames.notes.last().is_none_or(|(at, _)| *at != frames.events.len()) {
            return Err(malformed("the segment is not sealed: no checkpoint is over all of its events"));
        }
        Ok(frames)
    }

    fn take(&mut self, at: usize, frame: Frame<'s>) -> Result<(), Refusal> {
        match frame.kind {
            FrameKind::Tree if at == 0 => {
                let tree = TreeState::read(frame.bytes).map_err(|e| malformed(e.to_string()))?;
                if tree.next_seq() != self.first_seq {
                    return Err(malformed("the segment's tree ends at another place than it begins at"));
                }
                self.tree = Some(tree);
            }
            FrameKind::Tree => return Err(malformed("the segment's tree is not its first frame")),
            FrameKind::Carry => {}
            FrameKind::Event if self.events.len() as u64 == MAX_EVENTS => {
                return Err(malformed(format!("the segment has more than {MAX_EVENTS} events")));
            }
            FrameKind::Event => self.events.push(frame.bytes),
            FrameKind::Checkpoint => {
                if self.tree.is_none() {
                    return Err(malformed("the segment has a checkpoint, and no tree before it"));
                }
                if self.notes.len() == MAX_CHECKPOINTS {
                    return Err(malformed(format!(
                        "the segment has more than {MAX_CHECKPOINTS} checkpoints"
                    )));
                }
                let note = std::str::from_utf8(frame.bytes).ok().map(str::parse::<SignedNote>);
                let note =
                    note.and_then(Result::ok).ok_or_else(|| malformed("a checkpoint is no signed note"))?;
                self.notes.push((self.events.len(), note));
            }
        }
        Ok(())
    }

    fn last_seq(&self) -> u64 {
        self.first_seq.saturating_add(self.events.len() as u64).saturating_sub(1)
    }
}

/// Reads a segment front to back.
pub(super) fn read(bytes: &[u8], agent: &Agent, now_us: i64) -> Result<Segment, Refusal> {
    let mut frames = Frames::read(bytes)?;
    match frames.tree.take() {
        Some(tree) => with_tree(&frames, tree, agent, now_us),
        None => without_tree(&frames, agent, now_us),
    }
}

fn batch_of(frames: &Frames<'_>, epoch: u32, sealed_us: u64, agent: &Agent, now_us: i64) -> Batch {
    Batch {
        epoch,
        first_seq: frames.first_seq,
        digest: batch_digest(frames.events.iter().copied()),
        sealed_us,
        agent_uid: agent.uid(),
        agent_identity: agent.identity(),
        ingested_us: now_us,
    }
}

/// Any leaf is taken: what is no event of this place is kept as it is.
fn with_tree(frames: &Frames<'_>, tree: TreeState, agent: &Agent, now_us: i64) -> Result<Segment, Refusal> {
    let mut checkpoints = Vec::with_capacity(frames.notes.len());
    for (at, note) in &frames.notes {
        let checkpoint = Checkpoint::read(note).map_err(|e| malformed(e.to_string()))?;
        checkpoints.push((*at, checkpoint));
    }
    let Some((_, last)) = checkpoints.last().cloned() else {
        return Err(malformed("the segment has no checkpoint"));
    };
    agent.speaks_for(&last.log.tenant, &last.log.host)?;
    let leaves: Vec<Hash> = frames.events.iter().map(|event| leaf_hash(event)).collect();
    let fault = wrong_root(&tree, &leaves, &checkpoints, &last.log);
    let batch = batch_of(frames, tree.epoch, last.time_us, agent, now_us);
    let rows = (frames.first_seq..).zip(frames.events.iter().zip(&leaves));
    let rows = rows.map(|(seq, (event, leaf))| row(&last.log, seq, event, leaf, &batch));
    let rows = rows.collect();
    Ok(Segment {
        origin: last.log.origin.clone(),
        epoch: tree.epoch,
        first_seq: frames.first_seq,
        last_seq: frames.last_seq(),
        rows,
        proof: Some(Proof {
            run: Run { before: tree.frontier, leaves, checkpoint: last },
            notes: frames.notes.iter().map(|(_, note)| note.clone()).collect(),
            fault,
        }),
        digest: batch.digest,
    })
}

/// Whether each checkpoint is of this log, this epoch and the leaves before it.
fn wrong_root(
    tree: &TreeState,
    leaves: &[Hash],
    checkpoints: &[(usize, Checkpoint)],
    log: &LogName,
) -> Option<Fault> {
    let mut now = tree.frontier.clone();
    let mut leaves = leaves.iter();
    let mut taken = 0;
    for (at, checkpoint) in checkpoints {
        for leaf in leaves.by_ref().take(at - taken) {
            now.push(*leaf);
        }
        taken = *at;
        let wrong = if (&checkpoint.log, checkpoint.log.epoch) != (log, tree.epoch) {
            "is of another log"
        } else if checkpoint.first_seq != tree.first_seq {
            "begins at another number than the tree"
        } else if (checkpoint.size, checkpoint.root) != (now.size(), now.root()) {
            "is not that of the leaves before it"
        } else {
            continue;
        };
        let detail = format!("the checkpoint behind {} leaves {wrong}", now.size());
        return Some(Fault::new(FaultReason::BadRoot, detail));
    }
    None
}

fn row(log: &LogName, seq: u64, bytes: &[u8], leaf: &Hash, batch: &Batch) -> EventRow {
    let wrong = match Stored::read(bytes) {
        Err(error) => error.to_string(),
        Ok(event) if event.seq != seq => format!("it says that it is {}", event.seq),
        Ok(event) if event.origin != log.origin => "it says that it is of another log".to_owned(),
        Ok(event) if (&event.tenant, &event.host) != (&log.tenant, &log.host) => {
            "it says that it is of another host".to_owned()
        }
        Ok(event) => return EventRow::with_leaf(event, bytes.to_vec(), *leaf, batch),
    };
    let place =
        Place { tenant: log.tenant.clone(), host: log.host.clone(), origin: log.origin.to_string(), seq };
    EventRow::opaque(&place, bytes.to_vec(), crate::visible::line(&wrong), batch)
}

/// What was written before there were trees: nothing proves it, so each event must be one of its place.
fn without_tree(frames: &Frames<'_>, agent: &Agent, now_us: i64) -> Result<Segment, Refusal> {
    let batch = batch_of(frames, 0, now_us.unsigned_abs(), agent, now_us);
    let mut origin: Option<Origin> = None;
    let mut rows = Vec::with_capacity(frames.events.len());
    for (at, bytes) in (frames.first_seq..).zip(&frames.events) {
        let event = Stored::read(bytes).map_err(|e| malformed(format!("event {at}: {e}")))?;
        if event.seq != at {
            return Err(malformed(format!("the event in the place of {at} says that it is {}", event.seq)));
        }
        if origin.get_or_insert_with(|| event.origin.clone()) != &event.origin {
            return Err(malformed(format!("event {at} is of another log than the first")));
        }
        agent.speaks_for(&event.tenant, &event.host)?;
        rows.push(EventRow::of(event, bytes.to_vec(), &batch));
    }
    let Some(origin) = origin else { return Err(malformed("the segment holds no event")) };
    Ok(Segment {
        origin,
        epoch: 0,
        first_seq: frames.first_seq,
        last_seq: frames.last_seq(),
        digest: batch.digest,
        rows,
        proof: None,
    })
}

#[cfg(test)]
mod tests {
    use weir_core::evidence::key::SigningKey;
    use weir_core::segment::{header, push_frame};

    use super::*;

    fn log() -> LogName {
        LogName { tenant: "t".into(), host: "h".into(), origin: Origin::from_random([1; 16]), epoch: 1 }
    }

    /// A sealed segment of two leaves, with so many checkpoints.
    fn segment(checkpoints: usize) -> Vec<u8> {
        let mut tree = TreeState::begin(1, 5);
        let mut out = header(5).to_vec();
        push_frame(&mut out, FrameKind::Tree, 5, &tree.to_bytes());
        for (seq, leaf) in (5..).zip([b"one", b"two"]) {
            tree.push(leaf);
            push_frame(&mut out, FrameKind::Event, seq, leaf);
        }
        let note = Checkpoint::of(&log(), &tree, 1).signed(&SigningKey::from_seed(&[1; 32])).unwrap();
        for _ in 0..checkpoints {
            push_frame(&mut out, FrameKind::Checkpoint, 7, note.to_string().as_bytes());
        }
        out
    }

    fn reason(bytes: &[u8]) -> Option<Reason> {
        read(bytes, &Agent::Local { uid: 0 }, 1).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn a_segment_has_checkpoints_up_to_a_limit_and_one_at_its_end() {
        let whole = read(&segment(1), &Agent::Local { uid: 0 }, 1).ok().unwrap();
        assert!(whole.proof.is_some_and(|proof| proof.fault.is_none() && proof.run.is_whole().is_ok()));
        assert!(whole.rows.iter().all(|row| !row.parse_error.is_empty()), "any leaf is taken");
        assert_eq!(reason(&segment(MAX_CHECKPOINTS)), None);
        for bad in [segment(0), segment(MAX_CHECKPOINTS + 1)] {
            assert_eq!(reason(&bad), Some(Reason::Malformed));
        }
    }

    #[test]
    fn a_checkpoint_of_other_leaves_is_a_fault_for_whoever_signed_it() {
        let mut forged = segment(0);
        let checkpoint = Checkpoint { log: log(), size: 2, root: [7; 32], first_seq: 5, time_us: 1 };
        let note = checkpoint.signed(&SigningKey::from_seed(&[1; 32])).unwrap();
        push_frame(&mut forged, FrameKind::Checkpoint, 7, note.to_string().as_bytes());
        let read = read(&forged, &Agent::Local { uid: 0 }, 1).ok().unwrap();
        let fault = read.proof.and_then(|proof| proof.fault);
        assert_eq!(fault.map(|fault| fault.reason), Some(FaultReason::BadRoot));
    }
}
