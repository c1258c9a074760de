//! Approvals, the human's side: held calls come out of the store for an approver to read; what the approver signs
//! goes in for the agent to judge. Nothing here decides anything: a row in `decisions` is worth what its signature
//! is, and the agent checks that.

mod answer;
mod show;
mod sign;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use weir_core::approval::{DecisionError, Hold, MIN_JUSTIFICATION};

pub use answer::{Agent, Answered, Request, answer};
pub use show::{json, shown, summary, table};
pub use sign::default_key;

use crate::store::{Store, StoreError};

/// The most holds that one list shows, the newest.
pub const MAX_LISTED: u64 = 500;

/// A held call, and where it stands.
#[derive(Debug, Clone)]
pub struct Held {
    pub hold: Hold<String>,
    pub state: State,
    /// Statements that were signed for it, whatever they are worth.
    pub signed: u64,
    pub approver: String,
    pub justification: String,
    pub ticket: String,
}

/// Where a hold stands, as far as the agent's log has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It waits for a decision.
    Open,
    /// Its time is over.
    Expired,
    /// Its end, as the agent recorded it: `approved`, `refused`, `client_gone`, or how the call ended.
    Closed(String),
}

impl State {
    pub fn as_str(&self) -> &str {
        match self {
            State::Open => "open",
            State::Expired => "expired",
            State::Closed(end) => end,
        }
    }
}

/// Why nothing was shown or signed.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error(
        "the justification needs at least {MIN_JUSTIFICATION} characters: say why, for whoever reads it later"
    )]
    TooShort,
    #[error(
        "{0:?} is not an approval id or the beginning of one (hex digits, see `weir-collector approvals list`)"
    )]
    NotAnId(String),
    #[error("there is no hold {0}; see `weir-collector approvals list --all`")]
    Unknown(String),
    #[error("{count} holds begin with {prefix}; give more of the id")]
    Ambiguous { prefix: String, count: usize },
    #[error("the hold {id} is no longer open: {state}")]
    Closed { id: String, state: String },
    #[error("there is no key {0}; name yours with --key, or make one with `ssh-keygen -t ed25519`")]
    NoKey(String),
    #[error(
        "the key {0} names nobody in its comment; say with --as who you are in the agent's allowed signers"
    )]
    NoPrincipal(String),
    #[error("{0}; say it without")]
    Secret(DecisionError),
    #[error("{0}")]
    Sign(String),
    #[error("the hold {id} in the store cannot be read: {reason}")]
    Unreadable { id: String, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, Row, Deserialize)]
struct Stored {
    approval_id: String,
    call_id: String,
    hold: String,
}

#[derive(Debug, Row, Deserialize)]
struct End {
    approval_id: String,
    decision: String,
    approver: String,
    justification: String,
    ticket: String,
}

#[derive(Debug, Row, Deserialize)]
struct Outcome {
    call_id: String,
    result: String,
}

#[derive(Debug, Row, Deserialize, Serialize)]
struct Count {
    approval_id: String,
    signed: u64,
}

/// The holds that are open, or all of them; the newest first. `now_us` is this host's clock.
pub async fn list(store: &Store, all: bool, now_us: i64) -> Result<Vec<Held>, ApprovalError> {
    let sql = "SELECT approval_id, call_id, hold FROM holds WHERE ? OR expires_at > fromUnixTimestamp64Micro(?) \
               ORDER BY created_at DESC LIMIT 1 BY approval_id LIMIT ?";
    let question = store.query(sql).bind(all).bind(now_us).bind(MAX_LISTED);
    let mut held = told(store, store.rows(question).await?, now_us).await?;
    held.retain(|one| all || one.state == State::Open);
    Ok(held)
}

/// The one hold whose id is `id` or begins with it.
pub async fn find(store: &Store, id: &str, now_us: i64) -> Result<Held, ApprovalError> {
    if id.is_empty() || id.len() > 32 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ApprovalError::NotAnId(id.to_owned()));
    }
    let sql = "SELECT approval_id, call_id, hold FROM holds WHERE startsWith(approval_id, ?) \
               LIMIT 1 BY approval_id LIMIT ?";
    let stored: Vec<Stored> = store.rows(store.query(sql).bind(id).bind(MAX_LISTED)).await?;
    if stored.len() > 1 {
        return Err(ApprovalError::Ambiguous { prefix: id.to_owned(), count: stored.len() });
    }
    let mut held = told(store, stored, now_us).await?;
    held.pop().ok_or_else(|| ApprovalError::Unknown(id.to_owned()))
}

/// Joins holds with what the agents' logs and the approvers say of them.
async fn told(store: &Store, stored: Vec<Stored>, now_us: i64) -> Result<Vec<Held>, ApprovalError> {
    if stored.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = stored.iter().map(|one| one.approval_id.as_str()).collect();
    let calls: Vec<&str> = stored.iter().map(|one| one.call_id.as_str()).collect();
    let sql = "SELECT approval_id, decision, approver, justification, ticket FROM events \
               WHERE kind = 'decision' AND decision != 'invalid' AND approval_id IN ?";
    let ends: Vec<End> = store.rows(store.query(sql).bind(&ids)).await?;
    let sql = "SELECT call_id, result FROM events WHERE kind = 'outcome' AND call_id IN ?";
    let outcomes: Vec<Outcome> = store.rows(store.query(sql).bind(&calls)).await?;
    let sql =
        "SELECT approval_id, count() AS signed FROM decisions WHERE approval_id IN ? GROUP BY approval_id";
    let counts: Vec<Count> = store.rows(store.query(sql).bind(&ids)).await?;
    let join = |one: &Stored| {
        let hold: Hold<String> = serde_json::from_str(&one.hold)
            .map_err(|e| ApprovalError::Unreadable { id: one.approval_id.clone(), reason: e.to_string() })?;
        let end = ends.iter().find(|end| end.approval_id == one.approval_id);
        let outcome = outcomes.iter().find(|outcome| outcome.call_id == one.call_id);
        let state = match (end, outcome) {
            (Some(end), _) if end.decision == "expired" => State::Expired,
            (Some(end), _) => State::Closed(end.decision.clone()),
            (None, Some(outcome)) => State::Closed(outcome.result.clone()),
            (None, None) if hold.expires_us < now_us.max(0).cast_unsigned() => State::Expired,
            (None, None) => State::Open,
        };
        let signed = counts.iter().find(|count| count.approval_id == one.approval_id).map_or(0, |c| c.signed);
        let said = |part: fn(&End) -> &String| end.map(part).cloned().unwrap_or_default();
        Ok(Held {
            hold,
            state,
            signed,
            approver: said(|end| &end.approver),
            justification: said(|end| &end.justification),
            ticket: said(|end| &end.ticket),
        })
    };
    stored.iter().map(join).collect()
}
