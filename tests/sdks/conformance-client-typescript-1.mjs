// The conformance suite's client, made of the TypeScript SDK 1.x. See everyone.mjs.

import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { accept, tour, url } from './everyone.mjs';

const make = (signIn) => {
  const capabilities = { elicitation: { form: { applyDefaults: true } } };
  const client = new Client({ name: 'weir-tests', version: '1.0.0' }, { capabilities });
  client.setRequestHandler(ElicitRequestSchema, accept);
  return { client, transport: new StreamableHTTPClientTransport(url, { authProvider: signIn }) };
};

await tour({ make, unauthorized: (error) => error instanceof UnauthorizedError });
