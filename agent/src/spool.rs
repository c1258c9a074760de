//! The spool: groups of events' bytes come in and are on disk when `append` returns; sealed segments go out to
//! whoever ships them, and are deleted when they have arrived. It stores bytes. It must never know what a
//! record is, and never say of bytes that they are on disk while a power cut could still take them.
//!
//! ```text
//! <spool>/lock                    flock'ed by the one writer for as long as it lives; holds its pid
//!         origin                  32 hex digits, made once: the name of this log
//!         <first_seq, 20 digits>.seg    weir_core::segment; the last one is active, the others are sealed
//!         reserve                 blocks kept back for what must be written on a full disk
//!         scratch                 a file in the making; renamed when it is whole and on disk
//!         *.seg.damaged|malformed|conflict|tail    set aside for a human; never read, shipped or deleted
//! ```
//!
//! # Writing
//! - A group is appended to the active segment with one write and one fdatasync; then its sequence numbers,
//!   dense from the spool's `next_seq`, stand. The caller asks for `next_seq` and puts it into its bytes.
//! - A segment is made whole in `scratch` (header, and a carry frame that the caller gives: what it must know of
//!   all before), synced, renamed, and the folder synced, before the old one counts as sealed and may be
//!   trimmed. So there is always one on disk to say where the log goes on.
//! - Where segments grow fast, the next one is made with room behind it, zeros as many as the last one had bytes: a group
//!   that is written into blocks which the file has already is on disk some times sooner than one for which the file system
//!   must find blocks, and write down which. What is left of the room is cut off when the segment is sealed.
//! - After a write or sync that failed, nothing is believed of the bytes behind the last successful sync, nor
//!   is the file synced again in the hope of better luck (the kernel may have dropped its dirty pages): the
//!   file is cut there, and the next group goes into a new segment.
//!
//! # Limits
//! [`Limits`] bounds the folder's bytes. A part of them, `reserve_bytes`, is for [`Priority::Reserved`] alone
//! (refusals, decisions, outcomes); they are allocated in `reserve`, so that they are there even when somebody
//! else fills the disk, and given back when a reserved group needs them. Ordinary groups are refused until the
//! reserve could be allocated again. Files set aside count towards the limit until an operator removes them.
//!
//! # Recovery
//! On opening, all segments are read. The last one is written anew up to its last whole frame, since what a
//! killed writer left may be in memory alone. Should whole frames lie behind the fault (a power cut may leave
//! them, of a group nobody was told of; so may a bad disk), the part left out is kept as `.tail`. A sealed
//! segment that is damaged is set aside as `.damaged`. Both are in the [`Report`], as are foreign files, and
//! neither stops the rest. A writer that gives the folder up while it lives ([`Spool::release`]) tells the next one
//! what it [`Left`], so that nothing has to be read. The last carry and the events behind it go to the caller, who gives the carry for a
//! new active segment in return.

pub mod faulty;
mod recovery;
mod shelf;
mod storage;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use weir_core::segment::{FRAME_HEADER_LEN, HEADER_LEN, MAX_EVENTS, MAX_SEGMENT};

pub use recovery::{Begins, DamagedSegment, Found, Left, Report, Standing, open, open_left};
pub use shelf::{SegmentFile, SetAside, Shelf, Usage};
pub use storage::{Append, Folder, Lock, LockError, Storage};
pub use writer::{Around, Group, Head, Spool};

/// The room that is kept for the checkpoint which closes a segment.
pub const CLOSING: u64 = 1024;

/// A segment is sealed at this size where nothing else is said. At its end another file is made, named and synced, and the shipped one
/// removed: at 1 MiB that was most of the time that a busy log took.
pub const SEAL_BYTES: usize = 4 << 20;

/// Segments smaller than this are not worth the writing of room for the next one: a quiet host's.
pub const ROOM_FROM: usize = 128 << 10;

/// How much a spool may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of all files together.
    pub max_bytes: u64,
    /// The part of `max_bytes` that only [`Priority::Reserved`] may use.
    pub reserve_bytes: u64,
    /// A segment is sealed before it grows past this.
    pub seal_bytes: usize,
    /// A segment is sealed before it has more events than this.
    pub seal_events: u64,
    /// A segment that follows one of so many bytes is made with room for as many.
    pub room_from: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(1 << 30)
    }
}

impl Limits {
    /// The usual shares of a folder of `max_bytes`.
    pub fn of(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            reserve_bytes: max_bytes / 16,
            seal_bytes: SEAL_BYTES,
            seal_events: MAX_EVENTS,
            room_from: ROOM_FROM,
        }
    }

    fn check(self) -> Result<Self, SpoolError> {
        let fault = if self.seal_bytes > MAX_SEGMENT || self.seal_events > MAX_EVENTS {
            "a segment may have at most 16 MiB and 20000 events"
        } else if self.seal_bytes < HEADER_LEN + FRAME_HEADER_LEN || self.seal_events == 0 {
            "a segment must have room for an event"
        } else if self.reserve_bytes >= self.max_bytes {
            "the reserve must be a part of max_bytes"
        } else {
            return Ok(self);
        };
        Err(SpoolError::Limits(fault))
    }
}

/// Whether a group may use the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// What can be refused for lack of room.
    Ordinary,
    /// What must be written even on a full disk: refusals, decisions, outcomes.
    Reserved,
}

/// What the spool could not do.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process owns the folder. The operator is at fault.
    #[error("another weir agent (pid {}) writes this spool; stop it, or give each its own state_dir",
        .pid.map_or("unknown".into(), |pid| pid.to_string()))]
    Locked { pid: Option<u32> },
    /// There is no room for the group. Shipping, or an operator, makes some.
    #[error("the spool is full: {used} of at most {max} bytes are used{}",
        if *.disk { ", and the disk has no more" } else { "" })]
    Full { used: u64, max: u64, disk: bool },
    /// The disk failed. What was to be written is not.
    #[error("cannot {doing} {name} in the spool: {source}")]
    Io { doing: &'static str, name: String, source: io::Error },
    /// The folder's files do not fit one another. An operator must look.
    #[error("the spool folder cannot be used: {0}")]
    Inconsistent(&'static str),
    /// The configured limits cannot be.
    #[error("the spool's limits cannot be: {0}")]
    Limits(&'static str),
    /// A group that no segment can take. The caller is at fault.
    #[error("a group of {bytes} bytes and {events} events is more than one segment takes")]
    TooLarge { bytes: usize, events: u64 },
    /// There is no such segment, or it is not sealed. The caller is at fault.
    #[error("no sealed segment begins at sequence number {0}")]
    NotSealed(u64),
    /// The folder was given up: another process may write it.
    #[error("this process has given the spool up")]
    Released,
}

impl SpoolError {
    fn io(doing: &'static str, name: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, name: name.to_owned(), source }
    }

    /// Whether the disk itself said that it has no room.
    fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// The log's key, where it lies in this folder and not beside it; the spool leaves it alone.
pub(crate) const KEY_FILE: &str = "log.key";
pub(crate) const KEY_NEXT: &str = "log.key.next";
pub(crate) const KEY_MAKING: &str = "log.key.new";
/// What the collector said of the log, likewise.
pub(crate) const WITNESS_FILE: &str = "log.witness";
pub(crate) const WITNESSED_FILE: &str = "log.witnessed";
pub(crate) const WITNESS_MAKING: &str = "log.witness.new";

const ORIGIN: &str = "origin";
const LOCK: &str = "lock";
const RESERVE: &str = "reserve";
const SCRATCH: &str = "scratch";

fn segment_name(first_seq: u64) -> String {
    format!("{first_seq:020}.seg")
}

/// The file of the last segment in a folder, whoever writes there.
pub fn last_segment(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut last = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let seq = path.file_name().and_then(|name| name.to_str()).and_then(named_seq);
        last = last.max(seq.map(|seq| (seq, path)));
    }
    Ok(last.map(|(_, path)| path))
}

/// The first sequence number that a segment's file name says.
fn named_seq(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_name_reads_back_and_other_names_do_not() {
        for seq in [0, 7, u64::MAX] {
            assert_eq!(named_seq(&segment_name(seq)), Some(seq));
        }
        for other in ["7.seg", "0000000000000000000a.seg", "99999999999999999999.seg", "lock", ".seg"] {
            assert_eq!(named_seq(other), None, "{other}");
        }
    }

    #[test]
    fn limits_that_cannot_be_are_refused() {
        let good = Limits::default();
        assert!(good.check().is_ok());
        for bad in [
            Limits { seal_bytes: MAX_SEGMENT + 1, ..good },
            Limits { seal_events: 0, ..good },
            Limits { seal_events: MAX_EVENTS + 1, ..good },
            Limits { reserve_bytes: good.max_bytes, ..good },
        ] {
            assert!(matches!(bad.check(), Err(SpoolError::Limits(_))), "{bad:?}");
        }
    }
}
