"""Many MCP clients in one process, each with one call at a time over a connection of its own, without an SDK.

In: a URL, a number of clients, a prefix of nonces. Out: JSON lines as client.py's, one for each call and one at the end.
After SIGTERM they end the calls they have begun. While the server cannot be reached, one of them tries, and the others wait.
"""

import asyncio
import json
import os
import signal
import sys
import time
from urllib.parse import urlsplit

# One call in so many is of a tool that policy refuses.
REFUSED_IN = 25
PAUSE = 0.02
TIMEOUT = 15
REVISION = "2025-06-18"


def say(**line: object) -> None:
    os.write(1, json.dumps(line, separators=(",", ":")).encode() + b"\n")


class Swarm:
    def __init__(self, url: str, prefix: str) -> None:
        self.place = urlsplit(url)
        self.prefix = prefix
        self.stopping = False
        self.numbers = 0
        self.connects = 0
        self.trying = asyncio.Lock()

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        async with self.trying:
            while not self.stopping:
                try:
                    self.connects += 1
                    return await asyncio.open_connection(self.place.hostname, self.place.port)
                except OSError:
                    await asyncio.sleep(PAUSE)
        return None

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, number: int, params: dict) -> dict:
        body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
        writer.write(
            f"POST {self.place.path} HTTP/1.1\r\nHost: {self.place.netloc}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {REVISION}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), None)
        if length is not None:
            return json.loads(await reader.readexactly(length))
        whole = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            whole += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return json.loads(whole)

    async def call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.numbers += 1
        number, began = self.numbers, time.monotonic()
        tool = "delete_repo" if number % REFUSED_IN == 0 else "echo"
        line: dict[str, object] = {"event": "call", "tool": tool, "nonce": f"{self.prefix}-{number}", "ok": False}
        try:
            arguments = {"text": "hello", "nonce": line["nonce"]}
            answer = await asyncio.wait_for(
                self.ask(reader, writer, "tools/call", number, {"name": tool, "arguments": arguments}), TIMEOUT
            )
            error = answer.get("error")
            line |= {"ok": error is None} | ({} if error is None else {"code": error["code"], "message": error["message"]})
        except Exception as error:
            line |= {"code": None, "message": repr(error)}
            raise
        finally:
            say(**line, ms=round((time.monotonic() - began) * 1000))

    async def client(self) -> None:
        while not self.stopping:
            stream = await self.connected()
            if stream is None:
                return
            reader, writer = stream
            try:
                await asyncio.wait_for(
                    self.ask(
                        reader,
                        writer,
                        "initialize",
                        0,
                        {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "swarm", "version": "1"}},
                    ),
                    TIMEOUT,
                )
                while not self.stopping:
                    await self.call(reader, writer)
            except Exception:
                await asyncio.sleep(PAUSE)
            finally:
                writer.close()


async def main() -> None:
    url, clients, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    swarm = Swarm(url, prefix)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(swarm, "stopping", True))
    say(event="session", client="swarm", pid=os.getpid())
    await asyncio.gather(*(swarm.client() for _ in range(clients)))
    say(event="end", issuer=None, tcp_connects=swarm.connects)


if __name__ == "__main__":
    asyncio.run(main())
