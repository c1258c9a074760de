"""Calls tools over HTTP+SSE (2024-11-05) with the official Python SDK's own client for it.

In: the URL of the stream, a prefix for nonces, and the tools to call. Out: a JSON line for each call, as client.py's.
"""

import asyncio
import json
import os
import sys
import time

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.shared.exceptions import MCPError

ARGUMENTS = {
    "echo": {"text": "hello"},
    "delete_repo": {"repo": "payments"},
    "deploy": {"environment": "production", "token": "none"},
}


def say(**line: object) -> None:
    print(json.dumps(line, separators=(",", ":")), flush=True)


async def call(session: ClientSession, tool: str, nonce: str) -> None:
    began = time.monotonic()
    line: dict[str, object] = {"event": "call", "tool": tool, "nonce": nonce}
    try:
        result = await session.call_tool(tool, ARGUMENTS[tool] | {"nonce": nonce}, read_timeout_seconds=60)
        line |= {"ok": not result.is_error, "text": "".join(part.text for part in result.content)}
    except MCPError as error:
        line |= {"ok": False, "code": error.code, "message": error.message}
    say(**line, ms=round((time.monotonic() - began) * 1000))


async def main(url: str, prefix: str, tools: list[str]) -> None:
    async with sse_client(url) as streams, ClientSession(*streams) as session:
        await session.initialize()
        say(event="session", client="python", pid=os.getpid())
        for number, tool in enumerate(tools):
            await call(session, tool, f"{prefix}-{number}")


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
