//! `POST /v1/poll`: an agent's open holds come in, and the decisions that were signed for them go out, at once
//! or as soon as one comes, or nothing when the wait is over. What they are worth the agent judges. Decisions that
//! the agent has answered in its log are left out, so that one it did not accept is not told again and again.

use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use tokio::time::Instant;
use weir_core::approval::SignedStatement;
use weir_core::ids::ApprovalId;
use weir_core::wire::{
    MAX_OPEN_HOLDS, MAX_WAIT_MS, PollRequest, PollResponse, PolledDecision, Reason, Refusal,
};

use super::{Ingest, refusal, unavailable};
use crate::agent::{Agent, Enrolled};

/// How often ClickHouse is asked while a hold is open: what an approver waits for, at most.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The most decisions of one answer; the rest comes with the next.
const MAX_DECISIONS: usize = 100;
/// [`MAX_OPEN_HOLDS`] ids fit into a question of this length.
const QUESTION_LENGTH: &str = "1048576";

#[derive(Debug, Row, Deserialize)]
struct Signed {
    approval_id: String,
    statement: String,
    signature: String,
}

impl Ingest {
    pub(super) async fn poll(&self, body: &[u8], agent: &Agent) -> Result<PollResponse, Refusal> {
        let request: PollRequest = serde_json::from_slice(body)
            .map_err(|e| refusal(Reason::Malformed, format!("not a poll: {e}")))?;
        if request.open.len() > MAX_OPEN_HOLDS {
            return Err(refusal(Reason::Malformed, format!("a poll names at most {MAX_OPEN_HOLDS} holds")));
        }
        let until = Instant::now() + Duration::from_millis(request.wait_ms.min(MAX_WAIT_MS));
        loop {
            let decisions = self.decisions(&request, agent).await?;
            if !decisions.is_empty() || Instant::now() >= until {
                return Ok(PollResponse { decisions });
            }
            let pause = if request.open.is_empty() { until } else { until.min(Instant::now() + ASK_EVERY) };
            tokio::select! {
                () = tokio::time::sleep_until(pause) => {}
                () = self.stop.cancelled() => return Ok(PollResponse { decisions }),
            }
        }
    }

    async fn decisions(&self, request: &PollRequest, agent: &Agent) -> Result<Vec<PolledDecision>, Refusal> {
        if request.open.is_empty() {
            return Ok(Vec::new());
        }
        let open: Vec<&str> = request.open.iter().map(ApprovalId::as_str).collect();
        let ids: Vec<String> = match agent {
            Agent::Local { .. } => open.iter().map(ToString::to_string).collect(),
            Agent::Enrolled(own) => self.holds_of(own, &open).await?,
        };
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let question = self
            .store
            .query(
                "SELECT approval_id, statement, signature FROM decisions WHERE approval_id IN ? \
                 ORDER BY submitted_at",
            )
            .bind(&ids)
            .with_setting("max_query_size", QUESTION_LENGTH);
        let signed: Vec<Signed> = self.store.rows(question).await.map_err(unavailable)?;
        if signed.is_empty() {
            return Ok(Vec::new());
        }
        let answered = self.answered(request, &signed).await?;
        // By both: a copy with another statement must not take the answer that is the true one's.
        let fresh = signed.into_iter().filter(|one| {
            !answered.iter().any(|known| known.statement == one.statement && known.signature == one.signature)
        });
        let polled = fresh.filter_map(|Signed { approval_id, statement, signature }| {
            let approval_id = approval_id.parse().ok()?;
            Some(PolledDecision { approval_id, signed: SignedStatement { statement, signature } })
        });
        Ok(polled.take(MAX_DECISIONS).collect())
    }

    /// Those of the holds that this host submitted: what approvers said to another is not for it.
    async fn holds_of(&self, own: &Enrolled, open: &[&str]) -> Result<Vec<String>, Refusal> {
        let question = self
            .store
            .query("SELECT approval_id FROM holds WHERE tenant = ? AND host_name = ? AND approval_id IN ?")
            .bind(&own.tenant)
            .bind(&own.host)
            .bind(open)
            .with_setting("max_query_size", QUESTION_LENGTH);
        self.store.rows(question).await.map_err(unavailable)
    }

    /// What was signed and is in the agent's log already.
    async fn answered(&self, request: &PollRequest, signed: &[Signed]) -> Result<Vec<Signed>, Refusal> {
        let ids: Vec<&str> = signed.iter().map(|one| one.approval_id.as_str()).collect();
        let question = self
            .store
            .query(
                "SELECT approval_id, statement, signature FROM events \
                 WHERE origin = ? AND kind = 'decision' AND approval_id IN ?",
            )
            .bind(request.origin.as_str())
            .bind(&ids)
            .with_setting("max_query_size", QUESTION_LENGTH);
        self.store.rows(question).await.map_err(unavailable)
    }
}
