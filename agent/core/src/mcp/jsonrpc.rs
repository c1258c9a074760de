//! JSON-RPC 2.0 as MCP uses it. A body comes in, [`Message`]s go out, each with the raw text of its `id`, so
//! that a reply can echo it to the letter. Of what a message carries its text is kept, and the little that
//! something is decided by; a tree of values would be many times the text's size.
//!
//! A body that two parsers may read differently is refused, not guessed at: what the policy read must be what
//! the server reads. Faults are told without quoting the body.

mod envelope;
mod strict;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::TOOLS_CALL;
use super::about::{About, Outcome};
use crate::ids::hex;
use envelope::Envelope;

pub use strict::{MAX_DEPTH, MAX_VALUES};

/// The most messages of one batch.
pub const MAX_BATCH: usize = 128;

const TOO_MANY_MESSAGES: &str = "128 messages in a batch";

/// The JSON-RPC error code of a call that policy, or an approver, refused. Outside the reserved range, so no
/// client takes it for a fault of the transport.
pub const REFUSED: i64 = -31403;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Request { id: RequestId, method: String, params: Params },
    Notification { method: String, params: Params },
    Response { id: Option<RequestId>, result: Result<Answer, ErrorObject> },
}

/// The `params` member of a request or notification.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Params {
    /// To the letter; empty when there are none.
    pub text: String,
    /// What it says beside the method.
    pub about: Box<About>,
    /// Of a `tools/call`: the tool, empty when the call names none.
    tool: Option<String>,
}

/// The `result` member of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// To the letter.
    pub text: String,
    pub says: Outcome,
}

/// The `error` member of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorObject {
    pub code: i64,
    /// The whole object, to the letter.
    pub text: String,
    /// As in [`About`].
    pub unknown_member: bool,
}

/// A request's id: its JSON text, to the letter (`7`, `"7"`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Reads an id from its JSON text; `None` for what is neither a string nor a number.
    pub fn read(text: &str) -> Option<Self> {
        match serde_json::from_str(text) {
            Ok(Value::String(_) | Value::Number(_)) => Some(Self(text.trim_ascii().to_owned())),
            _ => None,
        }
    }

    /// The same text for one id, however it is written; that of an overlong one is a digest.
    pub fn key(&self) -> String {
        let plain = !self.0.bytes().any(|byte| matches!(byte, b'\\' | b'.' | b'e' | b'E'))
            || (self.0.starts_with('"') && !self.0.contains('\\'));
        let text = match plain {
            true => self.0.clone(),
            false => {
                serde_json::from_str::<Value>(&self.0).map_or_else(|_| self.0.clone(), |id| id.to_string())
            }
        };
        if text.len() <= MAX_KEY { text } else { hex(&Sha256::digest(text)) }
    }

    /// Whether both are one id, written alike or not (`"a/b"`, `"a\/b"`).
    pub fn means(&self, other: &Self) -> bool {
        let value = |id: &Self| serde_json::from_str::<Value>(&id.0).ok();
        self == other || value(self).is_some_and(|own| value(other) == Some(own))
    }
}

/// The longest [`RequestId::key`].
const MAX_KEY: usize = 64;

/// What a body held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Single(Message),
    /// Only the revision 2025-03-26 has batches.
    Batch(Vec<Message>),
}

/// Why a body is not MCP. The fault is the peer's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not JSON at all.
    #[error("not json: {0}")]
    NotJson(String),
    /// JSON that no server would take for a JSON-RPC message.
    #[error("not a json-rpc message: {0}")]
    NotJsonRpc(&'static str),
    /// Readable in more than one way (a lenient server may act on it), or past a limit.
    #[error("ambiguous json: {0}")]
    Ambiguous(String),
    #[error("json that is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("more than {0}")]
    TooMany(&'static str),
}

impl Body {
    /// Reads a whole HTTP body, or the data of one SSE event.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(bytes).map_err(|e| ParseError::NotJson(e.to_string()))?;
        match text.trim_ascii_start().bytes().next() {
            Some(b'{') => Message::parse(text).map(Body::Single),
            Some(b'[') => Self::batch(text),
            _ => {
                serde_json::from_str::<IgnoredAny>(text).map_err(not_json)?;
                Err(ParseError::NotJsonRpc("neither an object nor an array"))
            }
        }
    }

    /// A server may act on each message of an array whatever else is in it (JSON-RPC 2.0, section 6), so one
    /// message makes it a batch, and anything else in a batch makes it ambiguous.
    fn batch(text: &str) -> Result<Self, ParseError> {
        let items: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
        let (mut messages, mut other) = (Vec::new(), None);
        for item in items {
            match Message::parse(item.get()) {
                Ok(_) if messages.len() == MAX_BATCH => {
                    return Err(ParseError::TooMany(TOO_MANY_MESSAGES));
                }
                Ok(message) => messages.push(message),
                Err(ParseError::NotJsonRpc(_)) if hides_message(item.get()) => {
                    return Err(ParseError::Ambiguous("messages in an array of arrays".into()));
                }
                Err(ParseError::NotJsonRpc(why)) => other = Some(why),
                Err(error) => return Err(error),
            }
        }
        match other {
            _ if messages.is_empty() => Err(ParseError::NotJsonRpc("an array without a message")),
            Some(_) => Err(ParseError::Ambiguous("a batch with other things than messages".into())),
            None => Ok(Body::Batch(messages)),
        }
    }

    /// The messages, in order.
    pub fn messages(&self) -> &[Message] {
        match self {
            Body::Single(message) => std::slice::from_ref(message),
            Body::Batch(messages) => messages,
        }
    }
}

/// Whether an array in a batch has a message that a server would find which opens all arrays. Past two of them no message
/// is looked for: any object there may be one.
fn hides_message(item: &str) -> bool {
    let may_be = |inner: &&RawValue| match inner.get().as_bytes().first() {
        Some(b'{') => !matches!(Message::parse(inner.get()), Err(ParseError::NotJsonRpc(_))),
        Some(b'[') => inner.get().contains('{'),
        _ => false,
    };
    let inner = item.starts_with('[').then(|| serde_json::from_str::<Vec<&RawValue>>(item));
    inner.is_some_and(|inner| inner.is_ok_and(|inner| inner.iter().any(may_be)))
}

impl Message {
    fn parse(text: &str) -> Result<Self, ParseError> {
        let Envelope { jsonrpc, id, method, params, result, error, misspelt, unknown_member } =
            Envelope::read(text)?;
        if jsonrpc.as_deref() != Some("2.0") {
            return Err(match method {
                Some(_) => ParseError::Ambiguous("a method without \"jsonrpc\": \"2.0\"".into()),
                None => ParseError::NotJsonRpc("no \"jsonrpc\": \"2.0\""),
            });
        }
        if misspelt {
            return Err(ParseError::Ambiguous("a member's name in other letters than JSON-RPC's".into()));
        }
        let id = id.map(|raw| RequestId::read(raw.get()).ok_or_else(odd_id)).transpose()?;
        match (method, result, error) {
            (Some(method), None, None) => {
                let mut params = Params::read(&method, params)?;
                params.about.unknown_member = unknown_member;
                Ok(match id {
                    Some(id) => Message::Request { id, method, params },
                    None => Message::Notification { method, params },
                })
            }
            (None, Some(result), None) => {
                let mut answer = Answer::read(result)?;
                answer.says.unknown_member = unknown_member;
                Ok(Message::Response { id, result: Ok(answer) })
            }
            (None, None, Some(error)) => {
                let error = ErrorObject { unknown_member, ..ErrorObject::read(error)? };
                Ok(Message::Response { id, result: Err(error) })
            }
            _ => Err(ParseError::Ambiguous("neither a request, nor a notification, nor a response".into())),
        }
    }

    /// The method of a request or notification.
    pub fn method(&self) -> Option<&str> {
        match self {
            Message::Request { method, .. } | Message::Notification { method, .. } => Some(method),
            Message::Response { .. } => None,
        }
    }

    /// The params of a request or notification, the result or error of a response: to the letter.
    pub fn content(&self) -> &str {
        match self {
            Message::Request { params, .. } | Message::Notification { params, .. } => &params.text,
            Message::Response { result: Ok(result), .. } => &result.text,
            Message::Response { result: Err(error), .. } => &error.text,
        }
    }

    /// The id of a request or response.
    pub fn id(&self) -> Option<&RequestId> {
        match self {
            Message::Request { id, .. } => Some(id),
            Message::Response { id, .. } => id.as_ref(),
            Message::Notification { .. } => None,
        }
    }

    /// The name of the tool, if this calls one: empty when the call names none.
    pub fn tool(&self) -> Option<&str> {
        match self {
            Message::Request { params, .. } | Message::Notification { params, .. } => params.tool.as_deref(),
            Message::Response { .. } => None,
        }
    }

    /// What the params of a request or notification say.
    pub fn about(&self) -> Option<&About> {
        match self {
            Message::Request { params, .. } | Message::Notification { params, .. } => Some(&params.about),
            Message::Response { .. } => None,
        }
    }

    /// Whether it has members, beside those of its params, result or error, that JSON-RPC does not know.
    pub fn has_unknown_member(&self) -> bool {
        match self {
            Message::Request { params, .. } | Message::Notification { params, .. } => {
                params.about.unknown_member
            }
            Message::Response { result: Ok(answer), .. } => answer.says.unknown_member,
            Message::Response { result: Err(error), .. } => error.unknown_member,
        }
    }

    /// The request that a `notifications/cancelled` takes back.
    pub fn cancels(&self) -> Option<RequestId> {
        match self {
            Message::Notification { method, params } if method == "notifications/cancelled" => {
                params.about.request_id.clone()
            }
            _ => None,
        }
    }
}

impl Params {
    fn read(method: &str, raw: Option<&RawValue>) -> Result<Self, ParseError> {
        let calls_tool = method == TOOLS_CALL;
        let text = raw.map_or_else(String::new, |raw| raw.get().to_owned());
        strict::check(&text, if calls_tool { &["name", "arguments"] } else { &[] })?;
        let tool = calls_tool.then(|| tool(&text)).transpose()?;
        let about = Box::new(About::of(&text));
        Ok(Self { text, about, tool })
    }
}

fn tool(params: &str) -> Result<String, ParseError> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default)]
        name: Option<&'a RawValue>,
    }
    if !params.starts_with('{') {
        return Ok(String::new());
    }
    let named: Named = serde_json::from_str(params).map_err(not_json)?;
    // A server in a language that makes strings of other values would find a tool by one.
    let string = |raw: &RawValue| serde_json::from_str(raw.get());
    let name = named.name.map(string).transpose();
    name.map(Option::unwrap_or_default)
        .map_err(|_| ParseError::Ambiguous("a tool's name that is no string".into()))
}

impl Answer {
    fn read(raw: &RawValue) -> Result<Self, ParseError> {
        strict::check(raw.get(), &[])?;
        Ok(Self { text: raw.get().to_owned(), says: Outcome::of(raw.get()) })
    }
}

impl ErrorObject {
    fn read(raw: &RawValue) -> Result<Self, ParseError> {
        #[derive(Deserialize)]
        struct Coded {
            code: i64,
        }
        strict::check(raw.get(), &[])?;
        let code = serde_json::from_str::<Coded>(raw.get()).map_or(0, |coded| coded.code);
        Ok(Self { code, text: raw.get().to_owned(), unknown_member: false })
    }
}

fn odd_id() -> ParseError {
    ParseError::Ambiguous("an id that is neither a string nor a number".into())
}

fn not_json(error: serde_json::Error) -> ParseError {
    ParseError::NotJson(error.to_string())
}

/// A JSON-RPC error reply to the request `id` (`null` when there is none to name).
pub fn error_reply(id: Option<&RequestId>, code: i64, message: &str, data: Option<Value>) -> String {
    let id = id.map_or("null", RequestId::as_json);
    let mut error = Map::new();
    error.insert("code".into(), code.into());
    error.insert("message".into(), message.into());
    if let Some(data) = data {
        error.insert("data".into(), data);
    }
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{}}}"#, Value::Object(error))
}

#[cfg(test)]
mod tests;
