// The conformance suite's client, made of the TypeScript SDK 2.x. See everyone.mjs.

import { Client, StreamableHTTPClientTransport, UnauthorizedError } from '@modelcontextprotocol/client';
import { accept, revision, tour, url } from './everyone.mjs';

const make = (signIn) => {
  const client = new Client(
    { name: 'weir-tests', version: '2.0.0' },
    {
      capabilities: { elicitation: { form: { applyDefaults: true } } },
      versionNegotiation: { mode: revision === '2026-07-28' ? 'auto' : 'legacy' },
    },
  );
  client.setRequestHandler('elicitation/create', accept);
  return { client, transport: new StreamableHTTPClientTransport(url, { authProvider: signIn }) };
};
make.wholeAnswer = true;

await tour({ make, unauthorized: (error) => error instanceof UnauthorizedError });
