//! Connects to private destinations, which wait until the agent has dialled: what the hooks do for that, with the test in the
//! agent's place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::mpsc::RecvTimeoutError;

use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use weir::kernel::{Hooks, Slot, Waiting, WaitingConnects};
use weir::netns::{Namespace, Opened};
use weir_ebpf::{HELD_SLOTS, counter, reason, verdict};

use super::stage::{self, Job, Net, Stage, until};
use super::{JOB, private_network};

/// All that a test needs: a job's namespace in which the agent listens, and one with a server.
struct Scene {
    stage: Stage,
    job: Job,
    jobs: Net,
    _servers: Net,
    server: Child,
    /// The server's.
    port: u16,
    opened: Opened,
    ring: AsyncFd<WaitingConnects>,
}

impl Scene {
    async fn new() -> Self {
        let mut stage = Stage::new().await;
        let job = Job::of(&stage.hooks);
        let (jobs, _servers, server, port) = private_network();
        stage.namespaces.register(jobs.pid(), JOB).await.unwrap();
        let opened = stage.opened.recv().await.unwrap();
        let ring = stage.hooks.waiting().unwrap().awaitable().unwrap();
        assert!(stage.hooks.waiting().is_none(), "there is one reader");
        Self { stage, job, jobs, _servers, server, port, opened, ring }
    }

    fn hooks(&self) -> &Hooks {
        &self.stage.hooks
    }

    fn namespace(&self) -> &Namespace {
        &self.opened.namespace
    }

    fn slot(&self, is_v6: bool, number: u32) -> Slot {
        Slot { netns_cookie: self.namespace().cookie(), is_v6, number }
    }

    /// A listener that answers nobody, offered there; and its port.
    async fn offer(&self, slot: Slot) -> (TcpListener, u16) {
        let address =
            if slot.is_v6 { IpAddr::from(Ipv6Addr::LOCALHOST) } else { IpAddr::from(Ipv4Addr::LOCALHOST) };
        let door = self.namespace().held_listener(address).await.unwrap();
        self.hooks().mark_listener(door.as_fd()).unwrap();
        let port = door.local_addr().unwrap().port();
        self.hooks().offer(slot, port).unwrap();
        (door, port)
    }

    /// Starts a connect to the server, which waits for as long as it takes or not at all.
    fn start(&self, address: &str, blocking: bool) -> Child {
        let (timeout, port) = (if blocking { "None" } else { "20" }, self.port);
        let family = if address.contains(':') { "AF_INET6" } else { "AF_INET" };
        let script = format!(
            "made = socket.socket(socket.{family})\n\
             made.settimeout({timeout})\n\
             try:\n    made.connect(('{address}', {port}))\n    print('ok')\n\
             except OSError as e:\n    print(errno.errorcode.get(e.errno, repr(e)))"
        );
        self.job.start(&self.jobs, &script)
    }

    /// The next connect that waits.
    async fn waiting(&mut self) -> Waiting {
        let next = async {
            loop {
                if let Some(waiting) = self.ring.get_mut().take() {
                    return waiting;
                }
                self.ring.readable().await.unwrap().clear_ready();
            }
        };
        tokio::time::timeout(stage::PATIENCE, next).await.expect("no connect waits")
    }

    /// A connect that goes to the usual listener, as all do that do not wait.
    async fn goes_the_usual_way(&self, address: &str) {
        let said = self.job.attempt(&self.jobs, address, self.port);
        let listener = &self.opened.listeners[usize::from(address == "fd77::2")];
        let (_stream, peer) = listener.accept().await.unwrap();
        assert_eq!(said, format!("ok {}", peer.port()));
        let origin = self.hooks().take_origin(self.namespace().cookie(), peer).unwrap().unwrap();
        assert_eq!((origin.verdict, origin.reason), (verdict::REDIRECTED, reason::NONE));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn said(child: Child) -> String {
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim_end().to_owned()
}

#[tokio::test]
async fn a_connect_to_a_private_destination_waits_until_it_is_let_in_or_its_listener_is_closed() {
    let mut scene = Scene::new().await;
    for (address, blocking) in [("10.77.0.2", true), ("fd77::2", false), ("::ffff:10.77.0.2", true)] {
        let slot = scene.slot(address == "fd77::2", HELD_SLOTS - 1);
        for is_let_in in [false, true] {
            let (door, port) = scene.offer(slot).await;
            let client = scene.start(address, blocking);
            let waiting = scene.waiting().await;
            assert_eq!((waiting.port, waiting.netns_cookie()), (port, slot.netns_cookie));
            let asked: IpAddr = address.parse().unwrap();
            assert_eq!(waiting.destination, (asked.to_canonical(), scene.port).into());
            assert!(scene.hooks().still_waits(&waiting).unwrap());
            assert_eq!(scene.hooks().offered(slot).unwrap(), None, "nobody else can have it");
            if is_let_in && address != "::ffff:10.77.0.2" {
                let own = if slot.is_v6 { "::1" } else { "127.0.0.1" };
                assert_eq!(scene.job.attempt(&scene.jobs, own, port), "EPERM", "it is the agent's own port");
            }
            // The one origin is under the client's end and this port alone.
            let elsewhere = scene.hooks().take_origin(slot.netns_cookie, waiting.client).unwrap();
            assert_eq!(elsewhere, None);
            let accepted = if is_let_in {
                Hooks::let_in(door.as_fd()).unwrap();
                Some(door.accept().await.unwrap())
            } else {
                None
            };
            let origin = scene.hooks().take_waiting(&waiting).unwrap().unwrap();
            assert_eq!((origin.verdict, origin.reason), (verdict::REDIRECTED, reason::HELD));
            drop(door);
            let expected = if is_let_in { "ok" } else { "ECONNREFUSED" };
            assert_eq!(said(client), expected);
            assert!(accepted.is_none_or(|(_, peer)| peer == waiting.client));
            assert!(!scene.hooks().still_waits(&waiting).unwrap());
        }
    }
    assert_eq!(scene.hooks().count(counter::NOT_HELD).unwrap(), 0);
}

#[tokio::test]
async fn what_finds_no_listener_to_wait_in_or_was_reached_lately_goes_the_way_of_all_others() {
    let mut scene = Scene::new().await;
    let (slot, cookie) = (scene.slot(false, 0), scene.namespace().cookie());
    scene.goes_the_usual_way("10.77.0.2").await;
    let (door, port) = scene.offer(slot).await;
    let first = scene.start("10.77.0.2", true);
    let waiting = scene.waiting().await;
    scene.goes_the_usual_way("10.77.0.2").await;
    scene.goes_the_usual_way("fd77::2").await;
    assert_eq!(scene.hooks().count(counter::NOT_HELD).unwrap(), 3);
    // It gives up.
    let mut told = scene.hooks().connects().unwrap();
    let mut first = first;
    first.kill().unwrap();
    first.wait().unwrap();
    until("it waits no more", || !scene.hooks().still_waits(&waiting).unwrap());
    let given_up = told.take(scene.hooks()).unwrap().unwrap();
    assert_eq!((given_up.verdict, given_up.reason), (verdict::REDIRECTED, reason::WITHDRAWN));
    assert_eq!(scene.hooks().take_waiting(&waiting).unwrap(), None);

    // What the agent dialled shortly before; and what it could not.
    scene.hooks().offer(slot, port).unwrap();
    let destination = waiting.destination;
    scene.hooks().reached(cookie, destination).unwrap();
    // Again and again: on an emulated kernel Python takes seconds to start.
    let (done, waits) = std::sync::mpsc::channel::<()>();
    let hooks = scene.stage.hooks.clone();
    let reaching = std::thread::spawn(move || {
        while waits.recv_timeout(std::time::Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout) {
            hooks.reached(cookie, destination).unwrap();
        }
    });
    scene.goes_the_usual_way("10.77.0.2").await;
    drop(done);
    reaching.join().unwrap();
    assert_eq!(scene.hooks().offered(slot).unwrap(), Some(port));
    scene.hooks().not_reached(cookie, destination).unwrap();
    let second = scene.start("10.77.0.2", false);
    assert_eq!(scene.waiting().await.port, port);
    drop(door);
    assert_eq!(said(second), "ECONNREFUSED");

    // Somebody else's listener, at the port of an agent that is gone.
    let strangers = scene.namespace().held_listener(Ipv4Addr::LOCALHOST.into()).await.unwrap();
    scene.hooks().offer(slot, strangers.local_addr().unwrap().port()).unwrap();
    scene.goes_the_usual_way("10.77.0.2").await;
    assert_eq!(scene.hooks().offered(slot).unwrap(), None);
    assert_eq!(told.take(scene.hooks()).unwrap().map(|told| told.reason), Some(reason::WITHDRAWN));
    assert_eq!(told.take(scene.hooks()).unwrap(), None);

    // With the namespace all that is offered in it goes.
    assert!(!scene.hooks().take_back(slot, port).unwrap());
    let (_door, port) = scene.offer(slot).await;
    assert!(!scene.hooks().take_back(slot, port ^ 1).unwrap(), "another agent's");
    scene.hooks().unlisten(cookie).unwrap();
    assert_eq!(scene.hooks().offered(slot).unwrap(), None);
}
