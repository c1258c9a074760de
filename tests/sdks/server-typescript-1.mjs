// The conformance suite's server, made of the TypeScript SDK 1.x: sessions, streams that can be resumed, 2025-11-25 and older.

import { randomUUID } from 'node:crypto';
import { Server } from '@modelcontextprotocol/sdk/server/index.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import * as types from '@modelcontextprotocol/sdk/types.js';
import { capabilities, handlers, sessionful } from './everything.mjs';
import { Events, bodyOf, serve } from './serve.mjs';

const { McpError, ErrorCode } = types;
const missing = (uri) => new McpError(-32002, `no such resource: ${uri}`, { uri });
const unknown = (name) => new McpError(ErrorCode.InvalidParams, `no such name: ${name}`);
const all = { ...handlers({ missing, unknown }), ...sessionful };

// The SDK finds a handler's method in its schema.
const schemas = Object.values(types).filter((schema) => schema?.shape?.method?.value);
const schemaOf = (method) => schemas.find((schema) => schema.shape.method.value === method);

function server() {
  const made = new Server({ name: 'everything', version: '1.0.0' }, { capabilities: capabilities(false) });
  for (const [method, handle] of Object.entries(all)) {
    made.setRequestHandler(schemaOf(method), ({ params }, extra) => handle(params ?? {}, {
      modern: false,
      log: (level, data) => extra.sendNotification({ method: 'notifications/message', params: { level, data } }),
      progress: async (progress, total) => {
        const progressToken = extra._meta?.progressToken;
        if (progressToken === undefined) return;
        await extra.sendNotification({ method: 'notifications/progress', params: { progressToken, progress, total } });
      },
      ask: (name, given) => extra.sendRequest({ method: name, params: given }, types.ResultSchema),
      closeStream: () => extra.closeSSEStream?.(),
    }));
  }
  return made;
}

const sessions = new Map();

serve(async (request, response) => {
  const body = request.method === 'POST' ? await bodyOf(request) : undefined;
  const named = request.headers['mcp-session-id'];
  let transport = sessions.get(named);
  if (!transport && named) {
    const error = { jsonrpc: '2.0', id: body?.id ?? null, error: { code: -32001, message: 'Session not found' } };
    return void response.writeHead(404, { 'content-type': 'application/json' }).end(JSON.stringify(error));
  }
  if (!transport) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      eventStore: new Events(),
      retryInterval: 500,
      onsessioninitialized: (id) => void sessions.set(id, transport),
      onsessionclosed: (id) => void sessions.delete(id),
    });
    await server().connect(transport);
  }
  await transport.handleRequest(request, response, body);
});
