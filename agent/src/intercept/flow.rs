//! One connection, from its origin to its end: sniffed, then terminated, relayed or refused, and recorded as
//! a flow whatever became of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use weir_core::ids::FlowId;
use weir_core::mask::Masked;
use weir_core::record::{
    AgentEvent, Caller, Flow as FlowRecord, FlowEnd, FlowReason, Proof, Server as ServerRecord, Treatment,
};

use weir_ebpf::action;

use super::dial::{DialError, dial};
use super::learned::{first_words, speaks_mcp};
use super::meeting::{Met, UpstreamFault};
use super::relay::{Watch, Watched, relay};
use super::{Interceptor, reset};
use crate::gate::{Broken, Flow, Server};
use crate::http::{Beginning, Dialled, Redial, Served, Shelf, ShelfKey, Upstream, serve};
use crate::kernel::{Destination, Origin};
use crate::netns::Namespace;
use crate::share::{FORGIVEN_AFTER, Share, Turn};
use crate::tls::{
    ClientHello, Offer, Protocol, Replayed, Scope, Sniffed, Spoken, Unreadable, UpstreamError, sniff,
};
use crate::{identity, random};

/// What is known of a connection before its first byte.
pub(super) struct Opening {
    pub(super) id: FlowId,
    origin: Origin,
    pub(super) destination: SocketAddr,
    pub(super) namespace: Arc<Namespace>,
    /// The address from which the server was dialled: the client's own, had it dialled by itself.
    pub(super) source: OnceLock<IpAddr>,
    caller: Arc<Caller<Masked<String>>>,
    pub(super) watched: Arc<Watched>,
    started: Instant,
    pub(super) share: Arc<Share>,
    /// It used a server's connection that another flow had dialled.
    borrowed: AtomicBool,
    /// The connection to the server that was made while the client waited, until it is used.
    dialled: Mutex<Option<TcpStream>>,
}

/// How a connection was treated, and how it ended.
struct Ending {
    server: ServerRecord<Masked<String>>,
    sni: Option<String>,
    treatment: Treatment,
    end: FlowEnd,
    reason: FlowReason,
}

impl Ending {
    fn because(self, reason: FlowReason) -> Self {
        Self { reason, ..self }
    }
}

impl Opening {
    pub(super) fn scope(&self) -> Scope {
        let (job, namespace) = (self.origin.cgroup_id, self.namespace.cookie());
        Scope { job, namespace, destination: self.destination }
    }

    pub(super) fn take_dialled(&self) -> Option<TcpStream> {
        self.dialled().take()
    }

    fn dialled(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interceptor {
    /// Serves one connection to its end, and records it.
    pub(super) async fn flow(
        self: Arc<Self>,
        (stream, turn): (TcpStream, Turn),
        namespace: Arc<Namespace>,
        origin: Origin,
        share: Arc<Share>,
        dialled: Option<TcpStream>,
    ) {
        // What each part of a connection's life needs is there for that long, and not for as long as it idles: each in a
        // box of its own.
        let opening = Box::pin(self.open(namespace, origin, share)).await;
        *opening.dialled() = dialled;
        let ending = tokio::select! {
            biased;
            ending = self.serve((stream, turn), &opening) => ending,
            () = self.gate.tasks.over() => self.refused(&opening, None, FlowEnd::Broken),
        };
        Box::pin(self.record(opening, ending)).await;
    }

    /// Records a connection that there was no room for.
    pub(super) async fn record_no_room(&self, namespace: Arc<Namespace>, origin: Origin, share: Arc<Share>) {
        let opening = self.open(namespace, origin, share).await;
        let ending = self.refused(&opening, None, FlowEnd::Limit);
        self.record(opening, ending).await;
    }

    /// Records a connect that waited for its destination to be dialled, and was refused since it could not be.
    pub(super) async fn record_unreachable(
        &self,
        namespace: Arc<Namespace>,
        origin: Origin,
        share: Arc<Share>,
    ) {
        let opening = self.open(namespace, origin, share).await;
        let ending = self.refused(&opening, None, FlowEnd::UpstreamUnreachable);
        self.record(opening, ending).await;
    }

    async fn open(&self, namespace: Arc<Namespace>, origin: Origin, share: Arc<Share>) -> Opening {
        let (destination, started) = (origin.destination, Instant::now());
        let caller = identity::look_up(origin.clone(), self.accounts.processes()).await;
        Opening {
            id: FlowId::from_random(random::bytes()),
            origin,
            destination,
            namespace,
            source: OnceLock::new(),
            caller,
            watched: Arc::default(),
            started,
            share,
            borrowed: AtomicBool::new(false),
            dialled: Mutex::default(),
        }
    }

    async fn serve(self: &Arc<Self>, (stream, turn): (TcpStream, Turn), opening: &Opening) -> Ending {
        let (address, port) = (opening.destination.ip(), opening.destination.port());
        let _ = stream.set_nodelay(true);
        turn.come().await;
        if opening.namespace.leads_to_weir(opening.destination, &self.own_ports) {
            // The hooks refuse these by the loopback addresses; the host has others.
            reset(&stream);
            return self.refused(opening, None, FlowEnd::UpstreamUnreachable);
        }
        if self.intercept.bypasses_address(address) {
            let client = Replayed::new(Bytes::new(), stream);
            return Box::pin(self.relay(client, opening)).await.because(FlowReason::Bypass);
        }
        let is_learned = self.learned.knows(opening.destination);
        if !is_learned && !self.intercept.may_cover(port) {
            return Box::pin(self.relay_or_learn(stream, opening)).await;
        }
        let Ok((sniffed, stream)) = Box::pin(sniff(stream, self.gate.limits.client_timeout)).await else {
            return self.refused(opening, None, FlowEnd::Broken);
        };
        match sniffed {
            Sniffed::Tls(hello) => {
                let sni = hello.sni.as_ref().map(|name| name.as_ref());
                if !self.intercept.covers(sni, address, port) {
                    return Box::pin(self.relay(stream, opening)).await;
                }
                if sni.is_some_and(|name| self.intercept.bypasses_name(name)) {
                    return Box::pin(self.relay(stream, opening)).await.because(FlowReason::Bypass);
                }
                Box::pin(self.terminate_tls(stream, hello, opening)).await
            }
            // Which name the client means it says later, and proves never: any of this port's entries covers it.
            Sniffed::Http(protocol) => match Box::pin(self.dial(opening)).await {
                Ok(upstream) => Box::pin(self.terminate_plain(stream, upstream, protocol, opening)).await,
                Err(error) => {
                    tracing::debug!(%error, "cannot dial a destination");
                    reset(stream.stream());
                    self.refused(opening, None, FlowEnd::UpstreamUnreachable)
                }
            },
            Sniffed::Other(why) if self.intercept.covers(None, address, port) => {
                reset(stream.stream());
                let end = match why {
                    Unreadable::Silent => FlowEnd::Silent,
                    Unreadable::Ended => FlowEnd::Closed,
                    _ => FlowEnd::Unreadable,
                };
                self.refused(opening, None, end)
            }
            Sniffed::Other(_) | Sniffed::NeedMore => Box::pin(self.relay(stream, opening)).await,
        }
    }

    /// On a port that is not listed: what turns out to be MCP is read all the same, and its destination is learned.
    async fn relay_or_learn(self: &Arc<Self>, mut client: TcpStream, opening: &Opening) -> Ending {
        let upstream = match self.dial(opening).await {
            Ok(upstream) => upstream,
            Err(error) => return self.not_relayed(&client, &error, opening),
        };
        let said = tokio::select! {
            said = first_words(&mut client, &upstream) => said,
            () = self.gate.tasks.ending() => Bytes::new(),
        };
        let is_mcp = speaks_mcp(&said);
        let client = Replayed::new(said, client);
        if is_mcp {
            self.learn(opening.destination).await;
            return self.terminate_plain(client, upstream, Protocol::Http1, opening).await;
        }
        self.relay_to(client, upstream, opening).await
    }

    async fn learn(&self, destination: SocketAddr) {
        if !self.learned.add(destination) {
            return;
        }
        tracing::info!(%destination, "MCP on a port that is not listed");
        let entry = Destination {
            network: destination.ip().into(),
            port: destination.port(),
            action: action::INTERCEPT,
        };
        // An agent that was replaced leaves the tables to the one that has them now, which learns by itself.
        if !self.gate.tasks.is_retiring()
            && let Err(error) = self.hooks.add_destination(entry)
        {
            tracing::warn!(%error, %destination, "the hooks do not know of a learned destination");
        }
        let detail = [("destination".to_owned(), self.gate.masker.text(&destination.to_string()))].into();
        let learned = AgentEvent { name: "destination.learned".to_owned(), detail };
        if let Err(error) = self.gate.ledger.note(learned).await {
            tracing::error!(%error, "a learned destination was not recorded");
        }
    }

    /// Not on the intercept list: passed on untouched.
    async fn relay(&self, client: Replayed<TcpStream>, opening: &Opening) -> Ending {
        match self.dial(opening).await {
            Ok(upstream) => self.relay_to(client, upstream, opening).await,
            Err(error) => self.not_relayed(client.stream(), &error, opening),
        }
    }

    fn not_relayed(&self, client: &TcpStream, error: &DialError, opening: &Opening) -> Ending {
        tracing::debug!(%error, "cannot dial a relayed destination");
        reset(client);
        self.opaque(opening, FlowEnd::UpstreamUnreachable)
    }

    async fn relay_to(&self, client: Replayed<TcpStream>, upstream: TcpStream, opening: &Opening) -> Ending {
        let client = Watch::sniffing(client, opening.watched.clone());
        let end = tokio::select! {
            relayed = relay(client, upstream) => match relayed {
                Ok(()) => FlowEnd::Closed,
                Err(_) => FlowEnd::Broken,
            },
            () = self.gate.tasks.ending() => FlowEnd::Broken,
        };
        self.opaque(opening, end)
    }

    fn opaque(&self, opening: &Opening, end: FlowEnd) -> Ending {
        Ending {
            server: self.unproven(opening),
            sni: opening.watched.sni(),
            treatment: Treatment::Opaque,
            end,
            reason: FlowReason::None,
        }
    }

    /// The server first: what it proves is what the client is told.
    async fn terminate_tls(
        self: &Arc<Self>,
        client: Replayed<TcpStream>,
        hello: ClientHello,
        opening: &Opening,
    ) -> Ending {
        let sni = hello.sni.as_ref().map(|name| name.as_ref().to_owned());
        let wanted = match hello.sni {
            Some(name) => ServerName::DnsName(name),
            None => ServerName::IpAddress(opening.destination.ip().into()),
        };
        let Some(offer) = Offer::of(&hello.alpn) else {
            Box::pin(self.tell_no_protocol(client, &wanted)).await;
            let refused = self.refused(opening, sni, FlowEnd::ClientHandshake);
            return refused.because(FlowReason::NoProtocol);
        };
        let scope = opening.scope();
        if self.upstream.relays(&wanted, scope) {
            return Box::pin(self.relay(client, opening)).await.because(FlowReason::ClientCertificate);
        }
        let shelf =
            self.shelves.of(ShelfKey { scope, name: wanted.clone(), offer: offer.to_server().to_vec() });
        // What was dialled for this very client goes before what another left.
        let is_dialled = opening.dialled().is_some();
        let spare = if is_dialled { None } else { shelf.spare(SystemTime::now()).await };
        let met = match spare {
            Some(spare) => {
                // Whether or not an exchange comes of it: nothing was dialled.
                opening.borrowed.store(true, Ordering::Relaxed);
                if let Some(source) = spare.proven.source {
                    let _ = opening.source.set(source);
                }
                Ok(Met {
                    proven: spare.proven.clone(),
                    protocol: Protocol::Http1,
                    by: Beginning::Spare(spare.into()),
                })
            }
            None => Box::pin(self.meet(opening, &wanted, offer.to_server())).await,
        };
        let Met { proven, protocol, by: upstream } = match met {
            Ok(met) => met,
            Err(UpstreamFault::Tls(UpstreamError::WantsCertificate { .. })) if self.upstream.may_relay() => {
                return Box::pin(self.relay(client, opening)).await.because(FlowReason::ClientCertificate);
            }
            Err(fault) => {
                tracing::warn!(destination = %opening.destination, error = %fault, "a server cannot be intercepted");
                let refused = self.refused(opening, sni, fault.end());
                let UpstreamFault::Tls(error) = fault else {
                    reset(client.stream());
                    return refused;
                };
                if error.reason() == FlowReason::None {
                    reset(client.stream());
                    return refused;
                }
                Box::pin(self.tell_untrusted(client, &wanted, &offer, &error, opening)).await;
                return refused.because(error.reason());
            }
        };
        let name = proven.name.name().to_str().into_owned();
        let record = self.server(opening, &name, Proof::Certificate);
        let mut also = proven.name.also().to_vec();
        also.push(opening.destination.ip().to_string());
        let server = Server { name, also, record: record.clone() };
        let spoken = offer.taken(protocol);
        let (treatment, end, reason) =
            match Box::pin(self.greet(client, proven.name.name(), spoken.by_client)).await {
                Ok(client) => {
                    let redial = self.redial_tls(opening, wanted, protocol);
                    self.exchanges(client, upstream, (redial, Some(shelf)), spoken, server, opening).await
                }
                Err(error) => {
                    tracing::warn!(server = server.name, %error, "a client's handshake failed");
                    (Treatment::Terminated, FlowEnd::ClientHandshake, FlowReason::None)
                }
            };
        Ending { server: record, sni, treatment, end, reason }
    }

    async fn terminate_plain(
        self: &Arc<Self>,
        client: Replayed<TcpStream>,
        upstream: TcpStream,
        protocol: Protocol,
        opening: &Opening,
    ) -> Ending {
        let within = self.gate.limits.upstream_timeout;
        let record = self.unproven(opening);
        let name = opening.destination.ip().to_string();
        let server = Server { name, also: Vec::new(), record: record.clone() };
        let (interceptor, destination) = (self.clone(), opening.destination);
        let namespace = opening.namespace.clone();
        let redial: Redial = Box::new(move || {
            let (interceptor, namespace) = (interceptor.clone(), namespace.clone());
            Box::pin(async move {
                let dialled = dial(&interceptor.hooks, &namespace, destination, within).await;
                let stream = dialled.map_err(|e| e.to_string())?;
                Ok(Dialled { stream: Box::new(stream), proven: None })
            })
        });
        // Whoever speaks HTTP/2 without having asked knows that the server does.
        let spoken = Spoken { by_client: protocol, by_server: protocol };
        let upstream = Beginning::Dialled(Dialled { stream: Box::new(upstream), proven: None });
        let (treatment, end, reason) =
            self.exchanges(client, upstream, (redial, None), spoken, server, opening).await;
        Ending { server: record, sni: None, treatment, end, reason }
    }

    /// Speaks HTTP with the client until one side closes; each exchange is the gate's.
    async fn exchanges<S>(
        self: &Arc<Self>,
        client: S,
        first: Beginning,
        more: (Redial, Option<Arc<Shelf>>),
        spoken: Spoken,
        server: Server,
        opening: &Opening,
    ) -> (Treatment, FlowEnd, FlowReason)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        tracing::debug!(flow = %opening.id, ?spoken, server = server.name, "terminated");
        let (id, caller, share) = (opening.id.clone(), opening.caller.clone(), opening.share.clone());
        let upstream = Upstream::new(id.clone(), first, spoken, more, self.gate.tasks.clone());
        let Ok(upstream) = Box::pin(upstream).await else {
            return (Treatment::Terminated, FlowEnd::UpstreamUnreachable, FlowReason::None);
        };
        let flow = Arc::new(Flow { id, caller, server, upstream, share, tunnels: TaskTracker::new() });
        let client = Watch::counting(client, opening.watched.clone());
        let gate = &self.gate;
        let exchange = |request| {
            let (gate, flow) = (gate.clone(), flow.clone());
            async move {
                let answered = gate.exchange(&flow, request).await;
                answered.inspect_err(|error| match error {
                    Broken::Client(_) | Broken::ClientLeft => tracing::debug!(flow = %flow.id, %error),
                    _ => tracing::warn!(flow = %flow.id, %error, "an exchange broke off"),
                })
            }
        };
        let serving = Box::pin(serve(client, self.manners(spoken.by_client), &gate.tasks, exchange));
        let served = tokio::select! {
            biased;
            served = serving => served,
            () = flow.upstream.idling() => Served::Broken,
        };
        let end = match served {
            Served::Closed => FlowEnd::Closed,
            Served::Unreadable | Served::Ambiguous(_) => FlowEnd::Unreadable,
            Served::Broken | Served::Flooded(_) => FlowEnd::Broken,
        };
        let reason = match served {
            Served::Flooded(_) => {
                self.calm_down(flow.share.clone());
                FlowReason::Flooded
            }
            _ => FlowReason::None,
        };
        gate.note_framing(&flow, served).await;
        flow.tunnels.close();
        let treatment = if flow.tunnels.is_empty() { Treatment::Terminated } else { Treatment::Opaque };
        flow.tunnels.wait().await;
        if flow.upstream.has_borrowed() {
            opening.borrowed.store(true, Ordering::Relaxed);
        }
        (treatment, end, reason)
    }

    /// The job's next connections wait, also if it has no other now.
    pub(super) fn calm_down(&self, share: Arc<Share>) {
        share.calm().flooded();
        let tasks = self.gate.tasks.clone();
        self.gate.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(FORGIVEN_AFTER) => {}
                () = tasks.retiring() => {}
            }
            drop(share);
        });
    }

    fn refused(&self, opening: &Opening, sni: Option<String>, end: FlowEnd) -> Ending {
        Ending {
            server: self.unproven(opening),
            sni,
            treatment: Treatment::Refused,
            end,
            reason: FlowReason::None,
        }
    }

    fn unproven(&self, opening: &Opening) -> ServerRecord<Masked<String>> {
        self.server(opening, &opening.destination.ip().to_string(), Proof::Unproven)
    }

    fn server(&self, opening: &Opening, name: &str, proof: Proof) -> ServerRecord<Masked<String>> {
        let address = opening.destination.ip().to_string();
        ServerRecord { address, port: opening.destination.port(), name: self.gate.masker.text(name), proof }
    }

    async fn record(&self, opening: Opening, ending: Ending) {
        let Ending { server, sni, treatment, end, reason } = ending;
        let record = FlowRecord {
            flow_id: opening.id,
            caller: opening.caller,
            server,
            sni: self.gate.masker.text(sni.as_deref().unwrap_or_default()),
            treatment,
            end,
            bytes_up: opening.watched.up(),
            bytes_down: opening.watched.down(),
            duration_us: u64::try_from(opening.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            connect: Some(self.accounts.connect(&opening.origin, opening.source.get().copied())),
            reason,
            borrowed: opening.borrowed.load(Ordering::Relaxed),
        };
        self.accounts.record(&opening.origin, record).await;
    }
}
