//! A sealed segment as it is shipped: its bytes come in, and what its acknowledgement must say, and whose key must be known
//! before it, goes out. It judges nothing: what is damaged does not read.

use weir_core::evidence::TreeState;
use weir_core::evidence::note::SignedNote;
use weir_core::segment::{FrameKind, Reader, SegmentError, batch_digest};

use crate::ledger::{Carry, SignedEpoch};

/// See the module.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) last_seq: u64,
    pub(super) digest: String,
    /// None in version 1, which has no trees.
    pub(super) epoch: Option<SignedEpoch>,
    /// The last checkpoint.
    pub(super) checkpoint: Option<SignedNote>,
}

impl Sealed {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, SegmentError> {
        let mut reader = Reader::new(bytes)?;
        let (mut events, mut tree, mut carry, mut checkpoint) = (Vec::new(), None, None, None);
        for frame in reader.by_ref() {
            let frame = frame?;
            match frame.kind {
                FrameKind::Event => events.push(frame.bytes),
                FrameKind::Tree => tree = TreeState::read(frame.bytes).ok(),
                FrameKind::Carry => carry = Carry::read(frame.bytes).ok(),
                FrameKind::Checkpoint => {
                    checkpoint = std::str::from_utf8(frame.bytes).ok().and_then(|note| note.parse().ok());
                }
            }
        }
        let epoch = tree.zip(carry).and_then(|(tree, carry)| {
            let Carry { key, rotation, .. } = carry;
            Some(SignedEpoch { number: tree.epoch, first_seq: tree.first_seq, key: key?, rotation })
        });
        let last_seq = reader.next_seq().saturating_sub(1);
        Ok(Self { last_seq, digest: batch_digest(events.into_iter()), epoch, checkpoint })
    }
}
