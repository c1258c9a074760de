//! What Weir itself answers. A refused call gets 200 with a JSON-RPC error of the same id: any HTTP error
//! status ends some clients' sessions.

use http::{HeaderValue, StatusCode, header};
use hyper::Response;
use serde_json::json;
use weir_core::mcp::jsonrpc::{self, Body as Messages, Message, REFUSED};

use crate::http::{Body, full};
use crate::ledger::LedgerError;

/// An error for each request of the body; nothing (202) where only notifications were refused.
pub fn refused(body: &Messages, reason: &str) -> Response<Body> {
    let ids = body.messages().iter().filter_map(|message| match message {
        Message::Request { id, .. } => Some(id),
        _ => None,
    });
    let errors: Vec<String> = ids.map(|id| jsonrpc::error_reply(Some(id), REFUSED, reason, None)).collect();
    match (body, errors.as_slice()) {
        (_, []) => with(StatusCode::ACCEPTED, None, String::new()),
        (Messages::Single(_), [error]) => json_rpc(StatusCode::OK, error.clone()),
        _ => json_rpc(StatusCode::OK, format!("[{}]", errors.join(","))),
    }
}

/// Strict durability: what cannot be recorded does not happen.
pub fn unrecordable(body: &Messages, error: &LedgerError) -> Response<Body> {
    tracing::error!(%error, "refusing a call that cannot be recorded");
    refused(body, "refused by Weir: the call cannot be recorded now; try again later")
}

/// A request that Weir cannot read has no id to answer to.
pub fn unreadable(status: u16, error: &impl std::error::Error) -> Response<Body> {
    let reason = format!("refused by Weir: {error}");
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    json_rpc(status, jsonrpc::error_reply(None, REFUSED, &reason, Some(json!({"unreadable": true}))))
}

/// A line of plain text.
pub fn plain(status: u16, text: &'static str) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    with(status, Some("text/plain; charset=utf-8"), text.to_owned())
}

/// The head of an answer that comes as events.
pub fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    response
}

/// A JSON-RPC message.
pub fn json_rpc(status: StatusCode, text: String) -> Response<Body> {
    with(status, Some("application/json"), text)
}

fn with(status: StatusCode, content_type: Option<&'static str>, text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
