//! What the handlers of evidence share: whose key signs, and how a fault is told. A fault stops its own origin and no other: the
//! request is refused, and a finding tells analysts why.

use sha2::{Digest, Sha256};
use weir_core::evidence::checkpoint::LogName;
use weir_core::evidence::key::VerifyingKey;
use weir_core::ids::hex;
use weir_core::wire::{Reason, Refusal};

use super::{Ingest, now_us, refusal};
use crate::agent::Agent;
use crate::rows::{FindingRow, IdentityRow};
use crate::witness::judge::{Fault, FaultReason};

/// Whose evidence is at fault, and where.
#[derive(Debug, Clone)]
pub(super) struct Accused {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub seq: u64,
}

impl Accused {
    pub fn of(log: &LogName, seq: u64) -> Self {
        Self { tenant: log.tenant.clone(), host_name: log.host.clone(), origin: log.origin.to_string(), seq }
    }

    pub fn finding(&self) -> FindingRow {
        let Self { tenant, host_name, origin, seq } = self.clone();
        FindingRow { tenant, host_name, origin, seq, ..FindingRow::default() }
    }
}

/// The key of a log's epoch, out of all keys of its origin.
pub(super) fn key_of<'k>(
    keys: &'k [IdentityRow],
    log: &LogName,
    agent: &Agent,
) -> Result<(&'k IdentityRow, VerifyingKey), Refusal> {
    agent.speaks_for(&log.tenant, &log.host)?;
    if keys.iter().any(|key| (&key.tenant, &key.host_name) != (&log.tenant, &log.host)) {
        let message = format!("the log {} is enrolled for another host", log.origin);
        return Err(refusal(Reason::Forbidden, message));
    }
    let identity = keys.iter().find(|key| key.epoch == log.epoch);
    let key = identity.and_then(|identity| Some((identity, identity.key.parse().ok()?)));
    key.ok_or_else(|| {
        let message =
            format!("the key of epoch {} of the log {} is not known; enrol it", log.epoch, log.origin);
        refusal(Reason::UnknownKey, message)
    })
}

/// Whether a later epoch of the log had begun before `end`: the number behind the last leaf that is signed for.
pub(super) fn begun_before(keys: &[IdentityRow], log: &LogName, end: u64) -> Option<Fault> {
    let next = keys.iter().find(|key| key.epoch > log.epoch && key.first_seq < end)?;
    let detail = format!("epoch {} had begun at {} already", next.epoch, next.first_seq);
    Some(Fault::new(FaultReason::Fork, detail))
}

impl Ingest {
    /// Tells of a fault, and gives the refusal that goes with it.
    pub(super) async fn unproven(&self, accused: &Accused, fault: Fault) -> Refusal {
        self.report(accused, &fault).await;
        refusal(Reason::Unproven, format!("{}: {}", fault.reason.as_str(), fault.detail))
    }

    pub(super) async fn report(&self, accused: &Accused, fault: &Fault) {
        let reason = fault.reason.as_str().to_owned();
        self.find(FindingRow { reason, detail: fault.detail.clone(), ..accused.finding() }).await;
    }

    /// Writes a finding. If that fails, it stands in the log, and the agent that sends it again brings it back.
    pub(super) async fn find(&self, mut row: FindingRow) {
        row.detail = crate::visible::line(&row.detail);
        tracing::error!(
            tenant = row.tenant,
            host = row.host_name,
            origin = row.origin,
            seq = row.seq,
            reason = row.reason,
            detail = row.detail,
            "the evidence of a log is not what it should be"
        );
        let digest = Sha256::digest(serde_json::to_vec(&row).unwrap_or_default());
        row.found_at = now_us();
        let token = format!("findings/{}", hex(&digest));
        if let Err(error) = self.store.insert("findings", &token, [&row]).await {
            tracing::error!(%error, "the finding could not be written");
        }
    }
}
