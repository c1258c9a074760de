//! Connects and sends by io_uring: in the caller's own thread, in a worker, and in the thread that polls the queue.

use weir_ebpf::{action, verdict};

use super::{
    scene::{Scene, destination},
    stage::{is_idle, port},
};

/// A ring by system calls alone (io_uring.h); x86 keeps the order of the stores.
const RING: &str = r#"
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
SQPOLL, ASYNC = 2, 16
def address_of(data): return ctypes.addressof(ctypes.c_char.from_buffer(data))
def sockaddr(address, port):
    if ":" in address:
        return bytearray(struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + socket.inet_pton(socket.AF_INET6, address) + bytes(4))
    return bytearray(struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8))
class Ring:
    def __init__(self, flags=0):
        p = bytearray(120)
        struct.pack_into("=III", p, 8, flags, 0, 5000)
        self.fd = libc.syscall(425, 8, ctypes.c_void_p(address_of(p)))
        assert self.fd >= 0, ctypes.get_errno()
        self.flags = flags
        self.sq = struct.unpack_from("=IIIIIII", p, 40)
        self.cq = struct.unpack_from("=IIIIII", p, 80)
        entries, done = struct.unpack_from("=II", p, 0)
        size = max(self.sq[6] + entries * 4, self.cq[5] + done * 16)
        self.ring = mmap.mmap(self.fd, size, offset=0)
        self.sqes = mmap.mmap(self.fd, entries * 64, offset=0x10000000)
    def word(self, at): return struct.unpack_from("=I", self.ring, at)[0]
    def run(self, opcode, fd, address, length, offset, flags=0):
        tail = self.word(self.sq[1])
        place = tail & self.word(self.sq[2])
        self.sqes[place * 64:place * 64 + 64] = struct.pack("=BBHiQQI", opcode, flags, 0, fd, offset, address, length) + bytes(36)
        struct.pack_into("=I", self.ring, self.sq[6] + place * 4, place)
        struct.pack_into("=I", self.ring, self.sq[1], tail + 1)
        wake = 2 if self.flags & SQPOLL else 0
        assert libc.syscall(426, self.fd, 1, 1, 1 | wake, None, 0) >= 0, ctypes.get_errno()
        head = self.word(self.cq[0])
        result = struct.unpack_from("=i", self.ring, self.cq[5] + (head & self.word(self.cq[2])) * 16 + 8)[0]
        struct.pack_into("=I", self.ring, self.cq[0], head + 1)
        return result
    def socket(self, kind, flags=0): return self.run(45, socket.AF_INET, 0, 0, kind, flags)
    def connect(self, fd, address, port, flags=0):
        to = sockaddr(address, port)
        return self.run(16, fd, address_of(to), 0, len(to), flags)
    def send(self, fd, address, port, flags=0):
        to, data = sockaddr(address, port), bytearray(b"x")
        part = bytearray(struct.pack("=QQ", address_of(data), 1))
        message = bytearray(struct.pack("=QIIQQQQQ", address_of(to), len(to), 0, address_of(part), 1, 0, 0, 0))
        return self.run(9, fd, address_of(message), 1, 0, flags)
"#;

const WAYS: [&str; 3] = ["Ring(), 0", "Ring(), ASYNC", "Ring(SQPOLL), 0"];

#[test]
fn connects_by_io_uring_are_led_to_the_agent() {
    let scene = Scene::new();
    let (p4, p6) = (port(&scene.server_v4), port(&scene.server_v6));
    for way in WAYS {
        for (address, port, listener) in [
            ("127.0.0.1", p4, &scene.agent_v4),
            ("::ffff:127.0.0.1", p4, &scene.agent_v4),
            ("::1", p6, &scene.agent_v6),
        ] {
            let client = scene.job.start(&format!(
                "{RING}ring, flags = {way}\n\
                 made = make('{address}'); made.setblocking(True)\n\
                 say(ring.connect(made.fileno(), '{address}', {port}, flags)); say(made.getpeername()[1])"
            ));
            let (_stream, origin) = scene.accept(listener);
            assert_eq!((origin.tgid, origin.destination.port()), (client.id(), port), "{way}: {origin:?}");
            assert_eq!(client.finish(), ["0".to_owned(), port.to_string()], "{way}");
        }
    }
    assert!(is_idle(&scene.server_v4) && is_idle(&scene.server_v6));
    scene.close(&[(verdict::REDIRECTED, 9)]);
}

#[test]
fn socket_made_by_io_uring_is_the_jobs_in_other_hands() {
    let scene = Scene::new();
    for way in WAYS {
        let client = scene.job.start(&format!(
            "{RING}ring, flags = {way}\n\
             made = socket.socket(fileno=ring.socket(socket.SOCK_STREAM, flags))\n\
             open('{}/cgroup.procs', 'w').write(str(os.getpid())); made.connect(('127.0.0.1', {}))",
            scene.around.cgroup.path().display(),
            port(&scene.server_v4)
        ));
        assert_eq!(scene.accept(&scene.agent_v4).1.job, scene.id(), "{way}");
        client.finish();
    }
    scene.close(&[(verdict::REDIRECTED, 3)]);
}

#[test]
fn datagrams_and_refused_connects_by_io_uring_are_refused() {
    let scene = Scene::new();
    scene
        .hooks
        .set_destinations(&[
            destination("127.0.0.1", 443, action::INTERCEPT),
            destination("127.0.0.2", 0, action::DENY),
        ])
        .unwrap();
    for way in WAYS {
        let said = scene.job.run(&format!(
            "{RING}ring, flags = {way}\n\
             made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             say(ring.send(made.fileno(), '127.0.0.1', 443, flags))\n\
             say(ring.connect(made.fileno(), '127.0.0.1', 443, flags))\n\
             stream = socket.socket(); say(ring.connect(stream.fileno(), '127.0.0.2', 80, flags))\n\
             say(ring.socket(socket.SOCK_RAW, flags) < 0)"
        ));
        assert_eq!(said, ["-1", "-1", "-1", "True"], "{way}");
    }
    let told = scene.close(&[(verdict::DATAGRAM, 6), (verdict::REFUSED, 3)]);
    assert_eq!(told.len(), 9);
}
