// An MCP client as a pipeline job has one: the official TypeScript SDK, of the line and in the revision that it is told.
//
// In: a URL, `--line 1|2`, `--revision R`, `--calls echo,count,...`, `--nonce PREFIX`, `--sse` for HTTP+SSE, and
// `--http2` for HTTP/2 alone. Out: JSON lines, one for
// each call and one at the end. It knows nothing of Weir.

import { createHook } from 'node:async_hooks';
import { writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { overHttp2 } from './fetch-http2.mjs';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    line: { type: 'string', default: '2' },
    revision: { type: 'string', default: '2025-11-25' },
    calls: { type: 'string', default: 'echo' },
    nonce: { type: 'string', default: 'typescript' },
    sse: { type: 'boolean', default: false },
    http2: { type: 'boolean', default: false },
  },
});
const http2 = options.http2 ? overHttp2() : null;
const over = http2 ? { fetch: http2.fetch } : {};
const say = (line) => writeSync(1, `${JSON.stringify(line)}\n`);
let connects = 0;
createHook({ init: (_id, type) => void (type === 'TCPCONNECTWRAP' && (connects += 1)) }).enable();

const who = { name: 'pipeline-typescript', version: '1.0.0' };
const argumentsOf = {
  echo: { text: 'hello from TypeScript' },
  count: { to: 5 },
  read_config: { name: 'deploy.env' },
  delete_repo: { repo: 'payments' },
};

async function make(url) {
  if (options.line === '1') {
    const { Client } = await import('@modelcontextprotocol/sdk/client/index.js');
    const { SSEClientTransport } = await import('@modelcontextprotocol/sdk/client/sse.js');
    const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js');
    const transport = options.sse ? new SSEClientTransport(url) : new StreamableHTTPClientTransport(url, over);
    return { client: new Client(who), transport, call: (client, call, more) => client.callTool(call, undefined, more) };
  }
  const { Client, SSEClientTransport, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client');
  const stateless = options.revision === '2026-07-28';
  const negotiation = stateless
    ? { versionNegotiation: { mode: { pin: options.revision } } }
    : { versionNegotiation: { mode: 'legacy' }, supportedProtocolVersions: [options.revision] };
  const transport = options.sse ? new SSEClientTransport(url) : new StreamableHTTPClientTransport(url, over);
  return { client: new Client(who, negotiation), transport, call: (client, call, more) => client.callTool(call, more) };
}

try {
  const { client, transport, call } = await make(new URL(positionals[0]));
  await client.connect(transport);
  say({ event: 'session', client: 'typescript', pid: process.pid });
  for (const [number, tool] of options.calls.split(',').entries()) {
    const nonce = `${options.nonce}-${number}`;
    let progress = 0;
    const line = { event: 'call', tool, nonce, ms: 0 };
    try {
      const more = tool === 'count' ? { onprogress: () => (progress += 1) } : {};
      const result = await call(client, { name: tool, arguments: { ...argumentsOf[tool], nonce } }, more);
      say({ ...line, ok: !result.isError, text: result.content.map((part) => part.text ?? '').join(''), progress });
    } catch (error) {
      say({ ...line, ok: false, code: typeof error.code === 'number' ? error.code : null, message: error.message });
    }
  }
  await client.close();
  http2?.close();
} catch (error) {
  say({ event: 'failed', message: error.cause?.message ? `${error.message}: ${error.cause.message}` : error.message });
  process.exitCode = 1;
  http2?.close();
}
process.on('exit', () => say({ event: 'end', issuer: null, tcp_connects: connects }));
