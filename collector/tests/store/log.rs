//! A log with a tree and a key, as an agent keeps it: sealed segments, checkpoints of an idle log, keys to enrol.

use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::rotation::Rotation;
use weir_core::evidence::{TreeState, leaf_hash};
use weir_core::ids::{Origin, hex};
use weir_core::record::{Body, CallResult};
use weir_core::segment::{FrameKind, Reader, header, push_frame};
use weir_core::wire::{CheckpointPost, EnrolRequest};

use crate::records::{TIME_US, Text, event, outcome};

/// A copy of it that goes on otherwise is a fork.
#[derive(Clone)]
pub struct Log {
    pub name: LogName,
    pub key: SigningKey,
    pub tree: TreeState,
    /// By the host's clock, of the last checkpoint.
    pub time_us: u64,
    rotation: Option<String>,
    /// The tree with the last segment, and the leaves behind it.
    shipped: TreeState,
    open: Vec<Vec<u8>>,
}

impl Log {
    /// A new log of the host that [`event`] tells of.
    pub fn new(n: u8) -> Self {
        let origin = Origin::from_random([n; 16]);
        let name = LogName { tenant: "demo".into(), host: "runner-1".into(), origin, epoch: 1 };
        Self {
            name,
            key: SigningKey::from_seed(&[n; 32]),
            tree: TreeState::begin(1, 0),
            time_us: TIME_US,
            rotation: None,
            shipped: TreeState::begin(1, 0),
            open: Vec::new(),
        }
    }

    pub fn origin(&self) -> &Origin {
        &self.name.origin
    }

    /// What makes its key known.
    pub fn enrolment(&self) -> Vec<u8> {
        let request = EnrolRequest {
            key: self.key.verifying(&self.name.to_string()).expect("a name"),
            first_seq: self.tree.first_seq,
            rotation: self.rotation.clone(),
        };
        serde_json::to_vec(&request).expect("JSON")
    }

    /// Begins another epoch, where the log is.
    pub fn begin_epoch(&mut self, new: Option<SigningKey>) {
        let first_seq = self.tree.next_seq();
        self.rotation = new.as_ref().map(|new| {
            let rotation = Rotation::next(self.name.clone(), first_seq, new).expect("an epoch");
            rotation.signed(&self.key, new).expect("a note").to_string()
        });
        self.name.epoch += 1;
        self.key = new.unwrap_or_else(|| self.key.clone());
        self.tree = TreeState::begin(self.name.epoch, first_seq);
        self.shipped = self.tree.clone();
        self.open.clear();
    }

    /// So many outcomes of this call, sealed.
    pub fn outcomes(&mut self, call: u8, events: u64) -> Vec<u8> {
        self.sealed((0..events).map(|_| outcome(call, CallResult::Ok)).collect())
    }

    /// These events, sealed.
    pub fn sealed(&mut self, bodies: Vec<Body<Text>>) -> Vec<u8> {
        let first_seq = self.tree.next_seq();
        let event = |(seq, body)| event(&self.name.origin, seq, body).canonical().expect("canonical bytes");
        let leaves = (first_seq..).zip(bodies).map(event).collect();
        self.sealed_bytes(leaves)
    }

    /// Leaves of any bytes, sealed with those that were idle before them.
    pub fn sealed_bytes(&mut self, leaves: Vec<Vec<u8>>) -> Vec<u8> {
        let first_seq = self.shipped.next_seq();
        let mut out = header(first_seq).to_vec();
        push_frame(&mut out, FrameKind::Tree, first_seq, &self.shipped.to_bytes());
        push_frame(&mut out, FrameKind::Carry, first_seq, b"carried");
        for leaf in &leaves {
            self.tree.push(leaf);
        }
        let leaves = std::mem::take(&mut self.open).into_iter().chain(leaves);
        for (seq, leaf) in (first_seq..).zip(leaves) {
            push_frame(&mut out, FrameKind::Event, seq, &leaf);
        }
        push_frame(&mut out, FrameKind::Checkpoint, self.tree.next_seq(), self.checkpoint().as_bytes());
        self.shipped = self.tree.clone();
        out
    }

    /// The tree as it is now, signed.
    pub fn checkpoint(&mut self) -> String {
        self.time_us += 1_000_000;
        let checkpoint = Checkpoint::of(&self.name, &self.tree, self.time_us);
        checkpoint.signed(&self.key).expect("a note").to_string()
    }

    /// A heartbeat of this text is written into the open segment, and the checkpoint posted.
    pub fn idle(&mut self, text: &str) -> Vec<u8> {
        self.tree.push(text.as_bytes());
        self.open.push(text.as_bytes().to_vec());
        self.idle_without_leaf()
    }

    /// The checkpoint of the tree as it is, posted without a new leaf.
    pub fn idle_without_leaf(&mut self) -> Vec<u8> {
        let leaves = self.open.iter().map(|leaf| hex(&leaf_hash(leaf))).collect();
        let post = CheckpointPost { note: self.checkpoint(), first_seq: self.shipped.next_seq(), leaves };
        serde_json::to_vec(&post).expect("JSON")
    }

    /// As a host that was set back to before it was idle.
    pub fn forget_idle(&mut self) {
        self.open.clear();
        self.tree = self.shipped.clone();
    }
}

/// A sealed segment with another note at its end.
pub fn with_last_note(segment: &[u8], note: &str) -> Vec<u8> {
    let mut reader = Reader::new(segment).expect("a segment");
    let mut end = reader.offset();
    let mut next = reader.next_seq();
    while let Some(frame) = reader.next() {
        if frame.expect("a frame").kind != FrameKind::Checkpoint {
            (end, next) = (reader.offset(), reader.next_seq());
        }
    }
    let mut out = segment[..end].to_vec();
    push_frame(&mut out, FrameKind::Checkpoint, next, note.as_bytes());
    out
}
