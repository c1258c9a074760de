//! How a flow's server is met: dialled, and proven to be who it must be; the first time, and when another connection is needed.
//!
//! Enters: a flow's destination and the name that its client wants. Leaves: a connection with what the server proved on it. Must never: give
//! out one whose server proved another name.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use weir_core::ids::FlowId;
use weir_core::record::FlowEnd;

use super::Interceptor;
use super::dial::{DialError, dial};
use super::flow::Opening;
use crate::http::{Beginning, Dialled, Proven, Redial};
use crate::netns::Namespace;
use crate::tls::{Connected, Protocol, Scope, UpstreamError, Wanted};

/// A server that proved who it is, and the way to it.
pub(super) struct Met {
    pub proven: Arc<Proven>,
    pub protocol: Protocol,
    pub by: Beginning,
}

fn dialled(connected: Connected<TcpStream>, flow: &FlowId) -> (Arc<Proven>, Dialled) {
    let Connected { stream, proven: name, until, .. } = connected;
    let source = stream.get_ref().0.local_addr().ok().map(|own| own.ip());
    let is_for_others = until.is_some();
    let proven = Proven { name, until: until.unwrap_or(SystemTime::UNIX_EPOCH), source, by: flow.clone() };
    let proven = Arc::new(proven);
    let dialled = Dialled { stream: Box::new(stream), proven: is_for_others.then(|| proven.clone()) };
    (proven, dialled)
}

impl Interceptor {
    /// Dials a flow's server, which proves who it is.
    pub(super) async fn meet(
        &self,
        opening: &Opening,
        wanted: &ServerName<'static>,
        offer: &[Protocol],
    ) -> Result<Met, UpstreamFault> {
        let stream = self.dial(opening).await?;
        let within = self.gate.limits.upstream_timeout;
        let wanted = Wanted { name: wanted, offer, scope: opening.scope() };
        let connected = self.upstream.connect(stream, wanted, within).await?;
        let protocol = connected.protocol;
        let (proven, dialled) = dialled(connected, &opening.id);
        Ok(Met { proven, protocol, by: Beginning::Dialled(dialled) })
    }

    /// Dials a flow's destination for the first time; or gives what was dialled while the client waited.
    pub(super) async fn dial(&self, opening: &Opening) -> Result<TcpStream, DialError> {
        let within = self.gate.limits.upstream_timeout;
        let stream = match opening.take_dialled() {
            Some(dialled) => dialled,
            None => dial(&self.hooks, &opening.namespace, opening.destination, within).await?,
        };
        if let Ok(own) = stream.local_addr() {
            let _ = opening.source.set(own.ip());
        }
        Ok(stream)
    }

    async fn dial_tls(
        &self,
        namespace: &Namespace,
        scope: Scope,
        wanted: &ServerName<'static>,
        protocol: Protocol,
    ) -> Result<Connected<TcpStream>, UpstreamFault> {
        let within = self.gate.limits.upstream_timeout;
        let stream = dial(&self.hooks, namespace, scope.destination, within).await?;
        let wanted = Wanted { name: wanted, offer: &[protocol], scope };
        let connected = self.upstream.connect(stream, wanted, within).await?;
        if connected.protocol == protocol { Ok(connected) } else { Err(UpstreamFault::Protocol) }
    }

    /// A later connection must prove the same name as the first, and speak the same protocol.
    pub(super) fn redial_tls(
        self: &Arc<Self>,
        opening: &Opening,
        wanted: ServerName<'static>,
        protocol: Protocol,
    ) -> Redial {
        let (interceptor, namespace) = (self.clone(), opening.namespace.clone());
        let (scope, flow) = (opening.scope(), opening.id.clone());
        Box::new(move || {
            let (interceptor, namespace, wanted) = (interceptor.clone(), namespace.clone(), wanted.clone());
            let flow = flow.clone();
            Box::pin(async move {
                let connected = interceptor.dial_tls(&namespace, scope, &wanted, protocol).await;
                Ok(dialled(connected.map_err(|error| error.to_string())?, &flow).1)
            })
        })
    }
}

/// Why there is no proven connection to a server.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamFault {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Tls(#[from] UpstreamError),
    #[error("the server no longer speaks the protocol that it spoke")]
    Protocol,
}

impl UpstreamFault {
    pub fn end(&self) -> FlowEnd {
        match self {
            UpstreamFault::Tls(UpstreamError::Untrusted { .. }) => FlowEnd::UpstreamUntrusted,
            _ => FlowEnd::UpstreamUnreachable,
        }
    }
}
