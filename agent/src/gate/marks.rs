//! What a record says of a message beside its method: masked names and pseudonyms, and the calls and requests that it
//! belongs to, as its session knows them. Nothing here decides anything, and nothing is changed.

use http::request::Parts;
use weir_core::mask::Masked;
use weir_core::mcp::about::About;
use weir_core::mcp::header::decoded;
use weir_core::mcp::jsonrpc::ParseError;
use weir_core::mcp::revisions::{HAS_BATCHES, knows_method, knows_version};
use weir_core::record::{Marks, Oddity, Unread};

use super::Gate;
use super::call::MAX_NAME;
use super::session::Session;
use crate::http::{CodingError, RequestError};

/// The most bytes of a resource's URI, and of a name that a client gives its own work.
const MAX_TEXT: usize = 2048;
/// What a result may say that it is.
const RESULT_TYPES: [&str; 3] = ["complete", "input_required", "task"];

/// What has a pseudonym: whoever knows the thing itself may use it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Secretive {
    Task,
    RequestState,
}

impl Gate {
    /// Of a request or notification, whichever way it goes.
    pub(super) fn marks(&self, method: &str, about: &About) -> Marks<Masked<String>> {
        let name = |text: &String| self.masker.name(text, MAX_NAME);
        let client = about.client.iter().map(|(member, text)| {
            ((*member).to_owned(), self.masker.json_within(text, MAX_TEXT).0.truncate(MAX_TEXT))
        });
        Marks {
            prompt: about.name.as_ref().filter(|_| method == "prompts/get").map(name),
            resource: about.uri.as_ref().map(|uri| self.masker.target(uri).truncate(MAX_TEXT)),
            progress_token: about
                .progress_token
                .as_ref()
                .map(|token| self.masker.name(token.as_json(), MAX_NAME)),
            task: about.task.as_ref().map(|task| self.pseudonym(Secretive::Task, task)),
            request_state: about.request_state.as_ref().map(|s| self.pseudonym(Secretive::RequestState, s)),
            traceparent: about.traceparent.as_ref().map(name),
            client: client.collect(),
            odd: [
                (!knows_method(method)).then_some(Oddity::UnknownMethod),
                about.unknown_member.then_some(Oddity::UnknownMember),
            ]
            .into_iter()
            .flatten()
            .collect(),
            ..Marks::default()
        }
    }

    /// Of a client's request or notification: with what its head says, and what it regards.
    pub(super) fn marks_of_call(
        &self,
        session: &Session,
        parts: &Parts,
        (method, about): (&str, &About),
        batch: bool,
    ) -> Marks<Masked<String>> {
        let mut marks = self.marks(method, about);
        marks.http_version = match parts.version {
            http::Version::HTTP_10 => Some("1.0".into()),
            http::Version::HTTP_2 => Some("2".into()),
            _ => Some("1.1".into()),
        };
        let things = [&marks.task, &marks.request_state];
        marks.regards = things.into_iter().flatten().find_map(|thing| session.origin_of(thing));
        match (method, &about.request_id, &about.progress_token) {
            ("notifications/cancelled", Some(id), _) => marks.regards = session.call(id),
            ("notifications/progress", _, Some(token)) => {
                marks.regards_message = session.asked_under(token).map(|asked| asked.message_id);
            }
            _ => {}
        }
        Self::compare(parts, method, about, &mut marks.odd);
        let version = version(parts).or(about.version.as_deref());
        if batch && version.is_some_and(|version| version != HAS_BATCHES) {
            marks.odd.push(Oddity::Batch);
        }
        marks
    }

    /// What the head says of the body.
    fn compare(parts: &Parts, method: &str, about: &About, odd: &mut Vec<Oddity>) {
        let header = |name: &str| parts.headers.get(name).and_then(|value| decoded(value.as_bytes()));
        let differs = |name: &str, own: Option<&str>| header(name).is_some_and(|value| Some(&*value) != own);
        if differs("mcp-method", Some(method)) {
            odd.push(Oddity::HeaderMethod);
        }
        if differs("mcp-name", about.name.as_deref().or(about.uri.as_deref()).or(about.task.as_deref())) {
            odd.push(Oddity::HeaderName);
        }
        if method != "initialize" && about.version.is_some() && differs(VERSION, about.version.as_deref()) {
            odd.push(Oddity::HeaderVersion);
        }
        let named = [header(VERSION), about.version.clone()];
        if named.iter().flatten().any(|version| !knows_version(version)) {
            odd.push(Oddity::UnknownVersion);
        }
    }

    /// A name for what may not be recorded itself, the same wherever it comes up.
    pub(super) fn pseudonym(&self, of: Secretive, text: &str) -> Masked<String> {
        let class = match of {
            Secretive::Task => "task",
            Secretive::RequestState => "request-state",
        };
        self.masker.pseudonym_of(class, text)
    }
}

const VERSION: &str = "mcp-protocol-version";

/// The revision that a request's head names.
pub(super) fn version(parts: &Parts) -> Option<&str> {
    parts.headers.get(VERSION).and_then(|value| value.to_str().ok())
}

pub(super) fn is_known_result(kind: &str) -> bool {
    RESULT_TYPES.contains(&kind)
}

/// Why a request's body is not here to be read; `None` where its body is not the reason.
pub(super) fn unread_request(error: &RequestError) -> Option<Unread> {
    match error {
        RequestError::TooLarge { .. } | RequestError::Encoded(CodingError::TooLarge { .. }) => {
            Some(Unread::TooLarge)
        }
        RequestError::Encoded(_) => Some(Unread::Encoded),
        RequestError::TwoReadings => Some(Unread::Ambiguous),
        RequestError::NoRoom => Some(Unread::NoRoom),
        RequestError::TooSlow(_) | RequestError::BrokenOff(_) => Some(Unread::CutOff),
        RequestError::Connect => None,
    }
}

/// Why something was not read, in the record's words.
pub(super) fn unread(error: &ParseError) -> Unread {
    match error {
        ParseError::NotJson(_) => Unread::NotJson,
        ParseError::NotJsonRpc(_) => Unread::NotJsonRpc,
        ParseError::Ambiguous(_) => Unread::Ambiguous,
        ParseError::TooDeep => Unread::TooDeep,
        ParseError::TooMany(_) => Unread::TooMany,
    }
}
