"""The MCP server of the tests and of the demo: the official Python SDK's server behind uvicorn, on loopback.

In: command-line options. Out: one JSON line on stdout when it listens, and a JSONL log with one line for each tool call
that it executes, written with O_APPEND and fsync before the tool does its work. That log is the oracle: what stands in
it has happened, and what does not has not.

It knows nothing of Weir, and must never learn of it.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from certificates import certificates


class CallLog:
    """Appends one line for each executed call, on disk before the call goes on."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def executed(self, tool: str, nonce: str, **arguments: object) -> None:
        line = {"time_ns": time.time_ns(), "tool": tool, "nonce": nonce, "arguments": arguments}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)


def fake_secrets() -> tuple[str, str]:
    """An AWS key id and a GitHub token that nobody has: put together here so that no scanner takes them for real."""
    return "AK" + "IA" + "Q3EGRT7WLMZ5UXH2", "gh" + "p_" + "u8Zk3VtQ1wYx7RbN5mLd0HsJc2FgTa9EoPi6"


def build(log: CallLog, hosts: list[str], answers_json: bool, legacy_sse: bool, changed: bool) -> object:
    """The tools, as an ASGI application."""
    server = MCPServer("deployer", instructions="Builds, reads and deploys.", log_level="WARNING")

    @server.tool()
    async def echo(text: str, nonce: str, delay_ms: int = 0) -> str:
        """Give the text back, after a while if asked."""
        log.executed("echo", nonce, text=text)
        if delay_ms:
            await anyio.sleep(delay_ms / 1000)
        return text

    @server.tool()
    async def read_config(name: str, nonce: str) -> str:
        """Read a configuration file; it holds credentials."""
        log.executed("read_config", nonce, name=name)
        if changed:
            return f"# {name} has moved\n"
        key, token = fake_secrets()
        return f"# {name}\nregion=eu-central-1\naws_access_key_id={key}\ngithub_token={token}\n"

    @server.tool()
    async def delete_repo(repo: str, nonce: str) -> str:
        """Delete a repository."""
        log.executed("delete_repo", nonce, repo=repo)
        return f"deleted {repo}"

    @server.tool()
    async def count(to: int, nonce: str, ctx: Context, pause_ms: int = 50) -> str:
        """Count slowly, telling the progress: the response is a stream of several events."""
        log.executed("count", nonce, to=to)
        for n in range(1, to + 1):
            await ctx.report_progress(n, to, f"counted to {n}")
            await anyio.sleep(pause_ms / 1000)
        return f"counted to {to}"

    @server.tool()
    async def announce(note: str, nonce: str, ctx: Context) -> str:
        """Tell the session of a changed note: no answer to a request, so it goes over the session's own stream."""
        log.executed("announce", nonce, note=note)
        await ctx.session.send_resource_updated(f"note://{note}")
        return f"announced {note}"

    @server.tool()
    async def deploy(environment: str, token: str, nonce: str) -> str:
        """Deploy to an environment."""
        log.executed("deploy", nonce, environment=environment)
        return f"deployed to {environment}"

    # On the scheme's own port a client's Host header has no port.
    security = TransportSecuritySettings(allowed_hosts=hosts + [f"{host}:*" for host in hosts])
    if legacy_sse:
        return server.sse_app(transport_security=security)
    return server.streamable_http_app(json_response=answers_json, transport_security=security)


def listeners(addresses: list[str], port: int) -> list[socket.socket]:
    """One listening socket for each address, all with one port (0: any that is free on each)."""
    for _ in range(20):
        sockets, chosen = [], port
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                sock = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, chosen))
                chosen = sock.getsockname()[1]
            return sockets
        except OSError:
            for sock in sockets:
                sock.close()
            if port:
                raise
    raise OSError("no port is free on all of " + ", ".join(addresses))


async def serve(options: argparse.Namespace) -> None:
    addresses = options.address or ["127.0.0.1", "::1"]
    names = options.name or ["localhost"]
    hosts = names + [f"[{a}]" if ":" in a else a for a in addresses]
    settings: dict[str, object] = {}
    ca = None
    if options.tls:
        ca, leaf, key = certificates(options.tls, names, addresses)
        settings = {"ssl_certfile": leaf, "ssl_keyfile": key}
    sockets = listeners(addresses, options.port)
    app = build(CallLog(options.log), hosts, options.json, options.legacy_sse, options.changed)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on", **settings)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if not serving.done():
        port = sockets[0].getsockname()[1]
        print(json.dumps({"ready": True, "port": port, "pid": os.getpid(), "ca": str(ca) if ca else None}), flush=True)
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(description="a real MCP server for tests, on loopback")
    parser.add_argument("--log", type=Path, required=True, help="the JSONL file that executed calls are appended to")
    parser.add_argument("--tls", type=Path, help="serve HTTPS; a throw-away CA and leaf are made in this folder")
    parser.add_argument("--address", action="append", help="address to listen on (default: 127.0.0.1 and ::1)")
    parser.add_argument("--name", action="append", help="host name to serve (default: localhost)")
    parser.add_argument("--port", type=int, default=0, help="port (default: any that is free)")
    parser.add_argument("--json", action="store_true", help="answer with plain JSON instead of event streams")
    parser.add_argument("--legacy-sse", action="store_true", help="speak HTTP+SSE (2024-11-05), with the stream at /sse")
    parser.add_argument("--changed", action="store_true", help="have read_config answer something else")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
