//! JSON-RPC 2.0 as MCP uses it. A body comes in, [`Message`]s go out, each with the raw text of its `id`, so
//! that a reply can echo it to the letter.
//!
//! A body that two parsers may read differently (a member named twice) is refused, not guessed at: what the
//! policy read must be what the server reads.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::TOOLS_CALL;

/// The most messages of one batch.
pub const MAX_BATCH: usize = 128;

/// The JSON-RPC error code of a call that policy, or an approver, refused. Outside the reserved range, so no
/// client takes it for a fault of the transport.
pub const REFUSED: i64 = -31403;

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Request { id: RequestId, method: String, params: Json },
    Notification { method: String, params: Json },
    Response { id: Option<RequestId>, result: Result<Json, ErrorObject> },
}

/// A member as it was read, and to the letter (a value cannot hold every number that a text can).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Json {
    pub value: Value,
    pub text: String,
}

/// A request's id: its JSON text, to the letter (`7`, `"7"`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

/// The `error` member of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorObject {
    pub code: i64,
    /// The whole object, to the letter.
    pub text: String,
}

/// What a body held.
#[derive(Debug, Clone, PartialEq)]
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
}

impl Body {
    /// Reads a whole HTTP body, or the data of one SSE event.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(bytes).map_err(|e| ParseError::NotJson(e.to_string()))?;
        match text.trim_ascii_start().bytes().next() {
            Some(b'{') => return Message::parse(text).map(Body::Single),
            Some(b'[') => {}
            _ => {
                serde::de::IgnoredAny::deserialize(&mut serde_json::Deserializer::from_str(text))
                    .map_err(not_json)?;
                return Err(ParseError::NotJsonRpc("neither an object nor an array"));
            }
        }
        let raw: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
        if raw.is_empty() {
            return Err(ParseError::NotJsonRpc("an empty array"));
        }
        if raw.len() > MAX_BATCH {
            return Err(ParseError::Ambiguous(format!("a batch of more than {MAX_BATCH} messages")));
        }
        raw.into_iter().map(|item| Message::parse(item.get())).collect::<Result<_, _>>().map(Body::Batch)
    }

    /// The messages, in order.
    pub fn messages(&self) -> &[Message] {
        match self {
            Body::Single(message) => std::slice::from_ref(message),
            Body::Batch(messages) => messages,
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Message {
    fn parse(text: &str) -> Result<Self, ParseError> {
        // serde refuses a known member that is there twice, or of another type.
        let envelope: Envelope = serde_json::from_str(text).map_err(|e| match e.classify() {
            serde_json::error::Category::Data if text.trim_ascii_start().starts_with('{') => {
                ParseError::Ambiguous(e.to_string())
            }
            serde_json::error::Category::Data => {
                ParseError::NotJsonRpc("an array of other things than messages")
            }
            _ => not_json(e),
        })?;
        if envelope.jsonrpc.as_deref() != Some("2.0") {
            return Err(match envelope.method {
                Some(_) => ParseError::Ambiguous("a method without \"jsonrpc\": \"2.0\"".into()),
                None => ParseError::NotJsonRpc("no \"jsonrpc\": \"2.0\""),
            });
        }
        let id = envelope.id.map(request_id).transpose()?;
        match (envelope.method, envelope.result, envelope.error) {
            (Some(method), None, None) => {
                let params = envelope.params.map_or(Ok(Json::default()), strict)?;
                let method = method.into_owned();
                Ok(match id {
                    Some(id) => Message::Request { id, method, params },
                    None => Message::Notification { method, params },
                })
            }
            (None, Some(result), None) => Ok(Message::Response { id, result: Ok(strict(result)?) }),
            (None, None, Some(error)) => {
                let Json { value, text } = strict(error)?;
                let code = value.get("code").and_then(Value::as_i64).unwrap_or_default();
                Ok(Message::Response { id, result: Err(ErrorObject { code, text }) })
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
            Message::Request { method, params, .. } | Message::Notification { method, params }
                if method == TOOLS_CALL =>
            {
                Some(params.value.get("name").and_then(Value::as_str).unwrap_or_default())
            }
            _ => None,
        }
    }
}

fn request_id(raw: &RawValue) -> Result<RequestId, ParseError> {
    match serde_json::from_str(raw.get()) {
        Ok(Value::String(_) | Value::Number(_)) => Ok(RequestId(raw.get().to_owned())),
        _ => Err(ParseError::Ambiguous("an id that is neither a string nor a number".into())),
    }
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

fn strict(raw: &RawValue) -> Result<Json, ParseError> {
    let text = raw.get();
    let value = Strict.deserialize(&mut serde_json::Deserializer::from_str(text));
    let value = value.map_err(|e| ParseError::Ambiguous(e.to_string()))?;
    Ok(Json { value, text: text.to_owned() })
}

/// Builds a [`Value`] and refuses objects that name a member twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON whose objects name each member once")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict)?;
            if out.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the member {key:?} is there twice")));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(text: &str) -> Message {
        match Body::parse(text.as_bytes()).unwrap() {
            Body::Single(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_tool_call_gives_its_method_tool_and_id_to_the_letter() {
        let text = r#"{"jsonrpc":"2.0","id":"1\u0030","method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
        let call = single(text);
        assert_eq!((call.method(), call.tool()), (Some("tools/call"), Some("echo")));
        assert_eq!(call.id().unwrap().as_json(), r#""1\u0030""#);
        let big = single(r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping"}"#);
        assert_eq!(big.id().unwrap().as_json(), "123456789012345678901234567890");
    }

    #[test]
    fn members_named_twice_are_ambiguous_at_any_depth() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":[{"b":1,"\u0062":2}]}}"#,
        ] {
            assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
        }
    }

    #[test]
    fn what_is_no_message_is_named_so() {
        for text in ["", "{", "[1,", "{\"a\":}", "nonsense"] {
            assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::NotJson(_))), "{text}");
        }
        assert!(matches!(Body::parse(b"\xff"), Err(ParseError::NotJson(_))));
        for text in ["[]", "7", "{}", "[7]", r#"{"client_name":"x"}"#] {
            assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::NotJsonRpc(_))), "{text}");
        }
    }

    #[test]
    fn what_a_lenient_server_may_act_on_is_ambiguous() {
        for text in [
            r#"{"id":1,"method":"tools/call","params":{"name":"x"}}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":5}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#,
        ] {
            assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
        }
        let deep = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{}1{}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        assert!(Body::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn batches_notifications_and_responses_are_told_apart() {
        let body = Body::parse(
            br#"[{"jsonrpc":"2.0","method":"notifications/initialized"},
                 {"jsonrpc":"2.0","id":3,"result":{}},
                 {"jsonrpc":"2.0","id":4,"error":{"code":-32601,"message":"no"}}]"#,
        )
        .unwrap();
        assert!(matches!(
            body.messages(),
            [
                Message::Notification { .. },
                Message::Response { result: Ok(_), .. },
                Message::Response { result: Err(ErrorObject { code: -32601, .. }), .. }
            ]
        ));
        let many = format!("[{}]", vec![r#"{"jsonrpc":"2.0","method":"x"}"#; MAX_BATCH + 1].join(","));
        assert!(matches!(Body::parse(many.as_bytes()), Err(ParseError::Ambiguous(_))));
    }

    #[test]
    fn an_error_reply_is_a_message_with_the_same_id() {
        let call = single(r#"{"jsonrpc":"2.0","id":"q","method":"tools/call","params":{"name":"x"}}"#);
        let reply = single(&error_reply(call.id(), REFUSED, "refused by rule \"a\"", None));
        let Message::Response { id, result: Err(error) } = reply else { panic!() };
        assert_eq!((id.as_ref(), error.code), (call.id(), REFUSED));
    }
}
