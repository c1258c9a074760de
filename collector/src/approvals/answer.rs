//! An approver's answer: it is checked against the hold, signed, stored, and watched until the agent has judged it.

use std::path::PathBuf;
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use weir_core::approval::{Answer, MIN_JUSTIFICATION, Statement};

use super::{ApprovalError, Held, State, find, sign};
use crate::ingest::now_us;
use crate::rows::DecisionRow;
use crate::store::Store;

/// How long the agent's answer is waited for: a poll, a segment and its way here take about two seconds.
const AGENT_WAIT: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What an approver wants to say.
#[derive(Debug, Clone)]
pub struct Request {
    /// A hold's id, or the beginning of one.
    pub id: String,
    pub answer: Answer,
    pub justification: String,
    pub ticket: String,
    pub key: PathBuf,
    /// Who signs, as the agent's allowed signers name them; else whom the key's comment names.
    pub principal: Option<String>,
    /// Who runs this, for the record.
    pub submitted_by: String,
    /// Whether to watch for the agent's judgement.
    pub wait: bool,
}

/// What came of an answer.
#[derive(Debug, Clone)]
pub struct Answered {
    pub held: Held,
    pub principal: String,
    pub answer: Answer,
    pub agent: Agent,
}

/// What the agent did with a signed statement, as far as its log has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// It let the call go, or refused it, as the statement says.
    Did,
    /// Nothing yet, or nobody waited for it.
    Silent,
    /// The statement decides nothing for it, for this reason.
    NotAccepted(String),
    /// The hold had ended otherwise.
    Otherwise(String),
}

impl Answered {
    /// One sentence.
    pub fn sentence(&self) -> String {
        let id = &self.held.hold.approval_id;
        match (&self.agent, self.answer) {
            (Agent::Did, Answer::Approve) => "approved; the agent has released the call".into(),
            (Agent::Did, Answer::Refuse) => "refused; the agent has refused the call".into(),
            (Agent::Silent, _) => {
                format!("signed; the agent has not answered yet (see `weir-collector approvals show {id}`)")
            }
            (Agent::NotAccepted(why), _) => {
                format!("the agent did not accept it: {}", crate::visible::line(why))
            }
            (Agent::Otherwise(end), _) => {
                format!("signed, but too late: the hold had ended as {}", crate::visible::line(end))
            }
        }
    }

    /// Whether the answer stands, or may still.
    pub fn is_good(&self) -> bool {
        matches!(self.agent, Agent::Did | Agent::Silent)
    }

    pub fn json(&self) -> serde_json::Value {
        let (agent, reason) = match &self.agent {
            Agent::Did => ("did", None),
            Agent::Silent => ("silent", None),
            Agent::NotAccepted(why) => ("not_accepted", Some(why)),
            Agent::Otherwise(end) => ("ended_otherwise", Some(end)),
        };
        json!({
            "approval_id": self.held.hold.approval_id,
            "answer": self.answer,
            "approver": self.principal,
            "agent": agent,
            "reason": reason,
            "message": self.sentence(),
        })
    }
}

/// Signs and stores an answer. Fails, with nothing signed, when it could not count.
pub async fn answer(store: &Store, request: Request) -> Result<Answered, ApprovalError> {
    let justification = request.justification.trim();
    if justification.chars().count() < MIN_JUSTIFICATION {
        return Err(ApprovalError::TooShort);
    }
    let held = find(store, &request.id, now_us()).await?;
    if held.state != State::Open {
        let id = held.hold.approval_id.to_string();
        return Err(ApprovalError::Closed { id, state: crate::visible::line(held.state.as_str()) });
    }
    sign::exists(&request.key)?;
    let principal = match request.principal {
        Some(principal) => principal,
        None => sign::principal_of(&request.key)?,
    };
    let mut statement = Statement::new(
        held.hold.clone(),
        request.answer,
        principal.clone(),
        justification.to_owned(),
        now_us().max(0).cast_unsigned(),
    );
    statement.ticket = request.ticket;
    statement.check_for_secrets().map_err(ApprovalError::Secret)?;
    let unreadable = |e: serde_json::Error| ApprovalError::Unreadable {
        id: held.hold.approval_id.to_string(),
        reason: e.to_string(),
    };
    let text = statement.canonical().map_err(unreadable)?;
    let signed = sign::sign(text, &request.key).await?;
    // A passphrase may have taken its time.
    if held.hold.expires_us < now_us().max(0).cast_unsigned() {
        let id = held.hold.approval_id.to_string();
        return Err(ApprovalError::Closed { id, state: "it expired while you signed".into() });
    }
    let row = DecisionRow::of(&statement, signed, request.submitted_by, now_us());
    let token = format!("decision/{}/{}", held.hold.approval_id, row.signature);
    store.insert("decisions", &token, std::slice::from_ref(&row)).await?;
    let agent = if request.wait { watch(store, &held, &row).await? } else { Agent::Silent };
    Ok(Answered { held, principal, answer: request.answer, agent })
}

#[derive(Debug, Row, Deserialize)]
struct Judged {
    decision: String,
    statement: String,
    signature: String,
    /// Of a statement that was not accepted: why.
    justification: String,
}

async fn watch(store: &Store, held: &Held, ours: &DecisionRow) -> Result<Agent, ApprovalError> {
    let until = Instant::now() + AGENT_WAIT;
    loop {
        let question = store
            .query(
                "SELECT decision, statement, signature, justification FROM events \
                 WHERE origin = ? AND kind = 'decision' AND approval_id = ? ORDER BY seq",
            )
            .bind(held.hold.origin.as_str())
            .bind(held.hold.approval_id.as_str());
        let judged: Vec<Judged> = store.rows(question).await?;
        if let Some(agent) = judgement(&judged, &ours.statement, &ours.signature) {
            return Ok(agent);
        }
        if Instant::now() >= until {
            return Ok(Agent::Silent);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn judgement(judged: &[Judged], statement: &str, signature: &str) -> Option<Agent> {
    let mut ends = judged.iter().filter(|one| one.decision != "invalid");
    if let Some(end) = ends.next() {
        let ours = end.signature == signature;
        return Some(if ours { Agent::Did } else { Agent::Otherwise(end.decision.clone()) });
    }
    // Another statement under a copy of our signature says nothing of ours.
    let ours = |one: &&Judged| one.signature == signature && one.statement == statement;
    judged.iter().find(ours).map(|one| Agent::NotAccepted(one.justification.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_log_tells_what_became_of_a_signature() {
        let told = |log: &[[&str; 3]]| {
            let judged: Vec<Judged> = log
                .iter()
                .map(|[decision, statement, signature]| Judged {
                    decision: (*decision).into(),
                    statement: (*statement).into(),
                    signature: (*signature).into(),
                    justification: "why".into(),
                })
                .collect();
            judgement(&judged, "ours", "s")
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[["invalid", "theirs", "t"]]), None);
        assert_eq!(told(&[["invalid", "a copy", "s"]]), None);
        assert_eq!(told(&[["invalid", "ours", "s"]]), Some(Agent::NotAccepted("why".into())));
        assert_eq!(told(&[["invalid", "a copy", "s"], ["approved", "ours", "s"]]), Some(Agent::Did));
        assert_eq!(told(&[["expired", "", ""]]), Some(Agent::Otherwise("expired".into())));
    }
}
