"""An MCP client as a pipeline job has one: the official Python SDK of the line 1.x, over streamable HTTP or HTTP+SSE.

In: a URL, `--calls echo,count,...`, `--nonce PREFIX`, and `--sse`. Out: JSON lines, one for each call and one at the end. It knows
nothing of Weir.
"""

import argparse
import asyncio
import json
import os
import socket
import sys

from mcp import ClientSession, McpError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamablehttp_client

ARGUMENTS = {
    "echo": {"text": "hello from Python"},
    "count": {"to": 5},
    "read_config": {"name": "deploy.env"},
    "delete_repo": {"repo": "payments"},
}
connects = 0


def audit(event: str, arguments: tuple) -> None:
    global connects
    if event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        connects += arguments[0].type == socket.SOCK_STREAM


def say(**line: object) -> None:
    os.write(1, json.dumps(line, separators=(",", ":")).encode() + b"\n")


async def call(session: ClientSession, tool: str, nonce: str) -> None:
    progress = 0

    async def on_progress(*_: object) -> None:
        nonlocal progress
        progress += 1

    line: dict[str, object] = {"event": "call", "tool": tool, "nonce": nonce, "ms": 0}
    try:
        told = on_progress if tool == "count" else None
        result = await session.call_tool(tool, ARGUMENTS[tool] | {"nonce": nonce}, progress_callback=told)
        text = "".join(getattr(part, "text", "") for part in result.content)
        say(**line, ok=not result.isError, text=text, progress=progress)
    except McpError as error:
        say(**line, ok=False, code=error.error.code, message=error.error.message)


async def tour(options: argparse.Namespace) -> None:
    transport = sse_client if options.sse else streamablehttp_client
    async with transport(options.url) as (read, write, *_), ClientSession(read, write) as session:
        await session.initialize()
        say(event="session", client="python", pid=os.getpid())
        for number, tool in enumerate(options.calls.split(",")):
            await call(session, tool, f"{options.nonce}-{number}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--calls", default="echo")
    parser.add_argument("--nonce", default="python")
    parser.add_argument("--sse", action="store_true")
    options = parser.parse_args()
    sys.addaudithook(audit)
    failed = False
    try:
        asyncio.run(tour(options))
    except Exception as error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        say(event="failed", message=repr(error))
        failed = True
    say(event="end", issuer=None, tcp_connects=connects)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
