//! Whom the host trusts, and who trusts Weir. The CA on disk comes in (or is made), and what goes out is an
//! [`Authority`] that can sign leaves, a merged bundle of roots, and the variables that point a job at it.
//! The CA's key never leaves this room: not by `Debug`, not in an error, not in the bundle.
//!
//! ```text
//! <dir>/            0755   jobs read the two .pem files, whoever they run as
//!   ca.pem          0644   Weir's own certificate
//!   ca.key          0600   its key
//!   bundle.pem      0644   Weir's CA + the system's roots + the configured ones
//! ```
//!
//! Each file is written under another name, synced and renamed, under a lock on the folder: a reader sees a
//! whole file or none, and two processes that start together end with one CA.
//!
//! Limit, stated: this CA may sign any name. Whoever reads its key can impersonate any server to whoever
//! trusts the bundle. Name constraints on the operator's zones, and a root that is not kept online, come
//! with a later issue.

mod authority;
mod disk;
mod enrolment;
mod identity;
mod roots;
mod secret;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub(crate) use authority::random_serial;
pub use authority::{Authority, CA_BACKDATED, CA_LIFETIME};
pub use enrolment::{Enrolment, Identity, PendingKey};
pub use identity::{MAX_CRL_FILE, client_identity, revocation_lists};
pub(crate) use roots::read_certificates as certificates;
pub use roots::{MAX_ROOTS_FILE, Roots};
pub use secret::secret;

/// Why trust could not be set up. Each is the operator's to mend, and says how.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Storage { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is open to others ({fault}): {mend}", path = path.display())]
    Exposed { path: PathBuf, fault: String, mend: &'static str },
    #[error(
        "{key} is not the key of {certificate}: put back the one that belongs to it, or remove both for a new CA",
        key = key.display(), certificate = certificate.display()
    )]
    Mismatched { key: PathBuf, certificate: PathBuf },
    #[error("the CA in {path} {fault}: {mend}", path = path.display())]
    OutOfDate { path: PathBuf, fault: String, mend: &'static str },
    #[error("{path} cannot be used: {fault}; restore it, or remove it (of the CA, ca.pem and ca.key) for a new one", path = path.display())]
    Unusable { path: PathBuf, fault: String },
    #[error("{path} cannot serve as a file of roots: {fault}; name a PEM file with CA certificates", path = path.display())]
    Roots { path: PathBuf, fault: String },
    #[error("{path} cannot serve as a client's certificate or key: {fault}; see [[upstream.client_certificate]]", path = path.display())]
    Identity { path: PathBuf, fault: String },
    #[error("{path} cannot serve as this host's identity at the collector: {fault}; enrol the host again with `weir enrol`", path = path.display())]
    Enrolment { path: PathBuf, fault: String },
    #[error("{path} cannot serve as a list of revoked certificates: {fault}; name a PEM or DER file in upstream.crls", path = path.display())]
    Crls { path: PathBuf, fault: String },
    #[error("a list in upstream.crls cannot be used: {0}")]
    UnusableCrl(String),
    #[error("this host trusts no root: install ca-certificates, or name roots in upstream.roots")]
    NoRoots,
}

/// The variables that make a job's clients trust the bundle, and whom each is for. All but the first and
/// `DENO_CERT` *replace* their client's own roots, which is why they name a merged bundle.
///
/// Not here: `SSL_CERT_DIR` (it adds a folder to what `SSL_CERT_FILE` says, and none of ours is hashed) and
/// `JAVA_TOOL_OPTIONS` (Java wants a key store, not PEM).
pub const CA_VARIABLES: [&str; 8] = [
    // Node: the MCP TypeScript SDK, npx. It reads no other.
    "NODE_EXTRA_CA_CERTS",
    // OpenSSL and all that follow it: Python's ssl (httpx, the MCP Python SDK, uv), Go, rustls-native-certs, Ruby.
    "SSL_CERT_FILE",
    // Python's requests; it brings its own roots and does not read SSL_CERT_FILE.
    "REQUESTS_CA_BUNDLE",
    // curl, where SSL_CERT_FILE is not compiled in; runners often set it, and then it wins.
    "CURL_CA_BUNDLE",
    // git, which tells libcurl its own file.
    "GIT_SSL_CAINFO",
    // Deno.
    "DENO_CERT",
    // The AWS command line and SDKs, also behind MCP proxies that sign for AWS.
    "AWS_CA_BUNDLE",
    // pip: wins over REQUESTS_CA_BUNDLE, so that one set by the runner must be replaced.
    "PIP_CERT",
];
