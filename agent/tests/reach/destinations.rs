//! What becomes of a connect by where it goes.

use weir_ebpf::{action, flag, reason, verdict};

use super::{
    scene::{Scene, destination, id, selected, verdicts},
    stage::{accept, is_idle, listen, port},
};

const PASSED: (u8, u8) = (verdict::PASSED, reason::PASS);
const DENIED: (u8, u8) = (verdict::REFUSED, reason::DENIED);

#[test]
fn named_destinations_are_read_relayed_passed_or_denied() {
    let scene = Scene::new();
    let named = [action::INTERCEPT, action::RELAY, action::PASS, action::DENY];
    let servers: Vec<_> = named.iter().map(|_| listen("127.0.0.1:0")).collect();
    let table: Vec<_> = named
        .iter()
        .zip(&servers)
        .map(|(action, at)| destination("127.0.0.0/8", port(at), *action))
        .collect();
    scene.hooks.set_destinations(&table).unwrap();
    for address in ["127.0.0.1", "::ffff:127.0.0.1"] {
        for server in servers.get(..2).unwrap() {
            assert_eq!(scene.job.attempt(address, port(server)), "ok");
            assert_eq!(scene.accept(&scene.agent_v4).1.destination, server.local_addr().unwrap());
        }
        assert_eq!(scene.job.attempt(address, port(&servers[2])), "ok");
        accept(&servers[2]);
        assert_eq!(scene.job.attempt(address, port(&servers[3])), "EPERM");
    }
    assert!(servers.iter().all(is_idle));
    let told = scene.close(&[(verdict::REDIRECTED, 4), (verdict::PASSED, 2), (verdict::REFUSED, 2)]);
    assert_eq!(verdicts(&told), [PASSED, DENIED, PASSED, DENIED]);
    assert!(told.iter().all(|told| told.destination.ip().is_ipv4() && told.job == scene.id()));
}

#[test]
fn the_port_goes_before_the_prefix_and_the_longer_prefix_before_the_shorter() {
    let scene = Scene::new();
    let server = listen("0.0.0.0:0");
    let (named, other) = (port(&server), 7);
    scene
        .hooks
        .set_destinations(&[
            destination("127.0.0.0/8", 0, action::DENY),
            destination("127.1.0.0/16", 0, action::PASS),
            destination("127.1.1.0/24", 0, action::DENY),
            destination("127.2.0.0/16", 0, action::DENY),
            destination("127.0.0.0/8", named, action::PASS),
            destination("127.1.1.1", named, action::DENY),
        ])
        .unwrap();
    for (address, port, expected) in [
        ("127.5.5.5", other, DENIED),
        ("127.1.5.5", other, PASSED),
        ("127.1.1.5", other, DENIED),
        // A denied prefix without a port is not looked at where the port is named.
        ("127.2.0.1", named, PASSED),
        ("127.1.1.1", named, DENIED),
        ("127.1.1.2", named, PASSED),
    ] {
        scene.job.attempt(address, port);
        let told = scene.told();
        assert_eq!(told.last().map(|told| (told.verdict, told.reason)), Some(expected), "{address} {port}");
    }
    scene.close(&[(verdict::PASSED, 3), (verdict::REFUSED, 3)]);
}

#[test]
fn ipv6_prefix_does_not_cover_ipv4_and_the_reverse() {
    let scene = Scene::new();
    scene.hooks.set_destinations(&[destination("::/0", 0, action::DENY)]).unwrap();
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    assert_eq!(scene.job.attempt("::1", p6), "EPERM");
    for address in ["127.0.0.1", "::ffff:127.0.0.1"] {
        assert_eq!(scene.job.attempt(address, p4), "ok");
        scene.accept(&scene.agent_v4);
    }
    scene.hooks.set_destinations(&[destination("0.0.0.0/0", 0, action::DENY)]).unwrap();
    assert_eq!(scene.job.attempt("::1", p6), "ok");
    scene.accept(&scene.agent_v6);
    for address in ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::ffff:0.0.0.0"] {
        assert_eq!(scene.job.attempt(address, p4), "EPERM");
    }
    scene.close(&[(verdict::REDIRECTED, 3), (verdict::REFUSED, 5)]);
}

#[test]
fn strict_job_reaches_named_destinations_alone() {
    let scene = Scene::new();
    let named = listen("127.0.0.1:0");
    scene.hooks.select_cgroup(id(&scene.job), selected(scene.id(), flag::STRICT)).unwrap();
    scene.hooks.set_destinations(&[destination("127.0.0.1", port(&named), action::RELAY)]).unwrap();
    assert_eq!(scene.job.attempt("127.0.0.1", port(&named)), "ok");
    scene.accept(&scene.agent_v4);
    for (address, port) in [
        ("127.0.0.2", port(&named)),
        ("127.0.0.1", port(&scene.server_v4)),
        ("::1", port(&scene.server_v6)),
        ("192.0.2.1", 443),
    ] {
        assert_eq!(scene.job.attempt(address, port), "EPERM", "{address} {port}");
    }
    let said = scene.job.run(
        "made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         try: made.sendto(b'x', ('127.0.0.1', 53))\n\
         except OSError as e: say(errno.errorcode[e.errno])",
    );
    assert_eq!(said, ["EPERM"]);
    let told = scene.close(&[(verdict::REDIRECTED, 1), (verdict::REFUSED, 4), (verdict::DATAGRAM, 1)]);
    assert!(told.iter().all(|told| told.reason == reason::NOT_NAMED));
}

#[test]
fn what_is_not_named_can_be_denied_or_passed_for_all() {
    let scene = Scene::new();
    let server = port(&scene.server_v4);
    scene.hooks.change_settings(|settings| settings.unknown = action::DENY).unwrap();
    assert_eq!(scene.job.attempt("127.0.0.1", server), "EPERM");
    scene.hooks.change_settings(|settings| settings.unknown = action::PASS).unwrap();
    assert_eq!(scene.job.attempt("127.0.0.1", server), "ok");
    accept(&scene.server_v4);
    assert_eq!(verdicts(&scene.close(&[(verdict::REFUSED, 1), (verdict::PASSED, 1)])), [DENIED, PASSED]);
}
