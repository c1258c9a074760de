"""The conformance suite's server, made of the official Python SDK: one file for both lines, whose servers differ in little but names.

In: `--port N`, and `--certificate FILE --key FILE` for TLS. Out: one JSON line on stdout when it listens. With the line 2.x it speaks
2026-07-28 and all that is older, with 1.x what has sessions.
"""

import argparse
import asyncio
import base64
import json
import os
import socket

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import BaseModel

try:
    import mcp_types as types
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.prompts.base import UserMessage

    LINE = 2
except ImportError:
    from mcp import types
    from mcp.server.fastmcp import Context, FastMCP as MCPServer
    from mcp.server.fastmcp.prompts.base import UserMessage

    LINE = 1

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
SILENCE = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
LOCAL = ["localhost:*", "127.0.0.1:*", "[::1]:*"]
SECURITY = TransportSecuritySettings(
    allowed_hosts=LOCAL, allowed_origins=[f"{scheme}://{host}" for scheme in ("http", "https") for host in LOCAL]
)


def of(kind: type, **fields: object) -> object:
    """A type of the SDK by the names that the wire has: 1.x and 2.x name its attributes differently."""
    return kind.model_validate(fields)


def image() -> object:
    return of(types.ImageContent, type="image", data=PIXEL, mimeType="image/png")


def resource(uri: str, mime: str, text: str) -> object:
    return of(types.EmbeddedResource, type="resource", resource={"uri": uri, "mimeType": mime, "text": text})


def text(value: str) -> object:
    return of(types.TextContent, type="text", text=value)


class Answer(BaseModel):
    """What a person is asked for."""

    username: str
    email: str


def tools(server: MCPServer) -> None:
    def tool(function: object) -> None:
        # Without an output schema: the suite wants the bare content.
        server.tool(description=function.__name__, structured_output=False)(function)

    def test_simple_text() -> str:
        return "This is a simple text response for testing."

    def test_image_content() -> list:
        return [image()]

    def test_audio_content() -> list:
        return [of(types.AudioContent, type="audio", data=SILENCE, mimeType="audio/wav")]

    def test_embedded_resource() -> list:
        return [resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]

    def test_multiple_content_types() -> list:
        mixed = resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
        return [text("Multiple content types test:"), image(), mixed]

    def test_error_handling() -> str:
        raise ValueError("This tool intentionally returns an error for testing")

    async def test_tool_with_progress(ctx: Context) -> str:
        for progress in (0, 50, 100):
            await ctx.report_progress(progress, 100)
            await anyio.sleep(0.05)
        return "done"

    async def test_tool_with_logging(ctx: Context) -> str:
        for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(line)
            await anyio.sleep(0.05)
        return "logged"

    async def test_sampling(prompt: str, ctx: Context) -> str:
        message = of(types.SamplingMessage, role="user", content={"type": "text", "text": prompt})
        answer = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
        return f"LLM response: {getattr(answer.content, 'text', '')}"

    async def test_elicitation(message: str, ctx: Context) -> str:
        answer = await ctx.elicit(message, Answer)
        return f"User response: action={answer.action}, content={getattr(answer, 'data', None)}"

    for function in (
        test_simple_text, test_image_content, test_audio_content, test_embedded_resource, test_multiple_content_types,
        test_error_handling, test_tool_with_progress, test_tool_with_logging, test_sampling, test_elicitation,
    ):
        tool(function)


def resources_and_prompts(server: MCPServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        return base64.b64decode(PIXEL)

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @server.prompt(description="a prompt")
    def test_simple_prompt() -> list:
        return [UserMessage("This is a simple prompt for testing.")]

    @server.prompt(description="a prompt")
    def test_prompt_with_arguments(arg1: str, arg2: str) -> list:
        return [UserMessage(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]

    @server.prompt(description="a prompt")
    def test_prompt_with_image() -> list:
        return [UserMessage(image()), UserMessage("Please analyze the image above.")]


def application() -> object:
    if LINE == 1:
        server = MCPServer("everything", log_level="WARNING", transport_security=SECURITY)
    else:
        server = MCPServer("everything", log_level="WARNING")
    tools(server)
    resources_and_prompts(server)
    return server.streamable_http_app() if LINE == 1 else server.streamable_http_app(transport_security=SECURITY)


async def serve(options: argparse.Namespace) -> None:
    # Both families: "localhost" is either.
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", options.port))
    tls = {"ssl_certfile": options.certificate, "ssl_keyfile": options.key} if options.certificate else {}
    config = uvicorn.Config(application(), log_level="warning", timeout_graceful_shutdown=1, lifespan="on", **tls)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(json.dumps({"ready": True, "port": listener.getsockname()[1], "pid": os.getpid()}), flush=True)
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(description="what the conformance suite asks of a server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
