//! Recovery: a folder as a crash, a power cut or a bad disk left it comes in; what stands in it goes out as
//! [`Found`], which becomes a [`Spool`] once its caller has said what the next segment carries over. It never
//! drops bytes of whole events, and never stops at what it cannot read.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_core::ids::Origin;
use weir_core::segment::{self, FrameKind, HEADER_LEN, Reader, SegmentError, last_whole_event};

use crate::random;

use super::shelf::{SegmentFile, SetAside, Shelf};
use super::storage::{Lock, LockError, Storage};
use super::writer::{Head, MAX_ROOM, Spool, create_file};
use super::{
    KEY_FILE, KEY_MAKING, KEY_NEXT, LOCK, Limits, ORIGIN, RESERVE, SCRATCH, SpoolError, WITNESS_FILE,
    WITNESS_MAKING, WITNESSED_FILE, named_seq, segment_name,
};

/// The first version of segments that may have room behind their frames.
const ROOM_SINCE: u32 = 2;

/// What was not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes cut off behind the last whole frame of the last segment: writes that nobody was told had worked.
    pub torn_bytes: u64,
    /// Zeros at the end of the last segment, taken for room that its writer had made.
    pub room_bytes: u64,
    /// Whether there were whole frames among them; then they were kept as `.tail`.
    pub tail_kept: bool,
    /// Segments set aside because they cannot be read.
    pub damaged: Vec<DamagedSegment>,
    /// Files that are none of the spool's.
    pub foreign: Vec<String>,
}

/// A segment that recovery set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedSegment {
    pub first_seq: u64,
    /// What is wrong with it.
    pub fault: String,
}

/// A recovered folder. It is locked, and nothing can be appended or trimmed yet.
pub struct Found {
    /// The log's name.
    pub origin: Origin,
    /// The sequence number that the next event gets.
    pub next_seq: u64,
    /// What begins the last segment of which that can be read.
    pub begins: Begins,
    /// The bytes of the events behind that.
    pub events: Vec<Vec<u8>>,
    /// The segments with events, the oldest first.
    pub segments: Vec<Standing>,
    /// All this was told by the writer before, and not read.
    pub told: bool,
    pub report: Report,
    fresh: bool,
    superseded: Vec<u64>,
    unreadable: Vec<u64>,
    storage: Arc<dyn Storage>,
    lock: Lock,
    limits: Limits,
    aside_bytes: u64,
}

/// How the last segment begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Begins {
    /// There is none, or none whose beginning can be read.
    #[default]
    Unknown,
    /// It is of version 1, which has no trees.
    Carry(Vec<u8>),
    Head(Head),
}

impl Begins {
    /// What it carries over.
    pub fn carry(&self) -> Option<&[u8]> {
        match self {
            Begins::Unknown => None,
            Begins::Carry(carry) | Begins::Head(Head { carry, .. }) => Some(carry),
        }
    }
}

/// A segment with events, as it stands in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub file: SegmentFile,
    /// None in version 1.
    pub tree: Option<Vec<u8>>,
    /// Whether its last frame is a checkpoint.
    pub covered: bool,
}

/// What a writer left behind that gave the folder up in good order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The sequence number that the next event gets.
    pub next_seq: u64,
    /// What the next segment begins with. None: it was given up by a Weir that knew no trees.
    #[serde(default)]
    pub head: Option<Head>,
    /// All segments with events.
    pub sealed: Vec<SegmentFile>,
}

impl Left {
    /// Whether these are the folder's segments: the sealed ones, and perhaps the one after them, in which nothing is.
    fn is_of(&self, segments: &[u64]) -> bool {
        let sealed = self.sealed.iter().map(|file| file.first_seq);
        let segments = segments.iter().copied().filter(|first_seq| *first_seq != self.next_seq);
        sealed.eq(segments)
    }
}

/// Locks the folder and reads all that is in it. Makes the log's origin if the folder is new.
pub fn open(storage: Arc<dyn Storage>, limits: Limits) -> Result<Found, SpoolError> {
    find(storage, limits, None)
}

/// Locks a folder that another writer has just given up, and believes it what it left: a large spool is not read while
/// calls wait. Should the folder look otherwise, it is read after all.
pub fn open_left(storage: Arc<dyn Storage>, limits: Limits, left: Left) -> Result<Found, SpoolError> {
    find(storage, limits, Some(left))
}

fn find(storage: Arc<dyn Storage>, limits: Limits, left: Option<Left>) -> Result<Found, SpoolError> {
    let limits = limits.check()?;
    let lock = storage.lock(LOCK).map_err(|error| match error {
        LockError::Held(pid) => SpoolError::Locked { pid },
        LockError::Io(source) => SpoolError::io("lock", LOCK)(source),
    })?;
    let listing = listing(&*storage)?;
    let origin = match listing.has_origin {
        true => Some(read_origin(&*storage)?),
        false => None,
    };
    let mut found = Found {
        fresh: origin.is_none(),
        origin: origin.unwrap_or_else(|| Origin::from_random(random::bytes())),
        next_seq: 0,
        begins: Begins::Unknown,
        events: Vec::new(),
        segments: Vec::new(),
        told: false,
        report: Report { foreign: listing.foreign, ..Report::default() },
        superseded: Vec::new(),
        unreadable: Vec::new(),
        storage,
        lock,
        limits,
        aside_bytes: listing.aside_bytes,
    };
    if !found.fresh && listing.segments.is_empty() {
        let fault = "it has an origin and no segment, so nothing says which sequence number is next; \
                     put the segments back, or remove `origin` too and so begin a new log";
        return Err(SpoolError::Inconsistent(fault));
    }
    if let Some(left) = left.filter(|left| !found.fresh && left.is_of(&listing.segments))
        && let Some(head) = left.head
    {
        found.next_seq = left.next_seq;
        found.begins = Begins::Head(head);
        found.told = true;
        found.segments = left.sealed.into_iter().map(Standing::told).collect();
        return Ok(found);
    }
    for (at, first_seq) in listing.segments.iter().enumerate() {
        found.read_segment(*first_seq, listing.segments.get(at + 1).copied())?;
    }
    if found.fresh && found.next_seq > 0 {
        let fault = "it has events and no origin; put `origin` back, or move the segments away";
        return Err(SpoolError::Inconsistent(fault));
    }
    Ok(found)
}

#[derive(Default)]
struct Listing {
    segments: Vec<u64>,
    has_origin: bool,
    aside_bytes: u64,
    foreign: Vec<String>,
}

fn listing(storage: &dyn Storage) -> Result<Listing, SpoolError> {
    let mut out = Listing::default();
    for (name, len) in storage.list().map_err(SpoolError::io("list", "the folder"))? {
        match (named_seq(&name), name.as_str()) {
            (Some(first_seq), _) => out.segments.push(first_seq),
            (None, ORIGIN) => out.has_origin = true,
            // The reserve is allocated anew, and what is in the making was never told to anybody.
            (None, RESERVE | SCRATCH) => {
                storage.remove(&name).map_err(SpoolError::io("remove", &name))?;
            }
            (
                None,
                LOCK | KEY_FILE | KEY_NEXT | KEY_MAKING | WITNESS_FILE | WITNESSED_FILE | WITNESS_MAKING,
            ) => {}
            (None, _) if SetAside::is_name(&name) => out.aside_bytes += len,
            (None, _) => out.foreign.push(name),
        }
    }
    out.segments.sort_unstable();
    out.foreign.sort();
    Ok(out)
}

fn read_origin(storage: &dyn Storage) -> Result<Origin, SpoolError> {
    let bytes = storage.read(ORIGIN).map_err(SpoolError::io("read", ORIGIN))?;
    let text = String::from_utf8_lossy(&bytes);
    let fault = "its `origin` does not hold 32 hex digits; put the right one back";
    text.trim_end().parse().map_err(|_| SpoolError::Inconsistent(fault))
}

impl Found {
    /// Reads one segment. `next` is the first sequence number of the one behind it, if it is not the last.
    fn read_segment(&mut self, first_seq: u64, next: Option<u64>) -> Result<(), SpoolError> {
        let name = segment_name(first_seq);
        let bytes = match self.storage.read(&name) {
            Ok(bytes) => bytes,
            Err(error) if next.is_some() => {
                self.damaged(first_seq, format!("it cannot be read: {error}"));
                return Ok(());
            }
            // Without the last one nothing says where the log goes on.
            Err(error) => return Err(SpoolError::io("read", &name)(error)),
        };
        let scan = Scan::of(&bytes, first_seq, next);
        self.next_seq = self.next_seq.max(scan.next_seq);
        let copy = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or_default().to_vec();
        let tree = scan.tree.as_ref().map(copy);
        if let Some(carry) = scan.carry.as_ref().map(copy) {
            self.begins = match (scan.version, tree.clone()) {
                (1, _) => Begins::Carry(carry),
                (_, tree) => Begins::Head(Head { tree: tree.unwrap_or_default(), carry }),
            };
            self.events.clear();
        }
        self.events.extend(scan.events.iter().map(copy));
        let len = match scan.end {
            End::Whole => bytes.len(),
            End::Room { at } => {
                self.report.room_bytes += (bytes.len() - at) as u64;
                at
            }
            End::Cut { at, beyond } => {
                let tail = bytes.get(at..).unwrap_or_default();
                let torn = if scan.may_have_room(next) { without_room(tail) } else { tail };
                self.report.room_bytes += (tail.len() - torn.len()) as u64;
                self.cut_off(first_seq, torn, beyond)?;
                at
            }
            End::Damaged(fault) => {
                self.aside_bytes += bytes.len() as u64;
                self.damaged(first_seq, fault);
                return Ok(());
            }
        };
        let events = scan.events.len() as u64;
        if events == 0 {
            self.superseded.push(first_seq);
            return Ok(());
        }
        if next.is_none() {
            // It was read from memory, perhaps. What a killed writer did not sync, or could not, is not on disk.
            create_file(&*self.storage, &name, bytes.get(..len).unwrap_or_default())?;
        } else if len < bytes.len() {
            self.storage.cut(&name, len as u64).map_err(SpoolError::io("cut", &name))?;
        }
        let file = SegmentFile { first_seq, events, bytes: len as u64 };
        let tree = if scan.version == 1 { None } else { Some(tree.unwrap_or_default()) };
        self.segments.push(Standing { file, tree, covered: scan.covered });
        Ok(())
    }

    fn damaged(&mut self, first_seq: u64, fault: String) {
        self.unreadable.push(first_seq);
        self.report.damaged.push(DamagedSegment { first_seq, fault });
    }

    /// Whether there was nothing at all.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The bytes of a segment with events.
    pub fn read(&self, file: SegmentFile) -> Result<Vec<u8>, SpoolError> {
        let name = segment_name(file.first_seq);
        let mut bytes = self.storage.read(&name).map_err(SpoolError::io("read", &name))?;
        bytes.truncate(usize::try_from(file.bytes).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Puts other bytes in the place of a segment with events: whole and on disk, or not at all.
    pub fn rewrite(&mut self, first_seq: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        create_file(&*self.storage, &segment_name(first_seq), bytes)?;
        if let Some(standing) = self.segments.iter_mut().find(|standing| standing.file.first_seq == first_seq)
        {
            standing.file.bytes = bytes.len() as u64;
        }
        Ok(())
    }

    fn cut_off(&mut self, first_seq: u64, tail: &[u8], keep: bool) -> Result<(), SpoolError> {
        if keep {
            create_file(&*self.storage, &SetAside::Tail.name(first_seq), tail)?;
            self.aside_bytes += tail.len() as u64;
        }
        self.report.tail_kept |= keep;
        self.report.torn_bytes += tail.len() as u64;
        Ok(())
    }

    /// Makes the new active segment, which begins with `head`, and only then gives up those that it stands
    /// for: from here on the log can be written.
    pub fn start(self, head: &Head) -> Result<Spool, SpoolError> {
        let sealed = self.segments.into_iter().map(|standing| standing.file).collect();
        let shelf = Shelf::new(self.storage.clone(), self.lock, sealed, self.aside_bytes);
        let spool = Spool::create(self.storage.clone(), self.limits, shelf, self.next_seq, head)?;
        if self.fresh {
            create_file(&*self.storage, ORIGIN, format!("{}\n", self.origin).as_bytes())?;
        }
        // What stays behind here is found again the next time; it is no reason to stop.
        let moved = self.unreadable.into_iter().map(|first_seq| {
            self.storage.rename(&segment_name(first_seq), &SetAside::Damaged.name(first_seq))
        });
        let superseded = self.superseded.into_iter().filter(|first_seq| *first_seq != self.next_seq);
        let removed = superseded.map(|first_seq| self.storage.remove(&segment_name(first_seq)));
        let synced = std::iter::once_with(|| self.storage.sync_folder());
        for error in moved.chain(removed).chain(synced).filter_map(Result::err) {
            tracing::warn!(%error, "cannot tidy up the spool folder");
        }
        Ok(spool)
    }
}

impl Standing {
    /// One that its last writer told of.
    fn told(file: SegmentFile) -> Self {
        Self { file, tree: None, covered: true }
    }
}

/// What is left of a tail without the room that was made for more. More zeros than any room has are none.
fn without_room(tail: &[u8]) -> &[u8] {
    let end = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if tail.len() - end > MAX_ROOM { tail } else { tail.get(..end).unwrap_or_default() }
}

/// How far a segment can be read.
enum End {
    Whole,
    /// Behind it is nothing but room that was made for more.
    Room {
        at: usize,
    },
    /// What lies behind is no part of the log. `beyond` when there are whole frames in it.
    Cut {
        at: usize,
        beyond: bool,
    },
    Damaged(String),
}

/// What is in a segment.
struct Scan {
    version: u32,
    tree: Option<Range<usize>>,
    carry: Option<Range<usize>>,
    events: Vec<Range<usize>>,
    /// Whether its last frame is a checkpoint.
    covered: bool,
    /// Behind every event that was ever in it, as far as can be seen.
    next_seq: u64,
    end: End,
}

impl Scan {
    fn of(bytes: &[u8], named: u64, next: Option<u64>) -> Self {
        let mut scan = Self {
            version: segment::VERSION,
            tree: None,
            carry: None,
            events: Vec::new(),
            covered: false,
            next_seq: named,
            end: End::Whole,
        };
        let mut reader = match Reader::new(bytes) {
            Ok(reader) if reader.first_seq() == named => reader,
            Ok(_) => return scan.damaged(bytes, "its header says another sequence number than its name"),
            // Not even its header was written, so nothing was.
            Err(_) if bytes.len() < HEADER_LEN && next.is_none() => {
                scan.end = End::Cut { at: 0, beyond: false };
                return scan;
            }
            Err(error) => return scan.damaged(bytes, &error.to_string()),
        };
        scan.version = reader.version();
        loop {
            let at = reader.offset();
            match reader.next() {
                None => return scan,
                // A write that failed, was cut off, and came back: the next segment stands in its place.
                Some(Ok(frame)) if frame.kind == FrameKind::Event && next.is_some_and(|n| frame.seq >= n) => {
                    scan.end = End::Cut { at, beyond: false };
                    return scan;
                }
                Some(Ok(frame)) => {
                    let range = reader.offset() - frame.bytes.len()..reader.offset();
                    scan.covered = frame.kind == FrameKind::Checkpoint;
                    match frame.kind {
                        FrameKind::Event => scan.events.push(range),
                        FrameKind::Tree => scan.tree = Some(range),
                        FrameKind::Carry => scan.carry = Some(range),
                        FrameKind::Checkpoint => {}
                    }
                    scan.next_seq = reader.next_seq();
                }
                Some(Err(error)) => return scan.ended_by(error, bytes, at, next),
            }
        }
    }

    /// Only the last segment has room, and none of version 1 had any. Zeros anywhere else are damage.
    fn may_have_room(&self, next: Option<u64>) -> bool {
        next.is_none() && self.version >= ROOM_SINCE
    }

    fn ended_by(mut self, error: SegmentError, bytes: &[u8], at: usize, next: Option<u64>) -> Self {
        let tail = bytes.get(at..).unwrap_or_default();
        if self.may_have_room(next) && without_room(tail).is_empty() {
            self.end = End::Room { at };
            return self;
        }
        let beyond = last_whole_event(bytes, at);
        match next {
            None => {
                self.next_seq = self.next_seq.max(beyond.map_or(0, |seq| seq.saturating_add(1)));
                self.end = End::Cut { at, beyond: beyond.is_some() };
                self
            }
            Some(next) if self.next_seq >= next => {
                self.end = End::Cut { at, beyond: false };
                self
            }
            Some(_) => self.damaged(bytes, &error.to_string()),
        }
    }

    fn damaged(mut self, bytes: &[u8], fault: &str) -> Self {
        let last = last_whole_event(bytes, 0).unwrap_or(self.next_seq);
        self.next_seq = self.next_seq.max(last.saturating_add(1));
        self.end = End::Damaged(fault.to_owned());
        self
    }
}
