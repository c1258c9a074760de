//! `POST /v1/segments`: a sealed segment comes in, a [`SegmentAck`] goes out once its events are in ClickHouse
//! exactly once. Before the insert and after it, what stands at the segment's place in the log is read: nothing,
//! this very batch, or something else, which is a fork and is refused.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use clickhouse::Row;
use serde::Deserialize;
use weir_core::ids::Origin;
use weir_core::record::Stored;
use weir_core::segment::{FrameKind, MAX_EVENTS, Reader, batch_digest};
use weir_core::wire::{Reason, Refusal, SegmentAck};

use super::{Ingest, now_us, refusal, unavailable};
use crate::agent::Agent;
use crate::completeness::Told;
use crate::rows::{Batch, EventRow};
use crate::store::{TOKENS, again};

/// A segment, read and found whole.
struct Segment {
    origin: Origin,
    first_seq: u64,
    last_seq: u64,
    digest: String,
    rows: Vec<EventRow>,
}

/// What stands at a place of the log: one of these for each batch that reaches into it.
#[derive(Debug, Row, Deserialize)]
struct Standing {
    batch_first_seq: u64,
    batch_digest: String,
    events: u64,
    first: u64,
    last: u64,
}

/// What the standing batches mean for a segment.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Free,
    /// This batch, whole.
    Done,
    /// This batch, but not all of it: rows were deleted since.
    Partly,
    /// Anything else.
    Fork(String),
}

impl Ingest {
    pub(super) async fn put_segment(
        self: Arc<Self>,
        body: Bytes,
        agent: Agent,
    ) -> Result<SegmentAck, Refusal> {
        let read = tokio::task::spawn_blocking(move || read(&body, &agent, now_us()));
        let segment = read.await.unwrap_or_else(|error| {
            tracing::error!(%error, "reading a segment broke");
            Err(refusal(Reason::Malformed, "the collector cannot read this segment; its log says more"))
        })?;
        let origin = segment.origin.clone();
        let told = Told::of(&segment.rows);
        let ack = self.logs.alone(&origin, self.store_once(segment)).await?;
        told.into_iter().for_each(|told| self.watch.tell(told));
        Ok(ack)
    }

    async fn store_once(&self, segment: Segment) -> Result<SegmentAck, Refusal> {
        let mut place = self.place(&segment).await?;
        if place == Place::Done {
            tracing::info!(origin = %segment.origin, first_seq = segment.first_seq, "a segment that is stored already");
            return Ok(segment.ack());
        }
        // A token names the place, not the contents: of two forks, ClickHouse takes one.
        for attempt in 0..TOKENS {
            let missing = match place {
                Place::Free => segment.rows.iter().collect(),
                Place::Partly => self.missing(&segment).await?,
                Place::Done | Place::Fork(_) => break,
            };
            let token = again(format!("{}/{}", segment.origin, segment.first_seq), attempt);
            self.store.insert("events", &token, missing).await.map_err(unavailable)?;
            place = self.place(&segment).await?;
            if matches!(place, Place::Free | Place::Partly) {
                tracing::warn!(origin = %segment.origin, first_seq = segment.first_seq, token, "a burnt token");
            }
        }
        match place {
            Place::Done => {
                let events = segment.rows.len();
                tracing::debug!(origin = %segment.origin, first_seq = segment.first_seq, events, "stored a segment");
                Ok(segment.ack())
            }
            Place::Fork(what) => Err(conflict(&segment, &what)),
            Place::Free | Place::Partly => {
                let message = "the store took the segment and does not show it; nothing is acknowledged";
                tracing::error!(origin = %segment.origin, first_seq = segment.first_seq, message);
                Err(refusal(Reason::Unavailable, message))
            }
        }
    }

    /// The rows that are not there. Under a token that is tried anew, the others would be there twice.
    async fn missing<'s>(&self, segment: &'s Segment) -> Result<Vec<&'s EventRow>, Refusal> {
        let question = self.store.query("SELECT seq FROM events WHERE origin = ? AND seq BETWEEN ? AND ?");
        let question = question.bind(segment.origin.as_str()).bind(segment.first_seq).bind(segment.last_seq);
        let there: Vec<u64> = self.store.rows(question).await.map_err(unavailable)?;
        let there: HashSet<u64> = there.into_iter().collect();
        Ok(segment.rows.iter().filter(|row| !there.contains(&row.seq)).collect())
    }

    async fn place(&self, segment: &Segment) -> Result<Place, Refusal> {
        let question = self
            .store
            .query(
                "SELECT batch_first_seq, batch_digest, count() AS events, min(seq) AS first, max(seq) AS last \
                 FROM events WHERE origin = ? AND seq BETWEEN ? AND ? GROUP BY batch_first_seq, batch_digest",
            )
            .bind(segment.origin.as_str())
            .bind(segment.first_seq)
            .bind(segment.last_seq);
        let standing: Vec<Standing> = self.store.rows(question).await.map_err(unavailable)?;
        Ok(segment.place_among(&standing))
    }
}

fn conflict(segment: &Segment, what: &str) -> Refusal {
    tracing::error!(
        origin = %segment.origin, first_seq = segment.first_seq, last_seq = segment.last_seq, what,
        "a fork: other events stand at this place of the log"
    );
    refusal(
        Reason::Conflict,
        format!(
            "at {} to {} of the log {} stands {what}; nothing was stored",
            segment.first_seq, segment.last_seq, segment.origin
        ),
    )
}

impl Segment {
    fn ack(self) -> SegmentAck {
        let Self { origin, first_seq, last_seq, digest, rows: _ } = self;
        SegmentAck::new(origin, first_seq, last_seq, digest)
    }

    fn place_among(&self, standing: &[Standing]) -> Place {
        let [only] = standing else {
            return match standing.len() {
                0 => Place::Free,
                n => Place::Fork(format!("a part of {n} batches")),
            };
        };
        if only.batch_first_seq != self.first_seq {
            return Place::Fork(format!("a part of the batch that begins at {}", only.batch_first_seq));
        }
        if only.batch_digest != self.digest {
            return Place::Fork(format!("another batch, with the digest {}", only.batch_digest));
        }
        match only.events.cmp(&(self.rows.len() as u64)) {
            std::cmp::Ordering::Less => Place::Partly,
            std::cmp::Ordering::Greater => Place::Fork("this batch more than once".into()),
            std::cmp::Ordering::Equal if (only.first, only.last) == (self.first_seq, self.last_seq) => {
                Place::Done
            }
            std::cmp::Ordering::Equal => {
                Place::Fork("this batch with events doubled and others missing".into())
            }
        }
    }
}

/// Reads a segment front to back: whole frames, canonical events, one log, dense.
fn read(bytes: &[u8], agent: &Agent, now_us: i64) -> Result<Segment, Refusal> {
    let malformed = |message: String| refusal(Reason::Malformed, message);
    let mut reader = Reader::new(bytes).map_err(|e| malformed(e.to_string()))?;
    let first_seq = reader.first_seq();
    let mut events: Vec<(Stored, &[u8])> = Vec::new();
    for frame in reader.by_ref() {
        let frame = frame.map_err(|e| malformed(e.to_string()))?;
        if frame.kind != FrameKind::Event {
            continue;
        }
        if events.len() as u64 == MAX_EVENTS {
            return Err(malformed(format!("the segment has more than {MAX_EVENTS} events")));
        }
        let at = frame.seq;
        let event = Stored::read(frame.bytes).map_err(|e| malformed(format!("event {at}: {e}")))?;
        if event.seq != at {
            return Err(malformed(format!("the event in the place of {at} says that it is {}", event.seq)));
        }
        agent.speaks_for(&event.tenant, &event.host)?;
        if events.first().is_some_and(|(first, _)| first.origin != event.origin) {
            return Err(malformed(format!("event {at} is of another log than the first")));
        }
        events.push((event, frame.bytes));
    }
    let Some(origin) = events.first().map(|(first, _)| first.origin.clone()) else {
        return Err(malformed("the segment holds no event".into()));
    };
    let last_seq = reader.next_seq().saturating_sub(1);
    let digest = batch_digest(events.iter().map(|(_, bytes)| *bytes));
    let batch = Batch {
        epoch: 0,
        first_seq,
        digest: digest.clone(),
        sealed_us: now_us.unsigned_abs(),
        agent_uid: agent.uid(),
        agent_identity: agent.identity(),
        ingested_us: now_us,
    };
    let rows = events.into_iter().map(|(event, bytes)| EventRow::of(event, bytes.to_vec(), &batch)).collect();
    Ok(Segment { origin, first_seq, last_seq, digest, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Segment {
        Segment {
            origin: Origin::from_random([1; 16]),
            first_seq: 10,
            last_seq: 12,
            digest: "d".into(),
            rows: vec![EventRow::default(); 3],
        }
    }

    fn standing(batch_first_seq: u64, digest: &str, events: u64, first: u64, last: u64) -> Standing {
        Standing { batch_first_seq, batch_digest: digest.into(), events, first, last }
    }

    #[test]
    fn only_the_same_batch_once_and_whole_is_done() {
        let place = |standing: &[Standing]| segment().place_among(standing);
        assert_eq!(place(&[]), Place::Free);
        assert_eq!(place(&[standing(10, "d", 3, 10, 12)]), Place::Done);
        assert_eq!(place(&[standing(10, "d", 2, 10, 11)]), Place::Partly);
        for fork in [
            vec![standing(10, "e", 3, 10, 12)],
            vec![standing(8, "e", 2, 10, 11)],
            vec![standing(12, "e", 1, 12, 12)],
            vec![standing(10, "d", 6, 10, 12)],
            vec![standing(10, "d", 3, 10, 11)],
            vec![standing(10, "d", 3, 10, 12), standing(12, "e", 1, 12, 12)],
        ] {
            assert!(matches!(place(&fork), Place::Fork(_)), "{fork:?}");
        }
    }
}
