//! The client's side: a stream and a leaf come in, the stream in clear goes out. The leaf is all that the
//! client gets to see of the server.

use std::io;
use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::alpn::Protocol;
use super::minting::Leaf;

/// Why there is no TLS with a client.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The job's environment lacks the bundle, or the client pins its server.
    #[error(
        "the client does not trust Weir's CA (alert {alert:?}): make its CA variables name Weir's bundle.pem, and \
         take a client that pins its server off the intercept list"
    )]
    Distrusted { alert: AlertDescription },
    /// What Node and Python do with a certificate that they do not trust; an alert would say more.
    #[error(
        "the client closed in the middle of the TLS handshake, as some do that do not trust Weir's CA: if this one does \
         not, make its CA variables name Weir's bundle.pem"
    )]
    Left,
    /// The client's fault, or the network's.
    #[error("the TLS handshake with the client broke: {0}")]
    Handshake(io::Error),
    #[error("the client did not finish its TLS handshake within {0:?}")]
    Timeout(Duration),
    /// Ours.
    #[error("cannot mint a certificate: {0}")]
    Minting(String),
}

impl AcceptError {
    /// One of a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            AcceptError::Distrusted { .. } => "client_distrusts_ca",
            AcceptError::Left => "client_left_handshake",
            AcceptError::Handshake(_) => "client_handshake_broken",
            AcceptError::Timeout(_) => "client_handshake_timeout",
            AcceptError::Minting(_) => "minting_failed",
        }
    }
}

/// Does the handshake with a client as the server that `leaf` is for. `protocol` is all that is offered: a
/// client that offers other protocols alone is refused with the alert that says so.
pub async fn accept<S>(
    stream: S,
    leaf: &Leaf,
    protocol: Protocol,
    within: Duration,
) -> Result<TlsStream<S>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(leaf.config(protocol)).accept(stream);
    match tokio::time::timeout(within, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(broken(error)),
        Err(_) => Err(AcceptError::Timeout(within)),
    }
}

fn broken(error: io::Error) -> AcceptError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match super::reason(&error) {
        Some(rustls::Error::AlertReceived(alert)) if rejects_certificate(*alert) => {
            AcceptError::Distrusted { alert: *alert }
        }
        _ if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => AcceptError::Left,
        _ => AcceptError::Handshake(error),
    }
}

/// RFC 8446, section 6.2. Which of them a client sends is its own affair: OpenSSL unknown_ca, Go
/// bad_certificate, Java certificate_unknown.
fn rejects_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    )
}
