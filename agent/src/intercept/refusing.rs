//! A server that cannot be trusted: its client is told so in words that it understands. The handshake with the client is finished
//! with Weir's own leaf, each request gets the reason, and none goes anywhere.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::Interceptor;
use super::flow::Opening;
use super::relay::Watch;
use crate::gate::Refusal;
use crate::http::{Served, serve};
use crate::tls::{Offer, Protocol, Replayed, UpstreamError};

impl Interceptor {
    /// Tells a client why there is no connection to its server. A client that does not take the leaf learns that
    /// alone.
    pub(super) async fn tell_untrusted(
        &self,
        client: Replayed<TcpStream>,
        wanted: &ServerName<'static>,
        offer: &Offer,
        error: &UpstreamError,
        opening: &Opening,
    ) {
        let client = match self.greet(client, wanted, offer.own()).await {
            Ok(client) => Watch::counting(client, opening.watched.clone()),
            Err(error) => {
                tracing::debug!(%error, "a client was not told why its server is refused");
                return;
            }
        };
        let refusal = Arc::new(Refusal {
            flow: opening.id.clone(),
            label: error.reason(),
            message: format!("Weir: {error}"),
        });
        let gate = &self.gate;
        let exchange = |request| {
            let (gate, refusal) = (gate.clone(), refusal.clone());
            async move { gate.answer_untrusted(&refusal, request).await }
        };
        let served = serve(client, self.manners(offer.own()), &gate.tasks, exchange).await;
        if let Served::Flooded(_) = served {
            self.calm_down(opening.share.clone());
        }
        tracing::debug!(?served, "a client was told why its server is refused");
    }

    /// The client would speak something else. It is not relayed: many servers do not look at what is offered, so that any client
    /// could choose not to be read. Its handshake ends with the alert that says so, and nothing is dialled.
    pub(super) async fn tell_no_protocol(&self, client: Replayed<TcpStream>, wanted: &ServerName<'static>) {
        if let Err(error) = self.greet(client, wanted, Protocol::Http1).await {
            tracing::warn!(server = %wanted.to_str(), %error, "a client offers no protocol that can be read");
        }
    }
}
