//! The client's side of a connection that is terminated: the handshake with a leaf of Weir's own, and what the client is held to then.

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Interceptor;
use crate::http::Manners;
use crate::tls::{AcceptError, Protocol, Replayed, accept};

impl Interceptor {
    /// Does the handshake with a client as the server of this name. What comes of it is large, and is moved on from here: it is in a box.
    pub(super) async fn greet(
        &self,
        client: Replayed<TcpStream>,
        name: &ServerName<'_>,
        protocol: Protocol,
    ) -> Result<Box<TlsStream<Replayed<TcpStream>>>, AcceptError> {
        let leaf = self.minter.leaf(name)?;
        accept(client, &leaf, protocol, self.gate.limits.client_timeout).await.map(Box::new)
    }

    pub(super) fn manners(&self, protocol: Protocol) -> Manners {
        let limits = &self.gate.limits;
        Manners { protocol, idle: limits.idle_timeout, farewell: limits.client_timeout }
    }
}
