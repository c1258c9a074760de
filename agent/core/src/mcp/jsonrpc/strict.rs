//! JSON that every parser reads alike: no object names a member twice, at any depth, and no number or string is
//! one that some parsers refuse. No value is built.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::ParseError;

pub(super) const TWICE: &str = "a member is there twice";

/// Checks a text that is JSON, or empty. Of the outermost object no member may be one of `names` in other letters.
pub(super) fn check(text: &str, names: &'static [&'static str]) -> Result<(), ParseError> {
    if text.is_empty() {
        return Ok(());
    }
    let checked = Strict { names }.deserialize(&mut serde_json::Deserializer::from_str(text));
    checked.map_err(|e| ParseError::Ambiguous(e.to_string()))
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

struct Strict {
    names: &'static [&'static str],
}

impl Strict {
    const INNER: Self = Self { names: &[] };
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
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
        while seq.next_element_seed(Self::INNER)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.names.iter().any(|name| misspells(&key, name)) {
                return Err(de::Error::custom("a member's name in other letters than MCP's"));
            }
            map.next_value_seed(Self::INNER)?;
            if !seen.insert(key) {
                return Err(de::Error::custom(TWICE));
            }
        }
        Ok(())
    }
}
