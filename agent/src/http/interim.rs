//! What a client is told before its answer (1xx): that it may go on with its body, and what its server says meanwhile.
//!
//! Enters: heads, from whoever drives the server's connection, or begins to read the request's body. Leaves: the same heads, with nothing in
//! them that concerns another connection or a body, over the client's. Must never: be told behind the answer's head, or beyond a bound.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use http::header::{CONTENT_LENGTH, HeaderMap, TE, TRAILER};
use http::{Extensions, Response, StatusCode};

use super::MAX_HEAD;
use super::guarded::Guard;
use super::head::one_connections_alone;

/// What a header takes beside its name and value, and a head beside its headers (as RFC 9113, 6.5.2 counts it).
const OVERHEAD: usize = 32;

/// The client of one exchange, for what it is told before the answer.
#[derive(Clone)]
pub(super) enum Asking {
    Http1(Guard),
    Http2(Interim),
}

impl Asking {
    /// The one that a request came from.
    pub fn of(request: &Extensions) -> Option<Self> {
        let http1 = || request.get::<Guard>().cloned().map(Asking::Http1);
        request.get::<Interim>().cloned().map(Asking::Http2).or_else(http1)
    }

    /// Tells it what its server says before the answer.
    pub fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        if matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            // The client is told by Weir itself when to go on, and to nothing else than an answer does a protocol change.
            return;
        }
        let mut headers = headers.clone();
        one_connections_alone(&mut headers, false);
        // There is no body, whatever it says (RFC 9110, 8.6).
        for name in [CONTENT_LENGTH, TRAILER, TE] {
            headers.remove(name);
        }
        match self {
            Asking::Http1(guard) => guard.tell(status, &headers),
            Asking::Http2(interim) => interim.tell(status, headers),
        }
    }
}

/// What a stream's client is to be told before its answer. Clones share it.
#[derive(Clone)]
pub(super) struct Interim(Arc<Mutex<State>>);

struct State {
    heads: Vec<Response<()>>,
    /// So many bytes may still be told.
    room: usize,
    /// Who tells; woken when there is something.
    teller: Option<Waker>,
}

impl Interim {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { heads: Vec::new(), room: MAX_HEAD, teller: None })))
    }

    /// That the client may send its body.
    pub fn go_on(&self) {
        self.tell(StatusCode::CONTINUE, HeaderMap::new());
    }

    /// The client asked for nothing of it, so of too much nothing is told.
    fn tell(&self, status: StatusCode, headers: HeaderMap) {
        let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD);
        let size = OVERHEAD + lines.sum::<usize>();
        let mut state = self.state();
        let Some(room) = state.room.checked_sub(size) else { return };
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = headers;
        state.room = room;
        state.heads.push(head);
        if let Some(teller) = state.teller.take() {
            teller.wake();
        }
    }

    /// What has not been told yet; whoever waits for more is woken.
    pub fn take(&self, context: &Context<'_>) -> Vec<Response<()>> {
        let mut state = self.state();
        match &mut state.teller {
            Some(teller) => teller.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        std::mem::take(&mut state.heads)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Interim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interim")
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::HeaderValue;
    use http::header::{CONNECTION, LINK, TRANSFER_ENCODING, UPGRADE};

    use super::*;

    fn told(interim: &Interim) -> Vec<Response<()>> {
        interim.take(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_told_has_no_more_in_it_than_a_head_without_a_body_may() {
        let (interim, mut headers) = (Interim::new(), HeaderMap::new());
        for name in [CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE, TRAILER, TE, CONNECTION, LINK] {
            headers.insert(name, HeaderValue::from_static("trailers"));
        }
        Asking::Http2(interim.clone()).tell(StatusCode::EARLY_HINTS, &headers);
        let heads = told(&interim);
        assert_eq!((heads.len(), heads[0].headers().len()), (1, 1));
        assert!(heads[0].status() == 103 && heads[0].headers().contains_key(LINK));
        for status in [StatusCode::CONTINUE, StatusCode::SWITCHING_PROTOCOLS] {
            Asking::Http2(interim.clone()).tell(status, &headers);
        }
        assert!(told(&interim).is_empty());
    }

    #[test]
    fn of_one_exchange_no_more_is_told_than_a_head_may_have() {
        let (interim, mut headers) = (Interim::new(), HeaderMap::new());
        headers.insert(LINK, HeaderValue::from_str(&"x".repeat(MAX_HEAD / 2)).unwrap());
        let client = Asking::Http2(interim.clone());
        client.tell(StatusCode::EARLY_HINTS, &headers);
        // Whether it was taken or not.
        assert_eq!(told(&interim).len(), 1);
        client.tell(StatusCode::EARLY_HINTS, &headers);
        assert_eq!(told(&interim).len(), 0);
        for _ in 0..MAX_HEAD {
            client.tell(StatusCode::PROCESSING, &HeaderMap::new());
        }
        let most = MAX_HEAD / 2 / OVERHEAD;
        assert!((most - 3..most).contains(&told(&interim).len()));
    }
}
