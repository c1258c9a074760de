//! Shipping: sealed segments go to the collector, oldest first; what it acknowledges is trimmed. What it can
//! never take is set aside, and said. While it cannot be reached, everything waits in the spool.
//!
//! Before the first segment of an epoch its key is made known. What the collector gives back for a checkpoint must be that
//! very checkpoint, and its cosignature is kept ([`Witness`]). While nothing is sealed, the tree is shown to it each minute
//! all the same, so that an idle host's silence has a witness. An origin whose proof it does not believe waits in the spool,
//! whole, for a human; it is said loudly, and once.

mod client;
pub mod enrol;
mod fault;
mod remote;
mod sealed;
mod witness;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_core::evidence::EvidenceError;
use weir_core::evidence::note::SignedNote;
use weir_core::ids::{Origin, hex};
use weir_core::mask::Masker;
use weir_core::record::AgentEvent;
use weir_core::wire::{
    self, Advice, CheckpointAck, CheckpointPost, EnrolAck, EnrolRequest, Reason, SegmentAck,
};

pub use client::{Collector, PostError};
pub use remote::{Exempt, Remote};
pub use witness::{Witness, WitnessError, WitnessedTo};

use crate::ledger::{Ledger, LedgerError, SignedEpoch};
use crate::spool::{SegmentFile, SetAside, Storage};
use sealed::Sealed;
use witness::SHOW_EVERY;

/// How often the shelf is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The pause after a fault; doubled with each one more, up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often a collector may have another epoch begun.
const EPOCHS_APART: Duration = Duration::from_secs(60);
/// What was said is remembered up to so many things; then they may be said again.
const MAX_SAID: usize = 1000;

/// Carries sealed segments to the collector.
pub struct Shipper {
    pub collector: Collector,
    pub ledger: Ledger,
    pub origin: Origin,
    masker: Masker,
    witness: Arc<Witness>,
    show_every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The epoch whose key the collector knows.
    enrolled: Option<u32>,
    /// When the tree was shown last, with a segment or without.
    shown: Instant,
    /// When the collector had another epoch begun.
    begun: Option<Instant>,
    said: BTreeSet<(&'static str, u64)>,
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
    /// The collector is at fault, or whoever sits in its place.
    #[error("the collector's witness cannot be believed: {0}")]
    Witness(#[from] WitnessError),
    /// A fault of Weir's.
    #[error("what is to be shown to the collector cannot be read: {0}")]
    Evidence(#[from] EvidenceError),
}

impl Shipper {
    /// `storage` is where what the collector witnessed is kept. It waits for the disk.
    pub fn new(collector: Collector, ledger: Ledger, masker: Masker, storage: Arc<dyn Storage>) -> Self {
        let state = State { enrolled: None, shown: Instant::now(), begun: None, said: BTreeSet::new() };
        Self {
            collector,
            origin: ledger.origin().clone(),
            ledger,
            masker,
            witness: Arc::new(Witness::open(storage)),
            show_every: SHOW_EVERY,
            state: Mutex::new(state),
        }
    }

    /// The same, which shows the tree of what is not sealed so often.
    #[must_use]
    pub fn showing_every(self, show_every: Duration) -> Self {
        Self { show_every, ..self }
    }

    /// What the collector has witnessed.
    pub fn witness(&self) -> Arc<Witness> {
        self.witness.clone()
    }

    /// Ships until it is dropped, and leaves the rest to [`Shipper::ship_all`], or to the next start.
    pub async fn run(&self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let shipped = match self.ship_all().await {
                Ok(()) => self.show_unsealed().await,
                error => error,
            };
            let wait = match shipped {
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
        // Hashed where nobody else waits for it.
        let read = tokio::task::spawn_blocking(move || (Sealed::read(&bytes), bytes)).await;
        let (sealed, bytes) = read.map_err(|_| LedgerError::Stopped)?;
        let sealed = match sealed {
            Ok(sealed) if sealed.last_seq == file.last_seq() => sealed,
            Ok(_) => return self.set_aside(file, SetAside::Damaged, "events are missing from its end").await,
            Err(error) => return self.set_aside(file, SetAside::Damaged, &error.to_string()).await,
        };
        if let Some(epoch) = &sealed.epoch {
            self.enrol(epoch).await?;
        }
        match self.collector.post::<SegmentAck>(wire::SEGMENTS, bytes).await {
            Ok(ack) if ack.is_of(&self.origin, first_seq, sealed.last_seq, &sealed.digest) => {
                self.acknowledged(first_seq, &sealed, ack).await
            }
            Ok(_) => Err(ShipError::WrongAck),
            Err(PostError::Refused(refusal)) => {
                let reason = match refusal.reason {
                    Reason::Malformed => SetAside::Malformed,
                    Reason::Conflict => SetAside::Conflict,
                    Reason::Unproven => {
                        let why = refusal.to_string();
                        self.say_once("ship.unproven", first_seq, &why).await?;
                        return Err(PostError::Refused(refusal).into());
                    }
                    Reason::UnknownKey => {
                        self.state().enrolled = None;
                        let epoch = sealed.epoch.map_or(0, |epoch| epoch.number);
                        self.say_once("ship.unknown_key", epoch.into(), &refusal.to_string()).await?;
                        return Err(PostError::Refused(refusal).into());
                    }
                    // The segment is not at fault.
                    _ => return Err(PostError::Refused(refusal).into()),
                };
                self.set_aside(file, reason, &refusal.to_string()).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The events have arrived.
    async fn acknowledged(&self, first_seq: u64, sealed: &Sealed, ack: SegmentAck) -> Result<(), ShipError> {
        if let (Some(sent), Some(note)) = (&sealed.checkpoint, &ack.checkpoint) {
            self.given_back(sent, note, first_seq).await?;
        }
        self.ledger.trim(first_seq).await?;
        self.follow(&ack.advice, sealed.epoch.as_ref().map(|epoch| epoch.number)).await
    }

    /// A checkpoint that was sent comes back. One of another tree is a collector that holds something else than this log;
    /// one without cosignature, or with a wrong one, is stored all the same.
    async fn given_back(&self, sent: &SignedNote, note: &str, at: u64) -> Result<(), ShipError> {
        match self.witness.gave_back(sent, note).await {
            Ok(true) => self.state().shown = Instant::now(),
            Ok(false) => tracing::debug!(at, "stored, and not witnessed"),
            Err(error @ WitnessError::Another) => {
                self.say_once("witness.fork", at, &error.to_string()).await?;
                return Err(error.into());
            }
            Err(error @ WitnessError::Unsigned(_)) => {
                self.say_once("witness.wrong_key", 0, &error.to_string()).await?;
            }
        }
        Ok(())
    }

    /// Does what the collector asks for, within bounds.
    async fn follow(&self, advice: &Advice, epoch: Option<u32>) -> Result<(), ShipError> {
        if let Some(age) = advice.seal_after_ms {
            self.ledger.advise(Duration::from_millis(age))?;
        }
        let lately = |begun: Instant| begun.elapsed() < EPOCHS_APART;
        // Of an epoch that is over already nothing is to be done.
        if !advice.begin_epoch
            || epoch != Some(self.ledger.standing().epoch)
            || self.state().begun.is_some_and(lately)
        {
            return Ok(());
        }
        self.state().begun = Some(Instant::now());
        Ok(self.ledger.begin_epoch("the collector lacks events of the epoch before").await?)
    }

    /// Makes an epoch's key known, unless it is.
    async fn enrol(&self, epoch: &SignedEpoch) -> Result<(), ShipError> {
        if self.state().enrolled == Some(epoch.number) {
            return Ok(());
        }
        let SignedEpoch { number, first_seq, key, rotation } = epoch.clone();
        let request = EnrolRequest { key, first_seq, rotation };
        let body = serde_json::to_vec(&request).map_err(|error| PostError::Unreadable(error.to_string()))?;
        match self.collector.post::<EnrolAck>(wire::ENROL, body).await {
            Ok(EnrolAck { witness }) => {
                if !self.witness.named(&witness).await {
                    let why = format!(
                        "the collector cosigns with another key than the one in log.witness now ({witness}); \
                         remove that file if this is meant"
                    );
                    self.say_once("witness.wrong_key", u64::from(witness.id()), &why).await?;
                }
                self.state().enrolled = Some(number);
                Ok(())
            }
            Err(PostError::Refused(refusal)) if refusal.reason == Reason::Malformed => {
                tracing::warn!(%refusal, "the collector takes no keys: what it stores has no witness");
                self.state().enrolled = Some(number);
                Ok(())
            }
            Err(PostError::Refused(refusal)) if !refusal.reason.is_passing() => {
                self.say_once("ship.key_refused", number.into(), &refusal.to_string()).await?;
                Err(PostError::Refused(refusal).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Shows the collector the tree of what is not sealed, now and then, when all that is sealed has arrived.
    pub async fn show_unsealed(&self) -> Result<(), ShipError> {
        if self.state().shown.elapsed() < self.show_every || !self.ledger.sealed().is_empty() {
            return Ok(());
        }
        let Some(unsealed) = self.ledger.checkpoint().await? else { return Ok(()) };
        self.enrol(&unsealed.epoch).await?;
        let sent: SignedNote = unsealed.note.parse()?;
        let leaves = unsealed.leaves.iter().map(|leaf| hex(leaf)).collect();
        let post = CheckpointPost { note: unsealed.note, first_seq: unsealed.first_seq, leaves };
        let body = serde_json::to_vec(&post).map_err(|error| PostError::Unreadable(error.to_string()))?;
        let epoch = self.ledger.standing().epoch;
        // Whatever comes of it, not at once again.
        self.state().shown = Instant::now();
        match self.collector.post::<CheckpointAck>(wire::CHECKPOINTS, body).await {
            Ok(ack) => {
                self.given_back(&sent, &ack.checkpoint, unsealed.first_seq).await?;
                self.follow(&ack.advice, Some(epoch)).await
            }
            Err(PostError::Refused(refusal)) => {
                match refusal.reason {
                    Reason::UnknownKey => self.state().enrolled = None,
                    Reason::Unproven | Reason::Conflict => {
                        self.say_once("ship.unproven", unsealed.first_seq, &refusal.to_string()).await?;
                    }
                    _ => {}
                }
                tracing::warn!(%refusal, "what is not sealed has no witness");
                // Segments come with checkpoints of their own.
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says in the log and in the record what an operator must look at.
    async fn say_once(&self, name: &'static str, at: u64, why: &str) -> Result<(), ShipError> {
        {
            let mut state = self.state();
            if state.said.len() >= MAX_SAID {
                state.said.clear();
            }
            if !state.said.insert((name, at)) {
                return Ok(());
            }
        }
        tracing::error!(at, why, "{name}: the collector does not vouch for this log");
        let text = |value: &str| self.masker.text(value);
        let detail = [("at".to_owned(), text(&at.to_string())), ("reason".to_owned(), text(why))];
        Ok(self.ledger.note(AgentEvent { name: name.into(), detail: detail.into() }).await?)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
