//! Datagrams, and sockets that no hook could see into.

use std::net::UdpSocket;

use weir_ebpf::{action, reason, verdict};

use super::{
    scene::{Scene, destination, verdicts},
    stage::PATIENCE,
};

/// Says what each way to send to an address gives.
const SEND: &str = r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def told(send):
    try: send(); return "ok"
    except OSError as e: return errno.errorcode[e.errno]
def udp(address, protocol=0):
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM, protocol)
def many(made, address, port):
    if ":" in address: to = struct.pack("=H", 10) + struct.pack(">HI", port, 0) + socket.inet_pton(socket.AF_INET6, address) + bytes(4)
    else: to = struct.pack("=H", 2) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8)
    name, data = ctypes.create_string_buffer(to, len(to)), ctypes.create_string_buffer(b"x", 1)
    part = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), 1), 16)
    one = struct.pack("=QIIQQQQQQ", ctypes.addressof(name), len(to), 0, ctypes.addressof(part), 1, 0, 0, 0, 0)
    both = ctypes.create_string_buffer(one * 2, len(one) * 2)
    if libc.sendmmsg(made.fileno(), both, 2, 0) != 2: raise OSError(ctypes.get_errno(), "sendmmsg")
def ways(address, port):
    yield told(lambda: udp(address).connect((address, port)))
    yield told(lambda: udp(address).sendto(b"x", (address, port)))
    yield told(lambda: udp(address).sendmsg([b"x"], [], 0, (address, port)))
    yield told(lambda: many(udp(address), address, port))
"#;

#[test]
fn udp_to_intercepted_ports_is_refused_in_every_way_and_form() {
    let scene = Scene::new();
    scene
        .hooks
        .set_destinations(&[
            destination("0.0.0.0/0", 443, action::INTERCEPT),
            destination("::/0", 443, action::INTERCEPT),
        ])
        .unwrap();
    let addresses = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "::ffff:0.0.0.0"];
    let said = scene.job.run(&format!("{SEND}for address in {addresses:?}: say(*ways(address, 443))"));
    assert_eq!(said, ["EPERM EPERM EPERM EPERM"; 6]);
    let told = scene.close(&[(verdict::DATAGRAM, 24)]);
    assert_eq!(verdicts(&told), [(verdict::DATAGRAM, reason::NONE); 24]);
    assert!(told.iter().all(|told| told.protocol == 17 && told.destination.ip().is_loopback()), "{told:?}");
}

#[test]
fn other_udp_is_left_alone_and_not_counted() {
    let scene = Scene::apart();
    scene.hooks.set_destinations(&[destination("0.0.0.0/0", 443, action::INTERCEPT)]).unwrap();
    let inbox = UdpSocket::bind("127.0.0.1:53").unwrap();
    inbox.set_read_timeout(Some(PATIENCE)).unwrap();
    let said = scene.job.run(&format!(
        "{SEND}say(*ways('127.0.0.1', 53))\n\
         made = udp('127.0.0.1'); made.connect(('127.0.0.1', 53)); made.send(b'x')\n\
         say(told(lambda: made.sendto(b'x', ('127.0.0.1', 443))))"
    ));
    // A connected socket's sends to elsewhere are looked at, too.
    assert_eq!(said, ["ok ok ok ok", "EPERM"]);
    for _ in 0..5 {
        assert_eq!(inbox.recv(&mut [0; 8]).unwrap(), 1);
    }
    scene.close(&[(verdict::DATAGRAM, 1)]);
}

/// The kernel reads an IPv4 address of no family (AF_UNSPEC) as IPv4.
#[test]
fn udp_to_an_address_without_a_family_is_refused_too() {
    let scene = Scene::new();
    scene.hooks.set_destinations(&[destination("0.0.0.0/0", 443, action::INTERCEPT)]).unwrap();
    let said = scene.job.run(&format!(
        "{SEND}to = bytes(2) + struct.pack('>H', 443) + socket.inet_aton('127.0.0.1') + bytes(8)\n\
         made = udp('127.0.0.1')\n\
         sent = libc.sendto(made.fileno(), b'x', 1, 0, to, 16); say(sent, errno.errorcode[ctypes.get_errno()])"
    ));
    assert_eq!(said, ["-1 EPERM"]);
    scene.close(&[(verdict::DATAGRAM, 1)]);
}

/// An IPv6 socket can be given an IPv4 address as such, by connect and by send.
#[test]
fn udp_of_an_ipv6_socket_to_a_plain_ipv4_address_is_refused_too() {
    let scene = Scene::new();
    scene.hooks.set_destinations(&[destination("0.0.0.0/0", 443, action::INTERCEPT)]).unwrap();
    let said = scene.job.run(&format!(
        "{SEND}to = struct.pack('=H', 2) + struct.pack('>H', 443) + socket.inet_aton('127.0.0.1') + bytes(8)\n\
         made = udp('::1')\n\
         say(libc.sendto(made.fileno(), b'x', 1, 0, to, 16), errno.errorcode[ctypes.get_errno()])\n\
         say(libc.connect(made.fileno(), to, 16), errno.errorcode[ctypes.get_errno()])"
    ));
    assert_eq!(said, ["-1 EPERM"; 2]);
    scene.close(&[(verdict::DATAGRAM, 2)]);
}

#[test]
fn sockets_that_no_hook_sees_into_are_refused_at_their_creation() {
    let scene = Scene::new();
    let said = scene.job.run(
        "def made(*what):\n\
         \x20   try: socket.socket(*what); return 'ok'\n\
         \x20   except OSError as e: return errno.errorcode[e.errno]\n\
         for family in socket.AF_INET, socket.AF_INET6:\n\
         \x20   say(made(family, socket.SOCK_RAW, 255), made(family, socket.SOCK_RAW, socket.IPPROTO_ICMP),\n\
         \x20       made(family, socket.SOCK_RAW, socket.IPPROTO_TCP), made(family, socket.SOCK_DGRAM, 136))",
    );
    assert_eq!(said, ["EPERM EPERM EPERM EPERM"; 2]);
    let told = scene.close(&[(verdict::SOCKET, 8)]);
    assert_eq!(told.iter().map(|told| told.protocol).collect::<Vec<_>>(), [255, 1, 6, 136, 255, 1, 6, 136]);
}

/// SCTP, DCCP, L2TP and SMC over AF_INET: refused by the hook where the kernel has them, and by the kernel where it does not.
#[test]
fn protocols_beside_tcp_and_udp_give_no_socket() {
    let scene = Scene::new();
    let said = scene.job.run(
        "for what in ((5, 132), (1, 132), (6, 33), (2, 115), (1, 256)):\n\
         \x20   try: socket.socket(socket.AF_INET, *what); say('ok')\n\
         \x20   except OSError as e: say(errno.errorcode[e.errno])",
    );
    let refused = said.iter().filter(|said| *said == "EPERM").count() as u64;
    assert!(
        said.iter().all(|said| ["EPERM", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"].contains(&said.as_str())),
        "{said:?}"
    );
    scene.close(&[(verdict::SOCKET, refused)]);
}

#[test]
fn pings_are_left_alone() {
    let scene = Scene::apart();
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    scene.hooks.set_destinations(&[destination("127.0.0.1", 0, action::INTERCEPT)]).unwrap();
    let said = scene.job.run(
        "made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); made.settimeout(20)\n\
         made.connect(('127.0.0.1', 443)); made.send(struct.pack('>BBHHH', 8, 0, 0, 0, 1)); say(made.recv(64)[0])",
    );
    assert_eq!(said, ["0"]);
    scene.close(&[]);
}
