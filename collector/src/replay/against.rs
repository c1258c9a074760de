//! A story played against a sandbox: each call in order, in the session that stands for its own, its answer held
//! against the recorded one.

use std::collections::HashMap;

use serde::de::IgnoredAny;
use serde_json::Value;
use weir_core::record::CallResult;

use super::bind::Bindings;
use super::compare::compare;
use super::sandbox::{Answer, SESSION};
use super::{Difference, Outcome, PlayError, Played, Sandbox};
use crate::bundle::{Call, Story};

/// From this revision on a request says by headers what it is.
const STATELESS: &str = "2026-07-28";
/// Means a request of its own time; another run has none such.
const CANCELLED: &str = "notifications/cancelled";

/// A call as it would be sent.
struct Request {
    body: String,
    id: Option<u64>,
    inexact: Vec<&'static str>,
}

/// Plays each call, or says what would be sent where `sandbox` is none; tells each as soon as it is over.
pub async fn play(
    story: &Story,
    sandbox: Option<&Sandbox>,
    bindings: &Bindings,
    mut tell: impl FnMut(&Played) -> std::io::Result<()>,
) -> Result<Vec<Played>, PlayFault> {
    let (mut sessions, mut all) = (HashMap::<String, String>::new(), Vec::new());
    for call in &story.calls {
        let mut played = match request(call, bindings) {
            Err(played) => *played,
            Ok(request) => match sandbox {
                None => Played { inexact: request.inexact, ..Played::of(call, Outcome::Unplayed, "dry run") },
                Some(sandbox) => {
                    let headers = headers(call, &sessions);
                    let answer = sandbox.send(request.body, request.id, &headers).await?;
                    let begun =
                        call.outcome.as_ref().and_then(|outcome| outcome.marks.begins_session.clone());
                    if let Some(session) = &answer.session {
                        sessions.insert(begun.unwrap_or_default(), session.clone());
                    }
                    judged(call, answer, request.inexact, bindings)
                }
            },
        };
        for Difference { recorded, now, .. } in &mut played.differences {
            (*recorded, *now) = (bindings.hide(recorded), bindings.hide(now));
        }
        tell(&played)?;
        all.push(played);
    }
    Ok(all)
}

/// Why a replay ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum PlayFault {
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}

/// The message, or why there is none to send.
fn request(call: &Call, bindings: &Bindings) -> Result<Request, Box<Played>> {
    let intent = &call.intent;
    let unsent = |outcome, note: &str| Box::new(Played::of(call, outcome, note));
    if !call.went() {
        let by = call.outcome.as_ref().map_or("denied", |outcome| outcome.result.as_str());
        return Err(unsent(Outcome::Refused, &format!("{by}, by {}", intent.verdict.rule)));
    }
    if intent.payload.truncated {
        let note = "the record holds only a part of what was sent";
        return Err(unsent(Outcome::Unplayed, note));
    }
    if intent.mcp.method == CANCELLED {
        return Err(unsent(Outcome::Unplayed, "it took a call of its own time back"));
    }
    // By itself, before it stands in a message: it must not be able to end its place and say more.
    let is_json = |text: &str| text.is_empty() || serde_json::from_str::<IgnoredAny>(text).is_ok();
    let (params, left) = bindings.fill(&intent.payload.text);
    let params = params.trim();
    if !is_json(intent.payload.text.trim()) || !is_json(params) {
        return Err(unsent(Outcome::Unplayed, "what is recorded as its params is not one JSON value"));
    }
    let id = (!call.is_notification()).then_some(call.number as u64);
    let mut body = String::from("{\"jsonrpc\":\"2.0\",");
    if let Some(id) = id {
        body.push_str(&format!("\"id\":{id},"));
    }
    body.push_str(&format!("\"method\":{}", Value::from(intent.mcp.method.as_str())));
    if !params.is_empty() {
        body.push_str(&format!(",\"params\":{params}"));
    }
    body.push('}');
    Ok(Request { body, id, inexact: if left { vec!["masked arguments"] } else { Vec::new() } })
}

fn headers(call: &Call, sessions: &HashMap<String, String>) -> Vec<(&'static str, String)> {
    let mcp = &call.intent.mcp;
    let mut headers = Vec::new();
    if let Some(version) = mcp.protocol_version.as_ref().filter(|_| mcp.method != "initialize") {
        headers.push(("mcp-protocol-version", version.clone()));
        if version.as_str() >= STATELESS {
            headers.push(("mcp-method", mcp.method.clone()));
            let name = [&mcp.tool, &mcp.marks.prompt, &mcp.marks.resource].into_iter().flatten().next();
            headers.extend(name.map(|name| ("mcp-name", name.clone())));
        }
    }
    let session = sessions.get(mcp.session.as_deref().unwrap_or_default());
    headers.extend(session.filter(|_| mcp.method != "initialize").map(|session| (SESSION, session.clone())));
    headers
}

/// The answer against the recorded one.
fn judged(call: &Call, answer: Answer, mut inexact: Vec<&'static str>, bindings: &Bindings) -> Played {
    let note = match answer.asked.as_slice() {
        [] => String::new(),
        asked => format!("the server asked for {}, which was declined", asked.join(", ")),
    };
    let of = |outcome, inexact, differences| Played {
        inexact,
        differences,
        ..Played::of(call, outcome, note.clone())
    };
    let differs = |recorded: String, now: String| vec![Difference { pointer: String::new(), recorded, now }];
    let status = format!("status {}", answer.status);
    let Some(outcome) = &call.outcome else { return of(Outcome::Unknown, inexact, Vec::new()) };
    if call.is_notification() {
        let same = outcome.http_status.is_none_or(|status| status == answer.status);
        let told = outcome.http_status.map(|status| format!("status {status}")).unwrap_or_default();
        return if same {
            of(Outcome::Same, inexact, Vec::new())
        } else {
            of(Outcome::Different, inexact, differs(told, status))
        };
    }
    let member = match outcome.result {
        CallResult::Ok | CallResult::ToolError => "result",
        CallResult::Error => "error",
        _ => return of(Outcome::Unknown, inexact, Vec::new()),
    };
    let Some(message) = &answer.message else {
        return of(
            Outcome::Different,
            inexact,
            differs(format!("a {member}"), format!("no answer, {status}")),
        );
    };
    let Some(now) = message.get(member) else {
        let other = message.get("error").or(message.get("result")).unwrap_or(message);
        let shown: String = other.to_string().chars().take(300).collect();
        return of(Outcome::Different, inexact, differs(format!("a {member}"), shown));
    };
    if outcome.payload.truncated {
        inexact.push("truncated answer");
        return of(Outcome::Unknown, inexact, Vec::new());
    }
    let (recorded, _) = bindings.fill(&outcome.payload.text);
    let Ok(recorded) = serde_json::from_str::<Value>(&recorded) else {
        return of(Outcome::Unknown, inexact, Vec::new());
    };
    let (differences, masked) = compare(&recorded, now);
    if masked {
        inexact.push("masked answer");
    }
    let outcome = if differences.is_empty() { Outcome::Same } else { Outcome::Different };
    of(outcome, inexact, differences)
}
