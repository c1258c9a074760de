//! The segment format: how events lie in the spool, and how they travel to the collector.
//!
//! ```text
//! segment = magic "WEIRSEG1" | u32 version | u64 first_seq | u32 crc32c(of the 20 bytes before)
//! frame   = u32 length | u32 crc32c(of kind, seq, bytes) | u8 kind | u64 seq | bytes[length]
//! ```
//!
//! All integers are little-endian. `Event` frames have dense sequence numbers from `first_seq` on. The `Tree` frame, the
//! first of a segment, holds the Merkle tree before the segment's first event ([`crate::evidence::TreeState`]). A `Carry`
//! frame comes before all events too, and holds what the ledger must know of the segments before it, so that those can be
//! trimmed; its bytes mean nothing here. A `Checkpoint` frame is a signed note over all events before it; the last frame
//! of a sealed segment is one over all of them. These three have the sequence number that the next event has.
//! Version 1 had neither trees nor checkpoints; it is still read.
//! A torn tail (the file ends inside a frame, or the last frame's
//! checksum is wrong and nothing whole follows) is cut on recovery; damage anywhere else is an error.

use std::convert::Infallible;
use std::ops::Range;

use crate::ids::hex;
use sha2::{Digest, Sha256};

/// The version of the layout above.
pub const VERSION: u32 = 2;
/// The oldest version that is read.
pub const OLDEST_VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 24;
/// Bytes of a frame before its payload.
pub const FRAME_HEADER_LEN: usize = 17;
/// The most bytes that one frame's payload may have.
pub const MAX_FRAME: usize = 4 << 20;
/// The most events of one segment: one segment is one ClickHouse block.
pub const MAX_EVENTS: u64 = 20_000;
/// The most bytes of one segment.
pub const MAX_SEGMENT: usize = 16 << 20;

const MAGIC: &[u8; 8] = b"WEIRSEG1";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// One event's canonical bytes.
    Event,
    /// What the ledger carries over from earlier segments.
    Carry,
    /// A signed note over all events before it.
    Checkpoint,
    /// The tree before the segment's first event.
    Tree,
}

impl FrameKind {
    fn byte(self) -> u8 {
        match self {
            FrameKind::Event => 1,
            FrameKind::Carry => 2,
            FrameKind::Checkpoint => 3,
            FrameKind::Tree => 4,
        }
    }

    fn of_byte(byte: u8, version: u32) -> Option<Self> {
        let known = match version {
            1 => &[Self::Event, Self::Carry][..],
            _ => &[Self::Event, Self::Carry, Self::Checkpoint, Self::Tree][..],
        };
        known.iter().copied().find(|kind| kind.byte() == byte)
    }
}

/// One frame, borrowed from a segment's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: FrameKind,
    pub seq: u64,
    pub bytes: &'a [u8],
}

/// Why bytes are not a segment. The fault is the disk's, or the sender's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SegmentError {
    #[error("not a segment: {0}")]
    Header(&'static str),
    #[error("the segment is cut short at byte {at}")]
    Torn { at: usize },
    #[error("the segment is damaged at byte {at}: {what}")]
    Damaged { at: usize, what: &'static str },
}

/// The header of a segment whose first event is `first_seq`.
pub fn header(first_seq: u64) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..20].copy_from_slice(&first_seq.to_le_bytes());
    let crc = crc32c::crc32c(&out[..20]);
    out[20..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Appends one frame to `out`.
pub fn push_frame(out: &mut Vec<u8>, kind: FrameKind, seq: u64, bytes: &[u8]) {
    debug_assert!(bytes.len() <= MAX_FRAME);
    out.extend_from_slice(&frame_header(kind, seq, bytes));
    out.extend_from_slice(bytes);
}

fn frame_header(kind: FrameKind, seq: u64, bytes: &[u8]) -> [u8; FRAME_HEADER_LEN] {
    let mut header = [0; FRAME_HEADER_LEN];
    header[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    header[8] = kind.byte();
    header[9..].copy_from_slice(&seq.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[8..]), bytes);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The frames of events that are written together. Each event is made in its place, in one buffer, which serves again for
/// the next ones.
#[derive(Debug, Default)]
pub struct EventFrames {
    first_seq: u64,
    bytes: Vec<u8>,
    /// Where each event's own bytes are.
    events: Vec<Range<usize>>,
}

impl EventFrames {
    /// Of these events, the first with this sequence number.
    pub fn of<'a>(first_seq: u64, events: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut frames = Self::default();
        frames.begin(first_seq);
        for event in events {
            let Ok(()) = frames.push(|out| {
                out.extend_from_slice(event);
                Ok::<(), Infallible>(())
            });
        }
        frames
    }

    /// Forgets what was in it. The next event gets this sequence number.
    pub fn begin(&mut self, first_seq: u64) {
        self.first_seq = first_seq;
        self.bytes.clear();
        self.events.clear();
    }

    /// Forgets what was in it, and gives its memory back but for this much.
    pub fn shrink_to(&mut self, bytes: usize) {
        // A buffer never shrinks below what it holds.
        self.begin(self.first_seq);
        self.bytes.shrink_to(bytes);
        self.events.shrink_to(bytes / FRAME_HEADER_LEN);
    }

    /// Takes one more event, which `write` puts behind what is there. After an error there is none more.
    pub fn push<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let (start, seq) = (self.bytes.len(), self.next_seq());
        self.bytes.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        let event = self.bytes.len();
        if let Err(error) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(error);
        }
        if let Some((header, bytes)) =
            self.bytes.get_mut(start..).and_then(|frame| frame.split_first_chunk_mut::<FRAME_HEADER_LEN>())
        {
            *header = frame_header(FrameKind::Event, seq, bytes);
        }
        self.events.push(event..self.bytes.len());
        Ok(())
    }

    /// The sequence number of the first event.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The sequence number behind the last event's.
    pub fn next_seq(&self) -> u64 {
        self.first_seq.saturating_add(self.events.len() as u64)
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The frames, one behind the other.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.end()).unwrap_or_default()
    }

    /// The same, and a checkpoint behind them.
    pub fn with_checkpoint(&mut self, note: &[u8]) -> &[u8] {
        let next_seq = self.next_seq();
        self.bytes.truncate(self.end());
        push_frame(&mut self.bytes, FrameKind::Checkpoint, next_seq, note);
        &self.bytes
    }

    /// The events' own bytes.
    pub fn events(&self) -> impl Iterator<Item = &[u8]> {
        self.events.iter().map(|event| self.bytes.get(event.clone()).unwrap_or_default())
    }

    fn end(&self) -> usize {
        self.events.last().map_or(0, |event| event.end)
    }
}

fn frame_crc(kind: u8, seq: &[u8], bytes: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&[kind]), seq);
    crc32c::crc32c_append(head, bytes)
}

/// Reads a segment front to back. The iterator ends after its first error.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    next_seq: u64,
    first_seq: u64,
    version: u32,
    failed: bool,
}

impl<'a> Reader<'a> {
    /// Checks the header.
    pub fn new(bytes: &'a [u8]) -> Result<Self, SegmentError> {
        let Some(head) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(SegmentError::Torn { at: bytes.len() });
        };
        if &head[..8] != MAGIC {
            return Err(SegmentError::Header("the magic bytes are missing"));
        }
        if crc32c::crc32c(&head[..20]) != le32(&head[20..]) {
            return Err(SegmentError::Header("the header's checksum is wrong"));
        }
        let version = le32(&head[8..12]);
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Err(SegmentError::Header("an unknown version: written by a newer Weir?"));
        }
        let first_seq = le64(&head[12..20]);
        Ok(Self { bytes, at: HEADER_LEN, next_seq: first_seq, first_seq, version, failed: false })
    }

    /// The version in which the segment was written.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The sequence number of the segment's first event.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The sequence number that the next event must have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The offset behind the last whole frame read.
    pub fn offset(&self) -> usize {
        self.at
    }

    fn frame(&mut self) -> Result<Frame<'a>, SegmentError> {
        let at = self.at;
        let torn = SegmentError::Torn { at };
        let rest = self.bytes.get(at..).unwrap_or_default();
        let Some((head, body)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() else { return Err(torn) };
        let length = le32(&head[..4]) as usize;
        if length > MAX_FRAME {
            return Err(SegmentError::Damaged { at, what: "a frame longer than any may be" });
        }
        let Some(bytes) = body.get(..length) else { return Err(torn) };
        if frame_crc(head[8], &head[9..17], bytes) != le32(&head[4..8]) {
            // With nothing behind it this is what a power cut leaves of the last write.
            let last = body.len() == length;
            return Err(if last { torn } else { SegmentError::Damaged { at, what: "a wrong checksum" } });
        }
        let seq = le64(&head[9..17]);
        let Some(kind) = FrameKind::of_byte(head[8], self.version) else {
            return Err(SegmentError::Damaged { at, what: "an unknown kind of frame" });
        };
        if kind == FrameKind::Event {
            if seq != self.next_seq {
                return Err(SegmentError::Damaged { at, what: "a sequence number out of order" });
            }
            let next = seq.checked_add(1);
            self.next_seq = next.ok_or(SegmentError::Damaged { at, what: "the last number of all" })?;
        }
        self.at = at + FRAME_HEADER_LEN + length;
        Ok(Frame { kind, seq, bytes })
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Frame<'a>, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.at == self.bytes.len() {
            return None;
        }
        let frame = self.frame();
        self.failed = frame.is_err();
        Some(frame)
    }
}

/// The highest sequence number of the whole event frames at or behind `from`, if there is one. Of damaged
/// bytes this tells whether more was lost than the end of a last write.
pub fn last_whole_event(bytes: &[u8], from: usize) -> Option<u64> {
    let (mut at, mut last) = (from, None);
    while let Some((head, body)) =
        bytes.get(at..).and_then(|rest| rest.split_first_chunk::<FRAME_HEADER_LEN>())
    {
        let seq = le64(&head[9..17]);
        let whole = (head[8] == FrameKind::Event.byte())
            .then(|| body.get(..le32(&head[..4]) as usize))
            .flatten()
            .filter(|bytes| bytes.len() <= MAX_FRAME)
            .filter(|bytes| frame_crc(head[8], &head[9..17], bytes) == le32(&head[4..8]));
        at += match whole {
            Some(bytes) => FRAME_HEADER_LEN + bytes.len(),
            None => 1,
        };
        last = last.max(whole.map(|_| seq));
    }
    last
}

/// What a batch is: SHA-256 over the length and bytes of each event, in order, as hex. Two segments with the
/// same place in the log and other contents have other digests. The events are masked already.
pub fn batch_digest<'a>(events: impl Iterator<Item = &'a [u8]>) -> String {
    let digest = events.fold(Sha256::new(), |hash, event| {
        hash.chain_update((event.len() as u64).to_le_bytes()).chain_update(event)
    });
    hex(&digest.finalize())
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = header(7).to_vec();
        push_frame(&mut out, FrameKind::Tree, 7, b"{}");
        push_frame(&mut out, FrameKind::Carry, 7, b"[]");
        push_frame(&mut out, FrameKind::Event, 7, b"first");
        push_frame(&mut out, FrameKind::Event, 8, b"second");
        push_frame(&mut out, FrameKind::Checkpoint, 9, b"note");
        out
    }

    /// As an older program wrote its header.
    fn of_version(version: u32, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn frames_read_back_in_order() {
        let bytes = sample();
        let mut reader = Reader::new(&bytes).unwrap();
        let frames: Vec<_> = reader.by_ref().map(|f| f.unwrap()).map(|f| (f.kind, f.seq, f.bytes)).collect();
        assert_eq!(
            frames,
            [
                (FrameKind::Tree, 7, &b"{}"[..]),
                (FrameKind::Carry, 7, b"[]"),
                (FrameKind::Event, 7, b"first"),
                (FrameKind::Event, 8, b"second"),
                (FrameKind::Checkpoint, 9, b"note")
            ]
        );
        assert_eq!((reader.first_seq(), reader.next_seq(), reader.offset()), (7, 9, bytes.len()));
    }

    #[test]
    fn events_made_in_place_are_the_same_frames_and_one_that_fails_leaves_nothing() {
        let mut frames = EventFrames::of(3, [&[b'b'; 9000][..]]);
        frames.shrink_to(100);
        assert!(frames.bytes.capacity() < 9000 && frames.is_empty());
        frames.begin(7);
        for event in [&b"first"[..], b"", b"second"] {
            let made = frames.push(|out| {
                out.extend_from_slice(event);
                if event.is_empty() { Err("empty") } else { Ok(()) }
            });
            assert_eq!(made.is_err(), event.is_empty());
        }
        let mut same = Vec::new();
        push_frame(&mut same, FrameKind::Event, 7, b"first");
        push_frame(&mut same, FrameKind::Event, 8, b"second");
        assert_eq!((frames.bytes(), frames.first_seq(), frames.next_seq()), (&same[..], 7, 9));
        assert_eq!(frames.events().collect::<Vec<_>>(), [&b"first"[..], b"second"]);
        let events = same.len();
        push_frame(&mut same, FrameKind::Checkpoint, 9, b"note");
        for _ in 0..2 {
            assert_eq!(frames.with_checkpoint(b"note"), same);
        }
        assert_eq!((frames.bytes(), frames.len()), (&same[..events], 2));
    }

    #[test]
    fn the_previous_version_reads_and_no_later_one_does() {
        let mut first = header(7).to_vec();
        push_frame(&mut first, FrameKind::Carry, 7, b"[]");
        push_frame(&mut first, FrameKind::Event, 7, b"first");
        let first = of_version(1, first);
        let reader = Reader::new(&first).unwrap();
        assert_eq!((reader.version(), reader.filter(Result::is_ok).count()), (1, 2));
        let unknown = SegmentError::Damaged { at: HEADER_LEN, what: "an unknown kind of frame" };
        assert_eq!(Reader::new(&of_version(1, sample())).unwrap().next(), Some(Err(unknown)));
        for version in [0, VERSION + 1] {
            assert!(Reader::new(&of_version(version, sample())).is_err());
        }
    }

    #[test]
    fn a_cut_at_each_byte_loses_only_the_torn_frame() {
        let bytes = sample();
        let ends: Vec<usize> = {
            let mut reader = Reader::new(&bytes).unwrap();
            std::iter::from_fn(|| reader.next().map(|_| reader.offset())).collect()
        };
        for cut in HEADER_LEN..bytes.len() {
            let mut reader = Reader::new(&bytes[..cut]).unwrap();
            let whole = reader.by_ref().take_while(Result::is_ok).count();
            assert_eq!(whole, ends.iter().filter(|end| **end <= cut).count(), "cut at {cut}");
        }
        assert_eq!(
            Reader::new(&bytes[..HEADER_LEN - 1]).unwrap_err(),
            SegmentError::Torn { at: HEADER_LEN - 1 }
        );
    }

    #[test]
    fn a_flipped_bit_never_reads_as_whole() {
        let bytes = sample();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let whole = Reader::new(&bad).is_ok_and(|reader| reader.into_iter().all(|frame| frame.is_ok()));
            assert!(!whole, "byte {at}");
        }
    }

    #[test]
    fn no_event_has_the_last_number_of_all() {
        let mut bytes = header(u64::MAX).to_vec();
        push_frame(&mut bytes, FrameKind::Event, u64::MAX, b"last");
        let damaged = SegmentError::Damaged { at: HEADER_LEN, what: "the last number of all" };
        assert_eq!(Reader::new(&bytes).unwrap().next(), Some(Err(damaged)));
    }

    #[test]
    fn whole_events_behind_damage_are_found() {
        let mut bytes = sample();
        let end = bytes.len();
        assert_eq!(last_whole_event(&bytes, HEADER_LEN), Some(8));
        let second = end - (FRAME_HEADER_LEN + 4) - (FRAME_HEADER_LEN + 6);
        bytes[second + FRAME_HEADER_LEN] ^= 1;
        assert_eq!(last_whole_event(&bytes, HEADER_LEN + 1), Some(7));
        assert_eq!(last_whole_event(&bytes, second), None);
        assert_eq!(last_whole_event(&bytes, end + 1), None);
    }

    #[test]
    fn the_batch_digest_tells_where_one_event_ends() {
        let one = batch_digest([&b"ab"[..], b"c"].into_iter());
        let other = batch_digest([&b"a"[..], b"bc"].into_iter());
        assert_ne!(one, other);
    }
}
