//! The right to go upstream. Only the gate makes one, and each is used up by one request.
//!
//! ```compile_fail,E0451
//! // Nobody else can make a permit...
//! let permit = weir::gate::Permit { calls: Vec::new() };
//! ```
//!
//! ```compile_fail,E0624
//! // ... not even out of the right parts: deciding is the gate's.
//! use weir::gate::{Clearance, Permit, Recorded};
//! fn permit(intent: Recorded, clearance: Clearance) {
//!     let _ = Permit::for_call(intent, clearance);
//! }
//! ```
//!
//! ```compile_fail,E0382
//! // A permit serves one request.
//! # use {bytes::Bytes, http::request::Parts, weir::{gate::Permit, http::{Outgoing, Upstream}}};
//! async fn replay(upstream: Upstream, head: Parts, body: Bytes, permit: Permit) {
//!     let _ = upstream.send(head.clone(), Outgoing::whole(body.clone()), permit).await;
//!     let _ = upstream.send(head, Outgoing::whole(body), permit).await;
//! }
//! ```
//!
//! ```no_run
//! # use {bytes::Bytes, http::request::Parts, weir::{gate::Permit, http::{Outgoing, Upstream}}};
//! async fn once(upstream: Upstream, head: Parts, body: Bytes, permit: Permit) {
//!     let _ = upstream.send(head, Outgoing::whole(body), permit).await;
//! }
//! ```

use weir_core::approval::Decision;
use weir_core::ids::CallId;
use weir_core::policy::{Action, Verdict};

use super::contents::NothingCalled;
use crate::ledger::{DurableIntent, QueuedIntent};

/// How far a call's intent has come.
#[derive(Debug)]
pub enum Recorded {
    /// It is on disk.
    Durable(DurableIntent),
    /// It is on its way there, and the call's rule does not ask for more.
    Queued(QueuedIntent),
}

impl Recorded {
    fn call_id(&self) -> &CallId {
        match self {
            Recorded::Durable(intent) => intent.call_id(),
            Recorded::Queued(intent) => intent.call_id(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Permit {
    calls: Vec<CallId>,
}

/// Why a call may go upstream.
#[derive(Debug)]
pub enum Clearance {
    /// Policy allows it.
    Policy(Verdict),
    /// Policy holds it, and a human approved it.
    Human(Box<Decision>),
}

/// The clearance clears nothing: a fault of the gate's.
#[derive(Debug, thiserror::Error)]
#[error("the call is not cleared to go upstream")]
pub struct NotCleared;

impl Permit {
    /// A permit for one call: its intent is recorded as its rule wants it, and it is cleared. What a human clears is
    /// on disk.
    pub(super) fn for_call(intent: Recorded, clearance: Clearance) -> Result<Self, NotCleared> {
        let cleared = match (&clearance, &intent) {
            (Clearance::Policy(verdict), _) => verdict.action == Action::Allow,
            (Clearance::Human(decision), Recorded::Durable(intent)) => {
                decision.is_approval() && decision.statement().hold.call_id == *intent.call_id()
            }
            (Clearance::Human(_), Recorded::Queued(_)) => false,
        };
        if !cleared {
            return Err(NotCleared);
        }
        Ok(Self { calls: vec![intent.call_id().clone()] })
    }

    /// A permit for a request that calls nothing: a stream's GET, a response, an exchange that is not MCP.
    pub(super) fn for_no_call(_: NothingCalled) -> Self {
        Self { calls: Vec::new() }
    }

    /// One permit for a batch. `None` for none.
    pub(super) fn join(permits: Vec<Self>) -> Option<Self> {
        let calls: Vec<CallId> = permits.into_iter().flat_map(|permit| permit.calls).collect();
        (!calls.is_empty()).then_some(Self { calls })
    }

    /// The calls that may go.
    pub fn calls(&self) -> &[CallId] {
        &self.calls
    }
}
