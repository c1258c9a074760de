//! `POST /v1/enrol`: the key of a log's epoch comes in, the witness's key goes out once the first one is in ClickHouse. The first
//! key of a log is taken on the connection's word (the kernel's, a certificate's); each later one must be the same, or be handed
//! over by a statement that both keys signed. A log has one key for each epoch, whoever asks for another.

use std::sync::Arc;

use bytes::Bytes;
use weir_core::evidence::checkpoint::LogName;
use weir_core::evidence::key::{Algorithm, VerifyingKey};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::rotation::Rotation;
use weir_core::ids::Origin;
use weir_core::wire::{EnrolAck, EnrolRequest, Reason, Refusal};

use super::evidence::Accused;
use super::{Ingest, now_us, refusal, unavailable};
use crate::agent::Agent;
use crate::rows::{FindingRow, IdentityRow};
use crate::store::{TOKENS, again};
use crate::witness::judge::{Fault, FaultReason};
use crate::witness::known;

/// The reason of a finding: a log's epoch has another number than the next.
const SKIPPED: &str = "skipped_epochs";
/// How far behind the last epoch of a log the next may be. Behind a number near the last of all nothing more could come.
const MAX_SKIPPED: u32 = 4096;

/// What is asked, understood.
struct Asked {
    log: LogName,
    key: VerifyingKey,
    first_seq: u64,
    rotation: Option<String>,
}

/// What the keys that are known say to a request.
enum Answer {
    /// That very key is enrolled.
    Known,
    /// It may be, on this word.
    New {
        certified_by: String,
        /// The epochs before it of which nothing came.
        skipped: Option<String>,
    },
    Refused(Refusal),
    Fault(Fault),
}

impl Ingest {
    pub(super) async fn put_key(self: Arc<Self>, body: Bytes, agent: Agent) -> Result<EnrolAck, Refusal> {
        let asked = read(&body)?;
        agent.speaks_for(&asked.log.tenant, &asked.log.host)?;
        let origin = asked.log.origin.clone();
        self.logs.alone(&origin, self.enrolled(&asked, &agent)).await?;
        Ok(EnrolAck { witness: self.witness.public().clone() })
    }

    async fn enrolled(&self, asked: &Asked, agent: &Agent) -> Result<(), Refusal> {
        let log = &asked.log;
        for attempt in 0..=TOKENS {
            let keys = known::identities(&self.store, &[&log.origin]).await.map_err(unavailable)?;
            let keys = keys.get(log.origin.as_str()).map(Vec::as_slice).unwrap_or_default();
            let (certified_by, skipped) = match answer(asked, keys, agent) {
                Answer::Known => return Ok(()),
                Answer::New { certified_by, skipped } => (certified_by, skipped),
                Answer::Refused(refusal) => return Err(refusal),
                Answer::Fault(fault) => {
                    let accused = Accused::of(log, asked.first_seq);
                    self.report(&accused, &fault).await;
                    return Err(refusal(Reason::Conflict, fault.detail));
                }
            };
            if keys.is_empty() {
                self.is_of_host(&log.origin, &log.tenant, &log.host).await?;
            }
            self.is_behind_all(asked).await?;
            if attempt == TOKENS {
                break;
            }
            let row = IdentityRow {
                tenant: log.tenant.clone(),
                host_name: log.host.clone(),
                origin: log.origin.to_string(),
                epoch: log.epoch,
                first_seq: asked.first_seq,
                key: asked.key.to_string(),
                certified_by,
                certified_at: now_us(),
                rotation: asked.rotation.clone().unwrap_or_default(),
                certificate: match agent {
                    Agent::Local { .. } => String::new(),
                    Agent::Enrolled(own) => own.fingerprint.clone(),
                },
            };
            // First: whoever asks again for a key that is there is told so, and nothing is written any more.
            if let Some(detail) = skipped {
                let finding = Accused::of(log, asked.first_seq).finding();
                self.find(FindingRow { reason: SKIPPED.into(), detail, ..finding }).await;
            }
            // It names the epoch and not the key: of two at once, ClickHouse takes one, and the next round sees which.
            let token = again(format!("identity/{}/{}", log.origin, log.epoch), attempt);
            self.store.insert("identities", &token, [&row]).await.map_err(unavailable)?;
        }
        Err(refusal(Reason::Unavailable, "the store took the key and does not show it"))
    }

    /// Of a log without a key it counts whose events are stored, if any are.
    pub(super) async fn is_of_host(&self, origin: &Origin, tenant: &str, host: &str) -> Result<(), Refusal> {
        if !known::is_anothers(&self.store, origin, tenant, host).await.map_err(unavailable)? {
            return Ok(());
        }
        Err(refusal(Reason::Forbidden, format!("events of another host stand in the log {origin}")))
    }

    /// A new epoch begins behind all events that are stored.
    async fn is_behind_all(&self, asked: &Asked) -> Result<(), Refusal> {
        if known::is_behind_all(&self.store, &asked.log, asked.first_seq).await.map_err(unavailable)? {
            return Ok(());
        }
        let detail = format!(
            "events from {} on are stored, and epoch {} would begin there",
            asked.first_seq, asked.log.epoch
        );
        let fault = Fault::new(FaultReason::Rollback, detail);
        let accused = Accused::of(&asked.log, asked.first_seq);
        self.report(&accused, &fault).await;
        Err(refusal(Reason::Conflict, fault.detail))
    }
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let malformed = |what: String| refusal(Reason::Malformed, what);
    let EnrolRequest { key, first_seq, rotation } =
        serde_json::from_slice(body).map_err(|e| malformed(format!("not a key to enrol: {e}")))?;
    let log: LogName = key.name().parse().map_err(|e| malformed(format!("the key names no log: {e}")))?;
    if key.algorithm() != Algorithm::Ed25519 {
        return Err(malformed("the key is a witness's, not a log's".into()));
    }
    Ok(Asked { log, key, first_seq, rotation })
}

fn answer(asked: &Asked, keys: &[IdentityRow], agent: &Agent) -> Answer {
    let log = &asked.log;
    if keys.iter().any(|key| (&key.tenant, &key.host_name) != (&log.tenant, &log.host)) {
        let message = format!("the log {} is enrolled for another host", log.origin);
        return Answer::Refused(refusal(Reason::Forbidden, message));
    }
    if let Some(known) = keys.iter().find(|key| key.epoch == log.epoch) {
        if (&known.key, known.first_seq) == (&asked.key.to_string(), asked.first_seq) {
            return Answer::Known;
        }
        let detail =
            format!("epoch {} of the log {} has another key, or begins elsewhere", log.epoch, log.origin);
        return Answer::Fault(Fault::new(FaultReason::SecondKey, detail));
    }
    let Some(last) = keys.last() else {
        return Answer::New { certified_by: agent.identity(), skipped: None };
    };
    if log.epoch <= last.epoch || asked.first_seq < last.first_seq {
        let detail =
            format!("behind epoch {} of the log {} comes no epoch {}", last.epoch, log.origin, log.epoch);
        return Answer::Fault(Fault::new(FaultReason::Rollback, detail));
    }
    if log.epoch.saturating_sub(last.epoch) > MAX_SKIPPED {
        let message = format!(
            "the last epoch of the log {} is {}, and {} is more than {MAX_SKIPPED} behind it; should that host have lost its log's \
             place, and only then, certify the key: weir-collector agents certify --key '{}' --first-seq {}",
            log.origin, last.epoch, log.epoch, asked.key, asked.first_seq
        );
        return Answer::Refused(refusal(Reason::Conflict, message));
    }
    // Segments of an epoch may all be lost before any was sent. It had the key of the one before it, or the next one's cannot be
    // followed to it.
    let between = (last.epoch.saturating_add(1)..log.epoch).len();
    let skipped = (between > 0).then(|| {
        format!(
            "epoch {} begins at {}, and of the {between} epochs between it and epoch {} nothing came",
            log.epoch, asked.first_seq, last.epoch
        )
    });
    let before = log.at_epoch(log.epoch.saturating_sub(1)).to_string();
    let Ok(old) = last.key.parse::<VerifyingKey>().and_then(|key| key.renamed(&before)) else {
        return Answer::Refused(refusal(Reason::Unavailable, "the key of the epoch before cannot be read"));
    };
    if old.bytes() == asked.key.bytes() {
        return Answer::New { certified_by: "same key".into(), skipped };
    }
    let note = asked.rotation.as_deref().map(str::parse::<SignedNote>);
    let rotation = note.and_then(Result::ok).map(|note| Rotation::open(&note, &old));
    match rotation {
        Some(Ok(rotation)) if (&rotation.key, rotation.first_seq) == (&asked.key, asked.first_seq) => {
            Answer::New { certified_by: "rotation".into(), skipped }
        }
        _ => {
            let detail = format!(
                "no statement by the key of epoch {} of the log {} names this key; should that host have lost its key, and \
                 only then, certify the new one: weir-collector agents certify --key '{}' --first-seq {}",
                last.epoch, log.origin, asked.key, asked.first_seq
            );
            Answer::Fault(Fault::new(FaultReason::SecondKey, detail))
        }
    }
}
