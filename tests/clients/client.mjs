// An MCP client as a pipeline job has one: the official TypeScript SDK, released and unmodified.
//
// In: a URL and a list of calls on the command line. Out: JSON lines, one for each call and one at the end.
// It is run with and without Weir, from this same file; it knows nothing of Weir, of a proxy or of another address. What it
// tells of its connections (issuer, count, bytes) it only observes, through Node's own diagnostics.
//
//   node client.mjs URL [--calls echo,count,...] [--arguments JSON] [--nonce PREFIX] [--timeout-ms N]
//   node client.mjs URL --load [--tool echo] [--total N] [--in-flight N] ...     (SIGTERM: start no more calls)

import { createHook } from 'node:async_hooks';
import { randomUUID } from 'node:crypto';
import diagnostics from 'node:diagnostics_channel';
import { writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    calls: { type: 'string', default: 'echo,read_config,delete_repo,echo,count,deploy' },
    arguments: { type: 'string', default: '{}' },
    nonce: { type: 'string', default: randomUUID() },
    'timeout-ms': { type: 'string', default: '60000' },
    load: { type: 'boolean', default: false },
    tool: { type: 'string', default: 'echo' },
    total: { type: 'string', default: '0' },
    'in-flight': { type: 'string', default: '1' },
  },
});
const url = new URL(positionals[0]);
const timeout = Number(options['timeout-ms']);
const argumentsOf = {
  echo: { text: 'hello from TypeScript' },
  read_config: { name: 'deploy.env' },
  delete_repo: { repo: 'payments' },
  count: { to: 5 },
  // A token that nobody has, put together here so that no scanner takes it for a real one.
  deploy: { environment: 'production', token: 'gh' + 'p_' + 'w2Xq8RkV5nTz1YbM7cLs4HdJf9GaPe0UoKi3' },
};

const say = (line) => writeSync(1, JSON.stringify(line) + '\n');
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// What the connections look like from in here.
const seen = { tcpConnects: 0, issuer: null, sockets: new Set(), headersAt: 0 };
createHook({ init: (_id, type) => void (type === 'TCPCONNECTWRAP' && (seen.tcpConnects += 1)) }).enable();
diagnostics.subscribe('undici:client:connected', ({ socket }) => {
  seen.sockets.add(socket);
  const certificate = socket.getPeerCertificate?.();
  if (certificate?.issuer) seen.issuer = certificate.issuer.CN ?? JSON.stringify(certificate.issuer);
});
diagnostics.subscribe('undici:request:headers', () => (seen.headersAt = performance.now()));
const bytesRead = () => [...seen.sockets].reduce((sum, socket) => sum + socket.bytesRead, 0);

async function call(client, tool, nonce) {
  const began = performance.now();
  let progress = 0;
  // How often more bytes had come in while the call waited: keep-alive comments are invisible to the SDK, not to the socket.
  let arrivals = 0;
  let before = bytesRead();
  const watch = options.load ? null : setInterval(() => {
    const now = bytesRead();
    if (now > before) [arrivals, before] = [arrivals + 1, now];
  }, 100);
  const line = { event: 'call', tool, nonce };
  try {
    const result = await client.callTool(
      { name: tool, arguments: { ...argumentsOf[tool], ...JSON.parse(options.arguments), nonce } },
      undefined,
      { timeout, onprogress: tool === 'count' ? () => (progress += 1) : undefined },
    );
    line.ok = !result.isError;
    line.text = result.content?.map((part) => part.text ?? '').join('');
  } catch (error) {
    line.ok = false;
    line.code = typeof error.code === 'number' ? error.code : null;
    // The SDK puts the code before the message.
    line.message = error.message.replace(/^MCP error -?\d+: /, '');
    if (error.cause?.code) line.message += `: ${error.cause.code}`;
  } finally {
    clearInterval(watch);
  }
  line.ms = Math.round(performance.now() - began);
  if (!options.load) {
    line.headers_ms = seen.headersAt > began ? Math.round(seen.headersAt - began) : null;
    Object.assign(line, { progress, arrivals });
  }
  say(line);
  return line.ok;
}

async function load(client) {
  let stopping = false;
  process.on('SIGTERM', () => (stopping = true));
  const total = Number(options.total) || Infinity;
  let next = 0;
  const worker = async () => {
    while (!stopping && next < total) {
      const nonce = `${options.nonce}-${next++}`;
      // After a failure wait a little, as clients do, instead of spinning on a peer that is away.
      if (!(await call(client, options.tool, nonce))) await sleep(50);
    }
  };
  await Promise.all(Array.from({ length: Number(options['in-flight']) }, worker));
}

const client = new Client({ name: 'pipeline-typescript', version: '1.0.0' });
const transport = new StreamableHTTPClientTransport(url);
try {
  await client.connect(transport, { timeout });
  say({ event: 'session', client: 'typescript', pid: process.pid, server: client.getServerVersion()?.name });
  if (options.load) {
    await load(client);
  } else {
    let number = 0;
    for (const tool of options.calls.split(',')) await call(client, tool, `${options.nonce}-${number++}`);
  }
} catch (error) {
  say({ event: 'failed', message: error.cause?.message ? `${error.message}: ${error.cause.message}` : error.message });
  process.exitCode = 1;
}
// At the very end: closing the client may still make fetch connect.
process.on('exit', () => say({ event: 'end', issuer: seen.issuer, tcp_connects: seen.tcpConnects }));
await client.close().catch(() => {});
