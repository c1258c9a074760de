//! Connects that wait: to a private destination one goes to a listener of its own, which drops the SYN until the destination is
//! dialled. Then the listener answers, or it is closed, and the client has its connection or its true ECONNREFUSED.
//!
//! Enters: a network namespace with the address at which the agent listens in there. Leaves: flows whose server is dialled
//! already, and records of connects that were refused. Must never: keep a client waiting without bound, or a namespace alive.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use weir_ebpf::reason;

use super::Interceptor;
use super::dial::{DialError, dial};
use crate::kernel::{Hooks, Slot, Waiting};
use crate::netns::Namespace;

/// How often it is looked whether a client has given up.
const LOOK: Duration = Duration::from_millis(50);
/// How often it is looked whether a connect has taken a listener and is not heard of: it never began, or the ring had no room.
const LOOK_FOR_UNHEARD: Duration = Duration::from_secs(1);
/// How long a client that is let in has to come, beyond twice the time for which it waited: its SYN comes again at ever longer
/// intervals.
const COMING: Duration = Duration::from_secs(5);
/// The same for one that may have begun to wait when another agent took this one's place.
const COMING_AT_THE_END: Duration = Duration::from_secs(1);
/// The pause after a listener could not be made.
const PAUSE: Duration = Duration::from_secs(1);

/// The listeners that wait to be told of a connect.
#[derive(Debug, Default)]
pub(super) struct Doors(Mutex<HashMap<Place, oneshot::Sender<Waiting>>>);

/// Names a listener: a namespace's cookie, whether it is of IPv6, and the port.
type Place = (u64, bool, u16);

impl Doors {
    fn places(&self) -> MutexGuard<'_, HashMap<Place, oneshot::Sender<Waiting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of another agent's listener nobody is told here.
    fn tell(&self, waiting: Waiting) {
        let place = (waiting.netns_cookie(), waiting.client.is_ipv6(), waiting.port);
        if let Some(told) = self.places().remove(&place) {
            // Whoever waited for it has gone another way by now, and lets it in.
            let _ = told.send(waiting);
        }
    }
}

/// One listener for one connect.
struct Door<'a> {
    listener: TcpListener,
    port: u16,
    place: Place,
    doors: &'a Doors,
    told: oneshot::Receiver<Waiting>,
}

impl Drop for Door<'_> {
    fn drop(&mut self) {
        self.doors.places().remove(&self.place);
    }
}

/// What became of a listener that was offered.
enum Taken {
    By(Waiting),
    /// Somebody has it, and was not heard of.
    Unheard,
    Retired,
    LetGo,
}

impl Interceptor {
    /// Reads which connects wait, until another agent does.
    pub(super) async fn hear_waiting(self: Arc<Self>) {
        let Some(ring) = self.hooks.waiting() else {
            tracing::error!("the ring of connects that wait is read already");
            return;
        };
        let Ok(mut ring) = ring.awaitable() else {
            tracing::error!("the ring of connects that wait cannot be waited for");
            return;
        };
        loop {
            while let Some(waiting) = ring.get_mut().take() {
                self.doors.tell(waiting);
            }
            tokio::select! {
                woken = ring.readable() => drop(woken.map(|mut woken| woken.clear_ready())),
                () = self.gate.tasks.retiring() => return,
            }
        }
    }

    /// Offers a listener there, and another when a connect had that one, until the namespace is let go or the agent retires.
    pub(super) async fn hold(self: Arc<Self>, namespace: Arc<Namespace>, address: IpAddr, number: u32) {
        let slot = Slot { netns_cookie: namespace.cookie(), is_v6: address.is_ipv6(), number };
        while !self.gate.tasks.is_retiring() {
            let mut door = match self.open_door(&namespace, address, slot).await {
                Ok(door) => door,
                Err(error) => {
                    tracing::debug!(%error, "connects to private destinations go without waiting");
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => continue,
                        () = namespace.let_go() => return,
                        () = self.gate.tasks.retiring() => return,
                    }
                }
            };
            let port = door.port;
            let taken = tokio::select! {
                told = &mut door.told => told.map_or(Taken::Unheard, Taken::By),
                () = self.unheard(slot, port) => Taken::Unheard,
                () = namespace.let_go() => Taken::LetGo,
                () = self.gate.tasks.retiring() => Taken::Retired,
            };
            match taken {
                Taken::By(waiting) => Box::pin(self.answer(door, waiting, &namespace)).await,
                Taken::Unheard => self.let_in_late(&door, &namespace, COMING).await,
                Taken::Retired => {
                    if !self.hooks.take_back(slot, port).unwrap_or(false) {
                        self.let_in_late(&door, &namespace, COMING_AT_THE_END).await;
                    }
                }
                Taken::LetGo => return,
            }
        }
    }

    async fn open_door(&self, namespace: &Namespace, address: IpAddr, slot: Slot) -> io::Result<Door<'_>> {
        let listener = namespace.held_listener(address).await?;
        let port = listener.local_addr()?.port();
        self.hooks.mark_listener(listener.as_fd()).map_err(io::Error::other)?;
        let (tell, told) = oneshot::channel();
        let place = (slot.netns_cookie, slot.is_v6, port);
        self.doors.places().insert(place, tell);
        let door = Door { listener, port, place, doors: &self.doors, told };
        // The last: from here on connects come.
        self.hooks.offer(slot, port).map_err(io::Error::other)?;
        Ok(door)
    }

    /// Resolves when the listener is not offered any more, and was not at the look before.
    async fn unheard(&self, slot: Slot, port: u16) {
        let mut was_gone = false;
        loop {
            tokio::time::sleep(LOOK_FOR_UNHEARD).await;
            let is_gone = self.hooks.offered(slot).is_ok_and(|offered| offered != Some(port));
            if is_gone && was_gone {
                return;
            }
            was_gone = is_gone;
        }
    }

    /// Dials for a client that waits, and lets it in or refuses it.
    async fn answer(self: &Arc<Self>, door: Door<'_>, waiting: Waiting, namespace: &Arc<Namespace>) {
        let began = Instant::now();
        let dialled = tokio::select! {
            dialled = self.dial_for(&waiting, namespace) => dialled,
            () = self.given_up(&waiting) => return,
            () = namespace.let_go() => return,
            () = self.gate.tasks.ending() => return,
        };
        let dialled = match dialled {
            Ok(dialled) => dialled,
            Err(fault) => {
                tracing::debug!(destination = %waiting.destination, ?fault, "a client that waited is refused");
                return self.refuse(door, &waiting, fault, namespace).await;
            }
        };
        if let Err(error) = Hooks::let_in(door.listener.as_fd()) {
            tracing::warn!(%error, "a client that waited cannot be let in");
            return self.refuse(door, &waiting, Fault::Other, namespace).await;
        }
        let within = 2 * began.elapsed() + COMING;
        let coming = async {
            loop {
                let (stream, peer) = door.listener.accept().await?;
                if is_same(peer, waiting.client) {
                    return Ok::<_, io::Error>((stream, peer));
                }
                self.admit(stream, peer, namespace, door.port, None);
            }
        };
        tokio::select! {
            came = tokio::time::timeout(within, coming) => match came {
                Ok(Ok((stream, peer))) => self.admit(stream, peer, namespace, door.port, Some(dialled)),
                Ok(Err(error)) => tracing::warn!(%error, "a client that waited cannot be accepted"),
                Err(_) => tracing::debug!("a client that waited did not come"),
            },
            () = self.given_up(&waiting) => {}
            () = namespace.let_go() => {}
            () = self.gate.tasks.ending() => {}
        }
    }

    /// The very dial that the flow would have made.
    async fn dial_for(&self, waiting: &Waiting, namespace: &Namespace) -> Result<TcpStream, Fault> {
        if namespace.leads_to_weir(waiting.destination, &self.own_ports) {
            return Err(Fault::Other);
        }
        let within = self.gate.limits.upstream_timeout;
        let dialled = dial(&self.hooks, namespace, waiting.destination, within).await;
        dialled.map_err(
            |error: DialError| {
                if error.is_refusal() { Fault::NobodyListens } else { Fault::Other }
            },
        )
    }

    /// Its origin first, so that the record is ours and not that of a connect that failed by itself.
    async fn refuse(&self, door: Door<'_>, waiting: &Waiting, fault: Fault, namespace: &Arc<Namespace>) {
        let taken = self.hooks.take_waiting(waiting);
        drop(door);
        match taken {
            Ok(Some(mut origin)) => {
                if matches!(fault, Fault::NobodyListens) {
                    origin.reason = reason::NOBODY_LISTENS;
                }
                let share = self.gate.shares.of(origin.cgroup_id);
                self.record_unreachable(namespace.clone(), origin, share).await;
            }
            // It gave up meanwhile, and the hooks told of that.
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "cannot look up a connection's origin"),
        }
    }

    /// Resolves when the client does not wait any more.
    async fn given_up(&self, waiting: &Waiting) {
        loop {
            tokio::time::sleep(LOOK).await;
            if !self.hooks.still_waits(waiting).unwrap_or(true) {
                return;
            }
        }
    }

    /// Lets in whoever may have the listener: the connection is one like any other, and what the client sees is as if it had not
    /// waited.
    async fn let_in_late(self: &Arc<Self>, door: &Door<'_>, namespace: &Arc<Namespace>, within: Duration) {
        if let Err(error) = Hooks::let_in(door.listener.as_fd()) {
            tracing::warn!(%error, "a listener answers nobody");
            return;
        }
        let coming = async {
            while let Ok((stream, peer)) = door.listener.accept().await {
                self.admit(stream, peer, namespace, door.port, None);
            }
        };
        tokio::select! {
            () = coming => {}
            () = tokio::time::sleep(within) => {}
            () = namespace.let_go() => {}
            () = self.gate.tasks.ending() => {}
        }
    }
}

/// Why a client that waited is refused.
#[derive(Debug, Clone, Copy)]
enum Fault {
    NobodyListens,
    Other,
}

fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}
