//! What a job might try around the hooks, beside connecting.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
};

use weir_ebpf::{action, reason, verdict};

use super::{
    scene::{Scene, destination, ip, verdicts},
    stage::{accept, is_idle, listen, port},
};

/// Who is called does not connect.
#[test]
fn connections_that_come_to_a_job_are_no_connects() {
    let scene = Scene::new();
    let mut server = scene.job.start(
        "made = socket.socket(); made.bind(('127.0.0.1', 0)); made.listen(); say(made.getsockname()[1])\n\
         link = made.accept()[0]; say(link.recv(5).decode()); link.close()",
    );
    let at: u16 = server.line().parse().unwrap();
    TcpStream::connect(("127.0.0.1", at)).unwrap().write_all(b"hello").unwrap();
    assert_eq!(server.line(), "hello");
    server.finish();
    scene.close(&[]);
}

/// `sendto(MSG_FASTOPEN)` names an address; on a connected socket it is not looked at.
#[test]
fn fast_open_to_elsewhere_on_a_passed_socket_goes_nowhere() {
    let scene = Scene::apart();
    let passed = listen("127.0.0.1:0");
    scene.hooks.set_destinations(&[destination("127.0.0.1", port(&passed), action::PASS)]).unwrap();
    let client = scene.job.start(&format!(
        "made = connect('127.0.0.1', {})\n\
         try: made.sendto(b'early', 0x20000000, ('127.0.0.1', {})); say('sent')\n\
         except OSError as e: say(errno.errorcode[e.errno])",
        port(&passed),
        port(&scene.server_v4)
    ));
    let (mut stream, _) = accept(&passed);
    // It goes where the socket is connected to, or is refused.
    if client.finish() == ["sent"] {
        let mut early = [0; 5];
        stream.read_exact(&mut early).unwrap();
        assert_eq!(&early, b"early");
    }
    assert!(is_idle(&scene.server_v4) && is_idle(&scene.agent_v4));
    assert_eq!(verdicts(&scene.close(&[(verdict::PASSED, 1)])), [(verdict::PASSED, reason::PASS)]);
}

/// An address of another family than the socket's: the kernel refuses it, and it is no connect.
#[test]
fn address_of_another_family_is_no_connect() {
    let scene = Scene::new();
    let said = scene.job.run(&format!(
        "import ctypes\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         v4 = struct.pack('=H', 2) + struct.pack('>H', {}) + socket.inet_aton('127.0.0.1') + bytes(20)\n\
         v6 = struct.pack('=H', 10) + struct.pack('>HI', {}, 0) + bytes(15) + b'\\x01' + bytes(4)\n\
         for made, to in (make('::1'), v4), (make('127.0.0.1'), v6):\n\
         \x20   say(libc.connect(made.fileno(), to, 28), errno.errorcode[ctypes.get_errno()])",
        port(&scene.server_v4),
        port(&scene.server_v6)
    ));
    assert_eq!(said, ["-1 EAFNOSUPPORT"; 2]);
    scene.close(&[]);
}

/// A source route, in IPv4's options and IPv6's routing header, does not lead a redirected connection elsewhere: it fails, and the
/// connect is accounted for.
#[test]
fn source_routes_lead_nowhere_but_to_the_agent() {
    let scene = Scene::apart();
    let server = listen("127.0.0.9:0");
    let said = scene.job.run(&format!(
        "def told(made, to):\n\
         \x20   made.settimeout(0.3)\n\
         \x20   try: made.connect(to); return 'connected'\n\
         \x20   except OSError: return 'failed'\n\
         for kind in 131, 137:\n\
         \x20   made = make('127.0.0.1')\n\
         \x20   made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS,\n\
         \x20       bytes([kind, 7, 4]) + socket.inet_aton('127.0.0.9') + bytes([0]))\n\
         \x20   say(told(made, ('127.0.0.1', {})))",
        port(&server)
    ));
    assert_eq!(said.len(), 2);
    assert!(is_idle(&server), "the server was reached past the agent");
    let counts = scene.hooks.counts().unwrap();
    assert_eq!(counts.redirected + counts.unanswered, 2);
    while !is_idle(&scene.agent_v4) {
        scene.take(accept(&scene.agent_v4).1);
    }
    scene.close(&[(verdict::REDIRECTED, counts.redirected), (verdict::UNANSWERED, counts.unanswered)]);
}

/// The scope is not in the hook's sight: the record has the address without it.
#[test]
fn link_local_destination_is_led_to_the_agent_without_its_scope() {
    let scene = Scene::apart();
    ip(&["link", "add", "away", "type", "veth", "peer", "name", "far"]);
    ip(&["link", "set", "far", "up"]);
    ip(&["link", "set", "away", "up"]);
    let client = scene.job.start(
        "made = make('fe80::1'); made.connect(('fe80::1', 443, 0, socket.if_nametoindex('away')))\n\
         say(made.getpeername()[0].split('%')[0])",
    );
    let (_stream, origin) = scene.accept(&scene.agent_v6);
    assert_eq!(origin.destination, "[fe80::1]:443".parse().unwrap());
    assert_eq!(client.finish(), ["fe80::1"]);
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

/// An unprivileged job cannot take the agent's mark: it lies in a table that it has no way to.
#[test]
fn listener_of_a_job_at_the_agents_address_gets_nothing() {
    let scene = Scene::new();
    // The agent is gone; the very address is bound again, on the device too.
    let at = scene.agent_v4.local_addr().unwrap();
    nix::sys::socket::shutdown(scene.agent_v4.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    let mut squatter = scene.job.start(&format!(
        "made = socket.socket(); made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
         made.bind(('127.0.0.1', {})); made.listen(); made.setblocking(False); say('open'); wait()\n\
         try: made.accept(); say('came')\n\
         except BlockingIOError: say('nobody')",
        at.port()
    ));
    assert_eq!(squatter.line(), "open");
    assert_eq!(scene.job.attempt("127.0.0.1", port(&scene.server_v4)), "ECONNREFUSED");
    squatter.go_on();
    assert_eq!(squatter.finish(), ["nobody"]);
    assert_eq!(verdicts(&scene.close(&[(verdict::REFUSED, 1)])), [(verdict::REFUSED, reason::NO_AGENT)]);
}
