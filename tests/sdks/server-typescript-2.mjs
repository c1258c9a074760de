// The conformance suite's server, made of the TypeScript SDK 2.x: the stateless 2026-07-28, and sessions for older clients, at one
// address.

import { randomUUID } from 'node:crypto';
import { NodeStreamableHTTPServerTransport, toNodeHandler, toWebRequest } from '@modelcontextprotocol/node';
import {
  MissingRequiredClientCapabilityError, ProtocolError, ResourceNotFoundError, Server, createMcpHandler, createRequestStateCodec,
  isLegacyRequest,
} from '@modelcontextprotocol/server';
import { capabilities, handlers, sessionful } from './everything.mjs';
import { Events, bodyOf, serve } from './serve.mjs';

const codec = createRequestStateCodec({ key: randomUUID() + randomUUID() });
const missing = (uri) => new ResourceNotFoundError(uri);
const unknown = (name) => new ProtocolError(-32602, `no such name: ${name}`);

function server(modern) {
  const made = new Server(
    { name: 'everything', version: '2.0.0' },
    { capabilities: capabilities(modern), requestState: { verify: codec.verify } },
  );
  const all = { ...handlers({ missing, unknown }), ...(modern ? {} : sessionful) };
  for (const [method, handle] of Object.entries(all)) {
    made.setRequestHandler(method, ({ params }, context) => {
      const { mcpReq } = context;
      const declared = mcpReq.envelope?.['io.modelcontextprotocol/clientCapabilities'] ?? {};
      return handle(params ?? {}, {
        modern,
        responses: mcpReq.inputResponses,
        state: () => mcpReq.requestState(),
        mint: (payload) => codec.mint(payload, context),
        can: (capability) => capability in declared,
        lacks: (requiredCapabilities) => {
          throw new MissingRequiredClientCapabilityError({ requiredCapabilities });
        },
        changed: (kind) => (kind === 'tools' ? stateless.notify.toolsChanged() : stateless.notify.promptsChanged()),
        log: (level, data) => mcpReq.log(level, data),
        progress: async (progress, total) => {
          const progressToken = mcpReq._meta?.progressToken;
          if (progressToken === undefined) return;
          await mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress, total } });
        },
        ask: (name, given) => mcpReq.send({ method: name, params: given }),
        closeStream: () => context.http?.closeSSE?.(),
      });
    });
  }
  return made;
}

const stateless = createMcpHandler(() => server(true), { legacy: 'reject' });
const modern = toNodeHandler(stateless);
const sessions = new Map();

async function legacy(request, response, body) {
  const named = request.headers['mcp-session-id'];
  let transport = sessions.get(named);
  if (!transport && named) {
    const error = { jsonrpc: '2.0', id: body?.id ?? null, error: { code: -32001, message: 'Session not found' } };
    return void response.writeHead(404, { 'content-type': 'application/json' }).end(JSON.stringify(error));
  }
  if (!transport) {
    transport = new NodeStreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      eventStore: new Events(),
      retryInterval: 500,
      onsessioninitialized: (id) => void sessions.set(id, transport),
      onsessionclosed: (id) => void sessions.delete(id),
    });
    await server(false).connect(transport);
  }
  await transport.handleRequest(request, response, body);
}

serve(async (request, response) => {
  const body = request.method === 'POST' ? await bodyOf(request) : undefined;
  const old = await isLegacyRequest(await toWebRequest(request, body), body);
  await (old ? legacy : modern)(request, response, body);
});
