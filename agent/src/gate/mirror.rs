//! Headers that repeat the body (MCP 2026-07-28): the revision, the method, what it names, arguments. Weir decides by the
//! body; a server, or something before it, may act by the headers. So where the two differ a request goes nowhere, and is
//! answered as the revision has servers answer it. In all other revisions these headers mean nothing.

use std::collections::HashSet;

use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::Response;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use weir_core::mcp::TOOLS_CALL;
use weir_core::mcp::header::{PARAM, decoded};
use weir_core::mcp::jsonrpc::{self, Body as Messages, Message};
use weir_core::record::MessageLabel;

use super::{Broken, Flow, Gate, reply};
use crate::http::{Body, ReadRequest};

/// The revision whose requests say things twice.
pub(super) const REVISION: &str = "2026-07-28";
/// Its code for a request that contradicts itself (HeaderMismatch).
const HEADER_MISMATCH: i64 = -32020;

const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// Of a request's params, what headers repeat.
#[derive(Default, Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

impl Gate {
    /// The answer to a request whose headers say something else than its body.
    pub(super) async fn refuse_contradiction(
        &self,
        flow: &Flow,
        request: &ReadRequest,
        body: &Messages,
    ) -> Result<Option<Response<Body>>, Broken> {
        let Some(header) = differing(&request.parts.headers, body) else { return Ok(None) };
        let line = self.line(&request.parts.method, &request.parts.uri);
        let why = format!(": the header {header} differs from the body");
        self.note_refused(flow, MessageLabel::HeadersDiffer, line.then(&self.masker.text(&why))).await?;
        let id = body.messages().iter().find_map(Message::id);
        let message = format!("refused by Weir: the header {header} differs from the request's body");
        let error = jsonrpc::error_reply(id, HEADER_MISMATCH, &message, None);
        Ok(Some(reply::json_rpc(http::StatusCode::BAD_REQUEST, error)))
    }
}

/// Whether a message is of the revision without sessions, by its header or by itself.
pub(super) fn is_stateless(headers: &HeaderMap, message: &Message) -> bool {
    let by_header = headers.get(VERSION).is_some_and(|value| value.as_bytes() == REVISION.as_bytes());
    // A request of another revision, as most are, is not read for it; but with escapes it may say so in other letters.
    let may = |text: &str| text.contains(REVISION) || text.contains("\\u");
    by_header
        || (may(message.content()) && version(&said(message)).is_some_and(|version| version == REVISION))
}

/// The first header that differs.
fn differing(headers: &HeaderMap, body: &Messages) -> Option<HeaderName> {
    body.messages().iter().find_map(|message| {
        let method = message.method()?;
        if !is_stateless(headers, message) {
            return None;
        }
        let said = said(message);
        let differs = |name: &HeaderName, own: Option<&str>| match values(headers, name).as_slice() {
            [] => false,
            [value] => decoded(value.as_bytes()).as_deref() != own,
            _ => true,
        };
        let own_version = version(&said);
        if (own_version.is_some() || headers.get_all(VERSION).iter().count() > 1)
            && differs(&VERSION, own_version.as_deref())
        {
            return Some(VERSION);
        }
        if differs(&METHOD, Some(method)) {
            return Some(METHOD);
        }
        let named = match method {
            TOOLS_CALL | "prompts/get" => Some(said.name),
            "resources/read" => Some(said.uri),
            _ => None,
        };
        if let Some(named) = named
            && differs(&NAME, named.and_then(string).as_deref())
        {
            return Some(NAME);
        }
        if method == TOOLS_CALL { differing_argument(headers, said.arguments) } else { None }
    })
}

/// Which argument a header repeats says the tool's schema, which is not at hand: it must repeat one of them.
fn differing_argument(headers: &HeaderMap, arguments: Option<&RawValue>) -> Option<HeaderName> {
    let mut repeating = headers.keys().filter(|name| name.as_str().starts_with(PARAM)).peekable();
    repeating.peek()?;
    let arguments: Value = arguments.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let mut own = HashSet::new();
    collect(&arguments, &mut own);
    let repeats = |name: &HeaderName| match values(headers, name).as_slice() {
        [value] => {
            decoded(value.as_bytes()).is_some_and(|text| own.contains(&text) || own.contains(&number(&text)))
        }
        _ => false,
    };
    repeating.find(|name| !repeats(name)).cloned()
}

/// Each single value, as a header would say it.
fn collect(value: &Value, into: &mut HashSet<String>) {
    match value {
        Value::String(text) => {
            into.insert(text.clone());
        }
        Value::Number(own) => into.extend([own.to_string(), number(&own.to_string())]),
        Value::Bool(own) => {
            into.insert(own.to_string());
        }
        Value::Array(elements) => elements.iter().for_each(|element| collect(element, into)),
        Value::Object(members) => members.values().for_each(|member| collect(member, into)),
        Value::Null => {}
    }
}

/// One form for the ways to write a number (`42`, `42.0`); other texts stay.
fn number(text: &str) -> String {
    let digits = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
    match text.parse::<f64>() {
        Ok(value) if text.chars().all(digits) && value.abs() < 9e15 => format!("number {value}"),
        _ => text.to_owned(),
    }
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a HeaderValue> {
    headers.get_all(name).iter().collect()
}

fn said(message: &Message) -> Said<'_> {
    serde_json::from_str(message.content()).unwrap_or_default()
}

fn version(said: &Said) -> Option<String> {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(default, rename = "io.modelcontextprotocol/protocolVersion")]
        version: Option<Value>,
    }
    let meta: Meta = serde_json::from_str(said.meta?.get()).ok()?;
    meta.version.map(|version| version.as_str().map_or_else(|| version.to_string(), str::to_owned))
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(headers: &[(&str, &str)], method: &str, params: &str) -> Option<String> {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let headers = headers.iter().map(|(name, value)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            )
        });
        differing(&headers.collect(), &Messages::parse(body.as_bytes()).unwrap()).map(|name| name.to_string())
    }

    const OWN: (&str, &str) = ("mcp-protocol-version", REVISION);
    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;

    #[test]
    fn a_header_that_differs_from_the_body_is_found() {
        let params = |more: &str| format!("{{{META},{more}}}");
        let deploy = params(r#""name":"deploy","arguments":{"a":{"b":["é",42,true]},"c":" x"}"#);
        let call = |headers: &[(&str, &str)]| found(&[&[OWN], headers].concat(), "tools/call", &deploy);
        for agreeing in [
            &[][..],
            &[("mcp-method", "tools/call"), ("mcp-name", "deploy")],
            &[("mcp-name", "=?base64?ZGVwbG95?=")],
            &[("mcp-name", "  deploy ")],
            &[("mcp-param-x", "=?base64?w6k=?="), ("mcp-param-y", "42.0"), ("mcp-param-z", "true")],
            &[("mcp-param-c", "=?base64?IHg=?=")],
        ] {
            assert_eq!(call(agreeing), None, "{agreeing:?}");
        }
        for (differing, name) in [
            (&[("mcp-method", "tools/list")][..], "mcp-method"),
            (&[("mcp-method", "Tools/call")], "mcp-method"),
            (&[("mcp-method", "tools/call"), ("mcp-method", "tools/call")], "mcp-method"),
            (&[("mcp-name", "delete")], "mcp-name"),
            (&[("mcp-name", "=?base64?!!?=")], "mcp-name"),
            (&[("mcp-param-x", "43")], "mcp-param-x"),
            (&[("mcp-param-x", "=?base64?SGVsbG8?=")], "mcp-param-x"),
            (&[("mcp-param-x", "true"), ("mcp-param-x", "true")], "mcp-param-x"),
            (&[("mcp-protocol-version", "2025-11-25")], "mcp-protocol-version"),
        ] {
            assert_eq!(call(differing).as_deref(), Some(name), "{differing:?}");
        }
        let other = found(&[("mcp-protocol-version", "2025-11-25")], "tools/call", &deploy);
        assert_eq!(other.as_deref(), Some("mcp-protocol-version"));
        let read = params(r#""uri":"file:///a""#);
        assert_eq!(found(&[OWN, ("mcp-name", "file:///a")], "resources/read", &read), None);
        assert!(found(&[OWN, ("mcp-name", "file:///b")], "resources/read", &read).is_some());
        // A header that is not there says nothing; nor does one of a method without a name.
        assert_eq!(found(&[], "tools/call", &deploy), None);
        assert_eq!(found(&[OWN, ("mcp-name", "x")], "ping", "{}"), None);
        assert!(found(&[OWN, ("mcp-name", "x")], "tools/call", "{}").is_some());
    }

    #[test]
    fn in_other_revisions_these_headers_mean_nothing() {
        for own in [&[][..], &[("mcp-protocol-version", "2025-11-25")]] {
            let headers = [own, &[("mcp-method", "x"), ("mcp-name", "y"), ("mcp-param-a", "z")]].concat();
            assert_eq!(found(&headers, "tools/call", r#"{"name":"deploy"}"#), None);
        }
    }
}
