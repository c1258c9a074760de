//! The names of a connection's two ends: the client sees the server that it asked for, and the record the client as it was.

use weir_ebpf::{action, reason, verdict};

use super::{
    scene::{Scene, destination, verdicts},
    stage::{accept, is_idle, listen, port},
};

/// connect(AF_UNSPEC) dissolves a connection.
pub const DISSOLVE: &str = "import ctypes\n\
     def dissolve(made): assert ctypes.CDLL(None).connect(made.fileno(), bytes(16), 16) == 0\n";

#[test]
fn client_sees_the_server_that_it_asked_for() {
    let scene = Scene::new();
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    let cases = [
        ("127.0.0.1", p4, &scene.agent_v4),
        ("::ffff:127.0.0.1", p4, &scene.agent_v4),
        ("::1", p6, &scene.agent_v6),
    ];
    for (address, port, listener) in cases {
        let said = scene.job.start(&format!(
            "made = connect('{address}', {port}); say(*made.getpeername()[:2])\n\
             assert made.getsockname()[0] == '{address}'"
        ));
        let _stream = scene.accept(listener);
        assert_eq!(said.finish(), [format!("{address} {port}")]);
    }
    scene.close(&[(verdict::REDIRECTED, 3)]);
}

#[test]
fn client_of_mptcp_sees_the_server_that_it_asked_for() {
    let scene = Scene::new();
    let server = port(&scene.server_v4);
    let client = scene.job.start(&format!(
        "made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); made.connect(('127.0.0.1', {server}))\n\
         say(*made.getpeername())"
    ));
    let (_stream, origin) = scene.accept(&scene.agent_v4);
    assert_eq!((origin.destination.port(), origin.protocol), (server, 6));
    assert_eq!(client.finish(), [format!("127.0.0.1 {server}")]);
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

#[test]
fn socket_that_goes_elsewhere_shows_its_true_peer() {
    let scene = Scene::new();
    let passed = listen("127.0.0.1:0");
    scene.hooks.set_destinations(&[destination("127.0.0.1", port(&passed), action::PASS)]).unwrap();
    let mut client = scene.job.start(&format!(
        "{DISSOLVE}made = connect('127.0.0.1', {}); wait(); dissolve(made)\n\
         made.connect(('127.0.0.1', {})); say(*made.getpeername())",
        port(&scene.server_v4),
        port(&passed)
    ));
    let _first = scene.accept(&scene.agent_v4);
    client.go_on();
    accept(&passed);
    assert_eq!(client.finish(), [format!("127.0.0.1 {}", port(&passed))]);
    assert!(is_idle(&scene.agent_v4));
    let told = scene.close(&[(verdict::REDIRECTED, 1), (verdict::PASSED, 1)]);
    assert_eq!(verdicts(&told), [(verdict::PASSED, reason::PASS)]);
}

/// Made by a process that is not selected, connected by a child of it in the job, and then by itself.
#[test]
fn socket_that_leaves_the_job_shows_its_true_peer_and_leaves_no_origin() {
    let scene = Scene::new();
    let mut client = scene.around.start(&format!(
        "{DISSOLVE}made = make('127.0.0.1'); child = os.fork()\n\
         if not child:\n\
         \x20   open('{job}/cgroup.procs', 'w').write(str(os.getpid())); made.connect(('127.0.0.1', {server}))\n\
         \x20   os._exit(0)\n\
         assert os.waitpid(child, 0)[1] == 0; wait(); dissolve(made)\n\
         made.connect(('127.0.0.1', {server})); say(*made.getpeername()); wait()",
        job = scene.job.cgroup.path().display(),
        server = port(&scene.server_v4),
    ));
    let _first = scene.accept(&scene.agent_v4);
    client.go_on();
    accept(&scene.server_v4);
    assert_eq!(client.line(), format!("127.0.0.1 {}", port(&scene.server_v4)));
    assert_eq!(scene.hooks.pending().unwrap(), []);
    client.go_on();
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

#[test]
fn record_keeps_the_source_that_the_client_bound() {
    let scene = Scene::new();
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    for (bound, to, port, listener) in [
        ("127.0.0.9", "127.0.0.1", p4, &scene.agent_v4),
        ("::ffff:127.0.0.9", "::ffff:127.0.0.1", p4, &scene.agent_v4),
        ("::1", "::1", p6, &scene.agent_v6),
    ] {
        let client = scene.job.start(&format!(
            "made = make('{to}'); made.bind(('{bound}', 0)); say(made.getsockname()[1])\n\
             made.connect(('{to}', {port}))"
        ));
        let (stream, origin) = scene.accept(listener);
        let said: u16 = client.finish().concat().parse().unwrap();
        let address: std::net::IpAddr = bound.parse().unwrap();
        assert_eq!((origin.source.ip(), origin.source.port()), (address.to_canonical(), said));
        assert_eq!(origin.source.ip(), stream.peer_addr().unwrap().ip().to_canonical());
    }
    scene.close(&[(verdict::REDIRECTED, 3)]);
}

/// Loopback's address, which the redirect makes the kernel choose, says nothing about the client.
#[test]
fn record_says_no_source_address_that_the_client_did_not_bind() {
    let scene = Scene::new();
    let client = scene.job.start(&format!("connect('127.0.0.1', {})", port(&scene.server_v4)));
    let (stream, origin) = scene.accept(&scene.agent_v4);
    assert!(origin.source.ip().is_unspecified(), "{origin:?}");
    assert_eq!(origin.source.port(), stream.peer_addr().unwrap().port());
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

/// As the kernel does it: to where the socket is bound, and a v4-mapped one goes by IPv4. Each is tried without the hooks first.
#[test]
fn unspecified_destination_means_what_the_kernel_makes_of_it() {
    let scene = Scene::new();
    let server = listen("127.0.0.9:0");
    let port = port(&server);
    let any = listen(&format!("127.0.0.1:{port}"));
    for (bound, to, is_bounds) in [
        ("127.0.0.9", "0.0.0.0", true),
        ("::ffff:127.0.0.9", "::ffff:0.0.0.0", true),
        ("::ffff:127.0.0.9", "::", false),
        ("0.0.0.0", "0.0.0.0", false),
        ("::", "::ffff:0.0.0.0", false),
    ] {
        let script =
            format!("made = make('{to}'); made.bind(('{bound}', 0)); made.connect(('{to}', {port}))");
        let truth = scene.around.start(&script);
        accept(if is_bounds { &server } else { &any });
        truth.finish();
        let client = scene.job.start(&script);
        let (_stream, origin) = scene.accept(&scene.agent_v4);
        let meant = if is_bounds { &server } else { &any };
        assert_eq!(origin.destination, meant.local_addr().unwrap(), "{bound} to {to}");
        client.finish();
    }
    scene.close(&[(verdict::REDIRECTED, 5)]);
}
