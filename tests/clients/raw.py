"""A client that sends HTTP requests to the letter, for what no well-behaved library would send.

In: a JSON object on the command line, {"host", "port", "tls", "requests": [{"head": [lines], "body"}]}; texts are bytes
(latin-1). The requests go one after the other over one connection while it lasts. In a head, "{host}" stands for the
server's name and port, and "{session}" for the MCP session that an answer has named. Out: a JSON line for each request: {"status", "headers", "body", "arrivals"}
(when each line of the body came, ms since the request), or {"error"}.
"""

import http.client
import json
import socket
import ssl
import sys
import time

TIMEOUT = 30


def connect(plan: dict) -> socket.socket:
    plain = socket.create_connection((plan["host"], plan["port"]), timeout=TIMEOUT)
    if not plan["tls"]:
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=plan["host"])


def answer(connection: socket.socket, head: list[str], body: str) -> tuple[dict, bool]:
    began = time.monotonic()
    connection.sendall("".join(f"{line}\r\n" for line in [*head, ""]).encode("latin-1") + body.encode("latin-1"))
    response = http.client.HTTPResponse(connection, method=head[0].split(" ")[0])
    response.begin()
    lines, arrivals = [], []
    while line := response.readline():
        lines.append(line)
        arrivals.append(round((time.monotonic() - began) * 1000))
    told = {"status": response.status, "headers": {k.lower(): v for k, v in response.getheaders()}}
    return told | {"body": b"".join(lines).decode("utf-8", "replace"), "arrivals": arrivals}, response.will_close


def main() -> None:
    plan = json.loads(sys.argv[1])
    connection, session = None, ""
    host = f"[{plan['host']}]" if ":" in plan["host"] else plan["host"]
    for request in plan["requests"]:
        try:
            connection = connection or connect(plan)
            named = {"{session}": session, "{host}": f"{host}:{plan['port']}"}
            head = request["head"]
            for name, value in named.items():
                head = [line.replace(name, value) for line in head]
            told, closes = answer(connection, head, request["body"])
            session = told["headers"].get("mcp-session-id", session)
        except (OSError, http.client.HTTPException) as error:
            told, closes = {"error": repr(error)}, True
        print(json.dumps(told), flush=True)
        if closes and connection:
            connection.close()
            connection = None


if __name__ == "__main__":
    main()
