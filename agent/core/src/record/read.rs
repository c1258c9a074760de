//! The quick way to read an event back: its kind is looked for in the bytes first, so that the body is read as that kind at once,
//! and not put aside member by member until `kind` is met. What comes out was written again, and is the same to the byte; where
//! anything else is so, nothing comes out, and the general way decides.

use memchr::memmem;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Body, Stored, VERSION};
use crate::ids::{Boot, Origin};

/// The first member of a name that stands there so. Inside a string there would be a `\` before each quote.
const KIND: &[u8] = b"\"kind\":\"";

/// An event of one kind.
#[derive(Deserialize)]
struct Envelope<B> {
    v: u32,
    tenant: String,
    host: String,
    origin: Origin,
    boot: Boot,
    seq: u64,
    time_us: u64,
    body: B,
}

/// The event, if it is canonical and of the kind that its bytes name first.
pub(super) fn by_its_kind(canonical: &[u8]) -> Option<Stored> {
    let named = canonical.get(memmem::find(canonical, KIND)? + KIND.len()..)?;
    let kind = named.get(..memchr::memchr(b'"', named)?)?;
    let text = std::str::from_utf8(canonical).ok()?;
    let event = match kind {
        b"intent" => read(text, Body::Intent),
        b"decision" => read(text, Body::Decision),
        b"message" => read(text, Body::Message),
        b"outcome" => read(text, Body::Outcome),
        b"flow" => read(text, Body::Flow),
        b"agent" => read(text, Body::Agent),
        b"completeness" => read(text, Body::Completeness),
        b"gap" => read(text, Body::Gap),
        _ => None,
    }?;
    let is_canonical = event.v == VERSION && crate::canonical::are_of(canonical, &event);
    is_canonical.then_some(event)
}

fn read<B: DeserializeOwned>(text: &str, body_of: fn(B) -> Body<String>) -> Option<Stored> {
    let Envelope { v, tenant, host, origin, boot, seq, time_us, body } = serde_json::from_str(text).ok()?;
    Some(Stored { v, tenant, host, origin, boot, seq, time_us, body: body_of(body) })
}
