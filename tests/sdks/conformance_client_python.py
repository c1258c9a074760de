"""The conformance suite's client, made of the official Python SDK: one file for both lines.

In: the server's URL as the last argument, and the suite's variable MCP_CONFORMANCE_PROTOCOL_VERSION. It connects, lists what the server
offers, and calls each tool. OAuth is left to the TypeScript clients.
"""

import asyncio
import os
import sys

try:
    from mcp import Client

    LINE = 2
except ImportError:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    LINE = 1


def sample(schema: dict) -> object:
    """A value for a JSON schema."""
    match schema.get("type"):
        case "integer" | "number":
            return 5
        case "boolean":
            return True
        case "array":
            return []
        case "object":
            return {name: sample(each) for name, each in schema.get("properties", {}).items()}
        case _:
            return "text"


async def tour(client: object) -> None:
    tools = (await client.list_tools()).tools
    for tool in tools:
        schema = getattr(tool, "input_schema", None) or getattr(tool, "inputSchema", None) or {}
        try:
            await client.call_tool(tool.name, sample(schema))
        except Exception as error:  # What a tool does is the suite's affair; the next one is to be called all the same.
            print(f"{tool.name}: {error!r}", file=sys.stderr)


async def main(url: str) -> None:
    if LINE == 1:
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            await tour(session)
        return
    stateless = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION") == "2026-07-28"
    async with Client(url, mode="auto" if stateless else "legacy") as client:
        await tour(client)


asyncio.run(main(sys.argv[-1]))
