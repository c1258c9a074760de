//! What a record says of MCP: what was asked for ([`Mcp`]), and what ties messages to one another ([`Marks`]).
//!
//! All of it is what a peer wrote: masked, or a pseudonym where the value itself would be a key to something (a
//! session, a task, a request's state). What does not apply, or is not known, is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::labels::Oddity;
use crate::ids::{CallId, MessageId};

/// The MCP side of a call.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Mcp<T> {
    #[serde(default = "Marks::default", skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks<T>,
    pub method: T,
    /// What the request names; without that, what the session agreed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<T>,
    /// The JSON text of the id (`7`, `"7"`); absent for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<T>,
    /// A pseudonym: the id itself would let its reader take the session over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<T>,
}

/// What else a message says of itself, and what it belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Marks<T> {
    /// The session that the server began with this answer: a pseudonym.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub begins_session: Option<T>,
    /// Names that clients give their work in `_meta`, by the member's name.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub client: BTreeMap<String, T>,
    /// The version of HTTP that it came in: `1.1`, `2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_version: Option<String>,
    /// What is unknown to Weir or does not fit together. It was passed on untouched.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub odd: Vec<Oddity>,
    /// JSON text of the progress token.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub progress_token: Option<T>,
    /// The prompt of a `prompts/get`.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub prompt: Option<T>,
    /// The earlier call that this one speaks of: cancels it, retries it with what it asked for, asks for its task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regards: Option<CallId>,
    /// The server's request that this one speaks of: a client's cancellation or progress of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regards_message: Option<MessageId>,
    /// Pseudonym of the `requestState` that a round ends or begins with.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub request_state: Option<T>,
    /// The resource of a `resources/read` and its like: a URI, masked as a request's target is.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub resource: Option<T>,
    /// What a result says that it is: `complete`, `input_required`, `task`.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub result_type: Option<T>,
    /// Pseudonym of the task's id.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub task: Option<T>,
    /// SHA-256 (hex) of the called tool's definition, canonical (RFC 8785), as the server last listed it to this
    /// session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_digest: Option<String>,
    /// `_meta.traceparent`, as it came (W3C Trace Context).
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Default for Marks<T> {
    fn default() -> Self {
        Self {
            prompt: None,
            resource: None,
            tool_digest: None,
            regards: None,
            regards_message: None,
            progress_token: None,
            task: None,
            request_state: None,
            result_type: None,
            begins_session: None,
            traceparent: None,
            client: BTreeMap::new(),
            http_version: None,
            odd: Vec::new(),
        }
    }
}

impl<T> Marks<T> {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        let Self {
            prompt,
            resource,
            tool_digest,
            regards,
            regards_message,
            progress_token,
            task,
            request_state,
            result_type,
            begins_session,
            traceparent,
            client,
            http_version,
            odd,
        } = self;
        let texts =
            [prompt, resource, progress_token, task, request_state, result_type, begins_session, traceparent];
        texts.iter().all(|text| text.is_none())
            && (tool_digest, http_version) == (&None, &None)
            && (regards, regards_message) == (&None, &None)
            && client.is_empty()
            && odd.is_empty()
    }
}
