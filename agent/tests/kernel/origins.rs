//! Where a connection came from, as long as it is kept: given once and to its own socket alone, and gone with a
//! connection that never is or that is dead; the table has its bound.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    time::Duration,
};

use weir::kernel::{Counts, Hooks, Plan};

use crate::stage::{Job, Stage, accept, is_idle, lead_to, listen, port, select, until};

#[test]
fn two_thousand_connects_each_get_their_own_origin() {
    const CLIENTS: u32 = 4;
    const EACH: u32 = 500;
    let stage = Stage::new();
    let servers: Vec<_> = (0..8).map(|_| listen("127.0.0.1:0")).collect();
    let ports: Vec<_> = servers.iter().map(port).collect();
    let script = format!(
        "for n in range({EACH}):\n\
         \x20   wanted = {ports:?}[n % 8]\n\
         \x20   made = connect('127.0.0.1', wanted)\n\
         \x20   made.sendall(struct.pack('>IH', os.getpid(), wanted)); made.close()"
    );
    let clients: Vec<_> = (0..CLIENTS).map(|_| stage.job.start(&script)).collect();
    for _ in 0..CLIENTS * EACH {
        let (mut stream, origin) = stage.accept(&stage.agent_v4);
        let origin = origin.expect("a redirected connection without an origin");
        let mut said = [0; 6];
        stream.read_exact(&mut said).unwrap();
        let [a, b, c, d, e, f] = said;
        assert_eq!(origin.tgid, u32::from_be_bytes([a, b, c, d]));
        assert_eq!(origin.destination.port(), u16::from_be_bytes([e, f]));
    }
    clients.into_iter().for_each(|client| drop(client.finish()));
    assert_eq!(stage.hooks.pending().unwrap(), []);
    assert_eq!(stage.counts(), Counts { redirected: u64::from(CLIENTS * EACH), ..Counts::default() });
}

#[test]
fn origin_is_given_once_and_to_nobody_else() {
    let stage = Stage::new();
    let client = stage.job.start(&format!("connect('127.0.0.1', {})", port(&stage.server_v4)));
    let (_stream, peer) = accept(&stage.agent_v4);
    let other = SocketAddr::new(peer.ip(), peer.port().wrapping_add(1));
    assert_eq!(stage.take(other), None);
    assert!(stage.take(peer).is_some());
    assert_eq!(stage.take(peer), None);
    client.finish();
}

#[test]
fn full_table_refuses_and_counts_as_failed() {
    let stage = Stage::with(&[], 2);
    let server = port(&stage.server_v4);
    let mut holder = stage
        .job
        .start(&format!("held = [connect('127.0.0.1', {server}) for _ in range(2)]; say('held'); wait()"));
    assert_eq!(holder.line(), "held");
    assert_eq!(stage.job.attempt("127.0.0.1", server), "EHOSTUNREACH");
    assert_eq!(stage.job.attempt("::ffff:127.0.0.1", server), "EHOSTUNREACH");
    assert_eq!(stage.job.attempt("::1", port(&stage.server_v6)), "EHOSTUNREACH");
    assert_eq!(stage.counts(), Counts { redirected: 2, failed: 3, ..Counts::default() });
    assert!(is_idle(&stage.server_v4) && is_idle(&stage.agent_v6));
    // With one taken there is room again.
    assert!(stage.accept(&stage.agent_v4).1.is_some());
    assert_eq!(stage.job.attempt("127.0.0.1", server), "ok");
    holder.go_on();
    holder.finish();
}

#[test]
fn connect_that_never_establishes_leaves_no_origin() {
    let job = Job::new();
    // Nobody accepts, and the queue holds one: the second connection stays in SYN_SENT.
    let agent = narrow_listener();
    let hooks = Hooks::load(Plan::default()).unwrap();
    lead_to(&hooks, &agent, &listen("[::1]:0"));
    select(&hooks, &job.cgroup);
    hooks.attach(job.cgroup.path()).unwrap();
    let server = listen("127.0.0.1:0");
    let mut client = job.start(&format!(
        "first = connect('127.0.0.1', {0})\n\
         second = make('127.0.0.1'); second.setblocking(False); second.connect_ex(('127.0.0.1', {0})); say('sent')\n\
         wait(); second.close(); say('closed'); wait()",
        port(&server)
    ));
    assert_eq!(client.line(), "sent");
    assert_eq!(hooks.pending().unwrap().len(), 2);
    client.go_on();
    assert_eq!(client.line(), "closed");
    until("the second origin is gone", || hooks.pending().unwrap().len() == 1);
    let (_stream, peer) = accept(&agent);
    assert!(hooks.take_origin(hooks.netns_cookie(), peer).unwrap().is_some());
    client.go_on();
    client.finish();
}

#[test]
fn connection_reset_before_it_is_accepted_takes_its_origin_with_it() {
    let stage = Stage::new();
    stage.job.run(&format!(
        "made = connect('127.0.0.1', {})\n\
         made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); made.close()",
        port(&stage.server_v4)
    ));
    until("the origin is gone", || stage.hooks.pending().unwrap().is_empty());
    assert_eq!(stage.counts().redirected, 1);
}

#[test]
fn connection_closed_in_order_keeps_its_origin_until_it_is_accepted() {
    let stage = Stage::new();
    assert_eq!(stage.job.attempt("127.0.0.1", port(&stage.server_v4)), "ok");
    assert!(stage.accept(&stage.agent_v4).1.is_some());
}

#[test]
fn sweep_removes_only_what_is_old() {
    let stage = Stage::new();
    assert_eq!(stage.job.attempt("127.0.0.1", port(&stage.server_v4)), "ok");
    assert_eq!(stage.hooks.sweep_pending(Duration::from_secs(3600)).unwrap(), []);
    assert_eq!(stage.hooks.sweep_pending(Duration::ZERO).unwrap().len(), 1);
    assert_eq!(stage.hooks.pending().unwrap(), []);
}

/// connect(AF_UNSPEC) dissolves a connection; the socket can then be connected to somewhere else.
#[test]
fn socket_that_is_used_again_gets_a_new_origin() {
    let stage = Stage::new();
    let other = listen("127.0.0.1:0");
    let mut client = stage.job.start(&format!(
        "import ctypes\n\
         made = connect('127.0.0.1', {})\n\
         assert ctypes.CDLL(None).connect(made.fileno(), bytes(16), 16) == 0\n\
         say('dissolved'); wait(); made.connect(('127.0.0.1', {}))",
        port(&stage.server_v4),
        port(&other)
    ));
    assert_eq!(client.line(), "dissolved");
    let (_reset, origin) = stage.accept(&stage.agent_v4);
    assert_eq!(origin, None, "the first connection is dead, and its origin with it");
    client.go_on();
    let (_stream, origin) = stage.accept(&stage.agent_v4);
    assert_eq!(origin.unwrap().destination, other.local_addr().unwrap());
    client.finish();
    assert_eq!(stage.counts(), Counts { redirected: 2, ..Counts::default() });
}

/// A listener whose queue holds one connection.
fn narrow_listener() -> TcpListener {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, socket};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    nix::sys::socket::listen(&socket, Backlog::new(0).unwrap()).unwrap();
    socket.into()
}
