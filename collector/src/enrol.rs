//! Enrolment: one-time tokens for hosts, the certificates that agents get for them, and what was revoked. All of it is in
//! ClickHouse, so any collector can take any token, and once. Of a token the store has a keyed hash alone.
//!
//! Two collectors that get the same token at the same time both insert a use of it, under the same deduplication token:
//! ClickHouse takes one, and each reads back which. A use that the store took and does not show (it was killed at the wrong
//! moment) spoils the token; it never lets a second one through.

mod certified;
mod registry;
mod revoked;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weir_core::identity::{AgentName, EnrolToken};
use weir_core::ids::hex;
use weir_core::wire::{CertificateAck, CertificateRequest, Reason, Refusal};

pub use certified::{Certified, CertifyError};
pub use registry::{AgentLine, AgentState, Registry, Revocation};
pub use revoked::Revoked;

use crate::agent::Enrolled;
use crate::authority::{AGENT_LIFETIME, AskedKey, Authority, AuthorityError, microseconds, random, to_pem};
use crate::rows::{CertificateRow, TokenRow};
use crate::store::StoreError;

/// The longest that a token may be good for.
pub const LONGEST_VALID: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most bytes of a tenant's or a host's name.
pub const MAX_NAME: usize = 255;

/// Why there is no token; the operator is at fault, or the store.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("{what} must be a name of 1 to {MAX_NAME} characters, without control characters")]
    Name { what: &'static str },
    #[error("a token is good for a week at most")]
    TooLong,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token that was made just now. It is shown once.
#[derive(Debug)]
pub struct Offer {
    pub token: String,
    pub enrolment: String,
    pub expires_us: i64,
}

/// Gives out certificates.
#[derive(Debug)]
pub struct Enrolment {
    pub authority: Arc<Authority>,
    pub registry: Registry,
}

impl Enrolment {
    /// Makes a token for one host, good for `valid`.
    pub async fn offer(
        &self,
        tenant: &str,
        host: &str,
        valid: Duration,
        by: &str,
        now: SystemTime,
    ) -> Result<Offer, EnrolError> {
        check_name("the tenant", tenant)?;
        check_name("the host", host)?;
        if valid > LONGEST_VALID {
            return Err(EnrolError::TooLong);
        }
        let token = EnrolToken::from_random(random()?, tenant, host).text();
        let row = TokenRow {
            token_hash: self.authority.hash_of(&token),
            enrolment: hex(&random::<16>()?),
            tenant: tenant.to_owned(),
            host_name: host.to_owned(),
            issued_at: microseconds(now),
            expires_at: microseconds(now + valid),
            issued_by: by.to_owned(),
        };
        self.registry.put_token(&row).await?;
        Ok(Offer { token, enrolment: row.enrolment, expires_us: row.expires_at })
    }

    /// The first certificate, for a token.
    pub async fn redeem(
        &self,
        request: &CertificateRequest,
        now: SystemTime,
    ) -> Result<CertificateAck, Refusal> {
        let key = AskedKey::read(&request.csr).map_err(|e| malformed(e.to_string()))?;
        let token = request.token.as_deref().unwrap_or_default().trim();
        let hash = self.authority.hash_of(token);
        let Some(offered) = self.registry.token(&hash).await.map_err(unavailable)? else {
            return Err(forbidden(
                "no such enrolment token; make one with `weir-collector enrol-token --host NAME`",
            ));
        };
        if let Some(used) = self.registry.used(&hash).await.map_err(unavailable)? {
            return self.used_by(&used, &key);
        }
        if offered.expires_at <= microseconds(now) {
            let message = format!(
                "this enrolment token expired at {}; make another with `weir-collector enrol-token`",
                shown(offered.expires_at)
            );
            return Err(forbidden(message));
        }
        if self.registry.is_revoked(&offered.enrolment).await.map_err(unavailable)? {
            return Err(forbidden("this enrolment was revoked; make another token"));
        }
        let name =
            AgentName { tenant: offered.tenant, host: offered.host_name, enrolment: offered.enrolment };
        let row = self.signed(&key, &name, hash.clone(), now)?;
        self.registry.put_use(&row).await.map_err(unavailable)?;
        match self.registry.used(&hash).await.map_err(unavailable)? {
            Some(used) => {
                let ack = self.used_by(&used, &key)?;
                tracing::info!(
                    tenant = name.tenant,
                    host = name.host,
                    enrolment = name.enrolment,
                    "enrolled a host"
                );
                Ok(ack)
            }
            None => Err(forbidden(
                "this enrolment token was spoiled when the store ended in the middle; make another",
            )),
        }
    }

    /// The next certificate of an agent that showed the one before.
    pub async fn renew(
        &self,
        own: &Enrolled,
        request: &CertificateRequest,
        now: SystemTime,
    ) -> Result<CertificateAck, Refusal> {
        let key = AskedKey::read(&request.csr).map_err(|e| malformed(e.to_string()))?;
        if self.registry.is_revoked(&own.enrolment).await.map_err(unavailable)? {
            return Err(revoked());
        }
        let name = AgentName {
            tenant: own.tenant.clone(),
            host: own.host.clone(),
            enrolment: own.enrolment.clone(),
        };
        let row = self.signed(&key, &name, String::new(), now)?;
        self.registry.put_renewal(&row).await.map_err(unavailable)?;
        tracing::info!(
            tenant = name.tenant,
            host = name.host,
            enrolment = name.enrolment,
            "renewed a certificate"
        );
        Ok(self.ack(row.certificate))
    }

    /// The use of a token that stands is this key's, or somebody else's.
    fn used_by(&self, used: &CertificateRow, key: &AskedKey) -> Result<CertificateAck, Refusal> {
        if used.key_fingerprint != key.fingerprint() {
            let message = format!(
                "this enrolment token was used already, at {} and with another key; if that was not you, revoke the \
                 enrolment {}; then make another token",
                shown(used.issued_at),
                used.enrolment
            );
            return Err(forbidden(message));
        }
        // The answer got lost, and this is the same request again.
        Ok(self.ack(used.certificate.clone()))
    }

    fn ack(&self, certificate: String) -> CertificateAck {
        CertificateAck { certificate, authority: to_pem(self.authority.certificate()) }
    }

    fn signed(
        &self,
        key: &AskedKey,
        name: &AgentName,
        token_hash: String,
        now: SystemTime,
    ) -> Result<CertificateRow, Refusal> {
        let issued = self.authority.sign_agent(key, name, AGENT_LIFETIME, now).map_err(|error| {
            tracing::error!(%error, "a certificate was not signed");
            Refusal {
                reason: Reason::Unavailable,
                message: "the collector cannot sign; its log says more".into(),
            }
        })?;
        Ok(CertificateRow {
            enrolment: name.enrolment.clone(),
            tenant: name.tenant.clone(),
            host_name: name.host.clone(),
            fingerprint: crate::authority::fingerprint(&issued.certificate),
            key_fingerprint: key.fingerprint(),
            token_hash,
            certificate: to_pem(&issued.certificate),
            not_before: microseconds(issued.not_before),
            expires_at: microseconds(issued.expires),
            issued_at: microseconds(now),
        })
    }
}

/// What an agent whose enrolment was revoked is told.
pub(crate) fn revoked() -> Refusal {
    forbidden("this host's enrolment was revoked; enrol it again with a new token if it should ship")
}

fn check_name(what: &'static str, name: &str) -> Result<(), EnrolError> {
    let fits = !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(EnrolError::Name { what }) }
}

/// A time for people.
pub fn shown(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |time| format!("{time:.0}"))
}

fn forbidden(message: impl Into<String>) -> Refusal {
    Refusal { reason: Reason::Forbidden, message: crate::visible::line(&message.into()) }
}

fn malformed(message: String) -> Refusal {
    Refusal { reason: Reason::Malformed, message }
}

fn unavailable(error: StoreError) -> Refusal {
    // Whoever asks may be nobody yet: where the store is, and who is its user, is not for them.
    tracing::error!(%error, "the store");
    let message = "the collector's store does not answer now, and its log says why; ask again".into();
    Refusal { reason: Reason::Unavailable, message }
}
