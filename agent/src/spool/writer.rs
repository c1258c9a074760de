//! The writer: groups of events' bytes come in, and are on disk when `append` returns. It never acknowledges
//! what a power cut could take, and never writes behind bytes of which it does not know what they are.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_core::segment::{EventFrames, FrameKind, MAX_FRAME, MAX_SEGMENT, header, push_frame};

use super::recovery::Left;
use super::shelf::{SegmentFile, Shelf};
use super::storage::{Append, Storage};
use super::{CLOSING, Limits, Priority, RESERVE, SCRATCH, SpoolError, segment_name};

/// The most room that is made: who waits for the first group of a segment waits for it, too.
pub(super) const MAX_ROOM: usize = 2 << 20;
/// A segment's groups are small below so many bytes on average.
const SMALL_GROUP: u64 = 64 << 10;

/// What stands around events: their owner gives it when it is needed, and the spool does not know what it means.
pub trait Around {
    /// What a new segment begins with: the state behind the last group that is on disk.
    fn head(&self) -> Head;
    /// The checkpoint that closes the active segment, over all that is in it.
    fn closing(&self) -> Vec<u8>;
    /// A checkpoint over all that, and the group that is being written.
    fn with_group(&self) -> Vec<u8>;
}

/// The payloads of the frames with which a segment begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Of the `Tree` frame.
    pub tree: Vec<u8>,
    /// Of the `Carry` frame.
    pub carry: Vec<u8>,
}

/// Events that are written together.
#[derive(Debug)]
pub struct Group<'a> {
    /// Of these the first has the spool's `next_seq`.
    pub frames: &'a mut EventFrames,
    pub priority: Priority,
    /// A checkpoint is due: it goes with them, without a sync of its own.
    pub checkpoint: bool,
}

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
    groups: u64,
    /// Bytes that were synced. Behind them lies nothing, unless the last write failed.
    bytes: u64,
    /// Whether its last frame is a checkpoint.
    covered: bool,
    state: Tail,
    /// Whether it was made with room behind its bytes.
    has_room: bool,
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
        head: &Head,
    ) -> Result<Self, SpoolError> {
        let active = new_segment(&*storage, next_seq, head, 0)?;
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

    /// Whether the last frame of the active segment is a checkpoint over all that is in it.
    pub fn is_covered(&self) -> bool {
        self.active.covered
    }

    /// Appends a group, and returns its sequence numbers when it is on disk. After an error none of it is in
    /// the log, as long as this writer lives; should the process end first, recovery may still find it.
    pub fn append(&mut self, group: Group<'_>, around: &dyn Around) -> Result<Range<u64>, SpoolError> {
        let Group { frames, priority, checkpoint } = group;
        self.with_reserve(priority, |spool| {
            spool.append_once(Group { frames: &mut *frames, priority, checkpoint }, around)
        })
    }

    /// Writes a checkpoint into the active segment, unless it ends with one or is to be given up. Returns whether it did.
    pub fn checkpoint(&mut self, around: &dyn Around) -> Result<bool, SpoolError> {
        if self.active.events == 0 || self.active.covered || self.active.state != Tail::Sound {
            return Ok(false);
        }
        self.with_reserve(Priority::Reserved, |spool| spool.close(around))?;
        Ok(true)
    }

    /// Seals the active segment, if there is an event in it, so that it can be shipped. Returns whether it did.
    pub fn seal(&mut self, around: &dyn Around) -> Result<bool, SpoolError> {
        let has_events = self.active.events > 0;
        if has_events {
            self.turn(around)?;
        }
        Ok(has_events)
    }

    /// Begins a new segment, even where the active one has no event.
    pub fn turn(&mut self, around: &dyn Around) -> Result<(), SpoolError> {
        // Shipping makes room, so this may use the reserve.
        self.with_reserve(Priority::Reserved, |spool| spool.rotate(around))
    }

    /// Frees the folder for another writer, to whom what is left is to be told. Should there be events that are not
    /// sealed, that one will find them by reading.
    pub fn release(self, head: Head) -> Left {
        let Self { shelf, active, next_seq, .. } = self;
        drop(active);
        let left = Left { next_seq, head: Some(head), sealed: shelf.sealed() };
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

    fn append_once(&mut self, group: Group<'_>, around: &dyn Around) -> Result<Range<u64>, SpoolError> {
        let Group { frames, priority, checkpoint } = group;
        let (first, events, bytes) = (self.next_seq, frames.len() as u64, frames.bytes().len());
        if frames.first_seq() != first {
            return Err(SpoolError::Inconsistent(
                "a group has other sequence numbers than those that are next",
            ));
        }
        let fits = |limit: usize, used: u64| used.saturating_add(bytes as u64) <= limit as u64;
        let too_large = SpoolError::TooLarge { bytes, events };
        if frames.events().any(|event| event.len() > MAX_FRAME) || events > self.limits.seal_events {
            return Err(too_large);
        }
        let sealed_by = !fits(self.limits.seal_bytes, self.active.bytes)
            || self.active.events + events > self.limits.seal_events;
        let overflows = !fits(MAX_SEGMENT, self.active.bytes + CLOSING);
        if self.active.state != Tail::Sound || (self.active.events > 0 && sealed_by) || overflows {
            let head = head_bytes(first, &around.head())?.len() as u64;
            if !fits(MAX_SEGMENT, head + CLOSING) {
                return Err(too_large);
            }
            self.make_room(priority, head + bytes as u64 + CLOSING)?;
            self.rotate(around)?;
        } else {
            self.make_room(priority, bytes as u64 + CLOSING)?;
        }
        // Another group like this would not fit: then the segment is closed already, without a sync for that alone.
        let last = !fits(self.limits.seal_bytes, self.active.bytes + bytes as u64)
            || self.active.events + 2 * events > self.limits.seal_events;
        let covered = checkpoint || last;
        let bytes = if covered { frames.with_checkpoint(&around.with_group()) } else { frames.bytes() };
        self.write(bytes)?;
        self.next_seq += events;
        self.active.events += events;
        self.active.groups += 1;
        self.wrote(bytes, covered);
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

    fn wrote(&mut self, frames: &[u8], covered: bool) {
        self.active.covered = covered;
        self.active.bytes += frames.len() as u64;
        self.shelf.active_is(self.active.bytes, self.active.events);
    }

    /// Makes sure that the active segment ends with a checkpoint, if there is anything in it, and with nothing unknown.
    fn close(&mut self, around: &dyn Around) -> Result<(), SpoolError> {
        if self.active.state == Tail::Suspect {
            let name = segment_name(self.active.first_seq);
            let cut = self.storage.cut(&name, self.active.bytes);
            // What lay behind is gone, and what is written there now is synced anew.
            self.active.file = cut.map_err(SpoolError::io("cut", &name))?;
            self.active.has_room = false;
        }
        if self.active.state != Tail::Ended && self.active.events > 0 && !self.active.covered {
            let mut frame = Vec::new();
            push_frame(&mut frame, FrameKind::Checkpoint, self.next_seq, &around.closing());
            self.write(&frame)?;
            self.wrote(&frame, true);
        }
        Ok(())
    }

    /// Cuts off what is left of the active segment's room: a sealed segment has none, and what lies behind its end is damage.
    fn give_room_back(&mut self) -> Result<(), SpoolError> {
        if self.active.has_room {
            let cut = self.active.file.give_room_back().and_then(|()| self.active.file.sync_data());
            cut.map_err(SpoolError::io("cut", &segment_name(self.active.first_seq)))?;
            self.active.has_room = false;
        }
        Ok(())
    }

    /// Puts a new segment in the active one's place.
    fn rotate(&mut self, around: &dyn Around) -> Result<(), SpoolError> {
        self.close(around)?;
        // Nothing more may be written into it: it has its last checkpoint, and once it was to be cut nobody knows what lies
        // behind that, nor whether the new one is there already.
        self.active.state = Tail::Ended;
        self.give_room_back()?;
        let new = new_segment(&*self.storage, self.next_seq, &around.head(), self.room_ahead())?;
        let old = std::mem::replace(&mut self.active, new);
        // An old one without events had the same name, and is gone.
        if old.events > 0 {
            self.shelf.put(SegmentFile { first_seq: old.first_seq, events: old.events, bytes: old.bytes });
        }
        self.shelf.active_is(self.active.bytes, 0);
        Ok(())
    }

    /// How much room the next segment is made with: a little more than the one before has, if that had enough to be worth
    /// it, in groups that are small, and if the folder has room in plenty.
    fn room_ahead(&self) -> usize {
        let Limits { max_bytes, reserve_bytes, seal_bytes, room_from, .. } = self.limits;
        let last = usize::try_from(self.active.bytes).unwrap_or(usize::MAX);
        let room =
            last.saturating_add(last / 4).min(seal_bytes.saturating_add(CLOSING as usize)).min(MAX_ROOM);
        let needed = self.shelf.usage().bytes.saturating_add(reserve_bytes).saturating_add(room as u64);
        // Of large groups the bytes themselves are what takes time, and room would double them.
        let small_groups = self.active.bytes / self.active.groups.max(1) < SMALL_GROUP;
        if small_groups && last >= room_from && needed <= max_bytes / 2 { room } else { 0 }
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

fn head_bytes(first_seq: u64, head: &Head) -> Result<Vec<u8>, SpoolError> {
    let Head { tree, carry } = head;
    if tree.len().max(carry.len()) > MAX_FRAME {
        return Err(SpoolError::TooLarge { bytes: tree.len() + carry.len(), events: 0 });
    }
    let mut bytes = header(first_seq).to_vec();
    push_frame(&mut bytes, FrameKind::Tree, first_seq, tree);
    push_frame(&mut bytes, FrameKind::Carry, first_seq, carry);
    Ok(bytes)
}

/// Makes a segment with nothing but its head, whole and on disk, or not at all.
fn new_segment(
    storage: &dyn Storage,
    first_seq: u64,
    head: &Head,
    room: usize,
) -> Result<Active, SpoolError> {
    let bytes = head_bytes(first_seq, head)?;
    let (file, has_room) = create_roomy(storage, &segment_name(first_seq), &bytes, room)?;
    let bytes = bytes.len() as u64;
    Ok(Active { file, first_seq, events: 0, groups: 0, bytes, covered: false, state: Tail::Sound, has_room })
}

/// Makes a file that has all its bytes as soon as it has its name.
pub(super) fn create_file(
    storage: &dyn Storage,
    name: &str,
    bytes: &[u8],
) -> Result<Box<dyn Append>, SpoolError> {
    create_roomy(storage, name, bytes, 0).map(|(file, _)| file)
}

/// The same, with room behind the bytes where there is any. Returns whether there is.
fn create_roomy(
    storage: &dyn Storage,
    name: &str,
    bytes: &[u8],
    room: usize,
) -> Result<(Box<dyn Append>, bool), SpoolError> {
    let (file, has_room) = match scratch(storage, name, bytes, room) {
        Ok(file) => (file, room > 0),
        // It can do without; a disk that is full needs what there is of it, and may say only at the sync that it is full.
        Err(_) if room > 0 => (scratch(storage, name, bytes, 0)?, false),
        Err(error) => return Err(error),
    };
    storage.rename(SCRATCH, name).map_err(SpoolError::io("name", name))?;
    storage.sync_folder().map_err(SpoolError::io("sync", name))?;
    Ok((file, has_room))
}

/// Makes the scratch file of what is to be `name`, and syncs it. An older one is emptied.
fn scratch(
    storage: &dyn Storage,
    name: &str,
    bytes: &[u8],
    room: usize,
) -> Result<Box<dyn Append>, SpoolError> {
    let mut file = storage.create(SCRATCH).map_err(SpoolError::io("create", name))?;
    file.append(bytes)
        .and_then(|()| if room > 0 { file.make_room(room) } else { Ok(()) })
        .and_then(|()| file.sync_data())
        .map_err(SpoolError::io("write", name))?;
    Ok(file)
}
