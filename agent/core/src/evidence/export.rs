//! What an export holds: items of verification come in, bytes go out, and back. No column of the store is in it but those that
//! prove something, so there is nothing else to change; who needs columns derives them from the canonical bytes.
//!
//! ```text
//! L {"origin":..}                              a log begins
//! K {"epoch":..,"first_seq":..,"key":..,"rotation":..}
//! T {"epoch":..,"first_seq":..,"last_seq":..,"policy":..,"note":..}
//! C {"epoch":..,"first_seq":..,"size":..,"root":..,"idle":..,"note":..}
//! B {"epoch":..,"epoch_first_seq":..,"first_seq":..,"last_seq":..,"size":..,"root":..,"frontier":..,"leaves":..,"note":..}
//! E <epoch> <seq> <leaf hash, hex> <length>    and, on the next line, so many canonical bytes and a line's end
//! ```
//!
//! Each is a line. Hashes are base64, lists of them put together without anything between.

use serde::{Deserialize, Serialize};

use super::verify::{Item, Scope, StoredEvent};
use super::{HASH_LEN, Hash};
use crate::ids::{Origin, hex};

/// The version of the form.
pub const VERSION: u32 = 1;
/// The first file of an export.
pub const MANIFEST: &str = "manifest.json";
/// The most bytes of a line: a batch with all its leaves, twice.
pub const MAX_LINE: usize = 4 << 20;
/// The most canonical bytes of one event.
pub const MAX_EVENT: usize = crate::segment::MAX_FRAME;

/// What an export says of itself. Nothing of it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub weir_export: u32,
    pub scope: Scope,
    /// The log, or the run, of an export of one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// When it was made, microseconds since 1970.
    pub made_us: i64,
}

/// Why bytes are not an export's. Whoever made or changed them is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an export's line: {0}")]
pub struct ExportError(String);

#[derive(Serialize, Deserialize)]
struct LogLine {
    origin: Origin,
}

/// Appends one item.
pub fn write(item: &Item<'_>, out: &mut Vec<u8>) {
    let line = match item {
        Item::Log { origin } => ("L", serde_json::to_vec(&LogLine { origin: origin.clone() })),
        Item::Key(key) => ("K", serde_json::to_vec(key)),
        Item::Tombstone(stone) => ("T", serde_json::to_vec(stone)),
        Item::Checkpoint(checkpoint) => ("C", serde_json::to_vec(checkpoint)),
        Item::Batch(batch) => ("B", serde_json::to_vec(batch)),
        Item::Event(event) => {
            let StoredEvent { epoch, seq, canonical, leaf_hash } = event;
            let head = format!("E {epoch} {seq} {} {}\n", hex(leaf_hash), canonical.len());
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(canonical);
            out.push(b'\n');
            return;
        }
    };
    let (letter, json) = line;
    out.extend_from_slice(letter.as_bytes());
    out.push(b' ');
    // Numbers, booleans and strings alone: there is nothing in it that has no JSON form.
    out.extend_from_slice(&json.unwrap_or_default());
    out.push(b'\n');
}

/// The first item of these bytes, and how many it takes; `None` while they are not enough.
pub fn read(bytes: &[u8]) -> Result<Option<(Item<'_>, usize)>, ExportError> {
    let wrong = |what: &str| ExportError(what.to_owned());
    let Some(end) = memchr::memchr(b'\n', bytes.get(..bytes.len().min(MAX_LINE)).unwrap_or(bytes)) else {
        return if bytes.len() >= MAX_LINE { Err(wrong("it does not end")) } else { Ok(None) };
    };
    let (line, rest) = bytes.split_at(end);
    let (letter, line) = line.split_at_checked(2).ok_or(wrong("it is empty"))?;
    let json = |e: serde_json::Error| ExportError(e.to_string());
    let item = match letter {
        b"L " => Item::Log { origin: serde_json::from_slice::<LogLine>(line).map_err(json)?.origin },
        b"K " => Item::Key(serde_json::from_slice(line).map_err(json)?),
        b"T " => Item::Tombstone(serde_json::from_slice(line).map_err(json)?),
        b"C " => Item::Checkpoint(serde_json::from_slice(line).map_err(json)?),
        b"B " => Item::Batch(serde_json::from_slice(line).map_err(json)?),
        b"E " => {
            let (epoch, seq, leaf_hash, length) = event_head(line).ok_or(wrong("an event's head"))?;
            if length > MAX_EVENT {
                return Err(wrong("an event longer than any may be"));
            }
            let body = rest.get(1..).unwrap_or_default();
            let Some((canonical, after)) = body.split_at_checked(length) else { return Ok(None) };
            return match after.first() {
                None => Ok(None),
                Some(b'\n') => {
                    let event = StoredEvent { epoch, seq, canonical, leaf_hash };
                    Ok(Some((Item::Event(event), end + 1 + length + 1)))
                }
                Some(_) => Err(wrong("an event is not as long as it says")),
            };
        }
        _ => return Err(wrong("nothing begins so")),
    };
    Ok(Some((item, end + 1)))
}

fn event_head(line: &[u8]) -> Option<(u32, u64, Hash, usize)> {
    let mut parts = line.split(|byte| *byte == b' ');
    let epoch = number(parts.next()?)?;
    let seq = number(parts.next()?)?;
    let leaf = super::tree::hash_of_hex(std::str::from_utf8(parts.next()?).ok()?)?;
    let length = number(parts.next()?)?;
    parts.next().is_none().then_some(())?;
    debug_assert_eq!(leaf.len(), HASH_LEN);
    Some((u32::try_from(epoch).ok()?, seq, leaf, usize::try_from(length).ok()?))
}

fn number(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && (digits.len() == 1 || digits.first() != Some(&b'0'));
    let digit = |n: u64, byte: &u8| {
        byte.is_ascii_digit().then_some(())?;
        n.checked_mul(10)?.checked_add(u64::from(byte - b'0'))
    };
    if plain { digits.iter().try_fold(0, digit) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::leaf_hash;
    use crate::evidence::verify::StoredKey;

    #[test]
    fn items_read_back_and_a_cut_at_each_byte_waits_for_more() {
        let mut bytes = Vec::new();
        let origin = Origin::from_random([7; 16]);
        write(&Item::Log { origin: origin.clone() }, &mut bytes);
        write(
            &Item::Key(StoredKey { epoch: 1, first_seq: 0, key: "k".into(), rotation: String::new() }),
            &mut bytes,
        );
        let canonical = b"a\nb";
        let event = StoredEvent { epoch: 1, seq: 0, canonical, leaf_hash: leaf_hash(canonical) };
        write(&Item::Event(event), &mut bytes);
        let (Item::Log { origin: read_back }, first) = read(&bytes).unwrap().unwrap() else {
            panic!("a log")
        };
        assert_eq!(read_back, origin);
        let (Item::Key(key), second) = read(&bytes[first..]).unwrap().unwrap() else { panic!("a key") };
        assert_eq!(key.key, "k");
        let last = &bytes[first + second..];
        let (Item::Event(again), third) = read(last).unwrap().unwrap() else { panic!("an event") };
        assert_eq!((again.canonical, again.leaf_hash, third), (&canonical[..], event.leaf_hash, last.len()));
        assert!((0..last.len()).all(|cut| read(&last[..cut]).unwrap().is_none()));
    }

    #[test]
    fn what_is_no_line_of_an_export_is_refused() {
        for bad in ["x\n", "X {}\n", "L {}\n", "E 1 2 3\n", "E 1 02 aa 3\n"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        let head = format!("E 1 2 {} 2\nabc", "0".repeat(64));
        assert!(read(head.as_bytes()).is_err());
        let long = format!("E 1 2 {} {}\n", "0".repeat(64), MAX_EVENT + 1);
        assert!(read(long.as_bytes()).is_err());
        assert!(read(&vec![b'L'; MAX_LINE]).is_err());
    }
}
