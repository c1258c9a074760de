"""An MCP client as a pipeline job has one: the official Python SDK, released and unmodified.

In: a URL and a list of calls on the command line. Out: JSON lines, one for each call and one at the end.
It is run with and without Weir, from this same file; it knows nothing of Weir, of a proxy or of another address. What it
tells of its connections (issuer, count, early headers) it only observes; the issuer by a TLS handshake of its own.

    python client.py URL [--calls echo,count,...] [--arguments JSON] [--nonce PREFIX] [--timeout-ms N]
    python client.py URL --load [--tool echo] [--total N] [--in-flight N] ...     (SIGTERM: start no more calls)
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import ssl
import sys
import time
import uuid
from urllib.parse import urlsplit

from mcp import Client
from mcp.shared.exceptions import MCPError

ARGUMENTS = {
    "echo": {"text": "hello from Python"},
    "read_config": {"name": "deploy.env"},
    "delete_repo": {"repo": "payments"},
    "count": {"to": 5},
    # A token that nobody has, put together here so that no scanner takes it for a real one.
    "deploy": {"environment": "production", "token": "gh" + "p_" + "w2Xq8RkV5nTz1YbM7cLs4HdJf9GaPe0UoKi3"},
}
# httpx keeps at most 100 connections for one client; a load of more calls is spread over several sessions.
CALLS_PER_SESSION = 50


class Seen:
    """What the connections look like from in here."""

    tcp_connects = 0
    # Of the first response since it was last unset: the SDK may make requests of its own after a call.
    headers_at: float | None = None


def audit(event: str, arguments: tuple) -> None:
    if event == "socket.connect":
        sock = arguments[0]
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            Seen.tcp_connects += 1


class HeadersArrived(logging.Handler):
    """httpcore tells in its debug log when the headers of a response have come."""

    def emit(self, record: logging.LogRecord) -> None:
        if Seen.headers_at is None and record.getMessage().startswith("receive_response_headers.complete"):
            Seen.headers_at = time.monotonic()


def say(**line: object) -> None:
    os.write(1, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def issuer(url: str) -> str | None:
    """The common name of the issuer of the certificate that this process is shown (None on plain HTTP)."""
    place = urlsplit(url)
    if place.scheme != "https":
        return None
    with socket.create_connection((place.hostname, place.port or 443), timeout=30) as plain:
        with ssl.create_default_context().wrap_socket(plain, server_hostname=place.hostname) as tls:
            fields = dict(pair for entry in tls.getpeercert()["issuer"] for pair in entry)
            return fields.get("commonName", json.dumps(fields))


def innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def call(client: Client, options: argparse.Namespace, tool: str, nonce: str) -> bool:
    began, Seen.headers_at = time.monotonic(), None
    progress = 0

    async def on_progress(*_: object) -> None:
        nonlocal progress
        progress += 1

    line: dict[str, object] = {"event": "call", "tool": tool, "nonce": nonce}
    try:
        result = await client.call_tool(
            tool,
            ARGUMENTS[tool] | options.arguments | {"nonce": nonce},
            read_timeout_seconds=options.timeout_ms / 1000,
            progress_callback=on_progress if tool == "count" else None,
        )
        line["ok"] = not result.is_error
        line["text"] = "".join(getattr(part, "text", "") for part in result.content)
    except MCPError as error:
        line |= {"ok": False, "code": error.code, "message": error.message}
    except Exception as error:
        line |= {"ok": False, "code": None, "message": repr(innermost(error))}
    line["ms"] = round((time.monotonic() - began) * 1000)
    if not options.load:
        line["headers_ms"] = None if Seen.headers_at is None else round((Seen.headers_at - began) * 1000)
        line["progress"] = progress
    say(**line)
    return bool(line["ok"])


async def tour(options: argparse.Namespace) -> None:
    async with Client(options.url) as client:
        server = client.server_info
        say(event="session", client="python", pid=os.getpid(), server=server.name if server else None)
        for number, tool in enumerate(options.calls.split(",")):
            await call(client, options, tool, f"{options.nonce}-{number}")


async def load(options: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    numbers = iter(range(options.total or sys.maxsize))
    done = False

    async def worker(client: Client) -> None:
        nonlocal done
        while not stopping.is_set() and not done:
            number = next(numbers, None)
            if number is None:
                done = True
            # After a failure wait a little, as clients do, instead of spinning on a peer that is away.
            elif not await call(client, options, options.tool, f"{options.nonce}-{number}"):
                await asyncio.sleep(0.05)

    async def session(workers: int) -> None:
        while not stopping.is_set() and not done:
            try:
                async with Client(options.url) as client:
                    say(event="session", client="python", pid=os.getpid())
                    await asyncio.gather(*(worker(client) for _ in range(workers)))
            except Exception as error:
                say(event="session_lost", message=repr(innermost(error)))
                await asyncio.sleep(0.05)

    whole, rest = divmod(options.in_flight, CALLS_PER_SESSION)
    await asyncio.gather(*(session(n) for n in [CALLS_PER_SESSION] * whole + [rest] * bool(rest)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--calls", default="echo,read_config,delete_repo,echo,count,deploy")
    parser.add_argument("--arguments", type=json.loads, default={})
    parser.add_argument("--nonce", default=str(uuid.uuid4()))
    parser.add_argument("--timeout-ms", type=int, default=60_000)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--tool", default="echo")
    parser.add_argument("--total", type=int, default=0)
    parser.add_argument("--in-flight", type=int, default=1)
    options = parser.parse_args()
    sys.addaudithook(audit)
    log = logging.getLogger("httpcore2.http11")
    log.addHandler(HeadersArrived())
    log.propagate = False
    log.setLevel(logging.DEBUG if not options.load else logging.WARNING)
    seen, failed = None, False
    try:
        asyncio.run(load(options) if options.load else tour(options))
        seen = issuer(options.url)
    except Exception as error:
        say(event="failed", message=repr(innermost(error)))
        failed = True
    say(event="end", issuer=seen, tcp_connects=Seen.tcp_connects)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
