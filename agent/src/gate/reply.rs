//! What Weir itself answers. A refused call gets 200 with a JSON-RPC error of the same id: any HTTP error
//! status ends some clients' sessions.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::Response;
use serde_json::json;
use weir_core::mcp::jsonrpc::{self, Body as Messages, Message, REFUSED};
use weir_core::mcp::sse;

use super::Gate;
use super::session::{Kind, Session, StreamGone, StreamWriter};
use crate::http::{Body, accepts, full, takes_events};
use crate::ledger::LedgerError;

/// In what a client takes its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    /// It takes nothing but events.
    Events,
}

impl Form {
    /// By what a request accepts.
    pub fn asked_for(headers: &HeaderMap) -> Self {
        let json =
            ["application/json", "application/*", "*/*"].into_iter().any(|kind| accepts(headers, kind));
        if !json && takes_events(headers) { Self::Events } else { Self::Json }
    }
}

/// Where the answer to a call goes.
#[derive(Debug, Clone)]
pub enum Place {
    /// Back, in this form.
    Here(Form),
    /// On the session's event stream, as in HTTP+SSE of 2024-11-05: what is posted there gets 202.
    Stream(StreamWriter),
}

impl Gate {
    /// Where a call of this session, in a request with this head, is answered.
    pub(super) fn place_of_answer(session: &Session, headers: &HeaderMap) -> Place {
        let stream = (session.kind == Kind::Endpoint).then(|| session.stream()).flatten();
        stream.map_or_else(|| Place::Here(Form::asked_for(headers)), Place::Stream)
    }
}

impl Place {
    /// Answers; with nothing but 202 where there is nothing to say.
    pub async fn answer(&self, text: Option<String>) -> Response<Body> {
        let Some(text) = text else { return accepted() };
        match self {
            Place::Here(form) => message(*form, text),
            Place::Stream(stream) => match stream.say(sse::message(&text)).await {
                Ok(()) => accepted(),
                // Nobody waits on it any more.
                Err(StreamGone) => message(Form::Json, text),
            },
        }
    }
}

/// An error for each request of the body; nothing where only notifications were refused. A batch is refused as a whole,
/// and its errors are one array: in part it would have to go on as another body than the client's.
pub fn refusal(body: &Messages, reason: &str) -> Option<String> {
    let ids = body.messages().iter().filter_map(|message| match message {
        Message::Request { id, .. } => Some(id),
        _ => None,
    });
    let errors: Vec<String> = ids.map(|id| jsonrpc::error_reply(Some(id), REFUSED, reason, None)).collect();
    match (body, errors.as_slice()) {
        (_, []) => None,
        (Messages::Single(_), [error]) => Some(error.clone()),
        _ => Some(format!("[{}]", errors.join(","))),
    }
}

/// The answer to what needs none, or gets it elsewhere.
pub fn accepted() -> Response<Body> {
    with(StatusCode::ACCEPTED, None, String::new())
}

/// Strict durability: what cannot be recorded does not happen.
pub fn unrecordable(body: &Messages, error: &LedgerError) -> Option<String> {
    tracing::error!(%error, "refusing a call that cannot be recorded");
    refusal(body, "refused by Weir: the call cannot be recorded now; try again later")
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

/// A message that answers a request.
pub fn message(form: Form, text: String) -> Response<Body> {
    match form {
        Form::Json => json_rpc(StatusCode::OK, text),
        Form::Events => event_stream(full(sse::message(&text))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_form_that_the_client_takes() {
        for (accept, expected) in [
            (&["application/json, text/event-stream"][..], Form::Json),
            (&["text/event-stream"], Form::Events),
            (&["Text/Event-Stream;q=0.9"], Form::Events),
            (&["text/event-stream", "application/json"], Form::Json),
            (&["text/event-stream, */*;q=0.1"], Form::Json),
            (&["text/html"], Form::Json),
            (&[], Form::Json),
        ] {
            let headers =
                accept.iter().map(|value| (header::ACCEPT, HeaderValue::from_static(value))).collect();
            assert_eq!(Form::asked_for(&headers), expected, "{accept:?}");
        }
    }
}
