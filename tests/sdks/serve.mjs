// What a server of the TypeScript SDKs listens with: plain HTTP, or TLS with a certificate from files, on loopback.
//
// In: `--port N`, and `--tls CERTIFICATE KEY`. Out: one JSON line on stdout when it listens. A request whose Host or Origin is not
// this machine's own is refused, as the specification asks of a local server.

import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: { port: { type: 'string', default: '0' }, certificate: { type: 'string' }, key: { type: 'string' } },
});
const local = new Set(['localhost', '127.0.0.1', '[::1]']);

function isLocal(request) {
  const { host, origin } = request.headers;
  try {
    return local.has(new URL(`http://${host}`).hostname) && (!origin || local.has(new URL(origin).hostname));
  } catch {
    return false;
  }
}

export function serve(handle) {
  const answer = (request, response) => {
    if (!isLocal(request)) return void response.writeHead(403, { 'content-type': 'text/plain' }).end('not a name of this machine');
    if (new URL(request.url, 'http://localhost').pathname !== '/mcp') return void response.writeHead(404).end();
    Promise.resolve(handle(request, response)).catch((error) => {
      console.error(error);
      if (!response.headersSent) response.writeHead(500);
      response.end();
    });
  };
  const server = options.certificate
    ? https.createServer({ cert: readFileSync(options.certificate), key: readFileSync(options.key) }, answer)
    : http.createServer(answer);
  // Both families: "localhost" is either.
  server.listen({ port: Number(options.port), host: '::', ipv6Only: false }, () => {
    process.stdout.write(`${JSON.stringify({ ready: true, port: server.address().port, pid: process.pid })}\n`);
  });
}

// The events of streams, so that they can be resumed.
export class Events {
  #all = [];

  async storeEvent(stream, message) {
    this.#all.push({ stream, message });
    return String(this.#all.length);
  }

  async getStreamIdForEventId(id) {
    return this.#all[Number(id) - 1]?.stream;
  }

  async replayEventsAfter(id, { send }) {
    const stream = this.#all[Number(id) - 1]?.stream;
    for (const [at, event] of this.#all.entries()) {
      if (at >= Number(id) && event.stream === stream && event.message.jsonrpc) await send(String(at + 1), event.message);
    }
    return stream;
  }
}

export async function bodyOf(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  try {
    return JSON.parse(Buffer.concat(chunks).toString());
  } catch {
    return undefined;
  }
}
