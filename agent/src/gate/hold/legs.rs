//! A call that its client asks for in several requests, and by what a later one is known: by the state that Weir gave the
//! client, or, where its revision knows none, by its tool and arguments. Either way it must come from the process that
//! made the first, go to the same place, and ask for the same; and what goes upstream is what was held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use weir_core::ids::{ApprovalId, CallId};
use weir_core::mcp::jsonrpc::{Message, RequestId};

use super::way::Says;
use crate::gate::{Asker, Flow, StreamWriter};
use crate::http::{Pieces, ReadRequest};
use crate::random;

/// Begins each state of Weir's, so that none of them ever goes to a server.
const STATE: &str = "weir-hold.";

/// One request by which a client waits for a held call.
pub(in crate::gate) struct Leg {
    pub flow: Arc<Flow>,
    pub request: ReadRequest,
    pub id: Option<RequestId>,
    pub client: Client,
}

/// Where the client waits.
pub(in crate::gate) enum Client {
    /// On an event stream.
    Events(Pieces),
    /// For one answer.
    Json(Asker),
    /// On its session's event stream; its request was answered.
    Session(StreamWriter),
}

/// What two requests for one call have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gate) struct Sameness {
    pid: u32,
    start_time: Option<u64>,
    server: String,
    asks_for: [u8; 32],
}

/// What a request for a held call turns out to be.
pub(in crate::gate) enum Again {
    /// A call that is not held.
    No,
    /// Another request for a held one, whose record is this, and where it is to be handed on.
    Of(CallId, mpsc::Sender<Leg>),
    /// It has a state of Weir's that is not, or no longer, good for it.
    Stale,
}

/// The held calls that may be asked for again; clones share them. No more than there are holds.
#[derive(Debug, Clone)]
pub(in crate::gate) struct Legs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Seals states. It ends with the agent, as the holds do.
    key: [u8; 32],
    calls: Mutex<HashMap<ApprovalId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    call: CallId,
    same: Sameness,
    legs: mpsc::Sender<Leg>,
    /// Nobody waits at the moment, and the client knows of no state: the next call that is the same is this one.
    parked: bool,
}

/// One held call's place among them, until it is dropped.
pub(in crate::gate) struct Place {
    approval: ApprovalId,
    legs: Legs,
    /// Where its later requests come.
    pub later: mpsc::Receiver<Leg>,
}

impl Sameness {
    pub fn of(flow: &Flow, request: &ReadRequest, message: &Message) -> Self {
        let arguments = Says::of(message).arguments.map_or("", |raw| raw.get());
        // Written in two ways they are one call; what cannot be written canonically is compared as it is.
        let value = serde_json::from_str::<serde_json::Value>(arguments).ok();
        let canonical = value.and_then(|value| serde_json_canonicalizer::to_string(&value).ok());
        let mut digest = Sha256::new();
        let uri = request.parts.uri.to_string();
        for part in
            [uri.as_str(), message.tool().unwrap_or_default(), canonical.as_deref().unwrap_or(arguments)]
        {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self {
            pid: flow.caller.pid,
            start_time: flow.caller.start_time,
            server: flow.server.name.clone(),
            asks_for: digest.finalize().into(),
        }
    }
}

impl Default for Legs {
    fn default() -> Self {
        Self(Arc::new(Inner { key: random::bytes(), calls: Mutex::default() }))
    }
}

impl Legs {
    pub fn enter(&self, approval: ApprovalId, call: CallId, same: Sameness) -> Place {
        let (legs, later) = mpsc::channel(1);
        self.calls().insert(approval.clone(), Entry { call, same, legs, parked: false });
        Place { approval, legs: self.clone(), later }
    }

    /// What a call is that comes in. It is looked at once: a call that is found by its sameness alone is parked no more.
    pub fn again(&self, message: &Message, same: impl FnOnce() -> Sameness) -> Again {
        // Most calls have none, and are not read for it.
        let state = if may_have_state(message.content()) { Says::of(message).state } else { None };
        let state =
            state.as_ref().and_then(serde_json::Value::as_str).and_then(|state| state.strip_prefix(STATE));
        let mut calls = self.calls();
        let Some(state) = state else {
            if !calls.values().any(|entry| entry.parked) {
                return Again::No;
            }
            let same = same();
            let Some(entry) = calls.values_mut().find(|entry| entry.parked && entry.same == same) else {
                return Again::No;
            };
            entry.parked = false;
            return Again::Of(entry.call.clone(), entry.legs.clone());
        };
        let same = same();
        let sealed = state.split_once('.');
        let of = |entry: &&Entry| entry.same == same;
        let found = sealed.and_then(|(id, seal)| {
            let (approval, entry) = calls.iter().find(|(own, _)| own.as_str() == id)?;
            let seal = URL_SAFE_NO_PAD.decode(seal).ok()?;
            self.mac(approval, &entry.same).verify_slice(&seal).ok()?;
            Some(entry).filter(of)
        });
        found.map_or(Again::Stale, |entry| Again::Of(entry.call.clone(), entry.legs.clone()))
    }

    fn mac(&self, approval: &ApprovalId, same: &Sameness) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0.key).expect("any key length");
        let start = same.start_time.map_or_else(String::new, |start| start.to_string());
        for part in
            [approval.as_str().as_bytes(), &same.pid.to_be_bytes(), start.as_bytes(), same.server.as_bytes()]
        {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.update(&same.asks_for);
        mac
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<ApprovalId, Entry>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With escapes it may be written in other letters.
fn may_have_state(params: &str) -> bool {
    params.contains(STATE) || params.contains("\\u")
}

impl Place {
    /// The state by which the client's next request is known.
    pub fn state(&self) -> String {
        let calls = self.legs.calls();
        let seal =
            calls.get(&self.approval).map(|entry| self.legs.mac(&self.approval, &entry.same).finalize());
        let seal = seal.map(|seal| URL_SAFE_NO_PAD.encode(seal.into_bytes())).unwrap_or_default();
        format!("{STATE}{}.{seal}", self.approval)
    }

    /// The next call that is the same is this one.
    pub fn park(&self) {
        if let Some(entry) = self.legs.calls().get_mut(&self.approval) {
            entry.parked = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.legs.calls().remove(&self.approval);
    }
}

#[cfg(test)]
mod tests {
    use weir_core::mcp::jsonrpc::Body;

    use super::*;

    fn same(pid: u32, asks_for: u8) -> Sameness {
        Sameness { pid, start_time: Some(1), server: "a.test".into(), asks_for: [asks_for; 32] }
    }

    fn call(state: Option<&str>) -> Message {
        let state = state.map_or(String::new(), |state| format!(r#","requestState":"{state}""#));
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"deploy"{state}}}}}"#
        );
        Body::parse(text.as_bytes()).unwrap().messages()[0].clone()
    }

    fn enter(legs: &Legs, n: u8) -> Place {
        legs.enter(ApprovalId::from_random([n; 16]), CallId::from_random([n; 16]), same(7, n))
    }

    fn found(legs: &Legs, state: Option<&str>, by: Sameness) -> &'static str {
        match legs.again(&call(state), || by) {
            Again::No => "no",
            Again::Of(..) => "of",
            Again::Stale => "stale",
        }
    }

    #[test]
    fn a_state_is_good_for_its_own_call_of_its_own_process_alone() {
        let legs = Legs::default();
        let (one, other) = (enter(&legs, 1), enter(&legs, 2));
        let state = one.state();
        assert_eq!(found(&legs, Some(&state), same(7, 1)), "of");
        for by in [same(8, 1), same(7, 2)] {
            assert_eq!(found(&legs, Some(&state), by), "stale");
        }
        let id = state.split('.').nth(1).unwrap();
        let seal_of_other = other.state().rsplit('.').next().unwrap().to_owned();
        for forged in
            [format!("weir-hold.{id}.{seal_of_other}"), format!("weir-hold.{id}."), "weir-hold.x".into()]
        {
            assert_eq!(found(&legs, Some(&forged), same(7, 1)), "stale", "{forged}");
        }
        // What is not Weir's is the server's.
        assert_eq!(found(&legs, Some("s-1"), same(7, 1)), "no");
        drop(one);
        assert_eq!(found(&legs, Some(&state), same(7, 1)), "stale");
        assert_eq!(found(&Legs::default(), Some(&other.state()), same(7, 2)), "stale");
    }

    #[test]
    fn without_a_state_a_call_is_known_by_what_it_asks_for_once_nobody_waits_for_it() {
        let legs = Legs::default();
        let place = enter(&legs, 1);
        assert_eq!(found(&legs, None, same(7, 1)), "no", "two calls alike are two");
        place.park();
        assert_eq!(found(&legs, None, same(8, 1)), "no");
        assert_eq!(found(&legs, None, same(7, 2)), "no");
        assert_eq!(found(&legs, None, same(7, 1)), "of");
        assert_eq!(found(&legs, None, same(7, 1)), "no", "it is waited for again");
        drop(place);
        assert!(legs.calls().is_empty());
    }
}
