//! What one session remembers, within limits: the calls that wait, and the last of everything else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use weir_core::ids::CallId;
use weir_core::mask::Masked;

use super::{Asked, Response, StreamWriter};
use crate::gate::call::Open;
use crate::share::Kept;

/// The most of a session's ended calls, of the server's own requests, and of tasks and rounds, that are remembered.
pub const REMEMBERED: usize = 64;
/// The most tools of a session whose definitions' digests are kept; their bytes are the job's, too.
pub const MAX_TOOLS: usize = 1024;

/// See the module.
pub struct Book {
    pub version: Option<Masked<String>>,
    pub calls: Calls,
    pub asked: Last<String, Asked>,
    /// Tasks and rounds' states.
    pub things: Last<Masked<String>, CallId>,
    /// Digests of definitions, by the tools' names.
    pub tools: HashMap<String, String>,
    pub stream: Option<StreamWriter>,
    kept: Kept,
}

/// A session's calls, by the keys of their ids.
#[derive(Default)]
pub struct Calls {
    /// Their number is bounded by the open records that a job may have.
    waiting: HashMap<String, Vec<Waiting>>,
    ended: Last<String, Ended>,
}

pub struct Waiting {
    call: CallId,
    open: Weak<Open>,
    /// Keeps a call open whose exchange is over.
    pub parked: Option<Arc<Open>>,
    /// Whether the answer may come on another stream than its own.
    pub may_move: bool,
    progress: Option<String>,
}

struct Ended {
    call: CallId,
    answered: bool,
}

/// The last [`REMEMBERED`] of something, by their keys.
pub struct Last<K, V>(VecDeque<(K, V)>);

impl Book {
    pub fn new(kept: Kept) -> Self {
        Self {
            version: None,
            calls: Calls::default(),
            asked: Last::default(),
            things: Last::default(),
            tools: HashMap::new(),
            stream: None,
            kept,
        }
    }

    pub fn listed(&mut self, tools: Vec<(String, String)>, further_page: bool) {
        if !further_page {
            self.tools.clear();
        }
        for (name, digest) in tools {
            if self.tools.len() < MAX_TOOLS || self.tools.contains_key(&name) {
                self.tools.insert(name, digest);
            }
        }
        let bytes = self.tools.iter().map(|(name, digest)| name.len() + digest.len()).sum();
        if !self.kept.resize(bytes) {
            // Better none than some: an absent digest says nothing.
            self.tools = HashMap::new();
            let _ = self.kept.resize(0);
        }
    }
}

impl Calls {
    pub fn expect(&mut self, open: &Arc<Open>, key: &str, progress: Option<String>) {
        let (call, open) = (open.call_id.clone(), Arc::downgrade(open));
        let waiting = Waiting { call, open, parked: None, may_move: false, progress };
        self.waiting.entry(key.to_owned()).or_default().push(waiting);
    }

    pub fn waiting_mut(&mut self, key: &str, call: &CallId) -> Option<&mut Waiting> {
        self.waiting.get_mut(key)?.iter_mut().find(|waiting| waiting.call == *call)
    }

    /// Of those whose answers cannot have come elsewhere nothing is remembered, if so `moved_only` says.
    pub fn over(&mut self, key: &str, call: &CallId, answered: bool, moved_only: bool) -> Option<Arc<Open>> {
        let calls = self.waiting.get_mut(key)?;
        let over = calls.swap_remove(calls.iter().position(|waiting| waiting.call == *call)?);
        if calls.is_empty() {
            self.waiting.remove(key);
        }
        if over.may_move || !moved_only {
            self.ended.put(key.to_owned(), Ended { call: over.call, answered });
        }
        over.parked
    }

    pub fn parked(&self) -> Vec<Arc<Open>> {
        self.waiting.values().flatten().filter_map(|waiting| waiting.parked.clone()).collect()
    }

    pub fn response(&self, key: &str, moving_only: bool) -> Response {
        let waiting = self.waiting.get(key).into_iter().flatten();
        let mut open = waiting
            .filter(|waiting| !moving_only || waiting.may_move)
            .filter_map(|waiting| waiting.open.upgrade());
        if let Some(open) = open.next() {
            return Response::To(open);
        }
        match self.ended.of(key) {
            Some(ended) if ended.answered => Response::Repeated(ended.call.clone()),
            Some(ended) => Response::Late(ended.call.clone()),
            None => Response::Unasked,
        }
    }

    pub fn progress(&self, token: &str) -> Option<CallId> {
        let mut waiting = self.waiting.values().flatten();
        Some(waiting.find(|waiting| waiting.progress.as_deref() == Some(token))?.call.clone())
    }

    pub fn waiting(&self, key: &str) -> Option<CallId> {
        Some(self.waiting.get(key)?.last()?.call.clone())
    }
}

impl<K, V> Default for Last<K, V> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: PartialEq, V> Last<K, V> {
    pub fn put(&mut self, key: K, value: V) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((key, value));
    }

    /// The latest one with this key.
    pub fn of<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: PartialEq + ?Sized,
    {
        self.0.iter().rev().find(|(own, _)| own.borrow() == key).map(|(_, value)| value)
    }

    pub fn of_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
        Q: PartialEq + ?Sized,
    {
        self.0.iter_mut().rev().find(|(own, _)| (*own).borrow() == key).map(|(_, value)| value)
    }
}
