//! The calls that are held, by what their clients call them. A client that takes a call back
//! (`notifications/cancelled`) is as good as gone: the call must not go upstream afterwards, whoever approves it.
//!
//! A name is the calling process, its MCP session and the request's id; so no process takes back another's call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use weir_core::mask::Masked;
use weir_core::mcp::jsonrpc::RequestId;
use weir_core::record::Caller;

use super::hold::Legs;

/// All held calls; clones share them.
#[derive(Debug, Clone, Default)]
pub struct HeldCalls {
    named: Arc<Mutex<HashMap<CallName, Named>>>,
    legs: Legs,
}

/// What its client calls a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallName {
    pid: u32,
    start_time: Option<u64>,
    session: Option<Masked<String>>,
    /// Not to the letter: one id can be written in several ways.
    request: serde_json::Value,
}

/// The calls of one name: more than one only if a client uses an id twice.
#[derive(Debug, Default)]
struct Named {
    taken_back: CancellationToken,
    calls: usize,
}

/// One held call's place among them, until it is dropped.
#[derive(Debug)]
pub struct Place {
    name: CallName,
    taken_back: CancellationToken,
    calls: HeldCalls,
}

impl CallName {
    pub fn new(
        caller: &Caller<Masked<String>>,
        session: Option<Masked<String>>,
        request: &RequestId,
    ) -> Self {
        let request = serde_json::from_str(request.as_json()).unwrap_or_default();
        Self { pid: caller.pid, start_time: caller.start_time, session, request }
    }
}

impl HeldCalls {
    pub fn enter(&self, name: CallName) -> Place {
        let mut calls = self.calls();
        let named = calls.entry(name.clone()).or_default();
        named.calls += 1;
        Place { name, taken_back: named.taken_back.clone(), calls: self.clone() }
    }

    /// Those of them that may be asked for again.
    pub(super) fn legs(&self) -> &Legs {
        &self.legs
    }

    /// Its client no longer wants the call. One that is not held is no matter.
    pub fn take_back(&self, name: &CallName) {
        if let Some(named) = self.calls().get(name) {
            named.taken_back.cancel();
        }
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<CallName, Named>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when the client takes the call back.
    pub async fn taken_back(&self) {
        self.taken_back.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut calls = self.calls.calls();
        if let Some(named) = calls.get_mut(&self.name) {
            named.calls -= 1;
            if named.calls == 0 {
                calls.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(pid: u32, id: &str) -> CallName {
        let request = serde_json::from_str(id).unwrap();
        CallName { pid, start_time: Some(1), session: None, request }
    }

    #[tokio::test]
    async fn a_call_is_taken_back_by_its_own_name_alone() {
        let held = HeldCalls::default();
        let place = held.enter(name(7, "1"));
        for other in [name(8, "1"), name(7, "2"), name(7, r#""1""#)] {
            held.take_back(&other);
        }
        assert!(!place.taken_back.is_cancelled());
        held.take_back(&name(7, "1"));
        place.taken_back().await;
    }

    #[test]
    fn nothing_stays_of_a_call_that_is_no_longer_held() {
        let held = HeldCalls::default();
        let (one, again) = (held.enter(name(7, "1")), held.enter(name(7, "1")));
        drop(one);
        assert_eq!(held.calls().len(), 1);
        drop(again);
        assert!(held.calls().is_empty());
        held.take_back(&name(7, "1"));
        assert!(!held.enter(name(7, "1")).taken_back.is_cancelled());
    }
}
