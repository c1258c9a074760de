"""Calls the tool "deploy" as a client does that takes no event stream, until it is no longer told that an approval is pending.

In: a URL and a nonce. Out: each answer.
"""

import http.client
import json
import os
import sys
import urllib.parse

place = urllib.parse.urlsplit(sys.argv[1])
headers = {"Content-Type": "application/json", "Accept": "application/json"}


def post(method: str, params: dict, number: int | None) -> http.client.HTTPResponse:
    message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
    connection.request("POST", place.path, json.dumps(message), headers)
    return connection.getresponse()


connection = http.client.HTTPSConnection(place.hostname, place.port, timeout=60)
client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "plain", "version": "1"}}
answer = post("initialize", client, 0)
answer.read()
headers |= {"Mcp-Session-Id": answer.headers.get("mcp-session-id", ""), "MCP-Protocol-Version": "2025-06-18"}
print(json.dumps({"event": "session", "client": "plain", "pid": os.getpid()}), flush=True)
post("notifications/initialized", {}, None).read()
arguments = {"environment": "production", "token": "none", "nonce": sys.argv[2] + "-0"}
for _ in range(60):
    # Under one id each time, as a client may that has no other request under way.
    answer = post("tools/call", {"name": "deploy", "arguments": arguments}, 1).read().decode()
    print(answer, flush=True)
    if "pending approval" not in answer:
        break
