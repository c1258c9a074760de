//! Canonical JSON (RFC 8785) of what Weir itself writes: a value comes in, its bytes go out, members in order, in one pass
//! and one buffer. A type whose members are declared in the order of their names is written without moving anything. What a
//! record never holds (numbers that are no integers or are beyond 2^53, names that are not plain ASCII) is left to the
//! general implementation, which knows all of the RFC: the bytes are the same either way.

use std::cell::RefCell;
use std::fmt;

use serde::Serialize;
use serde::ser::{self, Impossible};

/// The canonical bytes of a value.
pub fn to_vec(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(FIRST);
    Scribe::default().append(value, &mut out)?;
    Ok(out)
}

/// Whether these are the canonical bytes of a value.
pub fn are_of(bytes: &[u8], value: &impl Serialize) -> bool {
    thread_local! {
        static WRITTEN: RefCell<(Scribe, Vec<u8>)> = RefCell::default();
    }
    WRITTEN.with_borrow_mut(|(scribe, out)| {
        out.clear();
        let are = scribe.append(value, out).is_ok() && out == bytes;
        if out.capacity() > KEPT {
            (*scribe, *out) = Default::default();
        }
        are
    })
}

/// Writes one value after another, and keeps what it needs for that.
#[derive(Default)]
pub struct Scribe {
    spare: Vec<u8>,
    members: Vec<Member>,
}

impl Scribe {
    /// Writes a value's canonical bytes behind what is in `out`. After an error nothing was written.
    pub fn append(&mut self, value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let start = out.len();
        let Self { spare, members } = std::mem::take(self);
        let mut writer = Writer { out: std::mem::take(out), spare, members };
        writer.members.clear();
        let written = value.serialize(&mut writer);
        let Writer { out: bytes, spare, members } = writer;
        (*out, *self) = (bytes, Self { spare, members });
        if let Err(Unusual) = written {
            out.truncate(start);
            out.extend_from_slice(&serde_json_canonicalizer::to_vec(value)?);
        }
        Ok(())
    }
}

/// The room that most events need.
const FIRST: usize = 2048;
/// The most room that a thread keeps for the next comparison.
const KEPT: usize = 64 << 10;
/// Integers up to this are written alike as integers and as the RFC's doubles.
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Something that is left to the general implementation.
#[derive(Debug)]
struct Unusual;

impl fmt::Display for Unusual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("left to the general implementation")
    }
}

impl std::error::Error for Unusual {}

impl ser::Error for Unusual {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Writer {
    out: Vec<u8>,
    /// Where members are put in order.
    spare: Vec<u8>,
    /// The members of the objects that are being written, the innermost last.
    members: Vec<Member>,
}

/// A member in `out`: `"name":value,`.
#[derive(Clone, Copy)]
struct Member {
    start: usize,
    name_end: usize,
    end: usize,
}

/// A list or an object that is being written.
struct Open<'a> {
    writer: &'a mut Writer,
    /// Where its first member is among the members.
    first: usize,
    /// What closes it, the object around it included.
    close: &'static [u8],
}

impl Writer {
    fn unsigned(&mut self, n: u64) -> Result<(), Unusual> {
        if n > MAX_INTEGER {
            return Err(Unusual);
        }
        let (mut digits, mut at, mut n) = ([0; 20], 20, n);
        loop {
            at -= 1;
            if let (Some(digit), Ok(value)) = (digits.get_mut(at), u8::try_from(n % 10)) {
                *digit = b'0' + value;
            }
            n /= 10;
            if n == 0 {
                break;
            }
        }
        self.out.extend_from_slice(digits.get(at..).unwrap_or_default());
        Ok(())
    }

    fn text(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.out.push(b'"');
        let (bytes, mut copied) = (text.as_bytes(), 0);
        while let Some((at, byte)) = special(bytes, copied) {
            self.out.extend_from_slice(bytes.get(copied..at).unwrap_or_default());
            copied = at + 1;
            let short = match byte {
                b'"' | b'\\' => byte,
                0x08 => b'b',
                b'\t' => b't',
                b'\n' => b'n',
                0x0c => b'f',
                b'\r' => b'r',
                _ => {
                    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or_default();
                    self.out.extend_from_slice(&[
                        b'\\',
                        b'u',
                        b'0',
                        b'0',
                        digit(byte >> 4),
                        digit(byte & 15),
                    ]);
                    continue;
                }
            };
            self.out.extend_from_slice(&[b'\\', short]);
        }
        self.out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
        self.out.push(b'"');
    }

    fn list(&mut self) -> Open<'_> {
        self.out.push(b'[');
        Open { first: self.members.len(), writer: self, close: b"]" }
    }

    fn object(&mut self, name: &'static str, close: &'static [u8]) -> Result<Open<'_>, Unusual> {
        // serde_json's own way to tell of raw text and of any number.
        if name.starts_with('$') {
            return Err(Unusual);
        }
        self.out.push(b'{');
        Ok(Open { first: self.members.len(), writer: self, close })
    }
}

/// The next byte, from `at` on, that is not written as it is. In most texts there is none for long, so eight bytes are
/// looked at together, and where those have none, [`MANY`].
fn special(bytes: &[u8], mut at: usize) -> Option<(usize, u8)> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The high bit of a byte that is less than this, or of one above a byte that is.
    let below = |word: u64, least: u8| word.wrapping_sub(EACH * u64::from(least)) & !word & HIGH;
    let is = |word: u64, byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().unwrap_or_default());
        let found = below(word, 0x20) | is(word, b'"') | is(word, b'\\');
        if found != 0 {
            // The lowest of them is the first byte, and is one.
            at += found.trailing_zeros() as usize / 8;
            return Some((at, *bytes.get(at)?));
        }
        at += 8;
        while bytes.get(at..).and_then(<[u8]>::first_chunk).is_some_and(are_plain) {
            at += MANY;
        }
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let next = rest.iter().position(|&byte| is_special(byte))?;
    Some((at + next, *rest.get(next)?))
}

/// So many bytes are judged at once, by what the processor has for that.
const MANY: usize = 32;

fn are_plain(bytes: &[u8; MANY]) -> bool {
    // No way out in the middle, which would be a step for each byte.
    bytes.iter().fold(0, |found, &byte| found | u8::from(is_special(byte))) == 0
}

fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

impl Open<'_> {
    fn element(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Unusual> {
        value.serialize(&mut *self.writer)?;
        self.writer.out.push(b',');
        Ok(())
    }

    /// The name of a member that a type declares.
    fn field(&mut self, name: &'static str) -> Result<(), Unusual> {
        let start = self.writer.out.len();
        self.writer.out.push(b'"');
        self.writer.out.extend_from_slice(name.as_bytes());
        self.writer.out.push(b'"');
        self.named(start)
    }

    fn name(&mut self, name: &(impl Serialize + ?Sized)) -> Result<(), Unusual> {
        let start = self.writer.out.len();
        name.serialize(&mut *self.writer)?;
        self.named(start)
    }

    /// A name was written from `start` on.
    fn named(&mut self, start: usize) -> Result<(), Unusual> {
        let name_end = self.writer.out.len();
        let name = self.writer.out.get(start..name_end).unwrap_or_default();
        // The order is that of the names' UTF-16, which is that of their bytes where they are plain.
        let inner = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\""));
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"');
        if !inner.is_some_and(|name| name.iter().all(is_plain)) {
            return Err(Unusual);
        }
        self.writer.out.push(b':');
        // Without the quote behind it: a name goes before those that begin with it.
        self.writer.members.push(Member { start, name_end: name_end - 1, end: 0 });
        Ok(())
    }

    fn value(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Unusual> {
        let own = self.writer.members.len();
        value.serialize(&mut *self.writer)?;
        self.writer.out.push(b',');
        let end = self.writer.out.len();
        if let Some(member) = own.checked_sub(1).and_then(|own| self.writer.members.get_mut(own)) {
            member.end = end;
        }
        Ok(())
    }

    fn close(self) -> Result<(), Unusual> {
        let Writer { out, spare, members } = self.writer;
        let own = members.get_mut(self.first..).unwrap_or_default();
        let name = |member: &Member| out.get(member.start..member.name_end).unwrap_or_default();
        if !own.is_sorted_by(|one, next| name(one) < name(next)) {
            let (mut start, mut end) = own.first().zip(own.last()).map_or((0, 0), |(a, z)| (a.start, z.end));
            own.sort_unstable_by(|one, other| name(one).cmp(name(other)));
            if own.windows(2).any(|pair| matches!(pair, [one, next] if name(one) == name(next))) {
                return Err(Unusual);
            }
            // What stands in its place already is not moved: the largest, mostly.
            let mut moved = &*own;
            while let Some((first, rest)) = moved.split_first().filter(|(first, _)| first.start == start) {
                (start, moved) = (first.end, rest);
            }
            while let Some((last, rest)) = moved.split_last().filter(|(last, _)| last.end == end) {
                (end, moved) = (last.start, rest);
            }
            spare.clear();
            for member in moved {
                spare.extend_from_slice(out.get(member.start..member.end).unwrap_or_default());
            }
            if let Some(place) = out.get_mut(start..end).filter(|place| place.len() == spare.len()) {
                place.copy_from_slice(spare);
            }
        }
        members.truncate(self.first);
        if out.last() == Some(&b',') {
            out.pop();
        }
        out.extend_from_slice(self.close);
        Ok(())
    }
}

impl<'a> ser::Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Unusual;
    type SerializeSeq = Open<'a>;
    type SerializeTuple = Open<'a>;
    type SerializeTupleStruct = Open<'a>;
    type SerializeTupleVariant = Impossible<(), Unusual>;
    type SerializeMap = Open<'a>;
    type SerializeStruct = Open<'a>;
    type SerializeStructVariant = Open<'a>;

    fn serialize_bool(self, value: bool) -> Result<(), Unusual> {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_i8(self, n: i8) -> Result<(), Unusual> {
        self.serialize_i64(n.into())
    }

    fn serialize_i16(self, n: i16) -> Result<(), Unusual> {
        self.serialize_i64(n.into())
    }

    fn serialize_i32(self, n: i32) -> Result<(), Unusual> {
        self.serialize_i64(n.into())
    }

    fn serialize_i64(self, n: i64) -> Result<(), Unusual> {
        if n < 0 {
            self.out.push(b'-');
        }
        self.unsigned(n.unsigned_abs())
    }

    fn serialize_u8(self, n: u8) -> Result<(), Unusual> {
        self.unsigned(n.into())
    }

    fn serialize_u16(self, n: u16) -> Result<(), Unusual> {
        self.unsigned(n.into())
    }

    fn serialize_u32(self, n: u32) -> Result<(), Unusual> {
        self.unsigned(n.into())
    }

    fn serialize_u64(self, n: u64) -> Result<(), Unusual> {
        self.unsigned(n)
    }

    fn serialize_f32(self, _: f32) -> Result<(), Unusual> {
        Err(Unusual)
    }

    fn serialize_f64(self, _: f64) -> Result<(), Unusual> {
        Err(Unusual)
    }

    fn serialize_char(self, value: char) -> Result<(), Unusual> {
        self.text(value.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), Unusual> {
        self.text(value);
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), Unusual> {
        Err(Unusual)
    }

    fn serialize_none(self) -> Result<(), Unusual> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unusual> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unusual> {
        self.out.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unusual> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Unusual> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Unusual> {
        if name.starts_with('$') { Err(Unusual) } else { value.serialize(self) }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Unusual> {
        let mut object = self.object("", b"}")?;
        object.field(variant)?;
        object.value(value)?;
        object.close()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Open<'a>, Unusual> {
        Ok(self.list())
    }

    fn serialize_tuple(self, _: usize) -> Result<Open<'a>, Unusual> {
        Ok(self.list())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Open<'a>, Unusual> {
        Ok(self.list())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Impossible<(), Unusual>, Unusual> {
        Err(Unusual)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Open<'a>, Unusual> {
        self.object("", b"}")
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Open<'a>, Unusual> {
        self.object(name, b"}")
    }

    /// An object in an object: its one member is closed with it.
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Open<'a>, Unusual> {
        self.out.push(b'{');
        self.text(variant);
        self.out.push(b':');
        self.object("", b"}}")
    }
}

macro_rules! elements {
    ($($of:ident $element:ident),*) => {$(
        impl ser::$of for Open<'_> {
            type Ok = ();
            type Error = Unusual;

            fn $element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
                self.element(value)
            }

            fn end(self) -> Result<(), Unusual> {
                self.close()
            }
        }
    )*};
}

elements!(SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field);

macro_rules! members {
    ($($of:ident),*) => {$(
        impl ser::$of for Open<'_> {
            type Ok = ();
            type Error = Unusual;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Unusual> {
                self.field(name)?;
                self.value(value)
            }

            fn end(self) -> Result<(), Unusual> {
                self.close()
            }
        }
    )*};
}

members!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Open<'_> {
    type Ok = ();
    type Error = Unusual;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, name: &T) -> Result<(), Unusual> {
        self.name(name)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unusual> {
        self.value(value)
    }

    fn end(self) -> Result<(), Unusual> {
        self.close()
    }
}

#[cfg(test)]
mod tests;
