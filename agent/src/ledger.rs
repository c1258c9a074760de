//! The ledger: what is to be recorded comes in from the tasks that handle calls; events with a place in the log
//! go out to the spool. One thread gives out sequence numbers, makes canonical bytes, and writes them in groups
//! with one sync each; who waits for an event is answered after that sync. It never lets an intent pass for
//! written that is not, never closes a call twice, and never drops anything without saying so.
//!
//! # A call's record
//! [`Ledger::open_record`] reserves a slot before policy is asked, for a refusal or a hold too. [`OpenRecord::intent`]
//! resolves when the intent is on disk, with the [`DurableIntent`] that proves it; [`OpenRecord::queue`], for calls whose
//! rule says `best_effort`, at once, with a [`QueuedIntent`], which proves less. [`OpenRecord::close`] writes
//! the one outcome. A record that is dropped between the two is closed by the writer, as `aborted`; one that the
//! agent's end left open is closed as `unknown`: on a clean stop at once, else when the log is next opened, before
//! anything else is taken. Each new segment carries the list of the open calls, so that this also works when the
//! segment with the intent has been shipped and trimmed.
//!
//! # When the disk fails
//! Whoever waits gets the error, and the call is refused; until something ordinary could be written again, every call
//! waits. Outcomes are kept, with their slots, and written when
//! the disk takes them again. [`Ledger::note`]s that could not be written are counted in [`Ledger::health`], and
//! an event `ledger.lost` says how many as soon as one can be written.
//!
//! # Limits
//! [`MAX_OPEN_RECORDS`] calls (their intents and outcomes queue without further bound), [`QUEUE`] other entries
//! (who has more waits), groups of [`GROUP_EVENTS`] events and about [`GROUP_BYTES`].

mod book;
mod carry;
mod config;
mod epoch;
mod guest;
mod item;
mod keys;
mod life;
mod link;
mod open_record;
mod proof;
mod pulse;
mod released;
mod remote;
mod shared;
mod shown;
mod takeup;
mod vitals;
mod writer;

use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};
use weir_core::evidence::EvidenceError;
use weir_core::evidence::checkpoint::LogName;
use weir_core::ids::{CallId, FlowId, Origin};
use weir_core::mask::Masked;
use weir_core::record::{AgentEvent, Body, Completeness, DecisionRecord, Flow, Gap, Message, Written};

use crate::spool::{self, SegmentFile, SetAside, Shelf, SpoolError, Usage};
use guest::Hosted;
use item::{Answer, Command, ToWriter};
use life::Life;
use shared::Shared;
use vitals::Vitals;
use writer::Writer;

pub use carry::Carry;
pub use config::{Clock, LedgerConfig, Monotonic};
pub use guest::{Guest, MAX_GUESTS};
pub use keys::{KeyError, LogKeys};
pub use open_record::{DurableIntent, Intended, OpenRecord, QueuedIntent, Reserved};
pub use proof::{Rotated, SignedEpoch, Standing, Unsealed};
pub use released::{Handed, Released, TakenOver};
pub use shown::{ShowError, Shown, shown};
pub use vitals::Health;
pub use weir_core::wire::LONGEST_ADVISED;

/// The most calls that may have a record open at one time.
pub const MAX_OPEN_RECORDS: usize = 4096;
/// The most entries that wait for the writer, beside those of open records.
pub const QUEUE: usize = 1024;
/// The most events of one group, which is one sync.
pub const GROUP_EVENTS: usize = 256;
/// A group is closed when it has this many bytes.
pub const GROUP_BYTES: usize = 4 << 20;
/// How long a writer that could not write waits before it tries again of itself.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// While events come, no segment goes longer than this without a checkpoint.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// With this many segments unshipped, segments are no longer sealed by age: nobody is fetching them.
pub const MAX_SEALED_BY_AGE: u64 = 64;

/// Text that may be recorded.
pub type Text = Masked<String>;
/// Sees each event of this process once it is on disk, on the writer's thread; it must not wait. It sees none any more
/// once the log was given away.
pub type Tap = Arc<dyn Fn(&Written) + Send + Sync>;

/// What an earlier run left behind; the `agent.started` event says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub report: spool::Report,
    /// The calls that were open. Each has the outcome `unknown` now.
    pub unknown: Vec<CallId>,
    /// Events of the last segment that this program cannot read.
    pub unreadable: u64,
}

/// Why something is not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The disk, or its owner, is at fault.
    #[error("nothing can be recorded: {0}")]
    Spool(Arc<SpoolError>),
    /// The operator is at fault, or the disk.
    #[error("the log's key cannot be used: {0}")]
    Key(Arc<KeyError>),
    /// The operator is at fault: the tenant's or the host's name is none that a log can have.
    #[error("the log cannot be signed: {0}")]
    Evidence(#[from] EvidenceError),
    /// The log is of a host or tenant of another name, under which alone it can go on: another log must begin.
    #[error(
        "the log in this folder is that of {}/{}, and this host is another by its name: end the agent, and start it anew",
        .0.tenant, .0.host
    )]
    Renamed(Box<LogName>),
    /// The call must be refused.
    #[error("{0} calls are open already, which is as many as may be")]
    TooManyOpen(usize),
    /// The event cannot be recorded, however much of its payload is left out.
    #[error("an event of {0} bytes is more than can be recorded")]
    TooLarge(usize),
    /// A fault of Weir's.
    #[error("the event has no canonical bytes: {0}")]
    NotCanonical(String),
    /// A fault of Weir's: an intent or outcome for another call than the record's, or one that is not open.
    #[error("call {0} is not the one that is recorded here")]
    WrongCall(CallId),
    /// A fault of Weir's: an intent whose rule does not say so was not to wait for the disk.
    #[error("the intent of call {0} has to wait for the disk")]
    MustWait(CallId),
    /// The agent is ending.
    #[error("the ledger has stopped")]
    Stopped,
    /// The log is another process's, and that one could not write. The call must be refused.
    #[error("the agent that writes the log now says: {0}")]
    Peer(String),
    /// Nobody writes the log: the call must be refused.
    #[error("the agent to which this one gave its log away is gone")]
    PeerGone,
    /// What was asked is for the process that has the log now.
    #[error("this agent has given its log away")]
    GivenAway,
    /// A fault of the operator's, who replaces agents faster than they end.
    #[error("{MAX_GUESTS} agents that were replaced still have calls, which is as many as may be")]
    TooManyGuests,
}

impl From<SpoolError> for LedgerError {
    fn from(error: SpoolError) -> Self {
        Self::Spool(Arc::new(error))
    }
}

impl From<KeyError> for LedgerError {
    fn from(error: KeyError) -> Self {
        Self::Key(Arc::new(error))
    }
}

/// What can be recorded outside a call's own record: everything but intents and outcomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry(Body<Text>);

macro_rules! entry {
    ($($kind:ident($content:ty)),*) => {$(
        impl From<$content> for Entry {
            fn from(content: $content) -> Self {
                Self(Body::$kind(content))
            }
        }
    )*};
}

entry!(
    Decision(DecisionRecord<Text>),
    Message(Message<Text>),
    Flow(Flow<Text>),
    Agent(AgentEvent<Text>),
    Completeness(Completeness<Text>),
    Gap(Gap<Text>)
);

/// The one way into the log. Clones share it.
///
/// Only what belongs to no call's record can be written past one:
/// ```
/// # use weir::ledger::{Ledger, LedgerError, Text};
/// # use weir_core::record::{AgentEvent, Outcome};
/// async fn tell(ledger: &Ledger, event: AgentEvent<Text>) -> Result<u64, LedgerError> {
///     ledger.write(event).await
/// }
/// ```
/// ```compile_fail,E0277
/// # use weir::ledger::{Ledger, LedgerError, Text};
/// # use weir_core::record::{AgentEvent, Outcome};
/// async fn tell(ledger: &Ledger, outcome: Outcome<Text>) -> Result<u64, LedgerError> {
///     ledger.write(outcome).await
/// }
/// ```
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

impl Ledger {
    /// Opens the log, closes what an earlier run left open, and starts the writer. It waits for the disk: call it
    /// outside the runtime, or from a thread that may block.
    pub fn open(config: LedgerConfig) -> Result<(Self, Recovered), LedgerError> {
        let found = spool::open(config.storage.clone(), config.limits)?;
        let (origin, max_open) = (found.origin.clone(), config.max_open);
        let vitals = Arc::new(Vitals::default());
        let (writer, recovered) = Writer::open(config, found, vitals.clone())?;
        Ok((Self::with(writer, origin, max_open, vitals)?, recovered))
    }

    /// Opens a log that another process has released, and that has guests. It waits for the disk, too.
    pub fn take_over(config: LedgerConfig, handed: Handed) -> Result<TakenOver, LedgerError> {
        let Handed { left, guests } = handed;
        let found = spool::open_left(config.storage.clone(), config.limits, left)?;
        let (origin, max_open) = (found.origin.clone(), config.max_open);
        let kept = guests.iter().flat_map(|guest| guest.open.iter().cloned()).collect();
        let vitals = Arc::new(Vitals::default());
        let writer = Writer::go_on(config, found, &kept, watch::Sender::new(0), vitals.clone())?;
        Ok(TakenOver { ledger: Self::with(writer, origin, max_open, vitals)?, guests })
    }

    fn with(
        writer: Writer,
        origin: Origin,
        max_open: usize,
        vitals: Arc<Vitals>,
    ) -> Result<Self, LedgerError> {
        let max_open = max_open.min(MAX_OPEN_RECORDS);
        let (sender, commands) = mpsc::channel();
        let sender = Arc::new(ToWriter { commands: sender, clock: writer.clock(), thread: OnceLock::new() });
        let (shelf, sealed_below) = (Arc::new(Mutex::new(writer.shelf())), writer.sealed_below());
        let life = Life { commands, to_self: Arc::downgrade(&sender), shelf: shelf.clone() };
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || life.live(writer));
        let thread = thread.map_err(|source| SpoolError::Io {
            doing: "start a thread for",
            name: "the ledger".into(),
            source,
        })?;
        let _ = sender.thread.set(thread.thread().clone());
        let shared = Shared {
            commands: Mutex::new(Some(sender)),
            slots: Arc::new(Semaphore::new(max_open)),
            room: Arc::new(Semaphore::new(QUEUE)),
            max_open,
            origin,
            shelf,
            sealed_below,
            vitals,
            thread: Mutex::new(Some(thread)),
            guests: Mutex::default(),
            living: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Lets go of the log in good order: all that was recorded is on disk and sealed, and the folder is free. What comes
    /// from now on waits until the outcome is known, see [`Released`]. After an error nothing has changed.
    pub async fn release(&self) -> Result<Released, LedgerError> {
        let shared = self.shared.clone();
        let mut hosted = std::mem::take(&mut *shared.guests());
        hosted.retain(|hosted| !hosted.is_gone());
        if hosted.len() >= MAX_GUESTS {
            *shared.guests() = hosted;
            return Err(LedgerError::TooManyGuests);
        }
        let hush = move || hosted.into_iter().map(Hosted::hush).collect::<Vec<_>>();
        let silent = tokio::task::spawn_blocking(hush).await.map_err(|_| LedgerError::Stopped)?;
        let (answer, released) = oneshot::channel();
        let sent = shared.send(Command::Release { answer });
        let released = match sent {
            Ok(()) => released.await.unwrap_or(Err(LedgerError::Stopped)),
            Err(error) => Err(error),
        };
        // All that they sent has been answered now.
        let finish = move || silent.into_iter().filter_map(guest::Silent::finish).collect::<Vec<_>>();
        let guests = tokio::task::spawn_blocking(finish).await.map_err(|_| LedgerError::Stopped)?;
        match released {
            Ok(release) => Ok(Released::new(shared, release, guests)),
            Err(error) => {
                shared.host(guests);
                Err(error)
            }
        }
    }

    /// Resolves when the process to which the log was given is gone.
    pub async fn peer_gone(&self) {
        self.shared.vitals.peer_gone.cancelled().await;
    }

    /// Resolves when all processes that this one has replaced are gone.
    pub async fn guests_gone(&self) {
        // The sender is in the ledger itself.
        let _ = self.shared.living.subscribe().wait_for(|living| *living == 0).await;
    }

    /// The log's name.
    pub fn origin(&self) -> &Origin {
        &self.shared.origin
    }

    /// Reserves a place for a call, before anything is decided about it.
    pub fn open_record(&self, call_id: CallId, flow_id: FlowId) -> Result<OpenRecord, LedgerError> {
        OpenRecord::reserve(self.shared.clone(), call_id, flow_id)
    }

    /// Writes an entry, and returns its sequence number when it is on disk.
    pub async fn write(&self, entry: impl Into<Entry>) -> Result<u64, LedgerError> {
        let (answer, written) = oneshot::channel();
        self.shared.queue(entry.into(), Answer::Waiter(answer)).await?;
        written.await.unwrap_or(Err(LedgerError::Stopped))
    }

    /// The same for who is in no hurry: it is written with what comes soon after it.
    pub async fn write_soon(&self, entry: impl Into<Entry>) -> Result<u64, LedgerError> {
        let (answer, written) = oneshot::channel();
        self.shared.queue(entry.into(), Answer::Patient(answer)).await?;
        written.await.unwrap_or(Err(LedgerError::Stopped))
    }

    /// Queues an entry, waiting if the queue is full, and does not wait for the disk.
    pub async fn note(&self, entry: impl Into<Entry>) -> Result<(), LedgerError> {
        self.shared.queue(entry.into(), Answer::Note).await
    }

    /// Seals the active segment if its first event is at least so old; `Duration::ZERO` seals in any case.
    /// Returns whether there was anything to seal.
    pub async fn seal_if_older(&self, age: Duration) -> Result<bool, LedgerError> {
        let (answer, sealed) = oneshot::channel();
        self.shared.send(Command::Seal { age, answer })?;
        sealed.await.unwrap_or(Err(LedgerError::Stopped))
    }

    /// Changes the age at which segments are sealed.
    pub fn seal_after(&self, age: Duration) -> Result<(), LedgerError> {
        self.shared.send(Command::SealAfter(age))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Command,
    ) -> Result<T, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.shared.send(command(answer))?;
        answered.await.unwrap_or(Err(LedgerError::Stopped))
    }

    /// The sealed segments, the oldest first.
    pub fn sealed(&self) -> Vec<SegmentFile> {
        self.shared.shelf().sealed()
    }

    /// Changes when another segment was sealed: all events before this sequence number are.
    pub fn sealed_below(&self) -> watch::Receiver<u64> {
        self.shared.sealed_below.clone()
    }

    /// What the spool holds.
    pub fn usage(&self) -> Usage {
        self.shared.shelf().usage()
    }

    /// The bytes of a sealed segment.
    pub async fn read(&self, first_seq: u64) -> Result<Vec<u8>, LedgerError> {
        self.on_shelf(move |shelf| shelf.read(first_seq)).await
    }

    /// Deletes a sealed segment that has arrived.
    pub async fn trim(&self, first_seq: u64) -> Result<(), LedgerError> {
        self.on_shelf(move |shelf| shelf.trim(first_seq)).await
    }

    /// Keeps a sealed segment for a human, and ships it no more.
    pub async fn set_aside(&self, first_seq: u64, reason: SetAside) -> Result<(), LedgerError> {
        self.on_shelf(move |shelf| shelf.set_aside(first_seq, reason)).await
    }

    /// How the writer fares.
    pub fn health(&self) -> Health {
        self.shared.vitals.health()
    }

    /// Ends the log's writing cleanly: what is queued is written, calls that are open get the outcome `unknown`,
    /// `agent.stopped` is the last event, and the segment is sealed. Segments can still be read and trimmed; the
    /// folder is free when all handles are gone. An error says that not all of this could be written.
    pub async fn shutdown(&self) -> Result<(), LedgerError> {
        let (answer, stopped) = oneshot::channel();
        self.shared.send(Command::Stop { answer })?;
        let result = stopped.await.unwrap_or(Err(LedgerError::Stopped));
        let shared = self.shared.clone();
        let joined = tokio::task::spawn_blocking(move || shared.join()).await;
        joined.map_err(|_| LedgerError::Stopped).and(result)
    }

    async fn on_shelf<T: Send + 'static>(
        &self,
        work: impl FnOnce(Shelf) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let shelf = self.shared.shelf();
        let done = tokio::task::spawn_blocking(move || work(shelf)).await;
        Ok(done.map_err(|_| LedgerError::Stopped)??)
    }
}
