//! How an answer ends: its body comes to its end, the server breaks off, or the client leaves. Each call that is still open
//! gets its outcome, or waits for its answer on another stream; none gets two.

use weir_core::mask::Digesting;
use weir_core::mcp::jsonrpc::Body as Messages;
use weir_core::record::{CallResult, Payload, Unread};

use super::{Kind, Reading};
use crate::gate::call::Ended;
use crate::gate::marks::unread;
use crate::gate::session;

impl Reading {
    /// The body is over: what is still open gets its outcome, or waits for an answer on another stream.
    pub(super) async fn finish(mut self) {
        let (mut why, mut told) = (self.unread, None);
        let (text, events) = match std::mem::replace(&mut self.kind, Kind::Unread("")) {
            Kind::Events(parser) => {
                let mut events = Vec::new();
                parser.finish(|event| events.push(event));
                for event in events {
                    self.event(event).await;
                }
                (String::new(), true)
            }
            Kind::Whole(whole) => {
                if why.is_none() {
                    why = Some(Unread::NoAnswer);
                    match Messages::parse(&whole) {
                        Ok(messages) => self.messages(&messages).await,
                        // It may not be what its Content-Encoding says.
                        Err(_) if whole.is_empty() && self.decoder.is_some() => {
                            self.not_decoded();
                            why = self.unread;
                        }
                        Err(error) => why = Some(unread(&error)),
                    }
                }
                // An answer that was read is in its call's record; only what is left open tells its text here.
                let tells = self.calls.iter().any(|call| call.open.is_open());
                let text = if tells { String::from_utf8_lossy(&whole).into_owned() } else { String::new() };
                (text, false)
            }
            Kind::Unread(why) => {
                told = Some(why);
                (String::new(), false)
            }
        };
        let digest = self.digest.take().map(Digesting::finish);
        let missed = self.missed.take().filter(|_| events);
        // What was not read may have been the answer.
        let silent = if missed.is_some() { CallResult::Unparsed } else { CallResult::Unanswered };
        let legacy = self.exchange.session.kind == session::Kind::Endpoint;
        for call in std::mem::take(&mut self.calls).into_iter().filter(|call| call.open.is_open()) {
            let result = match (self.status, &call.request_id) {
                (400.., _) => CallResult::Error,
                // A notification gets no answer but 202.
                (_, None) => CallResult::Ok,
                (_, Some(_)) if legacy || (events && self.resumable) => {
                    call.open.park(&self.gate, silent, self.status);
                    continue;
                }
                (_, Some(_)) if events => silent,
                (_, Some(_)) if self.bytes == 0 => CallResult::Unanswered,
                (_, Some(_)) => CallResult::Unparsed,
            };
            let (why, payload) = match (&missed, told) {
                (Some((why, payload)), _) => (Some(*why), payload.clone()),
                (None, Some(told)) => {
                    let text = self.gate.payload_of_text(&format!("not read: {told}"));
                    let bytes = self.bytes as u64;
                    (why, Payload { bytes, truncated: bytes > 0, digest: digest.clone(), ..text })
                }
                (None, None) if self.unread.is_none() => (why, self.gate.payload_of_json(&text)),
                (None, None) => (why, self.gate.payload_of_part(&text, self.bytes, digest.clone())),
            };
            let unread = why.filter(|_| result == CallResult::Unparsed);
            let http_status = Some(self.status);
            call.open.close(result, Ended { http_status, payload, unread, ..Ended::default() });
        }
        self.stream_over(CallResult::Unanswered);
    }

    pub(super) fn ended(&mut self, result: CallResult, reason: &str) {
        // To leave a stream that can be taken up again is not to leave the call, nor is it to leave what only says that a
        // message was taken: a legacy session's answers come on its own stream.
        let elsewhere =
            self.resumable || (self.exchange.session.kind == session::Kind::Endpoint && self.status < 400);
        for call in std::mem::take(&mut self.calls) {
            if elsewhere && result == CallResult::ClientGone && call.request_id.is_some() {
                call.open.park(&self.gate, result, self.status);
            } else {
                call.close(result, Some(self.status), None, self.gate.payload_of_text(reason));
            }
        }
        self.stream_over(result);
    }

    /// A legacy session ends with its stream: nothing that waits there will be answered.
    fn stream_over(&mut self, result: CallResult) {
        if !std::mem::take(&mut self.legacy) {
            return;
        }
        self.injected = None;
        self.gate.sessions.end(&self.exchange.session);
        for open in self.exchange.session.parked() {
            let payload = self.gate.payload_of_text("the session's stream ended");
            open.close(result, Ended { http_status: Some(self.status), payload, ..Ended::default() });
        }
    }
}
