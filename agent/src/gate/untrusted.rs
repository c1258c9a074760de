//! Requests to a server that is not trusted: each is recorded and answered with the reason, and its connection closed. They have no
//! upstream, so there is nothing that one could go to.

use http::header::CONNECTION;
use http::{HeaderValue, Request, Version};
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use serde_json::json;
use weir_core::ids::FlowId;
use weir_core::mcp::jsonrpc::{self, REFUSED};
use weir_core::record::{self, Direction, FlowReason, MessageLabel};

use super::{Answer, Gate, reply};
use crate::http::Received;

/// What a client is told.
#[derive(Debug)]
pub struct Refusal {
    pub flow: FlowId,
    pub label: FlowReason,
    pub message: String,
}

/// The header that has the label. In HTTP/1.1 the status line has it too: some clients show nothing else.
const LABEL: &str = "weir-error";

impl Gate {
    /// Records a request, and answers it with 502.
    pub async fn answer_untrusted(&self, refusal: &Refusal, request: Request<Received>) -> Answer {
        let (parts, body) = request.into_parts();
        let line = self.line(&parts.method, &parts.uri);
        let text =
            line.then(&self.masker.text(&format!(": {}: {}", refusal.label.as_str(), refusal.message)));
        let (flow, direction) = (refusal.flow.clone(), Direction::ClientToServer);
        let (label, payload) = (MessageLabel::Untrusted, self.payload_of_masked(text));
        let message = record::Message::new(flow, direction, self.masker.text(""), label, payload);
        self.ledger.note(message).await?;
        self.discard(body).await;
        let label = refusal.label.as_str();
        let data = Some(json!({ "untrusted": label }));
        let mut answer = reply::json_rpc(
            http::StatusCode::BAD_GATEWAY,
            jsonrpc::error_reply(None, REFUSED, &refusal.message, data),
        );
        answer.headers_mut().insert(LABEL, HeaderValue::from_static(label));
        if parts.version < Version::HTTP_2 {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer.extensions_mut().insert(ReasonPhrase::from_static(label.as_bytes()));
        Ok(answer)
    }

    /// Reads what a client sends and forgets it, within the limits of any request: a connection that is closed with bytes unread is
    /// reset, and the answer lost.
    async fn discard(&self, mut body: Received) {
        let mut left = self.limits.request_body;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(self.limits.client_timeout, body.frame()).await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
            if left == 0 {
                return;
            }
        }
    }
}
