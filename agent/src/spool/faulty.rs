//! A disk that fails on command, for tests: what a spool writes comes in; what a kill or a power cut would have
//! left of it goes out. It is harder than real disks are:
//! - what was not synced survives a power cut sector by sector, in any order, or not at all;
//! - names that were made, moved or removed last survive only up to some point, until the folder is synced;
//! - a sync that fails keeps some sectors and forgets the others, and the next sync says nothing of them.
//!
//! Each call that changes something is one operation; they are counted from 0, so that a test can run once to
//! count them and then once for each of them with a fault there.

mod file;
mod random;
mod storage;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    KEY_FILE, KEY_MAKING, KEY_NEXT, ORIGIN, RESERVE, SCRATCH, SetAside, WITNESS_FILE, WITNESS_MAKING,
    WITNESSED_FILE, named_seq,
};
use file::File;

pub use random::Random;

/// The operation after which the next append goes behind what it wrote.
const WRITE: &str = "write";

/// What goes wrong at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails. A sync leaves some sectors behind; a write leaves nothing.
    Eio,
    /// There is no space.
    Enospc,
    /// A write gets so far and fails.
    Torn(usize),
    /// From here on nothing works, as if the machine were off.
    Off,
}

/// What an operation does, and to which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    pub doing: &'static str,
    /// `scratch`, `segment`, `origin`, `reserve`, `aside`, `key`, `witness`, `folder` or `other`.
    pub file: &'static str,
}

/// A folder in memory. Clones are one disk.
#[derive(Debug, Clone)]
pub struct Faulty {
    disk: Arc<(Mutex<Disk>, Condvar)>,
    /// Which life of the machine this is a handle of.
    life: u64,
}

#[derive(Debug, Default)]
struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    /// The names that a power cut cannot change, and what was done to them since.
    synced_names: BTreeMap<String, usize>,
    unsynced_names: Vec<BTreeMap<String, usize>>,
    operations: u64,
    /// What each operation was.
    sites: Vec<Site>,
    data_syncs: u64,
    reads: u64,
    faults: BTreeMap<u64, Fault>,
    off: bool,
    capacity: Option<u64>,
    locked: bool,
    syncs_held: bool,
    syncs_waiting: u64,
    life: u64,
}

impl Default for Faulty {
    fn default() -> Self {
        Self::new()
    }
}

impl Faulty {
    /// An empty folder on a disk without faults.
    pub fn new() -> Self {
        Self { disk: Arc::new((Mutex::default(), Condvar::new())), life: 0 }
    }

    /// Lets the operation with this number fail.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.disk().faults.insert(operation, fault);
    }

    /// Takes back all faults that have not happened.
    pub fn mend(&self) {
        self.disk().faults.clear();
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// What the operations were, by their numbers.
    pub fn sites(&self) -> Vec<Site> {
        self.disk().sites.clone()
    }

    /// How many data syncs succeeded.
    pub fn data_syncs(&self) -> u64 {
        self.disk().data_syncs
    }

    /// How many files were read.
    pub fn reads(&self) -> u64 {
        self.disk().reads
    }

    /// Bounds the disk's bytes, or lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// Lets syncs wait until what it returns is dropped.
    #[must_use]
    pub fn hold_syncs(&self) -> HeldSyncs {
        self.disk().syncs_held = true;
        HeldSyncs(self.clone())
    }

    /// Waits until a sync is held. Returns whether it came before the deadline.
    pub fn wait_for_held_sync(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let mut disk = self.disk();
        while disk.syncs_waiting == 0 {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            disk = self.disk.1.wait_timeout(disk, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The process was killed: all that was written is there. Older handles work no more.
    pub fn killed(&self) -> Self {
        let mut disk = self.disk();
        disk.life += 1;
        disk.faults.clear();
        (disk.off, disk.locked, disk.syncs_held) = (false, false, false);
        let life = disk.life;
        drop(disk);
        self.disk.1.notify_all();
        Self { disk: self.disk.clone(), life }
    }

    /// The power was cut: what was not synced survives as `seed` has it. Older handles work no more.
    pub fn power_cut(&self, seed: u64) -> Self {
        let mut disk = self.disk();
        let mut random = Random(seed);
        for file in &mut disk.files {
            file.lose(&mut random);
        }
        let mut kept = std::mem::take(&mut disk.unsynced_names);
        kept.truncate(random.below(kept.len() as u64 + 1) as usize);
        let names = kept.pop().unwrap_or_else(|| disk.synced_names.clone());
        (disk.names, disk.synced_names) = (names.clone(), names);
        drop(disk);
        self.killed()
    }

    /// A file's bytes, to look at.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk();
        Some(disk.files.get(*disk.names.get(name)?)?.now.clone())
    }

    /// The same without the room behind them.
    pub fn written(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = self.bytes(name)?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Some(bytes)
    }

    /// Puts a file there, as if it had always been.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk();
        let id = disk.files.len();
        disk.files.push(File::old(bytes));
        disk.names.insert(name.to_owned(), id);
        disk.synced_names.insert(name.to_owned(), id);
    }

    /// The names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        self.disk().names.keys().cloned().collect()
    }

    /// Another disk with the same files, to be spoilt without spoiling this one.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        for name in self.names() {
            copy.put(&name, &self.bytes(&name).unwrap_or_default());
        }
        copy
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, and says what goes wrong at it.
    fn operation(
        &self,
        doing: &'static str,
        on: On<'_>,
    ) -> io::Result<(MutexGuard<'_, Disk>, Option<Fault>)> {
        let mut disk = self.disk();
        if disk.off || disk.life != self.life {
            return Err(io::Error::other("the machine is off"));
        }
        let fault = disk.faults.get(&disk.operations).copied();
        disk.operations += 1;
        let site = Site { doing, file: disk.kind_of(on) };
        disk.sites.push(site);
        if fault == Some(Fault::Off) {
            disk.off = true;
            return Err(io::Error::other("the machine is off"));
        }
        Ok((disk, fault))
    }

    fn change_names(
        &self,
        doing: &'static str,
        name: &str,
        change: impl FnOnce(&mut BTreeMap<String, usize>) -> Option<()>,
    ) -> io::Result<()> {
        let (mut disk, fault) = self.operation(doing, On::Name(name))?;
        fail(fault)?;
        change(&mut disk.names).ok_or(io::ErrorKind::NotFound)?;
        let names = disk.names.clone();
        disk.unsynced_names.push(names);
        Ok(())
    }

    fn make(&self, name: &str) -> io::Result<usize> {
        let (mut disk, fault) = self.operation("create", On::Name(name))?;
        fail(fault)?;
        if let Some(id) = disk.names.get(name).copied() {
            if let Some(file) = disk.files.get_mut(id) {
                file.set_len(0);
            }
            return Ok(id);
        }
        let id = disk.files.len();
        disk.files.push(File::default());
        disk.names.insert(name.to_owned(), id);
        let names = disk.names.clone();
        disk.unsynced_names.push(names);
        Ok(id)
    }

    fn write(&self, doing: &'static str, id: usize, bytes: &[u8]) -> io::Result<()> {
        let (mut disk, fault) = self.operation(doing, On::File(id))?;
        let free = disk.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used()));
        let room = disk.files.get(id).map_or(0, |file| file.now.len() - file.at);
        let whole = bytes.len().min(usize::try_from(free).unwrap_or(usize::MAX).saturating_add(room));
        let kept = match fault {
            None => whole,
            Some(Fault::Torn(at)) => at.min(whole),
            Some(_) => 0,
        };
        if let (Some(file), Some(bytes)) = (disk.files.get_mut(id), bytes.get(..kept)) {
            file.put(bytes);
            if doing == WRITE {
                file.at += bytes.len();
            }
        }
        fail(fault)?;
        if kept < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self, id: usize) -> io::Result<()> {
        let (mut disk, fault) = self.operation("sync", On::File(id))?;
        disk.syncs_waiting += 1;
        self.disk.1.notify_all();
        while disk.syncs_held && disk.life == self.life {
            disk = self.disk.1.wait(disk).unwrap_or_else(PoisonError::into_inner);
        }
        disk.syncs_waiting -= 1;
        if disk.life != self.life {
            return Err(io::Error::other("the machine is off"));
        }
        let mut random = Random(disk.operations);
        let Some(file) = disk.files.get_mut(id) else { return Ok(()) };
        if fault.is_some() {
            file.sync_some(&mut random);
            return fail(fault);
        }
        file.sync_all();
        disk.data_syncs += 1;
        Ok(())
    }
}

/// What an operation is done to; the folder has no name.
#[derive(Clone, Copy)]
enum On<'a> {
    Name(&'a str),
    File(usize),
}

impl Disk {
    fn kind_of(&self, on: On<'_>) -> &'static str {
        let name = match on {
            On::Name(name) => Some(name),
            On::File(id) => self.names.iter().find(|(_, other)| **other == id).map(|(name, _)| name.as_str()),
        };
        match name {
            Some("") => "folder",
            Some(SCRATCH) => "scratch",
            Some(ORIGIN) => "origin",
            Some(RESERVE) => "reserve",
            Some(KEY_FILE | KEY_NEXT | KEY_MAKING) => "key",
            Some(WITNESS_FILE | WITNESSED_FILE | WITNESS_MAKING) => "witness",
            Some(name) if named_seq(name).is_some() => "segment",
            Some(name) if SetAside::is_name(name) => "aside",
            _ => "other",
        }
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(*id)).map(|file| file.now.len() as u64).sum()
    }
}

fn fail(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(Fault::Enospc) => Err(io::ErrorKind::StorageFull.into()),
        Some(_) => Err(io::Error::other("input/output error")),
    }
}

/// Syncs wait as long as it lives.
pub struct HeldSyncs(Faulty);

impl Drop for HeldSyncs {
    fn drop(&mut self) {
        self.0.disk().syncs_held = false;
        self.0.disk.1.notify_all();
    }
}
