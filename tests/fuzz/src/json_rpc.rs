//! JSON-RPC: what policy reads (method, tool, id, params) is what serde_json, which any server may stand for, reads in
//! the same bytes; and nothing that names a method passes as no message.

use serde_json::Value;
use weir_core::mcp::jsonrpc::{Body, Message, ParseError};

/// What serde_json says of JSON that it has no value for.
const NO_VALUES: [&str; 4] = ["number out of range", "hex escape", "surrogate", "unicode code point"];

pub fn run(bytes: &[u8]) {
    let parsed = Body::parse(bytes);
    let value: Result<Value, _> = serde_json::from_slice(bytes);
    match (&parsed, &value) {
        (Ok(Body::Single(message)), Ok(value)) => same(message, value),
        (Ok(Body::Batch(messages)), Ok(Value::Array(values))) => {
            assert_eq!(messages.len(), values.len(), "the messages of a batch");
            messages.iter().zip(values).for_each(|(message, value)| same(message, value));
        }
        // In members that mean nothing to JSON-RPC there may be numbers and strings that not each parser has a value for.
        (Ok(_), Err(error)) if NO_VALUES.iter().any(|known| error.to_string().contains(known)) => {}
        (Ok(_), value) => panic!("a message that serde_json reads as {value:?}"),
        (Err(ParseError::NotJsonRpc(_)), Ok(value)) => {
            assert!(!calls(value), "a call passed as no message: {value}")
        }
        (Err(ParseError::NotJson(_)), Ok(value)) => panic!("serde_json reads {value}"),
        _ => {}
    }
    if let Ok(body) = &parsed {
        for message in body.messages() {
            reads_back(message);
        }
    }
}

/// Whether a lenient server may act on it.
fn calls(value: &Value) -> bool {
    match value {
        Value::Object(members) => {
            let named = |name: &str| members.keys().any(|key| key.eq_ignore_ascii_case(name));
            named("method")
                && members.iter().any(|(key, value)| key.eq_ignore_ascii_case("method") && value.is_string())
        }
        Value::Array(items) => items.iter().any(calls),
        _ => false,
    }
}

fn same(message: &Message, value: &Value) {
    let member = |name: &str| value.get(name).filter(|value| !value.is_null());
    assert_eq!(member("jsonrpc"), Some(&Value::from("2.0")));
    assert_eq!(message.method(), member("method").and_then(Value::as_str), "the method");
    let id: Option<Value> =
        message.id().map(|id| serde_json::from_str(id.as_json()).expect("an id that is no JSON"));
    assert_eq!(id.as_ref(), member("id"), "the id");
    let content: Option<Value> = Some(message.content())
        .filter(|text| !text.is_empty())
        .map(|text| serde_json::from_str(text).expect("a content that is no JSON"));
    let expected = match message {
        Message::Response { result: Ok(_), .. } => value.get("result"),
        Message::Response { result: Err(_), .. } => member("error"),
        _ => member("params"),
    };
    assert_eq!(content.as_ref(), expected, "the content");
    let known = ["jsonrpc", "id", "method", "params", "result", "error"];
    let has_others = value.as_object().is_some_and(|all| all.keys().any(|name| !known.contains(&&**name)));
    assert_eq!(message.has_unknown_member(), has_others, "members of another's");
    if let Some(tool) = message.tool() {
        let name = value.get("params").and_then(|params| params.get("name")).filter(|name| !name.is_null());
        assert_eq!(Value::from(tool), name.cloned().unwrap_or_else(|| "".into()), "the tool");
    }
}

/// What a message says is the same when it is written anew from its parts.
fn reads_back(message: &Message) {
    let mut text = String::from("{\"jsonrpc\":\"2.0\"");
    let mut member = |name: &str, json: &str| {
        if !json.is_empty() {
            text.push_str(&format!(",\"{name}\":{json}"));
        }
    };
    member("id", message.id().map_or("", |id| id.as_json()));
    if let Some(method) = message.method() {
        member("method", &Value::from(method).to_string());
    }
    let content = match message {
        Message::Response { result: Ok(_), .. } => "result",
        Message::Response { result: Err(_), .. } => "error",
        _ => "params",
    };
    member(content, message.content());
    if message.has_unknown_member() {
        member("of another", "0");
    }
    text.push('}');
    match Body::parse(text.as_bytes()) {
        Ok(Body::Single(again)) => assert_eq!(&again, message, "written anew"),
        other => panic!("{text:?} reads back as {other:?}"),
    }
}
