//! What does not come to the agent as a connection, and is told: with room in the ring, and without.

use std::os::fd::AsFd;

use weir::kernel::Plan;
use weir_ebpf::{CONNECTS_BYTES, FlowOrigin, action, reason, verdict};

use super::{
    scene::{Scene, destination, verdicts},
    stage::{accept, is_idle, listen, port, silent, until, v4, v6},
};

/// Bytes of an event in the ring: its head is 8 (`ringbuf.rst`).
const EVENT: u64 = (8 + size_of::<FlowOrigin>()).next_multiple_of(8) as u64;
/// How many events the ring can hold: its last byte is never used.
const ROOM: u64 = (CONNECTS_BYTES as u64 - 1) / EVENT;

#[test]
fn loopback_port_without_a_listener_is_told_of_as_unanswered() {
    let scene = Scene::new();
    let (nobody_v4, nobody_v6) = (silent("127.0.0.1:0").port(), silent("[::1]:0").port());
    for (address, port) in [
        ("127.0.0.1", nobody_v4),
        ("127.9.9.9", nobody_v4),
        ("0.0.0.0", nobody_v4),
        ("::ffff:127.0.0.1", nobody_v4),
        ("::ffff:127.9.9.9", nobody_v4),
        ("::1", nobody_v6),
        ("::", nobody_v6),
    ] {
        assert_eq!(scene.job.attempt(address, port), "ECONNREFUSED", "{address}");
    }
    let told = scene.close(&[(verdict::UNANSWERED, 7)]);
    assert_eq!(verdicts(&told), [(verdict::UNANSWERED, reason::NONE); 7]);
}

#[test]
fn connection_reset_before_it_is_accepted_is_told_of_as_withdrawn() {
    let scene = Scene::new();
    for (address, port) in [("127.0.0.1", port(&scene.server_v4)), ("::1", port(&scene.server_v6))] {
        scene.job.run(&format!(
            "made = connect('{address}', {port})\n\
             made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); made.close()"
        ));
    }
    let told = scene.close(&[(verdict::REDIRECTED, 2)]);
    assert_eq!(verdicts(&told), [(verdict::REDIRECTED, reason::WITHDRAWN); 2]);
    for listener in [&scene.agent_v4, &scene.agent_v6] {
        assert_eq!(scene.take(accept(listener).1), None);
    }
}

/// The agent's queue is full: the connection stays in SYN_SENT until its owner gives it up.
#[test]
fn connection_given_up_before_it_is_established_is_told_of_as_withdrawn() {
    let scene = Scene::new();
    nix::sys::socket::listen(&scene.agent_v4, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let mut client = scene.job.start(&format!(
        "first = connect('127.0.0.1', {0})\n\
         second = make('127.0.0.1'); second.setblocking(False); second.connect_ex(('127.0.0.1', {0})); say('sent')\n\
         wait(); second.close()",
        port(&scene.server_v4)
    ));
    assert_eq!(client.line(), "sent");
    assert_eq!(scene.hooks.pending().unwrap().len(), 2);
    client.go_on();
    client.finish();
    until("the second origin is gone", || scene.hooks.pending().unwrap().len() == 1);
    scene.accept(&scene.agent_v4);
    let told = scene.close(&[(verdict::REDIRECTED, 2)]);
    assert_eq!(verdicts(&told), [(verdict::REDIRECTED, reason::WITHDRAWN)]);
}

/// A socket that was led to the agent once, is passed now, and shares its port with a connection on its way to the agent.
#[test]
fn reset_of_a_passed_connection_withdraws_nobody_elses_origin() {
    let scene = Scene::new();
    let passed = listen("127.0.0.1:0");
    scene.hooks.set_destinations(&[destination("127.0.0.1", port(&passed), action::PASS)]).unwrap();
    let mut client = scene.job.start(&format!(
        "{}def bound(at):\n\
         \x20   made = make('127.0.0.1'); made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); made.bind(at)\n\
         \x20   return made\n\
         made = bound(('127.0.0.1', 0)); at = made.getsockname(); made.connect(('127.0.0.1', {server})); wait()\n\
         dissolve(made); made.connect(('127.0.0.1', {passed}))\n\
         other = bound(at); other.connect(('127.0.0.1', {server}))\n\
         made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); made.close(); say('reset'); wait()",
        super::names::DISSOLVE,
        server = port(&scene.server_v4),
        passed = port(&passed),
    ));
    let (_first, first) = scene.accept(&scene.agent_v4);
    client.go_on();
    accept(&passed);
    assert_eq!(client.line(), "reset");
    assert_eq!(scene.hooks.pending().unwrap().len(), 1);
    let (_second, second) = scene.accept(&scene.agent_v4);
    assert_eq!(first.source, second.source);
    client.go_on();
    client.finish();
    let told = scene.close(&[(verdict::REDIRECTED, 2), (verdict::PASSED, 1)]);
    assert_eq!(verdicts(&told), [(verdict::PASSED, reason::PASS)]);
}

#[test]
fn connect_for_which_the_table_has_no_room_is_told_of_as_failed() {
    let scene = Scene::with(Plan { pending_room: 2, ..Plan::default() });
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    let mut holder = scene
        .job
        .start(&format!("held = [connect('127.0.0.1', {p4}) for _ in range(2)]; say('held'); wait()"));
    assert_eq!(holder.line(), "held");
    for (address, port) in [("127.0.0.1", p4), ("::ffff:127.0.0.1", p4), ("::1", p6)] {
        assert_eq!(scene.job.attempt(address, port), "EHOSTUNREACH");
    }
    for _ in 0..2 {
        scene.accept(&scene.agent_v4);
    }
    holder.go_on();
    holder.finish();
    let told = scene.close(&[(verdict::REDIRECTED, 2), (verdict::FAILED, 3)]);
    assert_eq!(verdicts(&told), [(verdict::FAILED, reason::NONE); 3]);
}

#[test]
fn what_the_ring_has_no_room_for_is_counted_as_lost_under_its_verdict() {
    const MORE: u64 = 77;
    let scene = Scene::new();
    scene.hooks.set_destinations(&[destination("127.0.0.2", 0, action::DENY)]).unwrap();
    scene.job.run(&format!(
        "for _ in range({}):\n\
         \x20   with make('127.0.0.2') as made: assert made.connect_ex(('127.0.0.2', 9)) == errno.EPERM",
        ROOM + MORE
    ));
    // Of another verdict.
    assert_eq!(scene.job.attempt("127.0.0.1", silent("127.0.0.1:0").port()), "ECONNREFUSED");
    let lost = scene.hooks.jobs().unwrap()[&scene.id()].lost;
    let mut expected = [0; verdict::KINDS as usize];
    expected[usize::from(verdict::REFUSED)] = MORE;
    expected[usize::from(verdict::UNANSWERED)] = 1;
    assert_eq!(lost, expected);
    let told = scene.close(&[(verdict::REFUSED, ROOM + MORE), (verdict::UNANSWERED, 1)]);
    assert_eq!(told.len() as u64, ROOM);
    // Read, it has room again, and what was lost stays lost.
    assert_eq!(scene.job.attempt("127.0.0.2", 9), "EPERM");
    assert_eq!(scene.told().len() as u64, ROOM + 1);
    assert_eq!(scene.hooks.jobs().unwrap()[&scene.id()].lost, expected);
}

#[test]
fn datagrams_and_sockets_do_not_take_the_room_of_connects() {
    let scene = Scene::new();
    scene
        .hooks
        .set_destinations(&[
            destination("127.0.0.1", 443, action::INTERCEPT),
            destination("127.0.0.2", 0, action::DENY),
        ])
        .unwrap();
    let theirs = (u64::from(CONNECTS_BYTES) / 2).div_ceil(EVENT);
    let sent = theirs + 1000;
    scene.job.run(&format!(
        "made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         def refused(attempt):\n\
         \x20   try: attempt()\n\
         \x20   except PermissionError: return True\n\
         for _ in range({sent}): assert refused(lambda: made.sendto(b'x', ('127.0.0.1', 443)))\n\
         for _ in range(10): assert refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))\n\
         for _ in range(1000): assert refused(lambda: make('127.0.0.2').connect(('127.0.0.2', 9)))"
    ));
    let told = scene.close(&[(verdict::DATAGRAM, sent), (verdict::SOCKET, 10), (verdict::REFUSED, 1000)]);
    let of = |verdict| told.iter().filter(|told| told.verdict == verdict).count() as u64;
    assert_eq!((of(verdict::DATAGRAM), of(verdict::SOCKET), of(verdict::REFUSED)), (theirs, 0, 1000));
}

/// The agent's listener is gone, or another has its port: the failure mode decides, for each kind of destination.
#[test]
fn without_the_agents_listener_the_failure_mode_decides() {
    let scene = Scene::new();
    let read = listen("127.0.0.1:0");
    scene.hooks.set_destinations(&[destination("127.0.0.1", port(&read), action::INTERCEPT)]).unwrap();
    let squatters = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let gone = silent("127.0.0.1:0");
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    let Scene { hooks, job, .. } = &scene;
    let std::net::SocketAddr::V4(gone) = gone else { unreachable!() };
    for v4 in [gone, v4(&squatters.0)] {
        hooks.listen(hooks.netns_cookie(), v4, v6(&squatters.1)).unwrap();
        for (errno, number) in [("ECONNREFUSED", 111), ("ENETUNREACH", 101)] {
            hooks.change_settings(|settings| settings.errno = number).unwrap();
            assert_eq!(job.attempt("127.0.0.1", p4), errno);
            assert_eq!(job.attempt("::1", p6), errno);
        }
        // What is relayed may pass, what is read may not.
        hooks.change_settings(|settings| settings.open_actions = 1 << action::RELAY).unwrap();
        assert_eq!(job.attempt("127.0.0.1", p4), "ok");
        accept(&scene.server_v4);
        assert_eq!(job.attempt("127.0.0.1", port(&read)), "ENETUNREACH");
        hooks.change_settings(|settings| settings.open_actions = 0).unwrap();
    }
    assert!(is_idle(&squatters.0) && is_idle(&squatters.1) && is_idle(&read));
    let told = scene.close(&[(verdict::REFUSED, 10), (verdict::PASSED, 2)]);
    assert!(told.iter().all(|told| told.reason == reason::NO_AGENT));
    // The agent is back.
    hooks.mark_listener(squatters.0.as_fd()).unwrap();
    assert_eq!(job.attempt("127.0.0.1", p4), "ok");
    scene.accept(&squatters.0);
    scene.close(&[(verdict::REFUSED, 10), (verdict::PASSED, 2), (verdict::REDIRECTED, 1)]);
}

#[test]
fn network_namespace_without_listeners_is_refused_and_told_of() {
    let scene = Scene::new();
    let said = scene.job.run(
        "libc = __import__('ctypes').CDLL(None, use_errno=True)\n\
         assert libc.unshare(0x40000000) == 0\n\
         os.system('ip link set lo up')\n\
         server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen()\n\
         say(attempt('127.0.0.1', server.getsockname()[1]), attempt('192.0.2.1', 443), attempt('2001:db8::1', 443))\n\
         say(attempt('127.0.0.1', 9))",
    );
    assert_eq!(said, ["ECONNREFUSED ECONNREFUSED ECONNREFUSED", "ECONNREFUSED"]);
    let told = scene.close(&[(verdict::REFUSED, 3), (verdict::UNANSWERED, 1)]);
    let refused = (verdict::REFUSED, reason::NO_LISTENER);
    assert_eq!(verdicts(&told), [refused, refused, refused, (verdict::UNANSWERED, reason::NONE)]);
    assert!(told.iter().all(|told| told.netns_cookie != scene.hooks.netns_cookie()));
}

/// A socket keeps the network namespace in which it was made, whatever its process does.
#[test]
fn socket_made_in_another_network_namespace_is_led_to_the_listener_there() {
    let scene = Scene::new();
    let client = scene.job.start(&format!(
        "made = make('127.0.0.1')\n\
         assert __import__('ctypes').CDLL(None).unshare(0x40000000) == 0\n\
         made.connect(('127.0.0.1', {}))",
        port(&scene.server_v4)
    ));
    let (_stream, origin) = scene.accept(&scene.agent_v4);
    assert_eq!(origin.netns_cookie, scene.hooks.netns_cookie());
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}
