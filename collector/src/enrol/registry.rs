//! What is in the store of tokens, certificates and revocations: questions and inserts, and nothing decided.

use std::collections::HashSet;
use std::time::SystemTime;

use clickhouse::Row;
use serde::{Deserialize, Serialize};

use crate::authority::{AGENT_LIFETIME, microseconds};
use crate::rows::{CertificateRow, RevocationRow, TokenRow};
use crate::store::{Store, StoreError};

/// The most enrolments of one listing.
const MAX_LISTED: u64 = 100_000;

/// The tables `enrol_tokens`, `agent_certificates` and `revocations`.
#[derive(Debug, Clone)]
pub struct Registry(Store);

/// Whose enrolments are revoked, and why.
#[derive(Debug, Clone)]
pub struct Revocation<'a> {
    pub enrolments: &'a [AgentLine],
    pub reason: &'a str,
    pub by: &'a str,
}

/// One enrolment, as people see it.
#[derive(Debug, Clone, Row, Serialize, Deserialize)]
pub struct AgentLine {
    pub tenant: String,
    pub host_name: String,
    pub enrolment: String,
    /// Microseconds since 1970: when its token was made, and until when that is good.
    pub offered_at: i64,
    pub token_expires_at: i64,
    /// 0: its token was not used.
    pub enrolled_at: i64,
    /// Of its latest certificate.
    pub renewed_at: i64,
    pub expires_at: i64,
    pub fingerprint: String,
    /// 0: never.
    pub revoked_at: i64,
    pub revoke_reason: String,
}

/// What an enrolment is good for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// Its token waits to be used.
    Offered,
    /// Its token expired unused.
    Lapsed,
    Enrolled,
    /// Its last certificate expired: the host must be enrolled again.
    Expired,
    Revoked,
}

impl AgentState {
    pub fn label(self) -> &'static str {
        match self {
            AgentState::Offered => "offered",
            AgentState::Lapsed => "lapsed",
            AgentState::Enrolled => "enrolled",
            AgentState::Expired => "expired",
            AgentState::Revoked => "revoked",
        }
    }
}

impl AgentLine {
    pub fn state(&self, now_us: i64) -> AgentState {
        match () {
            () if self.revoked_at > 0 => AgentState::Revoked,
            () if self.enrolled_at > 0 && self.expires_at <= now_us => AgentState::Expired,
            () if self.enrolled_at > 0 => AgentState::Enrolled,
            () if self.token_expires_at <= now_us => AgentState::Lapsed,
            () => AgentState::Offered,
        }
    }
}

impl Registry {
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    pub(super) async fn put_token(&self, row: &TokenRow) -> Result<(), StoreError> {
        let token = format!("enrol-token/{}", row.token_hash);
        self.0.insert("enrol_tokens", &token, std::slice::from_ref(row)).await
    }

    pub(super) async fn token(&self, hash: &str) -> Result<Option<TokenRow>, StoreError> {
        let question =
            self.0.query("SELECT ?fields FROM enrol_tokens WHERE token_hash = ? LIMIT 1").bind(hash);
        Ok(self.0.rows(question).await?.pop())
    }

    /// The one use of a token. Another insert for the same token does nothing.
    pub(super) async fn put_use(&self, row: &CertificateRow) -> Result<(), StoreError> {
        let token = format!("enrol-use/{}", row.token_hash);
        self.0.insert("agent_certificates", &token, std::slice::from_ref(row)).await
    }

    pub(super) async fn put_renewal(&self, row: &CertificateRow) -> Result<(), StoreError> {
        let token = format!("renewal/{}", row.fingerprint);
        self.0.insert("agent_certificates", &token, std::slice::from_ref(row)).await
    }

    /// The use of a token that stands, if there is one.
    pub(super) async fn used(&self, hash: &str) -> Result<Option<CertificateRow>, StoreError> {
        let question =
            self.0.query("SELECT ?fields FROM agent_certificates WHERE token_hash = ? LIMIT 1").bind(hash);
        Ok(self.0.rows(question).await?.pop())
    }

    pub(super) async fn is_revoked(&self, enrolment: &str) -> Result<bool, StoreError> {
        let question =
            self.0.query("SELECT count() > 0 FROM revocations WHERE enrolment = ?").bind(enrolment);
        Ok(self.0.rows::<u8>(question).await?.first().is_some_and(|found| *found != 0))
    }

    /// The enrolments that were revoked while a certificate of theirs may still be valid.
    pub(super) async fn revoked(&self, now: SystemTime) -> Result<HashSet<String>, StoreError> {
        let since = microseconds(now - 2 * AGENT_LIFETIME);
        let question = self
            .0
            .query(
                "SELECT DISTINCT enrolment FROM revocations WHERE revoked_at > fromUnixTimestamp64Micro(?)",
            )
            .bind(since);
        Ok(self.0.rows::<String>(question).await?.into_iter().collect())
    }

    /// All enrolments, or a tenant's, or a host's; the latest first.
    pub async fn agents(
        &self,
        tenant: Option<&str>,
        host: Option<&str>,
    ) -> Result<Vec<AgentLine>, StoreError> {
        let question = self
            .0
            .query(
                "SELECT t.tenant AS tenant, t.host_name AS host_name, t.enrolment AS enrolment, \
                     toUnixTimestamp64Micro(t.issued_at) AS offered_at, \
                     toUnixTimestamp64Micro(t.expires_at) AS token_expires_at, \
                     c.enrolled_at AS enrolled_at, c.renewed_at AS renewed_at, c.expires_at AS expires_at, \
                     c.fingerprint AS fingerprint, r.revoked_at AS revoked_at, r.revoke_reason AS revoke_reason \
                 FROM enrol_tokens AS t \
                 LEFT JOIN ( \
                     SELECT enrolment, toUnixTimestamp64Micro(min(issued_at)) AS enrolled_at, \
                         toUnixTimestamp64Micro(max(issued_at)) AS renewed_at, \
                         toUnixTimestamp64Micro(max(agent_certificates.expires_at)) AS expires_at, \
                         argMax(agent_certificates.fingerprint, issued_at) AS fingerprint \
                     FROM agent_certificates GROUP BY enrolment) AS c ON c.enrolment = t.enrolment \
                 LEFT JOIN ( \
                     SELECT enrolment, toUnixTimestamp64Micro(min(revocations.revoked_at)) AS revoked_at, \
                         argMin(reason, revocations.revoked_at) AS revoke_reason \
                     FROM revocations GROUP BY enrolment) AS r ON r.enrolment = t.enrolment \
                 WHERE (? = '' OR t.tenant = ?) AND (? = '' OR t.host_name = ?) \
                 ORDER BY t.issued_at DESC LIMIT ?",
            )
            .bind(tenant.unwrap_or_default())
            .bind(tenant.unwrap_or_default())
            .bind(host.unwrap_or_default())
            .bind(host.unwrap_or_default())
            .bind(MAX_LISTED);
        self.0.rows(question).await
    }

    /// From now on each collector refuses them, within [`super::revoked::FRESH`].
    pub async fn revoke(&self, what: &Revocation<'_>, now: SystemTime) -> Result<(), StoreError> {
        let rows: Vec<RevocationRow> = what
            .enrolments
            .iter()
            .map(|one| RevocationRow {
                enrolment: one.enrolment.clone(),
                tenant: one.tenant.clone(),
                host_name: one.host_name.clone(),
                revoked_at: microseconds(now),
                reason: what.reason.to_owned(),
                revoked_by: what.by.to_owned(),
            })
            .collect();
        for row in &rows {
            let token = format!("revocation/{}/{}", row.enrolment, row.revoked_at);
            self.0.insert("revocations", &token, std::slice::from_ref(row)).await?;
        }
        Ok(())
    }
}
