//! JSON that every parser reads alike: no object names a member twice, at any depth, and no number or string is
//! one that some parsers refuse. No value is built.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::ParseError;

/// How deep params, a result or an error may be nested. Less than what serde_json itself reads.
pub const MAX_DEPTH: usize = 100;
/// The most values (those of members and elements, at any depth) of params, of a result or of an error.
pub const MAX_VALUES: usize = 1 << 19;

pub(super) const TWICE: &str = "a member is there twice";
const TOO_MANY_VALUES: &str = "524288 values in a message";
/// Up to so many members of an object are compared one by one.
const FEW: usize = 16;

/// Checks a text that is JSON, or empty. Of the outermost object no member may be one of `names` in other letters.
pub(super) fn check(text: &str, names: &'static [&'static str]) -> Result<(), ParseError> {
    if text.is_empty() {
        return Ok(());
    }
    let limits = Limits { values: Cell::new(MAX_VALUES), fault: Cell::new(None) };
    let strict = Strict { names, depth: MAX_DEPTH, limits: &limits };
    let checked = strict.deserialize(&mut serde_json::Deserializer::from_str(text));
    checked.map_err(|e| limits.fault.take().unwrap_or_else(|| ParseError::Ambiguous(e.to_string())))
}

/// Whether a parser that passes over the case of names (Go's, among others) would take `key` for `name`.
pub(super) fn misspells(key: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        // These two fold to ASCII letters (Unicode's CaseFolding.txt).
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key != name && key.chars().map(fold).eq(name.chars().map(fold))
}

/// What is left of the limits, and which of them was passed.
struct Limits {
    values: Cell<usize>,
    fault: Cell<Option<ParseError>>,
}

#[derive(Clone, Copy)]
struct Strict<'l> {
    names: &'static [&'static str],
    /// How much deeper it may go.
    depth: usize,
    limits: &'l Limits,
}

impl Strict<'_> {
    fn past<E: de::Error>(self, fault: ParseError) -> E {
        let told = E::custom("past a limit");
        self.limits.fault.set(Some(fault));
        told
    }

    /// What is in an array or object here.
    fn inner<E: de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { names: &[], depth, ..self }),
            None => Err(self.past(ParseError::TooDeep)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        match self.limits.values.get().checked_sub(1) {
            Some(left) => self.limits.values.set(left),
            None => return Err(self.past(ParseError::TooMany(TOO_MANY_VALUES))),
        }
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON whose objects name each member once")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let (mut few, mut many): (Vec<Cow<'de, str>>, HashSet<Cow<'de, str>>) = (Vec::new(), HashSet::new());
        while let Some(Key(key)) = map.next_key()? {
            if self.names.iter().any(|name| misspells(&key, name)) {
                return Err(de::Error::custom("a member's name in other letters than MCP's"));
            }
            map.next_value_seed(inner)?;
            if few.contains(&key) || many.contains(&key) {
                return Err(de::Error::custom(TWICE));
            }
            if few.len() < FEW {
                few.push(key);
            } else {
                many.insert(key);
            }
        }
        Ok(())
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
