"""A strict TLS client: it checks the server's certificate, and tells what it was shown and answered.

In: a JSON list on the command line of objects {"port", "name", "alpn", "roots", "identity", "hosts"}, done one after the other: the name that the server must prove (an
address is not named in the handshake), the protocols offered, a file of roots instead of the environment's, a certificate of its own
([certificate, key]), and the Host of each request. Out: a JSON line
for each, {"issuer", "alpn", "answers": [{"status", "reason", "headers",
"body"}], "error"}.
"""

import http.client
import json
import socket
import ssl
import sys

TIMEOUT = 30


def ask(plan: dict) -> dict:
    context = ssl.create_default_context(cafile=plan.get("roots"))
    if plan.get("alpn"):
        context.set_alpn_protocols(plan["alpn"])
    if plan.get("identity"):
        context.load_cert_chain(*plan["identity"])
    told = {"issuer": None, "alpn": None, "answers": [], "error": None}
    try:
        plain = socket.create_connection(("127.0.0.1", plan["port"]), timeout=TIMEOUT)
        with context.wrap_socket(plain, server_hostname=plan["name"]) as stream:
            told["issuer"] = dict(pair[0] for pair in stream.getpeercert()["issuer"])["commonName"]
            told["alpn"] = stream.selected_alpn_protocol()
            for host in plan["hosts"]:
                stream.sendall(f"GET /secret HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                response = http.client.HTTPResponse(stream, method="GET")
                response.begin()
                headers = {name.lower(): value for name, value in response.getheaders()}
                answer = {"status": response.status, "reason": response.reason, "headers": headers}
                told["answers"].append(answer | {"body": response.read().decode()})
    except (OSError, http.client.HTTPException) as error:
        told["error"] = repr(error)
    return told


def main() -> None:
    for plan in json.loads(sys.argv[1]):
        print(json.dumps(ask(plan)), flush=True)


if __name__ == "__main__":
    main()
