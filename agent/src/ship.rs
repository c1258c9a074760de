//! Shipping: sealed segments go to the collector, oldest first; what it acknowledges is trimmed. What it can
//! never take is set aside, and said. While it cannot be reached, everything waits in the spool.

mod client;
pub mod enrol;
mod fault;
mod remote;

use std::time::Duration;

use weir_core::ids::Origin;
use weir_core::mask::Masker;
use weir_core::record::AgentEvent;
use weir_core::segment::{FrameKind, Reader, SegmentError, batch_digest};
use weir_core::wire::{self, Reason, SegmentAck};

pub use client::{Collector, PostError};
pub use remote::{Exempt, Remote};

use crate::ledger::{Ledger, LedgerError};
use crate::spool::{SegmentFile, SetAside};

/// How often the shelf is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The pause after a fault; doubled with each one more, up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Carries sealed segments to the collector.
pub struct Shipper {
    pub collector: Collector,
    pub ledger: Ledger,
    pub masker: Masker,
    pub origin: Origin,
}

/// Why a segment did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    #[error(transparent)]
    Post(#[from] PostError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the collector acknowledged another segment than the one sent")]
    WrongAck,
}

impl Shipper {
    /// Ships until it is dropped, and leaves the rest to [`Shipper::ship_all`], or to the next start.
    pub async fn run(&self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let wait = match self.ship_all().await {
                Ok(()) => {
                    pause = SHORTEST_PAUSE;
                    LOOK
                }
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?pause, "records wait in the spool");
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Ships what is sealed now. The first fault that may pass ends it.
    pub async fn ship_all(&self) -> Result<(), ShipError> {
        for file in self.ledger.sealed() {
            self.ship(file).await?;
        }
        Ok(())
    }

    async fn ship(&self, file: SegmentFile) -> Result<(), ShipError> {
        let first_seq = file.first_seq;
        let bytes = self.ledger.read(first_seq).await?;
        let expected = match self.expected_ack(&bytes) {
            Ok(expected) if expected.last_seq == file.last_seq() => expected,
            Ok(_) => return self.set_aside(file, SetAside::Damaged, "events are missing from its end").await,
            Err(error) => return self.set_aside(file, SetAside::Damaged, &error.to_string()).await,
        };
        match self.collector.post::<SegmentAck>(wire::SEGMENTS, bytes).await {
            Ok(ack) if ack.is_of(&expected.origin, first_seq, expected.last_seq, &expected.batch_digest) => {
                Ok(self.ledger.trim(first_seq).await?)
            }
            Ok(_) => Err(ShipError::WrongAck),
            Err(PostError::Refused(refusal)) => {
                let reason = match refusal.reason {
                    Reason::Malformed => SetAside::Malformed,
                    Reason::Conflict => SetAside::Conflict,
                    // The segment is not at fault.
                    _ => return Err(PostError::Refused(refusal).into()),
                };
                self.set_aside(file, reason, &refusal.to_string()).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What only a collector that stored this very segment can say.
    fn expected_ack(&self, bytes: &[u8]) -> Result<SegmentAck, SegmentError> {
        let mut reader = Reader::new(bytes)?;
        let first_seq = reader.first_seq();
        let mut events = Vec::new();
        for frame in reader.by_ref() {
            let frame = frame?;
            if frame.kind == FrameKind::Event {
                events.push(frame.bytes);
            }
        }
        let last_seq = reader.next_seq().saturating_sub(1);
        let batch_digest = batch_digest(events.into_iter());
        Ok(SegmentAck::new(self.origin.clone(), first_seq, last_seq, batch_digest))
    }

    /// Out of the way of those behind it, for a human to look at; and said in the record.
    async fn set_aside(&self, file: SegmentFile, reason: SetAside, why: &str) -> Result<(), ShipError> {
        tracing::error!(first_seq = file.first_seq, why, "a segment is set aside: it can never arrive");
        self.ledger.set_aside(file.first_seq, reason).await?;
        let text = |value: &str| self.masker.text(value);
        let detail = [
            ("first_seq".to_owned(), text(&file.first_seq.to_string())),
            ("last_seq".to_owned(), text(&file.last_seq().to_string())),
            ("reason".to_owned(), text(why)),
        ];
        let event = AgentEvent { name: "spool.set_aside".into(), detail: detail.into() };
        Ok(self.ledger.note(event).await?)
    }
}
