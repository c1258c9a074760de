//! A log's key on an operator's word: a key comes in for which no statement of the key before is there, a row of `identities`
//! goes out that says who took it and why. Nobody need believe that: a verifier does when its own trust file pins the key.

use weir_core::evidence::checkpoint::LogName;
use weir_core::evidence::key::{Algorithm, VerifyingKey};

use crate::rows::IdentityRow;
use crate::store::{Store, StoreError, TOKENS, again};
use crate::witness::known;

/// The fewest characters of a reason.
const SHORTEST_REASON: usize = 15;

/// What an operator says.
#[derive(Debug, Clone, Copy)]
pub struct Certified<'a> {
    pub key: &'a VerifyingKey,
    pub first_seq: u64,
    pub reason: &'a str,
    pub by: &'a str,
}

/// Why the key is not taken. The operator is at fault, or the store.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    #[error("the key's name is not a log's (TENANT/HOST/ORIGIN/EPOCH): copy it whole from `weir key show`")]
    NotALogs,
    #[error("a reason must have at least {SHORTEST_REASON} characters")]
    NoReason,
    #[error("no earlier key of this log is known: an agent makes its first one known by itself")]
    NoLog,
    #[error("the log is another host's: {0}")]
    AnotherHosts(String),
    #[error("epoch {0} of the log has a key already")]
    HasOne(u32),
    #[error("events or proofs from {0} on are stored, by the key before")]
    NotBehind(u64),
    #[error("the store took the key and does not show it; try again")]
    NotShown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Certified<'_> {
    /// Stores it, and reads it back. `now_us`: microseconds since 1970.
    pub async fn certify(&self, store: &Store, now_us: i64) -> Result<(), CertifyError> {
        let log: LogName = self.key.name().parse().map_err(|_| CertifyError::NotALogs)?;
        if self.key.algorithm() != Algorithm::Ed25519 {
            return Err(CertifyError::NotALogs);
        }
        if self.reason.trim().chars().count() < SHORTEST_REASON {
            return Err(CertifyError::NoReason);
        }
        let row = IdentityRow {
            tenant: log.tenant.clone(),
            host_name: log.host.clone(),
            origin: log.origin.to_string(),
            epoch: log.epoch,
            first_seq: self.first_seq,
            key: self.key.to_string(),
            certified_by: format!("operator {}: {}", self.by, self.reason.trim()),
            certified_at: now_us,
            ..IdentityRow::default()
        };
        for attempt in 0..TOKENS {
            let keys = known::identities(store, &[&log.origin]).await?;
            let keys = keys.get(log.origin.as_str()).map(Vec::as_slice).unwrap_or_default();
            if keys.iter().any(|known| (&known.key, known.first_seq) == (&row.key, row.first_seq)) {
                return Ok(());
            }
            self.may_be(&log, keys)?;
            if !known::is_behind_all(store, &log, self.first_seq).await? {
                return Err(CertifyError::NotBehind(self.first_seq));
            }
            // The same token that an agent's own request would have: of two keys at once, one is taken.
            let token = again(format!("identity/{}/{}", log.origin, log.epoch), attempt);
            store.insert("identities", &token, [&row]).await?;
        }
        let keys = known::identities(store, &[&log.origin]).await?;
        let there = keys.values().flatten().any(|known| known.key == row.key);
        if there { Ok(()) } else { Err(CertifyError::NotShown) }
    }

    fn may_be(&self, log: &LogName, keys: &[IdentityRow]) -> Result<(), CertifyError> {
        let Some(last) = keys.last() else { return Err(CertifyError::NoLog) };
        if let Some(other) = keys.iter().find(|key| (&key.tenant, &key.host_name) != (&log.tenant, &log.host))
        {
            return Err(CertifyError::AnotherHosts(format!("{}/{}", other.tenant, other.host_name)));
        }
        if log.epoch <= last.epoch {
            return Err(CertifyError::HasOne(log.epoch));
        }
        if self.first_seq < last.first_seq {
            return Err(CertifyError::NotBehind(self.first_seq));
        }
        Ok(())
    }
}
