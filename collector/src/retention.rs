//! Retention: a policy comes in; events that it no longer keeps are deleted, and signed tombstones say so. The proofs stay:
//! of each segment its leaves, its root and its checkpoint, so what is left verifies as it did before.
//!
//! # The order
//! 1. Whole segments alone are retired: those sealed before the policy's day, in which nothing is that the policy keeps (a
//!    run, or a log, that somebody has asked to keep; of a run, all segments with any event of its calls and connections).
//! 2. What is deleted is first compared with the checkpoint that its host signed and this witness cosigned: the events must be
//!    those, and the signed time so old, whatever columns say. A segment of which that is not so is not retired but told:
//!    deleting it would take away what shows that it was altered.
//! 3. For each stretch of numbers a tombstone, signed with the witness's key, is stored and read back.
//! 4. Then the events are deleted, and looked for once more.
//!
//! Cut off anywhere, the same command ends the work: what a tombstone covers and is still there is deleted without another.
//! Events of before there were trees have no proof that could stay, and are not retired.

mod report;
mod rows;

use std::collections::BTreeSet;

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::tombstone::Tombstone;
use weir_core::evidence::{EvidenceError, Frontier, leaf_hash};
use weir_core::ids::hex;

pub use report::Report;

use crate::config::Retention;
use crate::rows::TombstoneRow;
use crate::store::{Store, StoreError, TOKENS, again};
use crate::witness::Witness;
use rows::Segment;

const DAY_US: i64 = 24 * 3600 * 1_000_000;
/// The most stretches that one deletion names.
const AT_ONCE: usize = 50;

/// Why retention did not come to its end. What was done stays done, and is told by the tombstones.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error(
        "the configuration has no [retention] with events_days, so nothing is ever retired; see docs/configuration.md"
    )]
    NoPolicy,
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A name that cannot stand in a note: the operator's.
    #[error("a tombstone cannot be made: {0}")]
    Evidence(#[from] EvidenceError),
    #[error(
        "the store took the tombstone of {origin} {first_seq} to {last_seq} and does not show it; nothing was deleted, try again"
    )]
    NotShown { origin: String, first_seq: u64, last_seq: u64 },
    #[error("{left} events that were deleted are still there; try again")]
    NotDeleted { left: u64 },
}

/// What became of some segments that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its events are deleted; or would be, without `--dry-run`.
    Retired,
    /// The policy keeps something in it.
    Kept,
    /// Its events are not those that came: nothing of it was deleted.
    Altered,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Retired => "retired",
            State::Kept => "kept",
            State::Altered => "altered",
        }
    }
}

/// Segments side by side with the same state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    pub tenant: String,
    pub host: String,
    pub origin: String,
    pub epoch: u32,
    pub first_seq: u64,
    /// Inclusive.
    pub last_seq: u64,
    pub events: u64,
    pub state: State,
    /// A tombstone was there before, of a run that was cut off.
    has_tombstone: bool,
}

impl Stretch {
    fn of(segment: Segment, state: State) -> Self {
        Self {
            has_tombstone: segment.has_tombstone,
            tenant: segment.tenant,
            host: segment.host_name,
            origin: segment.origin,
            epoch: segment.epoch,
            first_seq: segment.first_seq,
            last_seq: segment.last_seq,
            events: segment.events,
            state,
        }
    }

    fn goes_on_with(&self, next: &Self) -> bool {
        (&self.origin, self.epoch, self.state, self.has_tombstone)
            == (&next.origin, next.epoch, next.state, next.has_tombstone)
            && self.last_seq.checked_add(1) == Some(next.first_seq)
    }
}

/// Retires what the policy no longer keeps, or only says what that would be. `now_us`: microseconds since 1970.
pub async fn apply(
    store: &Store,
    policy: &Retention,
    witness: &Witness,
    now_us: i64,
    is_dry: bool,
) -> Result<Report, RetentionError> {
    let before_us = now_us.saturating_sub(i64::from(policy.events_days) * DAY_US);
    let held = rows::held(store, policy, before_us).await?;
    let mut stretches: Vec<Stretch> = Vec::new();
    for segment in rows::due(store, before_us).await? {
        let state = judge(store, policy, witness, &held, before_us, &segment).await?;
        let next = Stretch::of(segment, state);
        match stretches.last_mut() {
            Some(last) if last.goes_on_with(&next) => {
                last.last_seq = next.last_seq;
                last.events += next.events;
            }
            _ => stretches.push(next),
        }
    }
    let report = Report { policy: policy.name.clone(), is_dry, stretches };
    if !is_dry {
        let retired: Vec<&Stretch> = report.retired().collect();
        for stretch in retired.iter().filter(|stretch| !stretch.has_tombstone) {
            bury(store, policy, witness, now_us, stretch).await?;
        }
        for some in retired.chunks(AT_ONCE) {
            delete(store, some).await?;
        }
    }
    Ok(report)
}

async fn judge(
    store: &Store,
    policy: &Retention,
    witness: &Witness,
    held: &BTreeSet<(String, u64)>,
    before_us: i64,
    segment: &Segment,
) -> Result<State, StoreError> {
    if segment.has_tombstone {
        return Ok(State::Retired);
    }
    let place = (segment.origin.clone(), segment.first_seq);
    if policy.keep_origins.contains(&segment.origin) || held.contains(&place) {
        return Ok(State::Kept);
    }
    let events = rows::events(store, segment).await?;
    let own = events.iter().map(|event| event.seq).eq(segment.first_seq..=segment.last_seq)
        && signed_us(store, witness, segment, &events).await?.is_some_and(|signed_us| signed_us < before_us);
    if own {
        return Ok(State::Retired);
    }
    tracing::error!(
        origin = segment.origin,
        first_seq = segment.first_seq,
        last_seq = segment.last_seq,
        "events that are to be retired are not those that came, or not so old; `weir-collector verify` names them"
    );
    Ok(State::Altered)
}

/// When the host signed for these very events, microseconds since 1970, if this witness has cosigned that. Columns say it too,
/// and whoever can write them could have anything retired.
async fn signed_us(
    store: &Store,
    witness: &Witness,
    segment: &Segment,
    events: &[rows::Event],
) -> Result<Option<i64>, StoreError> {
    let proofs = rows::proofs(store, segment).await?;
    let [proof] = &proofs[..] else { return Ok(None) };
    let before = segment.first_seq.checked_sub(proof.epoch_first_seq);
    let tree = before.and_then(|size| Frontier::of_parts(size, proof.frontier.clone()));
    let Some(mut tree) = tree else { return Ok(None) };
    tree.extend(events.iter().map(|event| event.leaf));
    let is_own = |checkpoint: &Checkpoint| {
        checkpoint.log.origin.as_str() == segment.origin
            && checkpoint.log.epoch == segment.epoch
            && (checkpoint.first_seq, checkpoint.size, checkpoint.root)
                == (proof.epoch_first_seq, tree.size(), tree.root())
    };
    let notes = rows::notes(store, segment).await?;
    let signed = notes.iter().filter(|note| witness.has_cosigned(note)).filter_map(|note| note.parse().ok());
    let own = signed.filter_map(|note| Checkpoint::read(&note).ok()).find(is_own);
    Ok(own.map(|checkpoint| i64::try_from(checkpoint.time_us).unwrap_or(i64::MAX)))
}

/// Stores a tombstone, and reads it back.
async fn bury(
    store: &Store,
    policy: &Retention,
    witness: &Witness,
    now_us: i64,
    stretch: &Stretch,
) -> Result<(), RetentionError> {
    let not_shown = || RetentionError::NotShown {
        origin: stretch.origin.clone(),
        first_seq: stretch.first_seq,
        last_seq: stretch.last_seq,
    };
    let origin = stretch.origin.parse().map_err(|_| EvidenceError::Tombstone("its log has no name"))?;
    let log =
        LogName { tenant: stretch.tenant.clone(), host: stretch.host.clone(), origin, epoch: stretch.epoch };
    let stone = Tombstone {
        log,
        first_seq: stretch.first_seq,
        last_seq: stretch.last_seq,
        policy: format!("{} (events older than {} days)", policy.name, policy.events_days),
        time_us: now_us.unsigned_abs(),
    };
    let row = TombstoneRow {
        tenant: stretch.tenant.clone(),
        host_name: stretch.host.clone(),
        origin: stretch.origin.clone(),
        epoch: stretch.epoch,
        first_seq: stretch.first_seq,
        last_seq: stretch.last_seq,
        events: stretch.events,
        policy_digest: policy.digest(),
        retired_at: now_us,
        retired_by: witness.public().name().to_owned(),
        note: witness.buried(&stone)?.to_string(),
        policy: stone.policy,
    };
    for attempt in 0..TOKENS {
        let token = format!("tombstone/{}/{}/{}/{}", row.origin, row.epoch, row.first_seq, row.last_seq);
        store.insert("tombstones", &again(token, attempt), [&row]).await?;
        if rows::is_buried(store, stretch).await? {
            return Ok(());
        }
    }
    Err(not_shown())
}

async fn delete(store: &Store, stretches: &[&Stretch]) -> Result<(), RetentionError> {
    let which: Vec<_> = stretches.iter().map(|_| "(origin = ? AND seq BETWEEN ? AND ?)").collect();
    let which = which.join(" OR ");
    let bound = |question: &str| {
        stretches.iter().fold(store.query(question), |question, stretch| {
            question.bind(&stretch.origin).bind(stretch.first_seq).bind(stretch.last_seq)
        })
    };
    // Waits until the parts are written anew: the bytes are gone then, and not only hidden.
    let deletion = format!("ALTER TABLE events DELETE WHERE {which} SETTINGS mutations_sync = 2");
    store.execute_at_length(bound(&deletion)).await?;
    #[derive(Row, Deserialize)]
    struct Left {
        left: u64,
    }
    let left: Vec<Left> =
        store.rows(bound(&format!("SELECT count() AS left FROM events WHERE {which}"))).await?;
    match left.first().map_or(0, |row| row.left) {
        0 => Ok(()),
        left => Err(RetentionError::NotDeleted { left }),
    }
}

impl Retention {
    /// Of what it says, as hex.
    pub fn digest(&self) -> String {
        let text = serde_json::json!({
            "name": self.name, "events_days": self.events_days, "keep_runs": self.keep_runs, "keep_origins": self.keep_origins,
        });
        hex(&leaf_hash(text.to_string().as_bytes()))
    }
}
