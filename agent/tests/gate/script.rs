//! Exchanges as text: what clients ask and servers answer, written after the revisions' schemas, and what is recorded of
//! them, told in one line each. It plays nothing itself.

use std::collections::HashMap;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use weir_core::mask::Masked;
use weir_core::record::{Body, Direction};

use crate::stage::SERVER;

/// What was recorded, each thing in a line. Calls and server's requests are numbered as they come.
pub fn told(events: &[Body<Masked<String>>]) -> Vec<String> {
    let (mut calls, mut asked) = (HashMap::new(), HashMap::new());
    let mut lines = Vec::new();
    for event in events {
        let (mut line, marks) = match event {
            Body::Intent(intent) => {
                let next = calls.len() + 1;
                calls.insert(intent.call_id.clone(), next);
                let mcp = &intent.mcp;
                let mut line = format!("c{next} {}", mcp.method.as_str());
                for part in [&mcp.tool, &mcp.request_id, &mcp.protocol_version] {
                    line += &part.as_ref().map_or_else(String::new, |part| format!(" {}", part.as_str()));
                }
                line += if mcp.session.is_some() { " in" } else { "" };
                (line, &mcp.marks)
            }
            Body::Outcome(outcome) => {
                let mut line = format!("c{} = {}", calls[&outcome.call_id], outcome.result.as_str());
                line += &outcome.unread.map_or_else(String::new, |why| format!(" {}", why.as_str()));
                (line, &outcome.marks)
            }
            Body::Message(message) => {
                let way = if message.direction == Direction::ClientToServer { ">" } else { "<" };
                let mut line = format!("{way} {}", message.label.as_str());
                if !message.method.is_empty() {
                    line += &format!(" {}", message.method.as_str());
                }
                line +=
                    &message.request_id.as_ref().map_or_else(String::new, |id| format!(" {}", id.as_str()));
                if let Some(id) = &message.message_id {
                    let next = asked.len() + 1;
                    asked.insert(id.clone(), next);
                    line += &format!(" m{next}");
                }
                if let Some(id) = &message.answers {
                    line += &format!(" to m{}", asked[id]);
                }
                if let Some(call) = &message.call_id {
                    line += &format!(" of c{}", calls[call]);
                }
                (line, &message.marks)
            }
            _ => continue,
        };
        if let Some(call) = &marks.regards {
            line += &format!(" regards c{}", calls[call]);
        }
        if let Some(id) = &marks.regards_message {
            line += &format!(" regards m{}", asked[id]);
        }
        line += if marks.tool_digest.is_some() { " listed" } else { "" };
        line += if marks.begins_session.is_some() { " begins" } else { "" };
        line += if marks.task.is_some() { " task" } else { "" };
        line += &marks.result_type.as_ref().map_or_else(String::new, |kind| format!(" {}", kind.as_str()));
        line += &marks.odd.iter().map(|odd| format!(" {}!", odd.as_str())).collect::<String>();
        lines.push(line);
    }
    lines
}

pub fn json(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

pub fn events(data: &[&str]) -> String {
    let body: String = data.iter().map(|data| format!("event: message\ndata: {data}\n\n")).collect();
    stream(&body)
}

pub fn stream(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{body}")
}

pub fn accepted() -> String {
    "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".into()
}

pub fn asks(method: &str, session: &str, version: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri("/mcp").header("host", SERVER);
    for (name, value) in [("mcp-session-id", session), ("mcp-protocol-version", version)] {
        request = if value.is_empty() { request } else { request.header(name, value) };
    }
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let request = request.header("accept", "application/json, text/event-stream");
    request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

pub fn request(id: &str, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

pub fn notification(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
}

pub fn result(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}
