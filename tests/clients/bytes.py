"""A client that sends bytes, whole or torn, and tells what came back: for what no library would send.

In: the path of a JSON file, a list of {"host", "port", "send": [texts, bytes as latin-1], "tls": null or {"name", "cut", "after", "then"},
"end": "fin", "rst" or "wait"}. Each is a connection of its own, one after the other. "tls" begins with a ClientHello for the name: "cut" says
how many of its bytes are sent (null: all), "after" is "hello", "half" (with half of the flight that ends the handshake) or "done" (what is
sent then is sent inside of TLS), and "then" is sent as it is. "fin" and "rst" end the connection after the last byte; "wait" leaves that to the
other side. Out: a JSON line for each: {"port": the client's own, "heard": text, "end"}.
"""

import json
import socket
import ssl
import struct
import sys

TIMEOUT = 20


class Tls:
    def __init__(self, name: str):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        self.inside = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)

    def hello(self) -> bytes:
        try:
            self.inside.do_handshake()
        except ssl.SSLWantReadError:
            return self.outgoing.read()
        raise AssertionError("a handshake with nobody")

    def flight(self, connection: socket.socket) -> bytes:
        """The flight that ends the handshake."""
        while True:
            self.incoming.write(connection.recv(65536))
            try:
                self.inside.do_handshake()
                return self.outgoing.read()
            except ssl.SSLWantReadError:
                connection.sendall(self.outgoing.read())


def talk(plan: dict, connection: socket.socket) -> None:
    tls = plan["tls"] and Tls(plan["tls"]["name"])
    if tls:
        hello = tls.hello()
        cut = plan["tls"]["cut"]
        connection.sendall(hello[:cut] if cut is None or cut >= 0 else hello[: len(hello) + cut])
        if plan["tls"]["after"] != "hello":
            flight = tls.flight(connection)
            half = len(flight) // 2 if plan["tls"]["after"] == "half" else len(flight)
            connection.sendall(flight[:half])
        connection.sendall(plan["tls"]["then"].encode("latin-1"))
    for piece in plan["send"]:
        words = piece.encode("latin-1")
        if tls:
            tls.inside.write(words)
            words = tls.outgoing.read()
        connection.sendall(words)
    if plan["end"] == "fin":
        connection.shutdown(socket.SHUT_WR)
    elif plan["end"] == "rst":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        plans = json.load(file)
    for plan in plans:
        own, heard, end = 0, b"", "closed"
        try:
            with socket.create_connection((plan["host"], plan["port"]), timeout=TIMEOUT) as connection:
                own = connection.getsockname()[1]
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                talk(plan, connection)
                while plan["end"] != "rst" and (chunk := connection.recv(65536)):
                    heard += chunk
        except (OSError, ssl.SSLError) as error:
            end = type(error).__name__
        print(json.dumps({"port": own, "heard": heard.decode("latin-1"), "end": end}), flush=True)


if __name__ == "__main__":
    main()
