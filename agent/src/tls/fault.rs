//! What is wrong with a server's certificate: the library's error comes in, one of a closed set of labels goes out.

use rustls::CertificateError;
use weir_core::record::FlowReason;

/// What is wrong with a server's certificate: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFault {
    Expired,
    NotYetValid,
    WrongName,
    UnknownIssuer,
    /// Not by the key of the root that it names (a renewed CA looks so), or the server does not hold its key.
    BadSignature,
    /// By a list in `upstream.crls`, or by what the server itself stapled.
    Revoked,
    /// It must be known not to be revoked, and that is not: it demands a staple and came without a good one, or the
    /// list of its issuer is out of date.
    RevocationUnknown,
    /// It is not for servers (its extended key usage).
    WrongPurpose,
    /// Any other; the reason says which.
    Invalid,
}

impl CertificateFault {
    pub fn label(self) -> &'static str {
        self.reason().as_str()
    }

    /// As a flow's record has it.
    pub fn reason(self) -> FlowReason {
        match self {
            CertificateFault::Expired => FlowReason::CertificateExpired,
            CertificateFault::NotYetValid => FlowReason::CertificateNotYetValid,
            CertificateFault::WrongName => FlowReason::CertificateWrongName,
            CertificateFault::UnknownIssuer => FlowReason::CertificateUnknownIssuer,
            CertificateFault::BadSignature => FlowReason::CertificateBadSignature,
            CertificateFault::Revoked => FlowReason::CertificateRevoked,
            CertificateFault::RevocationUnknown => FlowReason::CertificateRevocationUnknown,
            CertificateFault::WrongPurpose => FlowReason::CertificateWrongPurpose,
            CertificateFault::Invalid => FlowReason::CertificateInvalid,
        }
    }

    pub(super) fn of(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } => CertificateFault::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => CertificateFault::NotYetValid,
            E::NotValidForName | E::NotValidForNameContext { .. } => CertificateFault::WrongName,
            E::UnknownIssuer => CertificateFault::UnknownIssuer,
            E::BadSignature => CertificateFault::BadSignature,
            E::Revoked => CertificateFault::Revoked,
            E::UnknownRevocationStatus
            | E::ExpiredRevocationList
            | E::ExpiredRevocationListContext { .. }
            | E::InvalidOcspResponse => CertificateFault::RevocationUnknown,
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => CertificateFault::WrongPurpose,
            _ => CertificateFault::Invalid,
        }
    }

    /// What is wrong, for people; the library's own words follow.
    pub(super) fn words(self) -> &'static str {
        match self {
            CertificateFault::Expired => "it has expired",
            CertificateFault::NotYetValid => "it is not valid yet",
            CertificateFault::WrongName => "it is for other names",
            CertificateFault::UnknownIssuer => "it leads to no root that this host trusts",
            CertificateFault::BadSignature => "its signature does not hold",
            CertificateFault::Revoked => "it was revoked",
            CertificateFault::RevocationUnknown => "nothing says that it was not revoked",
            CertificateFault::WrongPurpose => "it is not for servers",
            CertificateFault::Invalid => "it is not valid",
        }
    }

    pub(super) fn mend(self) -> &'static str {
        match self {
            CertificateFault::UnknownIssuer => "; if its CA is to be trusted, add it to upstream.roots",
            CertificateFault::BadSignature => "; if its CA was renewed, put the new one in upstream.roots",
            CertificateFault::RevocationUnknown => {
                "; the server must staple an OCSP response, or the list in upstream.crls must be renewed"
            }
            _ => "",
        }
    }
}
