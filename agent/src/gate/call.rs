//! One call between its intent and its outcome.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::request::Parts;
use weir_core::ids::{ApprovalId, CallId};
use weir_core::mask::Masked;
use weir_core::mcp::about::About;
use weir_core::mcp::jsonrpc::{Answer, Message, RequestId};
use weir_core::mcp::revisions::knows_version;
use weir_core::mcp::tools;
use weir_core::policy::{Action, Call, Verdict};
use weir_core::record::{
    CallResult, Durability, HoldEnd, Intent, Marks, Mcp, Oddity, Outcome, Payload, Unread,
};

use super::marks::{Secretive, is_known_result, version};
use super::permit::Recorded;
use super::rewrite::Wants;
use super::session::Session;
use super::{Flow, Gate, Server};
use crate::ledger::{Intended, LedgerError, MAX_OPEN_RECORDS, OpenRecord};
use crate::random;
use crate::share::Taken;

/// The most bytes of a method, a tool's name or a header that are recorded.
pub(super) const MAX_NAME: usize = 512;

/// A call whose intent is recorded as its rule wants it, and which has not gone upstream.
pub(super) struct OpenCall {
    /// Of a call that policy holds, and of no other.
    pub asks: Option<Asks>,
    intent: Recorded,
    waiting: WaitingCall,
}

/// What a held call asks an approver for.
pub(super) struct Asks {
    pub approval_id: ApprovalId,
    pub tool: Masked<String>,
    pub arguments: Payload<Masked<String>>,
}

/// A call that waits for its answer.
pub(super) struct WaitingCall {
    /// What becomes of its answer on the way.
    pub wants: Wants,
    pub call_id: CallId,
    /// Absent for notifications.
    pub request_id: Option<RequestId>,
    pub verdict: Verdict,
    pub open: Arc<Open>,
}

/// A call's record between intent and outcome. Its exchange has it, and its session finds it by the request's id, since
/// the answer may come on another stream: whoever comes first closes it, once. Dropped, it closes as aborted.
pub(super) struct Open {
    pub call_id: CallId,
    pub session: Arc<Session>,
    /// Of the request's id, as the session knows it.
    key: Option<String>,
    asks: AsksFor,
    left: Mutex<Option<Left>>,
}

struct Left {
    started: Instant,
    record: OpenRecord<Intended>,
    /// How it ends if nothing more comes of it.
    otherwise: (CallResult, Option<u16>),
    #[expect(dead_code, reason = "held until the call is closed")]
    room: Taken,
}

/// What of a call's answer matters to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AsksFor {
    /// The tools, or a further page of them.
    Tools {
        further_page: bool,
    },
    /// A session.
    Initialize,
    Other,
}

/// How a call ended.
#[derive(Default)]
pub(super) struct Ended {
    pub http_status: Option<u16>,
    pub error_code: Option<i64>,
    pub payload: Payload<Masked<String>>,
    pub unread: Option<Unread>,
    pub marks: Marks<Masked<String>>,
}

impl Gate {
    /// Opens a call's record, asks policy, and writes the intent.
    pub(super) async fn open_call(
        &self,
        flow: &Flow,
        parts: &Parts,
        (session, message): (&Arc<Session>, &Message),
        batch: bool,
        started: Instant,
    ) -> Result<OpenCall, LedgerError> {
        let room = flow.share.call().ok_or(LedgerError::TooManyOpen(MAX_OPEN_RECORDS / 2))?;
        let call_id = CallId::from_random(random::bytes());
        let record = self.ledger.open_record(call_id.clone(), flow.id.clone())?;
        let method = message.method().unwrap_or_default();
        let tool = message.tool();
        let Server { name: server, also, .. } = &flow.server;
        let (verdict, durability) = self.policy.decide(Call { server, also, method, tool });
        let name = |text: &str| self.masker.name(text, MAX_NAME);
        let nothing = About::default();
        let about = message.about().unwrap_or(&nothing);
        let mut marks = self.marks_of_call(session, parts, (method, about), batch);
        marks.tool_digest = tool.and_then(|tool| session.tool_digest(tool));
        let revision = version(parts).or(about.version.as_deref()).map(name).or_else(|| session.version());
        let tool_name = tool.map(name);
        let payload = self.payload_of_json(message.content());
        let asks = (verdict.action == Action::Hold).then(|| Asks {
            approval_id: ApprovalId::from_random(random::bytes()),
            tool: tool_name.clone().unwrap_or_default(),
            arguments: payload.clone(),
        });
        let intent = Intent {
            call_id: call_id.clone(),
            flow_id: flow.id.clone(),
            caller: flow.caller.clone(),
            server: flow.server.record.clone(),
            mcp: Mcp {
                method: name(method),
                tool: tool_name,
                request_id: message.id().map(|id| name(id.as_json())),
                session: session.name.clone(),
                protocol_version: revision,
                marks,
            },
            verdict: verdict.clone(),
            payload,
            durability,
            approval_id: asks.as_ref().map(|asks| asks.approval_id.clone()),
        };
        let (record, intent) = match durability {
            Durability::Strict => {
                let (record, intent) = record.intent(intent).await?;
                (record, Recorded::Durable(intent))
            }
            Durability::BestEffort => {
                let (record, intent) = record.queue(intent).await?;
                (record, Recorded::Queued(intent))
            }
        };
        let request_id = message.id().cloned();
        let asks_for = match method {
            "tools/list" => AsksFor::Tools { further_page: about.further_page },
            "initialize" => AsksFor::Initialize,
            _ => AsksFor::Other,
        };
        let left = Left { started, record, otherwise: (CallResult::Unanswered, None), room };
        let open = Arc::new(Open {
            call_id: call_id.clone(),
            session: session.clone(),
            key: request_id.as_ref().map(RequestId::key),
            asks: asks_for,
            left: Mutex::new(Some(left)),
        });
        if let Some(key) = &open.key {
            session.expect(&open, key, about.progress_token.as_ref());
        }
        let wants = self.wants(flow, message);
        let waiting = WaitingCall { wants, call_id, request_id, verdict, open };
        Ok(OpenCall { asks, intent, waiting })
    }
}

impl OpenCall {
    /// The client asks for the call again, under another id: its answer goes by that.
    pub fn asked_again_as(&mut self, id: RequestId) {
        self.waiting.request_id = Some(id);
    }

    pub fn call_id(&self) -> &CallId {
        &self.waiting.call_id
    }

    pub fn verdict(&self) -> &Verdict {
        &self.waiting.verdict
    }

    pub fn wants(&self) -> Wants {
        self.waiting.wants
    }

    pub fn request_id(&self) -> Option<&RequestId> {
        self.waiting.request_id.as_ref()
    }

    /// Parts the proof that the intent is recorded from the call that waits for its answer.
    pub fn split(self) -> (WaitingCall, Recorded) {
        (self.waiting, self.intent)
    }

    /// It never goes upstream: policy, or the time, or the client said so.
    pub fn refused(self, gate: &Gate, reason: &str) {
        self.ended(gate, CallResult::Refused, reason);
    }

    /// The hold ended without an approval.
    pub fn not_approved(self, gate: &Gate, end: HoldEnd, reason: &str) {
        let result = match end {
            HoldEnd::Expired => CallResult::Expired,
            HoldEnd::ClientGone => CallResult::ClientGone,
            _ => CallResult::Refused,
        };
        self.ended(gate, result, reason);
    }

    fn ended(self, gate: &Gate, result: CallResult, reason: &str) {
        let payload = gate.payload_of_text(reason);
        self.waiting.close(result, None, None, payload);
    }
}

impl WaitingCall {
    /// Writes the outcome, unless the call's answer came on another stream.
    pub fn close(
        &self,
        result: CallResult,
        http_status: Option<u16>,
        error_code: Option<i64>,
        payload: Payload<Masked<String>>,
    ) {
        self.open.close(result, Ended { http_status, error_code, payload, ..Ended::default() });
    }
}

impl Open {
    pub fn is_open(&self) -> bool {
        self.left().is_some()
    }

    /// The call's own answer has come. `begins` is the session that the server began with it.
    pub fn answered(&self, gate: &Gate, http_status: u16, message: &Message, begins: Option<&Arc<Session>>) {
        let (mut marks, mut error_code, mut result) = (Marks::default(), None, CallResult::Unparsed);
        if let Message::Response { result: said, .. } = message {
            result = match said {
                Err(error) => {
                    error_code = Some(error.code);
                    CallResult::Error
                }
                Ok(answer) if answer.says.is_error => CallResult::ToolError,
                Ok(_) => CallResult::Ok,
            };
            if let Ok(answer) = said {
                self.learn(gate, answer, begins.unwrap_or(&self.session), &mut marks);
            }
        }
        if message.has_unknown_member() {
            marks.odd.push(Oddity::UnknownMember);
        }
        marks.begins_session = begins.and_then(|session| session.name.clone());
        let payload = gate.payload_of_json(message.content());
        let http_status = Some(http_status);
        self.close(result, Ended { http_status, error_code, payload, unread: None, marks });
    }

    /// What a result tells the session, and the record.
    fn learn(&self, gate: &Gate, answer: &Answer, session: &Session, marks: &mut Marks<Masked<String>>) {
        let says = &answer.says;
        marks.result_type = says.kind.as_ref().map(|kind| gate.masker.name(kind, MAX_NAME));
        if says.kind.as_ref().is_some_and(|kind| !is_known_result(kind)) {
            marks.odd.push(Oddity::UnknownResultType);
        }
        marks.task = says.task.as_ref().map(|task| gate.pseudonym(Secretive::Task, task));
        marks.request_state =
            says.request_state.as_ref().map(|state| gate.pseudonym(Secretive::RequestState, state));
        for thing in [&marks.task, &marks.request_state].into_iter().flatten() {
            if session.origin_of(thing).is_none() {
                session.remember(thing, &self.call_id);
            }
        }
        match self.asks {
            AsksFor::Initialize => {
                if let Some(version) = &says.version {
                    session.agree(gate.masker.name(version, MAX_NAME));
                    if !knows_version(version) {
                        marks.odd.push(Oddity::UnknownVersion);
                    }
                }
            }
            AsksFor::Tools { further_page } => session.listed(tools::digests(&answer.text), further_page),
            AsksFor::Other => {}
        }
    }

    /// Its answer may come on another stream than its own.
    pub fn may_move(&self) {
        if let Some(key) = &self.key {
            self.session.may_move(key, &self.call_id);
        }
    }

    /// Its exchange is over, and the answer may still come on another stream: until then, or until the time is over.
    pub fn park(self: &Arc<Self>, gate: &Gate, otherwise: CallResult, http_status: u16) {
        let Some(key) = &self.key else { return };
        match &mut *self.left() {
            Some(left) => left.otherwise = (otherwise, Some(http_status)),
            None => return,
        }
        self.session.park(key, self);
        let (open, limit, tasks) = (Arc::downgrade(self), gate.limits.answer_timeout, gate.tasks.clone());
        gate.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(limit) => {}
                () = tasks.ending() => {}
            }
            if let Some(open) = open.upgrade() {
                open.give_up();
            }
        });
    }

    /// Nothing more comes of it.
    pub fn give_up(&self) {
        let otherwise = self.left().as_ref().map(|left| left.otherwise);
        if let Some((result, http_status)) = otherwise {
            let text = Masked::literal("no answer came on any stream");
            let payload = Payload { bytes: text.as_str().len() as u64, text, ..Payload::default() };
            self.close(result, Ended { http_status, payload, ..Ended::default() });
        }
    }

    /// Writes the outcome, once.
    pub fn close(&self, result: CallResult, ended: Ended) {
        let Some(left) = self.left().take() else { return };
        let Ended { http_status, error_code, payload, unread, marks } = ended;
        let outcome = Outcome {
            http_status,
            error_code,
            duration_us: u64::try_from(left.started.elapsed().as_micros()).ok(),
            payload,
            unread,
            marks,
            ..Outcome::new(self.call_id.clone(), result)
        };
        // The answer need not wait for the disk. A ledger that has stopped closed the call itself.
        let _ = left.record.end(outcome);
        let answered = matches!(result, CallResult::Ok | CallResult::ToolError | CallResult::Error);
        self.leave(answered);
    }

    /// Its session forgets it, but for what it may still be asked about it.
    fn leave(&self, answered: bool) {
        let kept = self.key.as_ref().and_then(|key| self.session.over(key, &self.call_id, answered));
        // Only here, where the session is not locked.
        drop(kept);
    }

    fn left(&self) -> MutexGuard<'_, Option<Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.left().is_some() {
            self.leave(false);
        }
    }
}
