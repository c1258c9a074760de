//! How a held call's client is made to wait. Clients give up at different times, and each has something that keeps it from
//! doing so; what it says of itself in its request decides.

use std::time::Duration;

use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use weir_core::mcp::jsonrpc::{Message, RequestId};
use weir_core::mcp::rewrite::Progress;
use weir_core::mcp::sse;

use crate::config::Ladder;
use crate::gate::mirror::is_stateless;
use crate::http::takes_events;

/// What a waiting client reads in its stream's comments, and as progress.
pub(super) const WAITING: &str = "weir: waiting for an approval";

/// How the client of one held call waits.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// It is given the head of an event stream at once, and comments.
    pub events: bool,
    /// It asked to be told of progress, and is.
    pub progress: Option<Progress>,
    /// What becomes of a request that has waited for so long.
    pub then: Then,
    /// Whether its revision says what kind of result each is.
    pub typed: bool,
}

/// How a request ends that cannot wait for as long as a human takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It can.
    Waits,
    /// The client is invited to ask again, with Weir's state, so often.
    Invited { within: Duration, rounds: u32 },
    /// The client is told that an approval is pending; a call of the same tool with the same arguments is this one.
    Told { within: Duration },
}

/// Of a call's params, what the ladder goes by.
#[derive(Default, Deserialize)]
pub(super) struct Says<'a> {
    #[serde(borrow, default)]
    pub arguments: Option<&'a RawValue>,
    #[serde(default, rename = "requestState")]
    pub state: Option<Value>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'a>>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken")]
    token: Option<&'a RawValue>,
}

impl<'a> Says<'a> {
    pub fn of(message: &'a Message) -> Self {
        serde_json::from_str(message.content()).unwrap_or_default()
    }
}

impl Way {
    /// For this call.
    pub fn of(headers: &HeaderMap, call: &Message, ladder: &Ladder) -> Self {
        let (events, typed) = (takes_events(headers), is_stateless(headers, call));
        let token = Says::of(call).meta.and_then(|meta| meta.token).filter(|_| events);
        let progress = token.and_then(|token| Progress::of(token.get()));
        let within = ladder.answer_within;
        let then = match (call.id(), typed) {
            // A call in the form of a notification is answered by nobody.
            (None, _) => Then::Waits,
            (Some(_), true) if progress.is_none() => Then::Invited { within, rounds: ladder.rounds },
            (Some(_), _) if events => Then::Waits,
            (Some(_), _) => Then::Told { within },
        };
        Self { events, progress, then, typed }
    }

    /// For a call that is answered on its session's stream: there is no end to what that may carry. Progress of Weir's
    /// own is not among it, since the server's, on the same stream, could not be told to rise above.
    pub fn on_the_sessions_stream() -> Self {
        Self { events: false, progress: None, then: Then::Waits, typed: false }
    }

    /// How long one request may wait.
    pub fn within(&self) -> Option<Duration> {
        match self.then {
            Then::Waits => None,
            Then::Invited { within, .. } | Then::Told { within } => Some(within),
        }
    }

    /// What the client is shown now and then.
    pub fn sign_of_life(&mut self) -> String {
        let progress = self.progress.as_mut().map(|progress| sse::message(&progress.tell(WAITING)));
        sse::comment(WAITING) + &progress.unwrap_or_default()
    }
}

/// Invites a client to ask again with this state. Without the empty requests one SDK takes it for an empty success.
pub(super) fn invitation(id: &RequestId, state: &str) -> String {
    let result = json!({"resultType": "input_required", "inputRequests": {}, "requestState": state});
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.as_json())
}

/// Tells a client, and the model behind it, that nothing was done yet.
pub(super) fn pending(id: &RequestId, approval: &str, rule: &str, typed: bool) -> String {
    let text = format!(
        "Weir: this call is pending approval {approval} (rule {rule}), and nothing was done yet. Call the tool again with \
         the same arguments to go on waiting, or to get its result once it is approved."
    );
    let mut result = json!({"content": [{"type": "text", "text": text}], "isError": true});
    if let (true, Some(members)) = (typed, result.as_object_mut()) {
        members.insert("resultType".into(), "complete".into());
    }
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.as_json())
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;
    use weir_core::mcp::jsonrpc::Body;

    use super::*;

    const STATELESS: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28""#;
    const TOKEN: &str = r#""progressToken":"p""#;

    fn way(accept: &'static str, meta: &str, id: &str) -> Way {
        let text = format!(
            r#"{{"jsonrpc":"2.0",{id}"method":"tools/call","params":{{"name":"deploy","_meta":{{{meta}}}}}}}"#
        );
        let body = Body::parse(text.as_bytes()).unwrap();
        let headers = [(ACCEPT, http::HeaderValue::from_static(accept))].into_iter().collect();
        Way::of(&headers, &body.messages()[0], &Ladder::default())
    }

    #[test]
    fn each_client_waits_in_the_way_that_keeps_it_waiting() {
        const BOTH: &str = "application/json, text/event-stream";
        let within = Ladder::default().answer_within;
        let invited = Then::Invited { within, rounds: 10 };
        for (accept, meta, then, progress) in [
            (BOTH, String::new(), Then::Waits, false),
            (BOTH, TOKEN.into(), Then::Waits, true),
            (BOTH, r#""progressToken":{}"#.into(), Then::Waits, false),
            (BOTH, STATELESS.into(), invited, false),
            (BOTH, format!("{STATELESS},{TOKEN}"), Then::Waits, true),
            ("application/json", String::new(), Then::Told { within }, false),
            ("application/json", TOKEN.into(), Then::Told { within }, false),
            ("application/json", format!("{STATELESS},{TOKEN}"), invited, false),
        ] {
            let way = way(accept, &meta, "\"id\":1,");
            assert_eq!((way.then, way.progress.is_some()), (then, progress), "{accept} {meta}");
        }
        assert_eq!(way("application/json", "", "").then, Then::Waits);
    }

    #[test]
    fn signs_of_life_are_comments_and_progress_that_rises() {
        let mut silent = way("text/event-stream", "", "\"id\":1,");
        assert_eq!(silent.sign_of_life(), ": weir: waiting for an approval\n\n");
        let mut told = way("text/event-stream", TOKEN, "\"id\":1,");
        let (one, two) = (told.sign_of_life(), told.sign_of_life());
        assert!(one.contains("\"progress\":0.000001") && two.contains("\"progress\":0.000002"), "{one}{two}");
    }

    #[test]
    fn what_is_not_the_last_word_says_so_in_its_revision() {
        let id = RequestId::read("\"a\\/b\"").unwrap();
        let invitation: Value = serde_json::from_str(&invitation(&id, "s")).unwrap();
        assert_eq!(
            invitation["result"],
            json!({"resultType": "input_required", "inputRequests": {}, "requestState": "s"})
        );
        let told: Value = serde_json::from_str(&pending(&id, "A", "r", true)).unwrap();
        assert_eq!((&told["id"], &told["result"]["isError"]), (&json!("a/b"), &json!(true)));
        assert_eq!(told["result"]["resultType"], "complete");
        assert!(!pending(&id, "A", "r", false).contains("resultType"));
    }
}
