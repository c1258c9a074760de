//! What a message says beside its method: whom it is for, which session's terms it names, what it belongs to. The text
//! of params or of a result comes in, already known to be one that every parser reads alike; the members that tie
//! messages together go out. A member of another type than MCP's is taken for absent: nothing is decided here.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::jsonrpc::RequestId;

/// The members of `_meta` that name a client's own work.
pub const CLIENT_NAMES: [&str; 2] = ["claudecode/toolUseId", "x-codex-turn-metadata"];

/// What params say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// Of a tool or a prompt.
    pub name: Option<String>,
    /// Of a resource.
    pub uri: Option<String>,
    /// The revision that `initialize` asks for, or that `_meta` names.
    pub version: Option<String>,
    /// The token under which progress is asked for, or told.
    pub progress_token: Option<RequestId>,
    /// The request that a cancellation is of.
    pub request_id: Option<RequestId>,
    /// The request whose subscription a notification is for.
    pub subscription: Option<RequestId>,
    /// The id of a task.
    pub task: Option<String>,
    /// What an earlier round of the call gave to be repeated.
    pub request_state: Option<String>,
    pub traceparent: Option<String>,
    /// Of [`CLIENT_NAMES`]: the text of a string, the JSON of anything else.
    pub client: Vec<(&'static str, String)>,
    /// Whether it asks for a further page of a list.
    pub further_page: bool,
    /// The message has members that JSON-RPC does not know.
    pub unknown_member: bool,
}

/// What a result says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    pub is_error: bool,
    /// `resultType`.
    pub kind: Option<String>,
    /// The revision that `initialize` agreed on.
    pub version: Option<String>,
    /// The id of the task that was made.
    pub task: Option<String>,
    /// What the next round is to repeat.
    pub request_state: Option<String>,
    /// As in [`About`].
    pub unknown_member: bool,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "protocolVersion")]
    version: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "progressToken")]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "requestId")]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "taskId")]
    task_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "requestState")]
    request_state: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cursor: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken")]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion")]
    version: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/related-task")]
    related_task: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/subscriptionId")]
    subscription: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "claudecode/toolUseId")]
    tool_use: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "x-codex-turn-metadata")]
    turn: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Task<'a> {
    #[serde(borrow, default, rename = "taskId")]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Result<'a> {
    #[serde(borrow, default, rename = "isError")]
    is_error: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "resultType")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "protocolVersion")]
    version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    task: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "taskId")]
    task_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "requestState")]
    request_state: Option<&'a RawValue>,
}

impl About {
    /// Reads the text of params.
    pub fn of(params: &str) -> Self {
        if !params.starts_with('{') {
            return Self::default();
        }
        let Ok(read) = serde_json::from_str::<Params>(params) else { return Self::default() };
        let meta = read.meta.filter(|meta| meta.get().starts_with('{'));
        let meta: Meta = meta.and_then(|meta| serde_json::from_str(meta.get()).ok()).unwrap_or_default();
        let client = CLIENT_NAMES.into_iter().zip([meta.tool_use, meta.turn]);
        Self {
            name: text(read.name),
            uri: text(read.uri),
            version: text(meta.version).or_else(|| text(read.version)),
            progress_token: id(meta.progress_token).or_else(|| id(read.progress_token)),
            request_id: id(read.request_id),
            subscription: id(meta.subscription),
            task: text(read.task_id).or_else(|| task(meta.related_task)),
            request_state: text(read.request_state),
            traceparent: text(meta.traceparent),
            client: client
                .filter_map(|(name, raw)| {
                    let raw = raw?;
                    Some((name, text(Some(raw)).unwrap_or_else(|| raw.get().to_owned())))
                })
                .collect(),
            further_page: read.cursor.is_some(),
            unknown_member: false,
        }
    }
}

impl Outcome {
    /// Reads the text of a result.
    pub fn of(result: &str) -> Self {
        if !result.starts_with('{') {
            return Self::default();
        }
        let Ok(read) = serde_json::from_str::<Result>(result) else { return Self::default() };
        Self {
            is_error: read.is_error.is_some_and(|value| value.get() == "true"),
            kind: text(read.kind),
            version: text(read.version),
            task: task(read.task).or_else(|| text(read.task_id)),
            request_state: text(read.request_state),
            unknown_member: false,
        }
    }
}

fn text(raw: Option<&RawValue>) -> Option<String> {
    let raw = raw?.get();
    raw.starts_with('"').then(|| serde_json::from_str(raw).ok()).flatten()
}

fn id(raw: Option<&RawValue>) -> Option<RequestId> {
    RequestId::read(raw?.get())
}

fn task(raw: Option<&RawValue>) -> Option<String> {
    let raw = raw?.get();
    text(raw.starts_with('{').then(|| serde_json::from_str::<Task>(raw).ok()).flatten()?.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ties_messages_together_is_found_where_mcp_puts_it() {
        let about = About::of(
            r#"{"name":"deploy","requestState":"s1","cursor":"2","_meta":{"progressToken":7,
                "traceparent":"00-a-b-01","io.modelcontextprotocol/protocolVersion":"2026-07-28",
                "io.modelcontextprotocol/related-task":{"taskId":"t1"},
                "io.modelcontextprotocol/subscriptionId":"s",
                "claudecode/toolUseId":"toolu_1","x-codex-turn-metadata":{"turn":1},"other":1}}"#,
        );
        assert_eq!((about.name.as_deref(), about.version.as_deref()), (Some("deploy"), Some("2026-07-28")));
        assert_eq!(about.progress_token, RequestId::read("7"));
        assert_eq!(about.subscription, RequestId::read("\"s\""));
        assert_eq!((about.task.as_deref(), about.request_state.as_deref()), (Some("t1"), Some("s1")));
        assert_eq!((about.traceparent.as_deref(), about.further_page), (Some("00-a-b-01"), true));
        let client = [("claudecode/toolUseId", "toolu_1"), ("x-codex-turn-metadata", r#"{"turn":1}"#)];
        assert_eq!(about.client, client.map(|(name, text)| (name, text.to_owned())));

        assert_eq!(
            About::of(r#"{"progressToken":"p","progress":1}"#).progress_token,
            RequestId::read("\"p\"")
        );
        assert_eq!(About::of(r#"{"requestId":"1"}"#).request_id, RequestId::read("\"1\""));
        assert_eq!(About::of(r#"{"protocolVersion":"2024-11-05"}"#).version.as_deref(), Some("2024-11-05"));
        assert_eq!(About::of(r#"{"taskId":"t"}"#).task.as_deref(), Some("t"));
    }

    #[test]
    fn what_has_another_type_is_absent() {
        for params in ["", "[]", "null", r#"{"name":7,"uri":{},"taskId":[],"_meta":[]}"#, r#"{"_meta":"x"}"#]
        {
            assert_eq!(About::of(params), About::default(), "{params}");
        }
        for result in ["null", "7", r#"{"isError":"true","task":"t","resultType":null}"#] {
            assert_eq!(Outcome::of(result), Outcome::default(), "{result}");
        }
    }

    #[test]
    fn a_result_says_what_it_is() {
        let outcome =
            Outcome::of(r#"{"resultType":"input_required","inputRequests":{},"requestState":"a.b"}"#);
        assert_eq!(
            (outcome.kind.as_deref(), outcome.request_state.as_deref()),
            (Some("input_required"), Some("a.b"))
        );
        assert_eq!(Outcome::of(r#"{"task":{"taskId":"t1","status":"working"}}"#).task.as_deref(), Some("t1"));
        assert_eq!(Outcome::of(r#"{"taskId":"t1","status":"working"}"#).task.as_deref(), Some("t1"));
        assert_eq!(Outcome::of(r#"{"protocolVersion":"2025-11-25"}"#).version.as_deref(), Some("2025-11-25"));
        assert!(Outcome::of(r#"{"isError":true}"#).is_error);
    }
}
