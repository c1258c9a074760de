//! Holding a call until a human decides. Its client is kept waiting in the way that it can bear ([`way`]): on one event
//! stream, or by asking again, for which [`legs`] knows the call. Only an approval whose signature holds, and whose call is
//! still the same to the byte, goes upstream; no answer, or a client that left, is a refusal.

mod legs;
mod release;
mod wait;
mod way;

use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use hyper::Response;
use sha2::Sha256;
use tokio::sync::oneshot;
use tokio::time::Instant;
use weir_core::approval::{Hold, SubmittedHold};
use weir_core::ids::hex;
use weir_core::mcp::jsonrpc::{self, Message, REFUSED, RequestId};
use weir_core::mcp::rewrite::with_id;
use weir_core::mcp::sse;
use weir_core::record::{Direction, MessageLabel};

pub(super) use legs::Legs;

use super::call::{Asks, OpenCall};
use super::{Answer, Asker, Broken, Flow, Gate, reply};
use crate::approval::Waiting;
use crate::http::{Body, ReadRequest, body_of_pieces, takes_events};
use crate::share::Taken;
use crate::{clock, random};
use legs::{Again, Client, Leg, Place, Sameness};
use release::Decided;
use wait::{End, Parked};
use way::{Then, Way, invitation, pending};

/// A held call and all that its release needs.
struct Held {
    call: OpenCall,
    hold: SubmittedHold,
    salt: [u8; 32],
    /// What was held, to the byte, under the id of the first request.
    body: Bytes,
    way: Way,
    waiting: Waiting,
    deadline: Instant,
    /// Of a call that may be asked for again.
    place: Option<Place>,
    /// How the hold ended while nobody waited for it.
    decided: Option<Decided>,
    room: Taken,
}

impl Gate {
    pub(super) async fn hold(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        body: jsonrpc::Body,
        (call, asks): (OpenCall, Asks),
        (place, asker): (reply::Place, &mut Asker),
    ) -> Answer {
        let Some(message) = body.messages().first() else { return Err(Broken::Dropped) };
        // An approver must see all that they approve.
        let too_large = "refused by Weir: the arguments are too large to be shown to an approver";
        let too_many = "refused by Weir: as many calls as may be wait for an approver already";
        let room = match (asks.arguments.truncated, flow.share.hold()) {
            (true, _) => return Ok(self.refuse_hold(&place, call, too_large).await),
            (false, None) => return Ok(self.refuse_hold(&place, call, too_many).await),
            (false, Some(room)) => room,
        };
        let salt = random::bytes();
        let way = match &place {
            reply::Place::Here(_) => Way::of(&request.parts.headers, message, &self.approval.ladder),
            reply::Place::Stream(_) => Way::on_the_sessions_stream(),
        };
        let hold = self.describe(flow, &request, &call, asks, &salt);
        tracing::info!(approval_id = %hold.approval_id, rule = hold.rule, "holding a call");
        let again = (way.then != Then::Waits).then(|| {
            let same = Sameness::of(flow, &request, message);
            self.held.legs().enter(hold.approval_id.clone(), call.call_id().clone(), same)
        });
        // What was parsed need not stay in memory for as long as a human takes.
        drop(body);
        let (leg, answer) = leg(flow, request, call.request_id().cloned(), (way.events, place));
        let held = Held {
            body: leg.request.body.clone(),
            waiting: self.approvals.submit(&hold),
            deadline: Instant::now() + self.approval.deadline,
            decided: None,
            call,
            hold,
            salt,
            way,
            place: again,
            room,
        };
        let gate = self.clone();
        self.tasks.spawn(async move { gate.see_through(held, leg).await });
        answer.of(asker).await
    }

    /// If a call is another request for one that is held, it waits for that.
    pub(super) async fn again(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: ReadRequest,
        body: &jsonrpc::Body,
        asker: &mut Asker,
    ) -> Result<Asked, Broken> {
        let jsonrpc::Body::Single(message @ Message::Request { id, .. }) = body else {
            return Ok(Asked::New(request));
        };
        if message.tool().is_none() {
            return Ok(Asked::New(request));
        }
        let events = takes_events(&request.parts.headers);
        let place = reply::Place::Here(reply::Form::Json);
        let (call, legs) = match self.held.legs().again(message, || Sameness::of(flow, &request, message)) {
            Again::No => return Ok(Asked::New(request)),
            Again::Stale => return self.refuse_stale(flow, &request, message).await.map(Asked::Answered),
            Again::Of(call, legs) => (call, legs),
        };
        let (method, payload) =
            (message.method().unwrap_or_default(), self.payload_of_json(message.content()));
        let (direction, label) = (Direction::ClientToServer, MessageLabel::Request);
        self.note(flow, Some(&call), direction, method, label, payload).await?;
        let (leg, answer) = leg(flow, request, Some(id.clone()), (events, place));
        if let Err(unsent) = legs.try_send(leg) {
            // It ended in this moment, or somebody else asks for it already.
            let request = unsent.into_inner().request;
            return self.refuse_stale(flow, &request, message).await.map(Asked::Answered);
        }
        answer.of(asker).await.map(Asked::Answered)
    }

    async fn refuse_stale(
        &self,
        flow: &Flow,
        request: &ReadRequest,
        message: &Message,
    ) -> Result<Response<Body>, Broken> {
        let reason =
            "refused by Weir: this request's state is of no call that is held now; call the tool again";
        let (session, now) = (self.session_of(flow, &request.parts), std::time::Instant::now());
        let call = self.open_call(flow, &request.parts, (&session, message), false, now).await?;
        let place = Self::place_of_answer(&session, &request.parts.headers);
        Ok(self.refuse_hold(&place, call, reason).await)
    }

    async fn refuse_hold(&self, place: &reply::Place, call: OpenCall, reason: &str) -> Response<Body> {
        let text = jsonrpc::error_reply(call.request_id(), REFUSED, reason, None);
        call.refused(self, reason);
        place.answer(Some(text)).await
    }

    fn describe(
        &self,
        flow: &Flow,
        request: &ReadRequest,
        call: &OpenCall,
        asks: Asks,
        salt: &[u8; 32],
    ) -> SubmittedHold {
        let created_us = clock::now_us();
        let deadline_us = u64::try_from(self.approval.deadline.as_micros()).unwrap_or(u64::MAX);
        let Asks { approval_id, tool, arguments } = asks;
        Hold {
            approval_id,
            call_id: call.call_id().clone(),
            tenant: self.place.tenant.clone(),
            origin: self.place.origin.clone(),
            host: self.place.host.clone(),
            call_digest: commitment(salt, request),
            policy_digest: call.verdict().policy_digest.clone(),
            rule: call.verdict().rule.clone(),
            server: flow.server.record.clone(),
            target: self.masker.target(&request.parts.uri.to_string()),
            tool,
            arguments,
            requester: flow.caller.as_ref().clone(),
            created_us,
            expires_us: created_us.saturating_add(deadline_us),
            nonce: hex(&random::bytes::<16>()),
        }
    }

    /// One held call from its first request to its end, however many requests its client needs for it.
    async fn see_through(self: Arc<Self>, mut held: Held, mut leg: Leg) {
        let mut rounds = 0;
        loop {
            match self.wait(&mut held, &mut leg).await {
                End::LegOver => {}
                End::AnotherLeg(next) => {
                    self.put_off(&held, std::mem::replace(&mut leg, *next), rounds).await;
                    continue;
                }
                end => return self.finish(held, leg, end).await,
            }
            rounds += 1;
            self.put_off(&held, leg, rounds).await;
            leg = match self.parked(&mut held, rounds).await {
                Parked::AskedAgain(next) => *next,
                Parked::Over(end) => return self.let_go(held, end).await,
            };
        }
    }

    /// Answers a request that can wait no longer.
    async fn put_off(&self, held: &Held, leg: Leg, rounds: u32) {
        let Held { hold, way, place, .. } = held;
        let (Some(id), Some(place)) = (&leg.id, place) else { return };
        let text = if held.invites(rounds) {
            invitation(id, &place.state())
        } else {
            place.park();
            pending(id, hold.approval_id.as_str(), &hold.rule, way.typed)
        };
        leg.client.answer(&text).await;
    }
}

impl Held {
    /// Whether the client is invited to ask again, after so many rounds.
    fn invites(&self, rounds: u32) -> bool {
        matches!(self.way.then, Then::Invited { rounds: most, .. } if rounds <= most)
    }
}

impl Client {
    /// Answers with a message, and ends.
    async fn answer(self, text: &str) {
        match self {
            Client::Events(pieces) => pieces.end_with(sse::message(text)).await,
            Client::Session(stream) => {
                let _ = stream.say(sse::message(text)).await;
            }
            Client::Json(asker) => {
                let _ = asker.send(Ok(reply::message(reply::Form::Json, text.to_owned())));
            }
        }
    }
}

/// What a call is that comes in.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and nearly all are new")]
pub(super) enum Asked {
    New(ReadRequest),
    /// Another request for one that is held.
    Answered(Response<Body>),
}

/// What the exchange of a leg has for its client.
enum LegAnswer {
    /// The head of an event stream, or that the request was taken, at once.
    Now(Response<Body>),
    /// An answer when there is one.
    Later(oneshot::Receiver<Answer>),
}

impl LegAnswer {
    async fn of(self, asker: &mut Asker) -> Answer {
        match self {
            LegAnswer::Now(response) => Ok(response),
            LegAnswer::Later(answer) => tokio::select! {
                answer = answer => answer.unwrap_or(Err(Broken::Dropped)),
                () = asker.closed() => Err(Broken::ClientLeft),
            },
        }
    }
}

fn leg(
    flow: &Arc<Flow>,
    request: ReadRequest,
    id: Option<RequestId>,
    (events, place): (bool, reply::Place),
) -> (Leg, LegAnswer) {
    let (client, answer) = match place {
        reply::Place::Stream(stream) => (Client::Session(stream), LegAnswer::Now(reply::accepted())),
        reply::Place::Here(_) if events => {
            let (pieces, body) = body_of_pieces();
            (Client::Events(pieces), LegAnswer::Now(reply::event_stream(body)))
        }
        reply::Place::Here(_) => {
            let (asker, answer) = oneshot::channel();
            (Client::Json(asker), LegAnswer::Later(answer))
        }
    };
    (Leg { flow: flow.clone(), request, id, client }, answer)
}

/// HMAC-SHA-256 over the request's line and body: what will be forwarded, bound without being told. The id is left out,
/// since a client that asks again does so under another one.
fn commitment(salt: &[u8; 32], request: &ReadRequest) -> String {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(salt).expect("any key length");
    let line = format!("{} {}\n", request.parts.method, request.parts.uri);
    mac.update(line.as_bytes());
    let any_id = RequestId::read("0").and_then(|zero| with_id(&request.body, &zero));
    mac.update(any_id.as_ref().map_or(&request.body[..], String::as_bytes));
    hex(&mac.finalize().into_bytes())
}
