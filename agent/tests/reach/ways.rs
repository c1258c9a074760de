//! Ways to connect.

use weir_ebpf::{action, reason, verdict};

use super::{
    names::DISSOLVE,
    scene::{Scene, destination, ip, verdicts},
    stage::{accept, is_idle, port, silent},
};

/// `sys/socket.h`, `netinet/tcp.h`.
const NUMBERS: &str = "MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, IPPROTO_MPTCP, IP_FREEBIND, IP_TRANSPARENT = 0x20000000, 30, 262, 15, 19\n";

#[test]
fn connect_that_does_not_wait_is_led_to_the_agent() {
    let scene = Scene::new();
    let client = scene.job.start(&format!(
        "import select\n\
         made = make('127.0.0.1'); made.setblocking(False)\n\
         say(errno.errorcode[made.connect_ex(('127.0.0.1', {}))])\n\
         select.select([], [made], [], 20); say(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))",
        port(&scene.server_v4)
    ));
    let _stream = scene.accept(&scene.agent_v4);
    assert_eq!(client.finish(), ["EINPROGRESS", "0"]);
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

#[test]
fn socket_that_is_dissolved_and_connected_again_is_accounted_for_each_time() {
    let scene = Scene::new();
    let mut client = scene.job.start(&format!(
        "{DISSOLVE}made = make('127.0.0.1')\n\
         for _ in range(3):\n\
         \x20   made.connect(('127.0.0.1', {})); say('connected'); wait(); dissolve(made)",
        port(&scene.server_v4)
    ));
    // Twice taken by the agent, and once dissolved before.
    for taken in [true, false, true] {
        assert_eq!(client.line(), "connected");
        if taken {
            // The second one lies before the third, dead and without an origin.
            while scene.take(accept(&scene.agent_v4).1).is_none() {}
        }
        client.go_on();
    }
    client.finish();
    let told = scene.close(&[(verdict::REDIRECTED, 3)]);
    assert_eq!(verdicts(&told), [(verdict::REDIRECTED, reason::WITHDRAWN)]);
}

/// The first data goes with the SYN, by `sendto` or by the first write.
#[test]
fn tcp_fast_open_is_led_to_the_agent_with_its_data() {
    let scene = Scene::apart();
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    for (address, port, listener) in [
        ("127.0.0.1", p4, &scene.agent_v4),
        ("::ffff:127.0.0.1", p4, &scene.agent_v4),
        ("::1", p6, &scene.agent_v6),
    ] {
        for how in [
            format!("made.sendto(b'early', MSG_FASTOPEN, ('{address}', {port}))"),
            format!(
                "made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1); made.connect(('{address}', {port}))\n\
                 made.send(b'early')"
            ),
        ] {
            let client = scene.job.start(&format!(
                "{NUMBERS}made = make('{address}')\n{how}\n\
                 info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8); made.recv(1); say(info[5] >> 0 & 1)"
            ));
            let (mut stream, origin) = scene.accept(listener);
            assert_eq!(origin.destination.port(), port);
            let mut early = [0; 5];
            std::io::Read::read_exact(&mut stream, &mut early).unwrap();
            assert_eq!(&early, b"early");
            drop(stream);
            client.finish();
        }
    }
    assert!(is_idle(&scene.server_v4) && is_idle(&scene.server_v6));
    let sent_early = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    assert!(tcp_ext(&sent_early, "TCPFastOpenActive") >= 6, "no data went with a SYN");
    scene.close(&[(verdict::REDIRECTED, 6)]);
}

/// A counter of `/proc/net/netstat`.
fn tcp_ext(text: &str, name: &str) -> u64 {
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: ")).map(str::split_whitespace);
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    names.zip(values).find(|(found, _)| *found == name).unwrap().1.parse().unwrap()
}

/// Its connect succeeds, and no SYN goes out before the first write.
#[test]
fn fast_open_that_is_never_written_to_is_told_of_as_never_begun() {
    let scene = Scene::apart();
    scene.hooks.set_destinations(&[destination("127.0.0.2", 0, action::PASS)]).unwrap();
    scene.job.run(&format!(
        "{NUMBERS}{DISSOLVE}\
         def lazy(address='127.0.0.1', port={0}):\n\
         \x20   made = make(address); made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)\n\
         \x20   made.connect((address, port)); return made\n\
         lazy().close()\n\
         used = lazy(); dissolve(used); used.connect(('127.0.0.1', {0})); used.close()\n\
         gone = lazy(); dissolve(gone); attempt_gone = gone.connect_ex(('127.0.0.2', 9)); gone.close()\n\
         lazy('::1', {1})",
        port(&scene.server_v4),
        port(&scene.server_v6)
    ));
    assert!(is_idle(&scene.agent_v4) && is_idle(&scene.agent_v6));
    let told = scene.close(&[(verdict::REDIRECTED, 5), (verdict::PASSED, 1)]);
    let never = (verdict::REDIRECTED, reason::NEVER_BEGUN);
    let passed = (verdict::PASSED, reason::PASS);
    assert_eq!(verdicts(&told), [never, never, never, never, passed, never]);
}

/// A connect that the kernel itself refuses after the hook: the port is taken already on the way to the agent.
#[test]
fn connect_that_fails_before_its_syn_is_told_of_as_never_begun() {
    let scene = Scene::new();
    for kind in ["0", "IPPROTO_MPTCP"] {
        let client = scene.job.start(&format!(
            "{NUMBERS}def bound():\n\
             \x20   made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, {kind}); made.settimeout(20)\n\
             \x20   made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); return made\n\
             first, second = bound(), bound()\n\
             first.bind(('127.0.0.1', 0)); second.bind(first.getsockname())\n\
             first.connect(('127.0.0.1', {0})); say(errno.errorcode[second.connect_ex(('127.0.0.1', {0}))])",
            port(&scene.server_v4)
        ));
        let _stream = scene.accept(&scene.agent_v4);
        assert_eq!(client.finish(), ["EADDRNOTAVAIL"], "{kind}");
    }
    let told = scene.close(&[(verdict::REDIRECTED, 4)]);
    assert_eq!(verdicts(&told), [(verdict::REDIRECTED, reason::NEVER_BEGUN); 2]);
}

#[test]
fn mptcp_is_led_to_the_agent_in_both_families() {
    let scene = Scene::new();
    for (family, address, port, listener) in [
        ("AF_INET", "127.0.0.1", port(&scene.server_v4), &scene.agent_v4),
        ("AF_INET6", "::ffff:127.0.0.1", port(&scene.server_v4), &scene.agent_v4),
        ("AF_INET6", "::1", port(&scene.server_v6), &scene.agent_v6),
    ] {
        let client = scene.job.start(&format!(
            "{NUMBERS}made = socket.socket(socket.{family}, socket.SOCK_STREAM, IPPROTO_MPTCP)\n\
             made.settimeout(20); made.connect(('{address}', {port}))"
        ));
        assert_eq!(scene.accept(listener).1.destination.port(), port);
        client.finish();
    }
    let silent = silent("127.0.0.1:0").port();
    let said = scene.job.run(&format!(
        "{NUMBERS}made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)\n\
         say(errno.errorcode[made.connect_ex(('127.0.0.1', {silent}))])"
    ));
    assert_eq!(said, ["ECONNREFUSED"]);
    scene.close(&[(verdict::REDIRECTED, 3), (verdict::UNANSWERED, 1)]);
}

/// To what is beyond this namespace, which has no route there: what is not led to the agent goes nowhere.
#[test]
fn device_mark_and_bound_source_do_not_keep_a_connect_from_the_agent() {
    let scene = Scene::apart();
    ip(&["link", "add", "away", "type", "veth", "peer", "name", "far"]);
    ip(&["link", "set", "far", "up"]);
    ip(&["link", "set", "away", "up"]);
    ip(&["address", "add", "192.0.2.7/24", "dev", "away"]);
    ip(&["address", "add", "2001:db8::7/64", "dev", "away", "nodad"]);
    for (how, address, listener) in [
        (
            "made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'away')",
            "192.0.2.99",
            &scene.agent_v4,
        ),
        (
            "made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'away')",
            "2001:db8::99",
            &scene.agent_v6,
        ),
        ("made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 77)", "192.0.2.99", &scene.agent_v4),
        ("made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 77)", "2001:db8::99", &scene.agent_v6),
        ("made.bind(('192.0.2.7', 0))", "192.0.2.99", &scene.agent_v4),
        ("made.bind(('192.0.2.7', 5001))", "192.0.2.99", &scene.agent_v4),
        ("made.bind(('::ffff:192.0.2.7', 5002))", "::ffff:192.0.2.99", &scene.agent_v4),
        ("made.bind(('2001:db8::7', 5003))", "2001:db8::99", &scene.agent_v6),
        ("made.bind(('', 5004))", "192.0.2.99", &scene.agent_v4),
        ("made.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)", "192.0.2.99", &scene.agent_v4),
    ] {
        let client = scene.job.start(&format!(
            "{NUMBERS}made = make('{address}')\n{how}\nmade.connect(('{address}', 443)); made.recv(1)"
        ));
        let (stream, origin) = scene.accept(listener);
        let expected: std::net::IpAddr = address.parse().unwrap();
        assert_eq!(origin.destination, (expected.to_canonical(), 443).into(), "{how}");
        assert!(how.contains(&origin.source.port().to_string()) || !how.contains("500"), "{how}: {origin:?}");
        drop(stream);
        client.finish();
    }
    scene.close(&[(verdict::REDIRECTED, 10)]);
}

/// Marks, rules and foreign sources of one who may administer the network. None of them comes past the agent, though the
/// connect may then fail.
#[test]
fn routing_rules_and_foreign_sources_lead_nowhere_but_to_the_agent() {
    let scene = Scene::apart();
    ip(&["link", "add", "away", "type", "veth", "peer", "name", "far"]);
    ip(&["link", "set", "far", "up"]);
    ip(&["link", "set", "away", "up"]);
    ip(&["route", "add", "default", "dev", "away"]);
    ip(&["rule", "add", "fwmark", "77", "lookup", "77"]);
    ip(&["route", "add", "default", "dev", "away", "table", "77"]);
    let said = scene.job.run(&format!(
        "{NUMBERS}made = make('192.0.2.99'); made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 77)\n\
         made.connect(('192.0.2.99', 443)); say('marked')\n\
         for option in IP_FREEBIND, IP_TRANSPARENT:\n\
         \x20   made = make('192.0.2.99'); made.settimeout(0.2); made.setsockopt(socket.IPPROTO_IP, option, 1)\n\
         \x20   made.bind(('198.51.100.7', 0))\n\
         \x20   try: made.connect(('192.0.2.99', 443)); say('connected')\n\
         \x20   except OSError as e: say('failed')"
    ));
    assert_eq!(said, ["marked", "failed", "failed"]);
    scene.accept(&scene.agent_v4);
    assert!(is_idle(&scene.agent_v4));
    let told = scene.close(&[(verdict::REDIRECTED, 3)]);
    assert_eq!(told.len(), 2);
}
