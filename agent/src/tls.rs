//! TLS, both ways. A connection's first bytes come in and are told apart ([`sniff`]); on the client's side a
//! leaf for the name that it asked for is minted and the handshake done ([`accept`]); on the server's side
//! the certificate is verified and what it proves goes out as a [`ProvenName`]. Streams leave this room in
//! clear, for whoever reads them next.
//!
//! It never connects to anything by itself, never passes an unverified server on, and knows nothing of what
//! the streams carry: no MCP, no policy, no HTTP beyond telling its first bytes.
//!
//! Both sides speak TLS 1.2 and 1.3. What is spoken inside follows the server ([`Offer`]): it is offered what the client
//! offered, and the client is told what it took.

mod accept;
mod alpn;
mod client_auth;
mod fault;
mod minting;
mod replayed;
mod sessions;
mod sniff;
mod staple;
#[cfg(test)]
mod tests;
mod upstream;
mod verify;

use std::io;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use accept::{AcceptError, accept};
pub use alpn::{Offer, Protocol, SPEAKS_H2, Spoken};
pub use client_auth::{MAX_REMEMBERED, REMEMBERED_FOR, SETTLES_WITHIN};
pub use fault::CertificateFault;
pub use minting::{LEAF_LIFETIME, LEAF_RENEWED_BEFORE, Leaf, MAX_LEAVES, Minter};
pub use replayed::{Replayed, sniff};
pub use sessions::{MAX_SERVERS, MAX_TICKETS, PROVEN_FOR, Scope};
pub use sniff::{ClientHello, MAX_SNIFFED, Sniffed, Sniffer, Unreadable};
pub use upstream::{Connected, ProvenName, UpstreamError, UpstreamTls, Wanted};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The library's own reason in an error of a tokio-rustls handshake, if it has one.
fn reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
