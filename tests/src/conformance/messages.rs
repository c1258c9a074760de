//! The suite's own log of messages and Weir's record of them, made comparable.
//!
//! In: the lines of `tap.mjs`, and rows of `events`. Out: what stands in one of them alone. Where the record masked a content, or
//! kept less than the whole, only way, kind, method and id are compared.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// A message, as one side tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    way: String,
    kind: Kind,
    /// Empty in a response.
    method: String,
    /// None: not told, or null.
    id: Option<Value>,
    /// The params, result or error; None: masked or cut short.
    content: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Notification,
    Response,
}

/// The suite's log.
#[derive(Debug, Default)]
pub struct Log {
    pub messages: Vec<Said>,
    pub connections: u64,
    /// Requests that Weir itself refused, and said so. They are no message of the record, which has a row for each refusal.
    pub refused: u64,
    /// Ids of requests whose answers the suite left unread: what came in them it cannot tell.
    pub abandoned: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Message {
        way: String,
        message: Value,
        /// The ids of the requests that it came in the answer to.
        #[serde(default)]
        to: Vec<Value>,
    },
    Abandoned {
        abandoned: Vec<Value>,
    },
    Connection {
        connection: String,
    },
}

impl Log {
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("the suite's log {}", file.display()))?;
        let mut log = Self::default();
        for line in text.lines() {
            match serde_json::from_str(line).with_context(|| format!("a line of the suite's log: {line}"))? {
                Line::Message { message, to, .. } if is_refusal(&message) => log.take_back(&message, &to),
                Line::Message { way, message, .. } => log.messages.extend(Said::on_the_wire(way, &message)),
                Line::Abandoned { abandoned } => log.abandoned.extend(abandoned),
                Line::Connection { connection } if ["made", "accepted"].contains(&connection.as_str()) => {
                    log.connections += 1
                }
                Line::Connection { connection } => bail!("a connection that was {connection}"),
            }
        }
        Ok(log)
    }
}

impl Log {
    /// Weir refused a request: what the suite sent reached nobody.
    fn take_back(&mut self, refusal: &Value, to: &[Value]) {
        self.refused += 1;
        let ids: Vec<_> = refusal.get("id").filter(|id| !id.is_null()).into_iter().chain(to).collect();
        let is_refused =
            |said: &Said| said.kind == Kind::Request && said.id.as_ref().is_some_and(|id| ids.contains(&id));
        if let Some(at) = self.messages.iter().rposition(is_refused) {
            self.messages.remove(at);
        }
    }
}

/// Whether an answer is Weir's own: to a request that contradicts itself, or that asks for another server than the one that is there.
fn is_refusal(message: &Value) -> bool {
    let error = &message["error"];
    let said = error["message"].as_str().unwrap_or_default();
    said.starts_with("refused by Weir: ")
        || (said.starts_with("Weir: ") && error["data"]["untrusted"].is_string())
}

/// Whether a row tells of such a refusal.
pub fn tells_of_refusal(row: &Value) -> bool {
    row["kind"] == "message"
        && ["headers_differ", "untrusted"].map(Value::from).contains(&row["message_label"])
}

impl Said {
    /// None: by its members it is no message.
    fn on_the_wire(way: String, message: &Value) -> Option<Self> {
        let id = message.get("id").filter(|id| !id.is_null()).cloned();
        let part = |name: &str| message.get(name).cloned();
        let method = message.get("method").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, content) = match (message.get("method"), &id) {
            (Some(_), Some(_)) => (Kind::Request, part("params")),
            (Some(_), None) => (Kind::Notification, part("params")),
            (None, _) => (Kind::Response, Some(part("error").or_else(|| part("result"))?)),
        };
        Some(Self { way, kind, method, id, content: Some(plain(content.unwrap_or(Value::Null))) })
    }

    /// Of a row of `events`. None: the row tells of no message.
    pub fn recorded(row: &Value) -> Result<Option<Self>> {
        let text = |column: &str| row[column].as_str().unwrap_or_default();
        let whole = row["payload_truncated"] == false
            && row["payload_masked_detectors"].as_array().is_some_and(Vec::is_empty);
        let payload = text("payload");
        let content = match payload {
            "" => Some(Value::Null),
            _ if whole => {
                let read = serde_json::from_str(payload);
                Some(plain(read.unwrap_or_else(|_| Value::String(payload.to_owned()))))
            }
            _ => None,
        };
        let id = Some(text("jsonrpc_request_id")).filter(|id| !id.is_empty());
        let id: Option<Value> = id.map(serde_json::from_str).transpose().context("an id in the record")?;
        let (up, down) = ("client_to_server".to_owned(), "server_to_client".to_owned());
        let method = text("mcp_method_name").to_owned();
        Ok(match text("kind") {
            "intent" if id.is_some() => Some(Self { way: up, kind: Kind::Request, method, id, content }),
            "intent" => Some(Self { way: up, kind: Kind::Notification, method, id, content }),
            // Only then did a response to it come: a result, or an error with its code.
            "outcome" if answered(row) && id.is_some() => {
                Some(Self { way: down, kind: Kind::Response, method: String::new(), id, content })
            }
            "outcome" => None,
            "message" => {
                let kind = match text("message_label") {
                    "request" => Kind::Request,
                    "notification" => Kind::Notification,
                    "response" => Kind::Response,
                    // No MCP, or not to be read: there is nothing to compare it with.
                    _ => return Ok(None),
                };
                let method = if kind == Kind::Response { String::new() } else { method };
                Some(Self { way: text("message_direction").to_owned(), kind, method, id, content })
            }
            other => bail!("a row of the kind {other:?}"),
        })
    }

    /// Whether the record may tell of this message of the log.
    fn is(&self, logged: &Self) -> bool {
        let same = self.way == logged.way && self.kind == logged.kind && self.method == logged.method;
        // A server names none in its answer to what it could not read.
        let ids = self.id == logged.id || (self.kind == Kind::Response && logged.id.is_none());
        same && ids && (self.content.is_none() || self.content == logged.content)
    }

    pub fn tell(&self) -> String {
        let kind = match self.kind {
            Kind::Request => "request",
            Kind::Notification => "notification",
            Kind::Response => "response",
        };
        let id = self.id.as_ref().map(|id| format!(" id {id}")).unwrap_or_default();
        let content = self.content.as_ref().map_or("(masked)".to_owned(), Value::to_string);
        let content: String = content.chars().take(SHOWN).collect();
        format!("{} {kind} {}{id} {content}", self.way, self.method)
    }
}

/// The same with 1 for 1.0: the suite, being JavaScript, cannot tell one from the other.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and small enough to be exact")]
            Some(float) if float.fract() == 0.0 && float.abs() < EXACT => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(plain).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        other => other,
    }
}

/// Up to here a double holds each whole number.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// How much of a content is told of a message that is not in both, in characters.
const SHOWN: usize = 300;

fn answered(row: &Value) -> bool {
    match row["result"].as_str().unwrap_or_default() {
        "ok" | "tool_error" => true,
        "error" => !row["rpc_response_status_code"].is_null(),
        _ => false,
    }
}

/// What stands in the log alone, and in the record alone.
pub fn differences(log: Log, recorded: Vec<Said>) -> (Vec<Said>, Vec<Said>) {
    let Log { messages: mut log, mut abandoned, .. } = log;
    // Whoever is told of exactly takes first.
    let (exact, vague): (Vec<_>, Vec<_>) =
        recorded.into_iter().partition(|said| said.content.is_some() && said.id.is_some());
    let mut alone = Vec::new();
    for said in exact.into_iter().chain(vague) {
        let same_id = log.iter().position(|logged| said.is(logged) && said.id == logged.id);
        match same_id.or_else(|| log.iter().position(|logged| said.is(logged))) {
            Some(at) => drop(log.swap_remove(at)),
            None => match abandoned
                .iter()
                .position(|id| said.kind == Kind::Response && said.id.as_ref() == Some(id))
            {
                Some(at) => drop(abandoned.swap_remove(at)),
                None => alone.push(said),
            },
        }
    }
    (log, alone)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn logged(way: &str, message: &Value) -> Said {
        Said::on_the_wire(way.into(), message).unwrap()
    }

    fn row(kind: &str, method: &str, id: &str, payload: &str) -> Said {
        let row = json!({"kind": kind, "mcp_method_name": method, "jsonrpc_request_id": id, "payload": payload,
            "payload_truncated": false, "payload_masked_detectors": [], "result": "ok"});
        Said::recorded(&row).unwrap().unwrap()
    }

    fn compare(log: &[Said], recorded: Vec<Said>) -> (Vec<Said>, Vec<Said>) {
        differences(Log { messages: log.to_vec(), ..Log::default() }, recorded)
    }

    #[test]
    fn an_answer_that_the_suite_left_unread_is_excused_once() {
        let log = || Log { abandoned: vec![json!(7)], ..Log::default() };
        let answer = row("outcome", "ping", "7", "{}");
        assert_eq!(differences(log(), vec![answer.clone()]), (vec![], vec![]));
        assert_eq!(differences(log(), vec![answer.clone(), answer.clone()]).1, [answer]);
    }

    #[test]
    fn a_call_and_its_answer_are_found_in_the_record() {
        let log = vec![
            logged(
                "client_to_server",
                &json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"a": [1]}}),
            ),
            logged("server_to_client", &json!({"jsonrpc": "2.0", "id": 1, "result": {}})),
        ];
        let record = vec![row("intent", "ping", "1", r#"{ "a": [1.0] }"#), row("outcome", "ping", "1", "{}")];
        assert_eq!(compare(&log, record.clone()), (vec![], vec![]));
        let (missing, surplus) = compare(&log, vec![record[0].clone(), record[0].clone()]);
        assert_eq!((missing.len(), surplus.len()), (1, 1));
    }

    #[test]
    fn a_request_that_weir_refused_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let lines = r#"{"way":"client_to_server","message":{"jsonrpc":"2.0","id":7,"method":"ping"}}
{"way":"server_to_client","message":{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"Weir: no","data":{"untrusted":"x"}}},"to":[7]}
{"connection":"made"}"#;
        std::fs::write(&file, lines).unwrap();
        let log = Log::read(&file).unwrap();
        assert_eq!((log.messages.len(), log.refused, log.connections), (0, 1, 1));
    }

    #[test]
    fn another_id_or_content_is_another_message() {
        let log = vec![logged("client_to_server", &json!({"jsonrpc": "2.0", "id": "1", "method": "ping"}))];
        assert_eq!(compare(&log, vec![row("intent", "ping", "1", "")]).0.len(), 1, "1 is not \"1\"");
        assert_eq!(compare(&log, vec![row("intent", "ping", "\"1\"", "{}")]).0.len(), 1);
        assert_eq!(compare(&log, vec![row("intent", "ping", "\"1\"", "")]), (vec![], vec![]));
    }
}
