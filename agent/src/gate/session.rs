//! Sessions: what must be known of one message to understand another that comes over another connection. A request's head,
//! or a server's answer to it, leads to the session; messages enter and leave it; what a message belongs to comes out.
//!
//! A session is one server's (by its proven name, else by the address that was dialled), and is known by what its client
//! sends along: the Mcp-Session-Id, or the URL that a legacy server announced. Where there is neither, it is what one
//! process says to one server. It holds pseudonyms and digests, never a session's id.
//!
//! # Limits
//! [`MAX_SESSIONS`] in all, half of them of one job; one that was not used for [`IDLE`] goes, then the job's own that was
//! used longest ago. Of what a session remembers see [`book`]. What goes with calls waiting closes them as unanswered.

mod book;
mod stream;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weir_core::ids::{CallId, MessageId};
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::RequestId;

pub(super) use stream::{Injected, stream};
pub use stream::{StreamGone, StreamWriter};
pub(super) use table::Exchange;
pub use table::Sessions;

use super::call::Open;
use crate::share::Kept;
use book::Book;

/// The most sessions at a time.
pub const MAX_SESSIONS: usize = 2048;
/// How long a session may go unused.
pub const IDLE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// By what a session is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The server gave it an id.
    Id,
    /// Legacy HTTP+SSE: answers come on the stream that announced it.
    Endpoint,
    /// Nothing: what one process says to one server. Its ids may be in use several times at once.
    Process,
}

/// One session; see the module.
pub struct Session {
    pub kind: Kind,
    /// Its pseudonym; a process's has none.
    pub name: Option<Masked<String>>,
    book: Mutex<Book>,
}

/// What a response that answers no call of its own exchange was.
pub(super) enum Response {
    /// The answer to this call.
    To(Arc<Open>),
    /// Its call was answered before.
    Repeated(CallId),
    /// Its call had been given up.
    Late(CallId),
    Unasked,
}

/// A request of the server's, as it is remembered.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub message_id: MessageId,
    pub method: Masked<String>,
    pub call: Option<CallId>,
    /// Whether a response to it was seen.
    pub answered: bool,
}

impl Session {
    fn new(kind: Kind, name: Option<Masked<String>>, kept: Kept) -> Self {
        Self { kind, name, book: Mutex::new(Book::new(kept)) }
    }

    /// The revision that it agreed on.
    pub fn version(&self) -> Option<Masked<String>> {
        self.book().version.clone()
    }

    pub(super) fn agree(&self, version: Masked<String>) {
        self.book().version = Some(version);
    }

    /// The way into its event stream, while one is open on which the client waits for answers.
    pub fn stream(&self) -> Option<StreamWriter> {
        self.book().stream.clone().filter(StreamWriter::is_open)
    }

    pub(super) fn open_stream(&self, writer: StreamWriter) {
        self.book().stream = Some(writer);
    }

    /// A call with an id, by its key, is about to go upstream.
    pub(super) fn expect(&self, open: &Arc<Open>, key: &str, progress: Option<&RequestId>) {
        self.book().calls.expect(open, key, progress.map(RequestId::key));
    }

    /// Its answer may come on another stream.
    pub(super) fn may_move(&self, key: &str, call: &CallId) {
        if let Some(waiting) = self.book().calls.waiting_mut(key, call) {
            waiting.may_move = true;
        }
    }

    /// Its exchange is over, and the answer may still come on another stream.
    pub(super) fn park(&self, key: &str, open: &Arc<Open>) {
        if let Some(waiting) = self.book().calls.waiting_mut(key, &open.call_id) {
            waiting.may_move = true;
            waiting.parked = Some(open.clone());
        }
    }

    /// A call is over. What is kept of it goes out, to be dropped where this session is not locked.
    pub(super) fn over(&self, key: &str, call: &CallId, answered: bool) -> Option<Arc<Open>> {
        self.book().calls.over(key, call, answered, self.kind == Kind::Process)
    }

    /// The calls that wait for an answer on another stream than their own.
    pub(super) fn parked(&self) -> Vec<Arc<Open>> {
        self.book().calls.parked()
    }

    /// What a response is to that came on another stream than its call's. In a process's session, where an id says
    /// little, only a call whose answer may come elsewhere is meant.
    pub(super) fn response(&self, id: &RequestId) -> Response {
        self.book().calls.response(&id.key(), self.kind == Kind::Process)
    }

    /// The call that asked for progress under this token.
    pub(super) fn progress(&self, token: &RequestId) -> Option<CallId> {
        self.book().calls.progress(&token.key())
    }

    /// The call with this id that waits for its answer.
    pub(super) fn call(&self, id: &RequestId) -> Option<CallId> {
        self.book().calls.waiting(&id.key())
    }

    /// The server asks its client for something, under an id, and it may be for progress under a token.
    pub(super) fn asks(&self, id: &RequestId, progress: Option<&RequestId>, asked: Asked) {
        let mut book = self.book();
        if let Some(token) = progress {
            book.asked.put(under(token), asked.clone());
        }
        book.asked.put(id.key(), asked);
    }

    /// What the server wants to be told the progress of under this token.
    pub(super) fn asked_under(&self, token: &RequestId) -> Option<Asked> {
        self.book().asked.of(&under(token)).cloned()
    }

    /// What the server asked under this id.
    pub(super) fn asked(&self, id: &RequestId) -> Option<Asked> {
        self.book().asked.of(&id.key()).cloned()
    }

    /// The client answers the server's request; what is known of that, as it was before.
    pub(super) fn answers(&self, id: &RequestId) -> Option<Asked> {
        let mut book = self.book();
        let asked = book.asked.of_mut(&id.key())?;
        let before = asked.clone();
        asked.answered = true;
        Some(before)
    }

    /// A task, or a round's state, by its pseudonym: which call it came from.
    pub(super) fn remember(&self, thing: &Masked<String>, call: &CallId) {
        self.book().things.put(thing.clone(), call.clone());
    }

    pub(super) fn origin_of(&self, thing: &Masked<String>) -> Option<CallId> {
        self.book().things.of(thing).cloned()
    }

    /// The server listed its tools: in place of those that were known, or a further page of them.
    pub(super) fn listed(&self, tools: Vec<(String, String)>, further_page: bool) {
        self.book().listed(tools, further_page);
    }

    /// The digest of a tool's definition as it was last listed.
    pub(super) fn tool_digest(&self, name: &str) -> Option<String> {
        self.book().tools.get(name).cloned()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No id's key begins like this.
fn under(token: &RequestId) -> String {
    format!("progress {}", token.key())
}

#[cfg(test)]
mod tests;
