"""An MCP server for tests that make thousands of calls: one answer in JSON for each request, over plain HTTP on 127.0.0.1.

In: command-line options. Out: one JSON line on stdout when it listens, and a JSONL log with one line for each tool call that
it executes, written before the call's work, which is to wait. That log is the oracle: what stands in it has happened.
"""

import argparse
import asyncio
import json
import os
import random
import time


class Server:
    def __init__(self, log: str, delay: float) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.delay = delay

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").lower().split("\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                writer.write(await self.answer(json.loads(body)) if body else self.head("405 Method Not Allowed", b""))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, message: dict) -> bytes:
        if "id" not in message:
            return self.head("202 Accepted", b"")
        result: dict = {}
        if message["method"] == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "swift", "version": "1"},
            }
        elif message["method"] == "tools/call":
            call = message["params"]
            arguments = call["arguments"]
            line = {"time_ns": time.time_ns(), "tool": call["name"], "nonce": arguments.pop("nonce"), "arguments": arguments}
            os.write(self.log, json.dumps(line).encode() + b"\n")
            # Spread, so that calls that began together do not end together.
            await asyncio.sleep(self.delay * random.uniform(0.5, 1.5))
            result = {"content": [{"type": "text", "text": "done"}], "isError": False}
        return self.head("200 OK", json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())

    @staticmethod
    def head(status: str, body: bytes) -> bytes:
        return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--log", required=True)
    options.add_argument("--delay-ms", type=int, default=0)
    given = options.parse_args()
    served = Server(given.log, given.delay_ms / 1000)
    server = await asyncio.start_server(served.connection, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"ready": True, "port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
