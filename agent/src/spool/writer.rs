//! The writer: groups of events' bytes come in, and are on disk when `append` returns. It never acknowledges
//! what a power cut could take, and never writes behind bytes of which it does not know what they are.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use weir_core::segment::{FRAME_HEADER_LEN, FrameKind, MAX_FRAME, MAX_SEGMENT, header, push_frame};

use super::recovery::Left;
use super::shelf::{SegmentFile, Shelf};
use super::storage::{Append, Storage};
use super::{Limits, Priority, RESERVE, SCRATCH, SpoolError, segment_name};

/// The one writer of a log.
pub struct Spool {
    storage: Arc<dyn Storage>,
    limits: Limits,
    shelf: Shelf,
    active: Active,
    next_seq: u64,
    reserve: bool,
}

/// The segment that is written.
struct Active {
    file: Box<dyn Append>,
    first_seq: u64,
    events: u64,
    /// Bytes that were synced. Behind them lies nothing, unless the last write failed.
    bytes: u64,
    state: Tail,
}

/// What may be done with the active segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// It can be appended to.
    Sound,
    /// A write or sync failed: what lies behind `bytes` is not known. It must be cut, and given up.
    Suspect,
    /// Its successor may be on disk already: it must be given up.
    Ended,
}

impl Spool {
    pub(super) fn create(
        storage: Arc<dyn Storage>,
        limits: Limits,
        shelf: Shelf,
        next_seq: u64,
        carry: &[u8],
    ) -> Result<Self, SpoolError> {
        let active = new_segment(&*storage, next_seq, carry)?;
        shelf.active_is(active.bytes, 0);
        let mut spool = Self { storage, limits, shelf, active, next_seq, reserve: false };
        // Without it ordinary groups are refused, and the first of them says so.
        if spool.beside_reserve(0) {
            let _ = spool.allocate_reserve();
        }
        Ok(spool)
    }

    /// The sequence number that the next event gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The sealed segments.
    pub fn shelf(&self) -> Shelf {
        self.shelf.clone()
    }

    /// Where the active segment begins: all events before are sealed.
    pub fn sealed_below(&self) -> u64 {
        self.active.first_seq
    }

    /// Events in the active segment.
    pub fn active_events(&self) -> u64 {
        self.active.events
    }

    /// Appends a group, and returns its sequence numbers when it is on disk. After an error none of it is in
    /// the log, as long as this writer lives; should the process end first, recovery may still find it.
    ///
    /// `carry` gives what a new segment carries over: the state before this group.
    pub fn append(
        &mut self,
        group: &[Vec<u8>],
        priority: Priority,
        carry: &dyn Fn() -> Vec<u8>,
    ) -> Result<Range<u64>, SpoolError> {
        self.with_reserve(priority, |spool| spool.append_once(group, priority, carry))
    }

    /// Seals the active segment, if there is an event in it, so that it can be shipped. Returns whether it did.
    pub fn seal(&mut self, carry: &dyn Fn() -> Vec<u8>) -> Result<bool, SpoolError> {
        if self.active.events == 0 {
            return Ok(false);
        }
        // Shipping makes room, so this may use the reserve.
        self.with_reserve(Priority::Reserved, |spool| spool.rotate(&carry()))?;
        Ok(true)
    }

    /// Frees the folder for another writer, to whom what is left is to be told. Should there be events that are not
    /// sealed, that one will find them by reading.
    pub fn release(self, carry: Vec<u8>) -> Left {
        let Self { shelf, active, next_seq, .. } = self;
        drop(active);
        let left = Left { next_seq, carry, sealed: shelf.sealed() };
        shelf.release();
        left
    }

    fn with_reserve<T>(
        &mut self,
        priority: Priority,
        mut attempt: impl FnMut(&mut Self) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let mut result = attempt(self);
        if result.as_ref().is_err_and(SpoolError::is_disk_full) {
            if priority == Priority::Reserved && self.reserve {
                self.release_reserve()?;
                result = attempt(self);
            }
            if result.as_ref().is_err_and(SpoolError::is_disk_full) {
                return Err(self.full(true));
            }
        }
        result
    }

    fn append_once(
        &mut self,
        group: &[Vec<u8>],
        priority: Priority,
        carry: &dyn Fn() -> Vec<u8>,
    ) -> Result<Range<u64>, SpoolError> {
        let first = self.next_seq;
        let events = group.len() as u64;
        let bytes: usize = group.iter().map(|event| FRAME_HEADER_LEN + event.len()).sum();
        let fits = |limit: usize, used: u64| used.saturating_add(bytes as u64) <= limit as u64;
        let too_large = SpoolError::TooLarge { bytes, events };
        if group.iter().any(|event| event.len() > MAX_FRAME) || events > self.limits.seal_events {
            return Err(too_large);
        }
        let sealed_by = !fits(self.limits.seal_bytes, self.active.bytes)
            || self.active.events + events > self.limits.seal_events;
        let overflows = !fits(MAX_SEGMENT, self.active.bytes);
        if self.active.state != Tail::Sound || (self.active.events > 0 && sealed_by) || overflows {
            let carry = carry();
            let head = header(first).len() + FRAME_HEADER_LEN + carry.len();
            if !fits(MAX_SEGMENT, head as u64) {
                return Err(too_large);
            }
            self.make_room(priority, (head + bytes) as u64)?;
            self.rotate(&carry)?;
        } else {
            self.make_room(priority, bytes as u64)?;
        }
        let mut frames = Vec::with_capacity(bytes);
        for (event, seq) in group.iter().zip(first..) {
            push_frame(&mut frames, FrameKind::Event, seq, event);
        }
        self.write(&frames)?;
        self.next_seq += events;
        self.active.events += events;
        self.active.bytes += bytes as u64;
        self.shelf.active_is(self.active.bytes, self.active.events);
        Ok(first..self.next_seq)
    }

    fn write(&mut self, frames: &[u8]) -> Result<(), SpoolError> {
        let name = segment_name(self.active.first_seq);
        self.active.state = Tail::Suspect;
        self.active.file.append(frames).map_err(SpoolError::io("append to", &name))?;
        self.active.file.sync_data().map_err(SpoolError::io("sync", &name))?;
        self.active.state = Tail::Sound;
        Ok(())
    }

    /// Puts a new segment in the active one's place.
    fn rotate(&mut self, carry: &[u8]) -> Result<(), SpoolError> {
        let name = segment_name(self.active.first_seq);
        if self.active.state == Tail::Suspect {
            self.storage.cut(&name, self.active.bytes).map_err(SpoolError::io("cut", &name))?;
        }
        // Once the new one may be there, nothing more may be written into the old one.
        self.active.state = Tail::Ended;
        let new = new_segment(&*self.storage, self.next_seq, carry)?;
        let old = std::mem::replace(&mut self.active, new);
        // An old one without events had the same name, and is gone.
        if old.events > 0 {
            self.shelf.put(SegmentFile { first_seq: old.first_seq, events: old.events, bytes: old.bytes });
        }
        self.shelf.active_is(self.active.bytes, 0);
        Ok(())
    }

    /// Checks that `bytes` more may be used, and gives the reserve up or takes it back accordingly.
    fn make_room(&mut self, priority: Priority, bytes: u64) -> Result<(), SpoolError> {
        let beside_reserve = self.beside_reserve(bytes);
        let needed = self.shelf.usage().bytes.saturating_add(bytes);
        match priority {
            Priority::Ordinary if !beside_reserve => Err(self.full(false)),
            Priority::Ordinary if !self.reserve => self.allocate_reserve(),
            Priority::Reserved if needed > self.limits.max_bytes => Err(self.full(false)),
            Priority::Reserved if !beside_reserve && self.reserve => self.release_reserve(),
            _ => Ok(()),
        }
    }

    /// Whether `bytes` more leave room for the whole reserve.
    fn beside_reserve(&self, bytes: u64) -> bool {
        let used = self.shelf.usage().bytes.saturating_add(bytes);
        used.saturating_add(self.limits.reserve_bytes) <= self.limits.max_bytes
    }

    fn allocate_reserve(&mut self) -> Result<(), SpoolError> {
        let made = self.storage.preallocate(RESERVE, self.limits.reserve_bytes);
        self.reserve = made.is_ok();
        made.map_err(|error| {
            // A part of it would only take room from others.
            let _ = self.storage.remove(RESERVE);
            SpoolError::io("allocate", RESERVE)(error)
        })
    }

    fn release_reserve(&mut self) -> Result<(), SpoolError> {
        self.reserve = false;
        match self.storage.remove(RESERVE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError::io("remove", RESERVE)(error))
            }
            _ => Ok(()),
        }
    }

    fn full(&self, disk: bool) -> SpoolError {
        SpoolError::Full { used: self.shelf.usage().bytes, max: self.limits.max_bytes, disk }
    }
}

/// Makes a segment with nothing but its carry, whole and on disk, or not at all.
fn new_segment(storage: &dyn Storage, first_seq: u64, carry: &[u8]) -> Result<Active, SpoolError> {
    if carry.len() > MAX_FRAME {
        return Err(SpoolError::TooLarge { bytes: carry.len(), events: 0 });
    }
    let mut bytes = header(first_seq).to_vec();
    push_frame(&mut bytes, FrameKind::Carry, first_seq, carry);
    let file = create_file(storage, &segment_name(first_seq), &bytes)?;
    Ok(Active { file, first_seq, events: 0, bytes: bytes.len() as u64, state: Tail::Sound })
}

/// Makes a file that has all its bytes as soon as it has its name.
pub(super) fn create_file(
    storage: &dyn Storage,
    name: &str,
    bytes: &[u8],
) -> Result<Box<dyn Append>, SpoolError> {
    let mut file = storage.create(SCRATCH).map_err(SpoolError::io("create", name))?;
    let written = file.append(bytes).and_then(|()| file.sync_data());
    written.map_err(SpoolError::io("write", name))?;
    storage.rename(SCRATCH, name).map_err(SpoolError::io("name", name))?;
    storage.sync_folder().map_err(SpoolError::io("sync", name))?;
    Ok(file)
}
