//! How servers are met: what vouches for them, and what Weir shows them of itself.

use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use weir_core::policy::glob;

/// What `[upstream]` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Roots that certificates may chain to, besides the system's.
    pub roots: Vec<PathBuf>,
    /// Lists of revoked certificates, PEM or DER.
    pub crls: Vec<PathBuf>,
    /// Whether sessions with a server are taken up again for ten minutes.
    pub resumption: bool,
    /// What becomes of servers that need a certificate of their client, which Weir does not have.
    pub client_auth: ClientAuth,
    pub(crate) client_certificate: Vec<Spanned<ClientCertificate>>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            crls: Vec::new(),
            resumption: true,
            client_auth: ClientAuth::default(),
            client_certificate: Vec::new(),
        }
    }
}

/// See [`Upstream::client_auth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Relayed untouched and unread, so that the client shows its own.
    #[default]
    Relay,
    /// Refused.
    Refuse,
}

/// A certificate that Weir shows to servers, for whichever job connects.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    names: Vec<String>,
    /// PEM: the certificate, then those between it and its root.
    pub certificate: PathBuf,
    /// PEM, mode 0600.
    pub key: PathBuf,
}

impl ClientCertificate {
    /// Whether a server with this name, or address, gets to see it.
    pub fn is_for(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.names.iter().any(|pattern| glob(&pattern.to_ascii_lowercase(), &name))
    }
}

impl Upstream {
    /// In their order: the first one that is for a server is the one.
    pub fn client_certificates(&self) -> impl Iterator<Item = &ClientCertificate> {
        self.client_certificate.iter().map(Spanned::get_ref)
    }

    pub(super) fn fault(&self) -> Option<(Range<usize>, &'static str)> {
        let nameless = self.client_certificate.iter().find(|one| one.get_ref().names.is_empty())?;
        Some((nameless.span(), "a client certificate needs names: the servers that may see it"))
    }
}
