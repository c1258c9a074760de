//! The hooks, on the running kernel: real cgroups, real processes in them, real connections over loopback.
//!
//! Needs root. Run by `cargo nextest run -p weir --test kernel`.

#[path = "kernel/links.rs"]
mod links;
#[path = "kernel/origins.rs"]
mod origins;
#[path = "kernel/stage.rs"]
mod stage;

use std::{
    io::{IoSliceMut, Write},
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
    time::Duration,
};

use weir::kernel::{Counts, Hooks, KernelError, Plan};
use weir_ebpf::{action, reason, verdict};

use self::stage::{Job, Process, Stage, accept, is_idle, listen, port, silent, v4, v6};

#[test]
fn v4_connect_is_led_to_the_agent_with_its_origin() {
    let stage = Stage::new();
    let server = stage.server_v4.local_addr().unwrap();
    let mut client = stage.job.start(&format!(
        "os.setgid(12345); os.setuid(23456)\n\
         made = connect('127.0.0.1', {}); say(made.recv(9).decode())",
        server.port()
    ));
    let (mut stream, origin) = stage.accept(&stage.agent_v4);
    let origin = origin.unwrap();
    assert_eq!(origin.destination, server);
    assert_eq!((origin.tgid, origin.tid), (client.id(), client.id()));
    assert_eq!((origin.uid, origin.gid), (23456, 12345));
    assert_eq!(origin.cgroup_id, stage.job.cgroup.id().unwrap());
    assert!(origin.comm.starts_with("python"), "{}", origin.comm);
    assert!(started(client.id()) <= origin.connected_at, "connected before it was started");
    stream.write_all(b"the agent").unwrap();
    assert_eq!(client.line(), "the agent");
    assert!(is_idle(&stage.server_v4), "the server was reached past the agent");
    client.finish();
}

#[test]
fn v6_connect_is_led_to_the_v6_listener() {
    let stage = Stage::new();
    let client = stage.job.start(&format!("connect('::1', {})", port(&stage.server_v6)));
    let (_stream, origin) = stage.accept(&stage.agent_v6);
    assert_eq!(origin.unwrap().destination, stage.server_v6.local_addr().unwrap());
    client.finish();
}

#[test]
fn v4_mapped_connect_is_led_to_the_v4_listener_and_shown_as_v4() {
    let stage = Stage::new();
    let server = stage.server_v4.local_addr().unwrap();
    let client = stage.job.start(&format!("connect('::ffff:127.0.0.1', {})", server.port()));
    let (_stream, origin) = stage.accept(&stage.agent_v4);
    assert_eq!(origin.unwrap().destination, server);
    client.finish();
}

#[test]
fn unspecified_destination_is_recorded_as_the_loopback_that_it_means() {
    let stage = Stage::new();
    let (p4, p6) = (port(&stage.server_v4), port(&stage.server_v6));
    let mut client = stage.job.start(&format!(
        "connect('0.0.0.0', {p4}); wait(); connect('::ffff:0.0.0.0', {p4}); wait(); connect('::', {p6})"
    ));
    for (listener, destination) in [
        (&stage.agent_v4, stage.server_v4.local_addr().unwrap()),
        (&stage.agent_v4, stage.server_v4.local_addr().unwrap()),
        (&stage.agent_v6, stage.server_v6.local_addr().unwrap()),
    ] {
        let (_stream, origin) = stage.accept(listener);
        assert_eq!(origin.unwrap().destination, destination);
        client.go_on();
    }
    client.finish();
}

/// In a network namespace without a route, so that a connect which is not led here goes nowhere.
#[test]
fn destination_beyond_this_host_is_led_to_the_agent() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.unwrap().success());
    let stage = Stage::new();
    for (address, listener) in [
        ("192.0.2.1", &stage.agent_v4),
        ("2001:db8::1", &stage.agent_v6),
        ("::ffff:192.0.2.1", &stage.agent_v4),
    ] {
        let client = stage.job.start(&format!("connect('{address}', 443)"));
        let (_stream, origin) = stage.accept(listener);
        let expected = SocketAddr::new(address.parse().unwrap(), 443);
        assert_eq!(origin.unwrap().destination.ip(), expected.ip().to_canonical());
        client.finish();
    }
}

#[test]
fn own_ports_are_refused_in_every_form_of_loopback() {
    let store = listen("0.0.0.0:0");
    let stage = Stage::with(&[port(&store)], 64);
    let v4 = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0"];
    let v6 = ["::1", "::"];
    let (store_port, v4_port, v6_port) = (port(&store), port(&stage.agent_v4), port(&stage.agent_v6));
    let said = stage.job.run(&format!(
        "for addresses, ports in ({v4:?}, [{store_port}, {v4_port}]), ({v6:?}, [{store_port}, {v6_port}]):\n\
         \x20   for address in addresses:\n\
         \x20       for port in ports: say(attempt(address, port), address, port)"
    ));
    assert_eq!(said.len(), 2 * (v4.len() + v6.len()));
    assert!(said.iter().all(|line| line.starts_with("EPERM ")), "{said:?}");
    let refused = said.len() as u64;
    assert!([&store, &stage.agent_v4, &stage.agent_v6].into_iter().all(is_idle));
    assert_eq!(stage.counts(), Counts { refused, ..Counts::default() });
}

#[test]
fn a_server_may_have_the_agents_number_in_the_other_family() {
    let stage = Stage::new();
    let beside_v6 = listen(&format!("127.0.0.1:{}", port(&stage.agent_v6)));
    let beside_v4 = listen(&format!("[::1]:{}", port(&stage.agent_v4)));
    for (server, listener) in [(&beside_v6, &stage.agent_v4), (&beside_v4, &stage.agent_v6)] {
        let address = server.local_addr().unwrap();
        let client = stage.job.start(&format!("connect('{}', {})", address.ip(), address.port()));
        let (_stream, origin) = stage.accept(listener);
        assert_eq!(origin.unwrap().destination, address);
        client.finish();
    }
    assert_eq!(stage.counts(), Counts { redirected: 2, ..Counts::default() });
}

#[test]
fn exempt_socket_in_a_selected_cgroup_is_left_alone() {
    let stage = Stage::new();
    let server = port(&stage.server_v4);
    let path = std::env::temp_dir().join(format!("weir-exempt-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let inbox = UnixListener::bind(&path).unwrap();
    let mut client = stage.job.start(&format!(
        "made = make('127.0.0.1')\n\
         post = socket.socket(socket.AF_UNIX); post.connect({path:?}); socket.send_fds(post, [b'x'], [made.fileno()])\n\
         wait(); made.connect(('127.0.0.1', {server}))"
    ));
    let socket = received_socket(&inbox.accept().unwrap().0);
    std::fs::remove_file(&path).unwrap();
    stage.hooks.exempt(socket.as_fd()).unwrap();
    client.go_on();
    accept(&stage.server_v4);
    assert!(is_idle(&stage.agent_v4));
    assert_eq!(stage.counts(), Counts { exempt: 1, ..Counts::default() });
    client.finish();
}

#[test]
fn process_outside_the_selected_cgroup_is_not_redirected() {
    let stage = Stage::new();
    let script = format!("connect('127.0.0.1', {})", port(&stage.server_v4));
    let beside = Job::new();
    for client in [Process::outside(&script), beside.start(&script)] {
        accept(&stage.server_v4);
        client.finish();
    }
    assert!(is_idle(&stage.agent_v4));
    assert_eq!(stage.counts(), Counts::default());
}

#[test]
fn loopback_port_without_a_listener_refuses_as_without_weir() {
    let stage = Stage::new();
    let (nobody_v4, nobody_v6) = (silent("127.0.0.1:0").port(), silent("[::1]:0").port());
    for (address, port) in [("127.0.0.1", nobody_v4), ("::ffff:127.0.0.1", nobody_v4), ("::1", nobody_v6)] {
        assert_eq!(stage.job.attempt(address, port), "ECONNREFUSED", "{address}");
    }
    // A server that listens on one address only: the client that tries `localhost` finds it at its second try.
    assert_eq!(stage.job.attempt("::1", port(&stage.server_v4)), "ECONNREFUSED");
    assert_eq!(stage.job.attempt("127.0.0.1", port(&stage.server_v4)), "ok");
    assert_eq!(stage.counts(), Counts { unanswered: 4, redirected: 1, ..Counts::default() });
}

/// Whoever binds the port of an agent that is gone gets nothing.
#[test]
fn without_an_agent_connects_are_refused_or_pass_as_was_chosen() {
    let stage = Stage::new();
    let (server_v4, server_v6) = (port(&stage.server_v4), port(&stage.server_v6));
    let Stage { hooks, job, agent_v4, agent_v6, server_v4: server, .. } = &stage;
    let (at_v4, at_v6) = (agent_v4.local_addr().unwrap(), agent_v6.local_addr().unwrap());
    let squatters = {
        let impostor = |address: SocketAddr| {
            listen(&format!("{}:0", if address.is_ipv4() { "127.0.0.1" } else { "[::1]" }))
        };
        [impostor(at_v4), impostor(at_v6)]
    };
    hooks.listen(hooks.netns_cookie(), v4(&squatters[0]), v6(&squatters[1])).unwrap();
    let mut ring = hooks.connects().unwrap();
    for errno in ["ECONNREFUSED", "EHOSTUNREACH"] {
        let number = if errno == "ECONNREFUSED" { 111 } else { 113 };
        hooks.change_settings(|settings| settings.errno = number).unwrap();
        assert_eq!(job.attempt("127.0.0.1", server_v4), errno);
        assert_eq!(job.attempt("::1", server_v6), errno);
    }
    assert_eq!(stage.counts(), Counts { refused: 4, ..Counts::default() });
    hooks.change_settings(|settings| settings.open_actions = 1 << action::RELAY).unwrap();
    assert_eq!(job.attempt("127.0.0.1", server_v4), "ok");
    accept(server);
    assert_eq!(stage.counts(), Counts { refused: 4, passed: 1, ..Counts::default() });
    let told: Vec<_> =
        std::iter::from_fn(|| ring.take(hooks).unwrap()).map(|told| (told.verdict, told.reason)).collect();
    let refused = (verdict::REFUSED, reason::NO_AGENT);
    assert_eq!(told, [refused, refused, refused, refused, (verdict::PASSED, reason::NO_AGENT)]);
    assert!(squatters.iter().all(is_idle) && hooks.pending().unwrap().is_empty());
}

#[test]
fn too_many_own_ports_are_named_as_such() {
    let ports: Vec<u16> = (1..=300).collect();
    let loaded = Hooks::load(Plan { own_ports: &ports, ..Plan::default() });
    assert!(matches!(loaded, Err(KernelError::TooManyPorts(_))), "{loaded:?}");
}

#[test]
fn udp_is_left_alone() {
    let stage = Stage::new();
    let inbox = UdpSocket::bind("127.0.0.1:0").unwrap();
    inbox.set_read_timeout(Some(stage::PATIENCE)).unwrap();
    stage.job.run(&format!(
        "made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); made.connect(('127.0.0.1', {})); made.send(b'hi')",
        inbox.local_addr().unwrap().port()
    ));
    assert_eq!(inbox.recv(&mut [0; 8]).unwrap(), 2);
    assert_eq!(stage.counts(), Counts::default());
}

/// When a process was started, since boot: field 22 of `/proc/PID/stat`, in hundredths of a second.
fn started(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    Duration::from_millis(after_name.split_whitespace().nth(19).unwrap().parse::<u64>().unwrap() * 10)
}

/// The socket that a process sent over `post`.
fn received_socket(post: &UnixStream) -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut space = nix::cmsg_space!(RawFd);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(post.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    let Some(ControlMessageOwned::ScmRights(sent)) = message.cmsgs().unwrap().next() else {
        panic!("no socket came")
    };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(sent[0]) }
}
