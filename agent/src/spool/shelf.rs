//! The shelf: sealed segments come in from the writer, their bytes go out to whoever ships them, and what has
//! arrived is deleted. It can be used from any thread, and each of its calls may wait for the disk. It never
//! touches the active segment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use serde::{Deserialize, Serialize};

use super::storage::{Lock, Storage};
use super::{SpoolError, segment_name};

/// A sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFile {
    /// The sequence number of its first event.
    pub first_seq: u64,
    /// How many events it has; at least one.
    pub events: u64,
    /// How many bytes of its file count.
    pub bytes: u64,
}

impl SegmentFile {
    /// The sequence number of its last event.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.events.saturating_sub(1)
    }
}

/// Why a file is kept for a human instead of being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetAside {
    /// Recovery could not read it.
    Damaged,
    /// The collector could not read it.
    Malformed,
    /// The collector has other events at its place of the log.
    Conflict,
    /// Bytes cut off a segment's end, with whole frames among them.
    Tail,
}

impl SetAside {
    const ALL: [Self; 4] = [Self::Damaged, Self::Malformed, Self::Conflict, Self::Tail];

    fn suffix(self) -> &'static str {
        match self {
            SetAside::Damaged => ".damaged",
            SetAside::Malformed => ".malformed",
            SetAside::Conflict => ".conflict",
            SetAside::Tail => ".tail",
        }
    }

    pub(super) fn name(self, first_seq: u64) -> String {
        segment_name(first_seq) + self.suffix()
    }

    pub(super) fn is_name(name: &str) -> bool {
        let stem = Self::ALL.iter().find_map(|reason| name.strip_suffix(reason.suffix()));
        stem.is_some_and(|stem| super::named_seq(stem).is_some())
    }
}

/// What a spool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Segments with events in them, the active one included.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of all segments and of the files set aside.
    pub bytes: u64,
    /// Bytes of the files set aside.
    pub aside_bytes: u64,
}

/// The sealed segments. Clones share them. The folder stays locked until the writer and all of them are gone, or until
/// the writer gives it up: then none of them reads or changes it any more.
#[derive(Clone)]
pub struct Shelf {
    storage: Arc<dyn Storage>,
    state: Arc<Mutex<State>>,
    /// Held for reading while the folder is used.
    lock: Arc<RwLock<Option<Lock>>>,
}

/// The folder is this process's for as long as it lives.
type InUse<'a> = RwLockReadGuard<'a, Option<Lock>>;

#[derive(Debug, Default)]
struct State {
    sealed: BTreeMap<u64, SegmentFile>,
    /// Sums over `sealed`.
    sealed_bytes: u64,
    sealed_events: u64,
    active: (u64, u64),
    aside_bytes: u64,
}

impl State {
    fn put(&mut self, file: SegmentFile) {
        self.take(file.first_seq);
        self.sealed.insert(file.first_seq, file);
        self.sealed_bytes += file.bytes;
        self.sealed_events += file.events;
    }

    fn take(&mut self, first_seq: u64) {
        if let Some(file) = self.sealed.remove(&first_seq) {
            self.sealed_bytes -= file.bytes;
            self.sealed_events -= file.events;
        }
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("sealed", &self.sealed()).finish_non_exhaustive()
    }
}

impl Shelf {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        lock: Lock,
        sealed: Vec<SegmentFile>,
        aside_bytes: u64,
    ) -> Self {
        let mut state = State { aside_bytes, ..State::default() };
        sealed.into_iter().for_each(|file| state.put(file));
        Self { storage, state: Arc::new(Mutex::new(state)), lock: Arc::new(RwLock::new(Some(lock))) }
    }

    /// Waits for those who use the folder now, and frees it for another writer.
    pub(super) fn release(&self) {
        drop(self.lock.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn in_use(&self) -> Result<InUse<'_>, SpoolError> {
        let lock = self.lock.read().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() { Ok(lock) } else { Err(SpoolError::Released) }
    }

    /// All sealed segments, the oldest first.
    pub fn sealed(&self) -> Vec<SegmentFile> {
        self.state().sealed.values().copied().collect()
    }

    /// What the folder holds; from memory, without the disk.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        let (bytes, events) = state.active;
        Usage {
            segments: state.sealed.len() as u64 + u64::from(events > 0),
            events: state.sealed_events + events,
            bytes: state.sealed_bytes + bytes + state.aside_bytes,
            aside_bytes: state.aside_bytes,
        }
    }

    /// The bytes of a sealed segment, as they are shipped.
    pub fn read(&self, first_seq: u64) -> Result<Vec<u8>, SpoolError> {
        let _in_use = self.in_use()?;
        let file = self.file(first_seq)?;
        let name = segment_name(first_seq);
        let mut bytes = self.storage.read(&name).map_err(SpoolError::io("read", &name))?;
        bytes.truncate(usize::try_from(file.bytes).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Deletes a sealed segment whose events have arrived elsewhere.
    pub fn trim(&self, first_seq: u64) -> Result<(), SpoolError> {
        let _in_use = self.in_use()?;
        self.file(first_seq)?;
        let name = segment_name(first_seq);
        self.storage.remove(&name).map_err(SpoolError::io("remove", &name))?;
        self.state().take(first_seq);
        self.storage.sync_folder().map_err(SpoolError::io("sync", "the folder"))
    }

    /// Keeps a sealed segment under another name, so that it is not shipped again.
    pub fn set_aside(&self, first_seq: u64, reason: SetAside) -> Result<(), SpoolError> {
        let _in_use = self.in_use()?;
        let file = self.file(first_seq)?;
        let name = segment_name(first_seq);
        self.storage.rename(&name, &reason.name(first_seq)).map_err(SpoolError::io("set aside", &name))?;
        let mut state = self.state();
        state.take(first_seq);
        state.aside_bytes += file.bytes;
        drop(state);
        self.storage.sync_folder().map_err(SpoolError::io("sync", "the folder"))
    }

    fn file(&self, first_seq: u64) -> Result<SegmentFile, SpoolError> {
        self.state().sealed.get(&first_seq).copied().ok_or(SpoolError::NotSealed(first_seq))
    }

    pub(super) fn put(&self, file: SegmentFile) {
        self.state().put(file);
    }

    pub(super) fn active_is(&self, bytes: u64, events: u64) {
        self.state().active = (bytes, events);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one step, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
