//! `POST /v1/segments`: a sealed segment comes in, a [`SegmentAck`] goes out once its events are in ClickHouse
//! exactly once. Before the insert and after it, what stands at the segment's place in the log is read: nothing,
//! this very batch, or something else, which is a fork and is refused. Then its checkpoint is cosigned, if all before it is
//! proven ([`prove`]).

mod prove;
mod read;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clickhouse::Row;
use serde::Deserialize;
use weir_core::wire::{Advice, Reason, Refusal, SegmentAck};

use self::read::{Segment, read};
use super::{Ingest, now_us, refusal, unavailable};
use crate::agent::Agent;
use crate::completeness::Told;
use crate::rows::EventRow;
use crate::store::{TOKENS, again};
use crate::witness::judge::{Fault, FaultReason, Standing as Proof};

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
        let sent_by = agent.clone();
        let read = tokio::task::spawn_blocking(move || read(&body, &sent_by, now_us()));
        let segment = read.await.unwrap_or_else(|error| {
            tracing::error!(%error, "reading a segment broke");
            Err(refusal(Reason::Malformed, "the collector cannot read this segment; its log says more"))
        })?;
        let origin = segment.origin.clone();
        let told = Told::of(&segment.rows);
        let began = Instant::now();
        let ack = self.logs.alone(&origin, self.store_once(&segment, &agent)).await?;
        self.load.took(&origin, began.elapsed());
        told.into_iter().for_each(|told| self.watch.tell(told));
        Ok(SegmentAck { advice: Advice { seal_after_ms: self.load.seal_after_ms(), ..ack.advice }, ..ack })
    }

    /// What a segment brings is judged before anything is stored and again behind that: between the two another collector
    /// may have stored something else, and of two that do so each sees the other's then.
    async fn store_once(&self, segment: &Segment, agent: &Agent) -> Result<SegmentAck, Refusal> {
        let Some(proof) = &segment.proof else {
            self.has_no_epoch_yet(segment).await?;
            self.store_events(segment).await?;
            return Ok(segment.ack());
        };
        let (_, known) = tokio::try_join!(self.is_signed(segment, proof, agent), self.known(segment, proof))?;
        self.judged(segment, proof, &known).await?;
        if !self.was_retired(segment, &known).await? {
            self.store_events(segment).await?;
        }
        self.store_policies(segment).await?;
        let known = self.store_batch(segment, proof, agent, known).await?;
        let (checkpoint, begin_epoch) = match self.judged(segment, proof, &known).await? {
            Proof::Proven => (self.witnessed(proof, &known).await?, false),
            Proof::BehindHole => {
                self.report_hole(segment, proof).await;
                (proof.note().map(ToString::to_string), true)
            }
        };
        let advice = Advice { begin_epoch, ..Advice::default() };
        Ok(SegmentAck { checkpoint, advice, ..segment.ack() })
    }

    /// The events, each once, read back.
    async fn store_events(&self, segment: &Segment) -> Result<(), Refusal> {
        let mut place = self.place(segment).await?;
        if place == Place::Done {
            tracing::info!(origin = %segment.origin, first_seq = segment.first_seq, "a segment that is stored already");
            return Ok(());
        }
        // A token names the place, not the contents: of two forks, ClickHouse takes one.
        let name = match segment.epoch {
            0 => format!("{}/{}", segment.origin, segment.first_seq),
            epoch => format!("{}/{epoch}/{}", segment.origin, segment.first_seq),
        };
        for attempt in 0..TOKENS {
            let missing = match place {
                Place::Free => segment.rows.iter().collect(),
                Place::Partly => self.missing(segment).await?,
                Place::Done | Place::Fork(_) => break,
            };
            let token = again(name.clone(), attempt);
            self.store.insert("events", &token, missing).await.map_err(unavailable)?;
            place = self.place(segment).await?;
            if matches!(place, Place::Free | Place::Partly) {
                tracing::warn!(origin = %segment.origin, first_seq = segment.first_seq, token, "a burnt token");
            }
        }
        match place {
            Place::Done => {
                let events = segment.rows.len();
                tracing::debug!(origin = %segment.origin, first_seq = segment.first_seq, events, "stored a segment");
                Ok(())
            }
            Place::Fork(what) => {
                if segment.proof.is_some() {
                    let fault = Fault::new(FaultReason::Fork, format!("there stands {what}"));
                    self.report(&segment.accused(), &fault).await;
                }
                Err(conflict(segment, &what))
            }
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
    fn ack(&self) -> SegmentAck {
        SegmentAck::new(self.origin.clone(), self.first_seq, self.last_seq, self.digest.clone())
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

#[cfg(test)]
mod tests {
    use weir_core::ids::Origin;

    use super::*;

    fn segment() -> Segment {
        Segment {
            origin: Origin::from_random([1; 16]),
            epoch: 0,
            first_seq: 10,
            last_seq: 12,
            digest: "d".into(),
            rows: vec![EventRow::default(); 3],
            proof: None,
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
