//! `POST /v1/checkpoints`: an idle log's checkpoint comes in, with the hashes of the leaves behind the last stored segment; it
//! goes out cosigned. No event is stored for it. Those of many logs go into ClickHouse together, so that a thousand quiet hosts
//! are a few inserts each second at most.
//!
//! A checkpoint is claimed before it is cosigned: it is written, all that is known of its log is read again, and only then, if
//! nothing contradicts it, is it cosigned. A segment's batch is written before its own judgement is made, too. So of two that
//! contradict one another, at whatever collectors, at least one is judged with the other in sight.
//!
//! # Limits
//! [`MAX_WAITING`] posts wait, [`MAX_GROUP`] of them are gone through at a time, and they gather for [`GATHER`].

mod group;

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use weir_core::evidence::Hash;
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::note::SignedNote;
use weir_core::wire::{CheckpointAck, CheckpointPost, MAX_POSTED_LEAVES, Reason, Refusal};

use super::{Ingest, refusal};
use crate::agent::Agent;

/// The most bytes of a post: [`MAX_POSTED_LEAVES`] hashes, and a note.
pub(super) const MAX_POST_BODY: usize = 2 << 20;
/// Posts that wait; whoever comes behind them is asked to come again.
const MAX_WAITING: usize = 2048;
/// Posts that are gone through together.
const MAX_GROUP: usize = 256;
/// How long the first of a group waits for others.
const GATHER: Duration = Duration::from_millis(200);

/// One that waits.
struct Posted {
    agent: Agent,
    checkpoint: Checkpoint,
    note: SignedNote,
    first_seq: u64,
    leaves: Vec<Hash>,
    answer: oneshot::Sender<Result<CheckpointAck, Refusal>>,
}

/// The way to whoever goes through them.
#[derive(Debug)]
pub(super) struct Idle(mpsc::Sender<Posted>);

/// The other end, before it runs.
pub(super) struct Posts(mpsc::Receiver<Posted>);

impl Idle {
    pub(super) fn new() -> (Self, Posts) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Self(sender), Posts(receiver))
    }
}

impl Posts {
    /// Goes through what comes until the stop, and then through what waits.
    pub(super) async fn run(mut self, ingest: Weak<Ingest>, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                first = self.0.recv() => first,
                () = stop.cancelled() => self.0.try_recv().ok(),
            };
            let (Some(first), Some(ingest)) = (first, ingest.upgrade()) else { return };
            let mut group = vec![first];
            let gathered = tokio::time::sleep(GATHER);
            tokio::pin!(gathered);
            while group.len() < MAX_GROUP {
                tokio::select! {
                    biased;
                    more = self.0.recv() => match more {
                        Some(more) => group.push(more),
                        None => break,
                    },
                    () = &mut gathered => break,
                    () = stop.cancelled() => break,
                }
            }
            // Off the runtime's threads: a whole group may bring millions of leaves to hash.
            let runtime = tokio::runtime::Handle::current();
            let going = tokio::task::spawn_blocking(move || runtime.block_on(ingest.go_through(group)));
            if let Err(error) = going.await {
                tracing::error!(%error, "going through checkpoints broke");
            }
        }
    }
}

impl Ingest {
    pub(super) async fn put_checkpoint(
        self: Arc<Self>,
        body: Bytes,
        agent: Agent,
    ) -> Result<CheckpointAck, Refusal> {
        let (answer, answered) = oneshot::channel();
        let posted = read(&body, agent, answer)?;
        posted.agent.speaks_for(&posted.checkpoint.log.tenant, &posted.checkpoint.log.host)?;
        let busy = || refusal(Reason::Unavailable, "too many checkpoints wait; send it again");
        self.idle.0.try_send(posted).map_err(|_| busy())?;
        answered.await.unwrap_or_else(|_| Err(refusal(Reason::Unavailable, "the collector is stopping")))
    }
}

fn read(
    body: &[u8],
    agent: Agent,
    answer: oneshot::Sender<Result<CheckpointAck, Refusal>>,
) -> Result<Posted, Refusal> {
    let malformed = |what: String| refusal(Reason::Malformed, what);
    let CheckpointPost { note, first_seq, leaves } =
        serde_json::from_slice(body).map_err(|e| malformed(format!("not a checkpoint to witness: {e}")))?;
    if leaves.len() > MAX_POSTED_LEAVES {
        return Err(malformed(format!("it brings more than {MAX_POSTED_LEAVES} leaves")));
    }
    let leaves: Option<Vec<Hash>> = leaves.iter().map(|leaf| hash(leaf)).collect();
    let leaves = leaves.ok_or_else(|| malformed("a leaf is not 64 lower-case hex digits".into()))?;
    let note: SignedNote = note.parse().map_err(|e| malformed(format!("{e}")))?;
    let checkpoint = Checkpoint::read(&note).map_err(|e| malformed(e.to_string()))?;
    let end = first_seq.checked_add(leaves.len() as u64);
    if first_seq < checkpoint.first_seq || end != Some(checkpoint.next_seq()) {
        return Err(malformed("its leaves do not end where the checkpoint does".into()));
    }
    Ok(Posted { agent, checkpoint, note, first_seq, leaves, answer })
}

/// 64 lower-case hex digits.
fn hash(text: &str) -> Option<Hash> {
    let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use weir_core::evidence::TreeState;
    use weir_core::evidence::checkpoint::LogName;
    use weir_core::evidence::key::SigningKey;
    use weir_core::ids::{Origin, hex};

    use super::*;

    /// A post of so many leaves.
    fn body(leaves: usize) -> Vec<u8> {
        let mut tree = TreeState::begin(1, 5);
        let leaves = (0..leaves).map(|n| hex(&tree.push(&n.to_le_bytes()))).collect();
        let origin = Origin::from_random([1; 16]);
        let log = LogName { tenant: "t".into(), host: "h".into(), origin, epoch: 1 };
        let note = Checkpoint::of(&log, &tree, 1).signed(&SigningKey::from_seed(&[1; 32])).unwrap();
        serde_json::to_vec(&CheckpointPost { note: note.to_string(), first_seq: 5, leaves }).unwrap()
    }

    fn posted(body: &[u8]) -> Result<Posted, Refusal> {
        read(body, Agent::Local { uid: 0 }, oneshot::channel().0)
    }

    #[test]
    fn only_64_lower_case_hex_digits_are_a_leaf() {
        assert_eq!(hash(&"0a".repeat(32)), Some([10; 32]));
        for bad in ["", "0a", &"0A".repeat(32), &"0g".repeat(32), &"0a".repeat(33), &"é".repeat(32)] {
            assert_eq!(hash(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_post_brings_as_many_leaves_as_a_segment_has_and_no_more() {
        let most = body(MAX_POSTED_LEAVES);
        assert!(most.len() < MAX_POST_BODY && posted(&most).is_ok());
        assert_eq!(posted(&body(MAX_POSTED_LEAVES + 1)).err().unwrap().reason, Reason::Malformed);
        let elsewhere = String::from_utf8(body(3)).unwrap().replace("\"first_seq\":5", "\"first_seq\":6");
        assert_eq!(posted(elsewhere.as_bytes()).err().unwrap().reason, Reason::Malformed);
    }

    #[test]
    fn whoever_comes_behind_the_last_place_is_asked_to_come_again() {
        let (idle, _posts) = Idle::new();
        let body = body(1);
        for _ in 0..MAX_WAITING {
            assert!(idle.0.try_send(posted(&body).unwrap()).is_ok());
        }
        assert!(idle.0.try_send(posted(&body).unwrap()).is_err());
    }
}
