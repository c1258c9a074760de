//! The outermost members of a message, each at most once and by its very name.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::ParseError;
use super::strict::{TWICE, misspells};

const MEMBERS: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

/// What is `null` is as good as absent, but for a result.
pub(super) struct Envelope<'a> {
    pub jsonrpc: Option<String>,
    pub id: Option<&'a RawValue>,
    pub method: Option<String>,
    pub params: Option<&'a RawValue>,
    pub result: Option<&'a RawValue>,
    pub error: Option<&'a RawValue>,
    /// Whether a member's name is one of these in other letters: some parsers would take it for that.
    pub misspelt: bool,
    /// Whether there are others.
    pub unknown_member: bool,
}

impl<'a> Envelope<'a> {
    pub fn read(text: &'a str) -> Result<Self, ParseError> {
        if !text.trim_ascii_start().starts_with('{') {
            return Err(ParseError::NotJsonRpc("no object"));
        }
        let Members { raw, misspelt, misspelt_call, unknown } =
            serde_json::from_str(text).map_err(|e| match e.classify() {
                Category::Data => ParseError::Ambiguous(e.to_string()),
                _ => super::not_json(e),
            })?;
        let [jsonrpc, id, method, params, result, error] = raw;
        if misspelt_call {
            return Err(ParseError::Ambiguous("\"method\" or \"jsonrpc\" in other letters".into()));
        }
        let string = |raw: &RawValue| {
            serde_json::from_str(raw.get())
                .map_err(|_| ParseError::Ambiguous("\"method\" or \"jsonrpc\" is no string".into()))
        };
        // A result may be null, unless something else says what the message is.
        let says_nothing = |raw: &&RawValue| raw.get() == "null" && (method.is_some() || error.is_some());
        Ok(Self {
            jsonrpc: jsonrpc.map(string).transpose()?,
            id,
            method: method.map(string).transpose()?,
            params,
            result: result.filter(|raw| !says_nothing(raw)),
            error,
            misspelt,
            unknown_member: unknown,
        })
    }
}

struct Members<'a> {
    raw: [Option<&'a RawValue>; 6],
    /// Whether any of [`MEMBERS`] is there in other letters, and whether one that makes a call is.
    misspelt: bool,
    misspelt_call: bool,
    unknown: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Members { raw: [None; 6], misspelt: false, misspelt_call: false, unknown: false };
        let mut seen = [false; 6];
        while let Some(key) = map.next_key::<String>()? {
            let known =
                MEMBERS.iter().zip(&mut members.raw).zip(&mut seen).find(|((name, _), _)| **name == key);
            match known {
                Some((_, seen)) if *seen => return Err(de::Error::custom(TWICE)),
                Some(((_, slot), seen)) => {
                    let raw: &RawValue = map.next_value()?;
                    *slot = (raw.get() != "null" || key == "result").then_some(raw);
                    *seen = true;
                }
                None => {
                    members.unknown = true;
                    let meant = MEMBERS.into_iter().find(|name| misspells(&key, name));
                    members.misspelt |= meant.is_some();
                    members.misspelt_call |= matches!(meant, Some("method" | "jsonrpc"));
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(members)
    }
}
