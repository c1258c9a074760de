"""A client that calls a tool over one connection, again and again.

In: a port on 127.0.0.1, a number of calls. Out: a line of JSON, the time of each call in microseconds, without the first ones.
"""

import json
import socket
import ssl
import sys
import time

FIRST = 10
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"steady"}}}'


def main() -> None:
    port, calls = int(sys.argv[1]), int(sys.argv[2])
    plain = socket.create_connection(("127.0.0.1", port), timeout=60)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    connection = context.wrap_socket(plain, server_hostname="localhost")
    request = (
        f"POST /mcp HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nContent-Length: {len(CALL)}\r\n\r\n"
    ).encode() + CALL
    times = []
    for _ in range(FIRST + calls):
        began = time.perf_counter_ns()
        connection.sendall(request)
        heard = b""
        while not heard.endswith(b'"result":{}}'):
            more = connection.recv(65536)
            if not more:
                sys.exit(f"the connection was closed after {len(times)} calls: {heard!r}")
            heard += more
        times.append((time.perf_counter_ns() - began) // 1000)
    print(json.dumps(times[FIRST:]))


if __name__ == "__main__":
    main()
