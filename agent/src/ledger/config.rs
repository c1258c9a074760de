//! What a ledger is made of: the storage, the names and the limits come in from whoever opens it.

use std::sync::Arc;
use std::time::Duration;

use weir_core::ids::Boot;
use weir_core::mask::Masker;

use super::{MAX_OPEN_RECORDS, Tap};
use crate::clock;
use crate::spool::{Limits, Storage};

/// Gives the wall-clock time, microseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
/// Gives the time since some moment, by a clock that nobody sets and that goes on while the host sleeps.
pub type Monotonic = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What a ledger is made of.
#[derive(Clone)]
pub struct LedgerConfig {
    pub storage: Arc<dyn Storage>,
    pub limits: Limits,
    pub tenant: String,
    pub host: String,
    /// Names this run of the agent.
    pub boot: Boot,
    /// Masks what the agent's own events say.
    pub masker: Masker,
    pub clock: Clock,
    pub monotonic: Monotonic,
    /// Where the log's key lies.
    pub keys: Arc<dyn Storage>,
    /// A segment is sealed when its first event is this old...
    pub seal_after: Duration,
    /// ... or this, if there are heartbeats alone in it.
    pub idle_seal_after: Duration,
    /// When nothing was written for so long, a heartbeat is.
    pub heartbeat: Duration,
    /// The wall clock was set when it is off by more than this.
    pub clock_tolerance: Duration,
    /// At most [`MAX_OPEN_RECORDS`].
    pub max_open: usize,
    pub tap: Option<Tap>,
}

impl LedgerConfig {
    /// The usual limits, the host's clocks, no tap; the key lies with the segments.
    pub fn new(storage: Arc<dyn Storage>, tenant: String, host: String, boot: Boot, masker: Masker) -> Self {
        Self {
            keys: storage.clone(),
            storage,
            limits: Limits::default(),
            tenant,
            host,
            boot,
            masker,
            clock: Arc::new(clock::now_us),
            monotonic: Arc::new(clock::since_boot),
            seal_after: Duration::from_secs(1),
            idle_seal_after: Duration::from_secs(15 * 60),
            heartbeat: Duration::from_secs(60),
            clock_tolerance: Duration::from_secs(1),
            max_open: MAX_OPEN_RECORDS,
            tap: None,
        }
    }
}
