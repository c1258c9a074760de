//! Rows of `enrol_tokens`, `agent_certificates` and `revocations`. Times are microseconds since 1970.

use clickhouse::Row;
use serde::{Deserialize, Serialize};

/// A token that was made for a host.
#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
pub struct TokenRow {
    /// HMAC-SHA256 under the CA's token key; the token itself is nowhere.
    pub token_hash: String,
    /// What its certificates are for, renewed ones too.
    pub enrolment: String,
    pub tenant: String,
    pub host_name: String,
    pub issued_at: i64,
    pub expires_at: i64,
    pub issued_by: String,
}

/// A certificate that was given out: the use of a token, or a renewal.
#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
pub struct CertificateRow {
    pub enrolment: String,
    pub tenant: String,
    pub host_name: String,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
    /// SHA-256 of its key.
    pub key_fingerprint: String,
    /// Empty for a renewal.
    pub token_hash: String,
    /// PEM.
    pub certificate: String,
    pub not_before: i64,
    pub expires_at: i64,
    pub issued_at: i64,
}

/// An enrolment that is over before its time.
#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
pub struct RevocationRow {
    pub enrolment: String,
    pub tenant: String,
    pub host_name: String,
    pub revoked_at: i64,
    pub reason: String,
    pub revoked_by: String,
}
