// What the official conformance suite's client scenarios want of a client, for both lines of the TypeScript SDK: it connects,
// looks at all that the server offers, calls each tool, and goes through OAuth by itself when it is asked to.
//
// In: the server's URL as the last argument, and the suite's variables MCP_CONFORMANCE_*. Out: exit code 0 when all went well.

export const url = new URL(process.argv.at(-1));
export const scenario = process.env.MCP_CONFORMANCE_SCENARIO ?? '';
export const revision = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION ?? '2025-11-25';
export const given = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? '{}');

// A value for a JSON schema.
function sample(schema = {}, name = '') {
  if ('default' in schema) return schema.default;
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  switch (schema.type) {
    case 'integer':
    case 'number':
      return 5;
    case 'boolean':
      return true;
    case 'array':
      return [];
    case 'object':
      return Object.fromEntries(Object.entries(schema.properties ?? {}).map(([key, each]) => [key, sample(each, key)]));
    default:
      return name || 'text';
  }
}

// What a person would answer who takes what is offered.
export const accept = ({ params }) => ({
  action: 'accept',
  // An answer without the fields that have a default: the SDK fills those in.
  content: Object.fromEntries(
    Object.entries(params?.requestedSchema?.properties ?? {})
      .filter(([, schema]) => !('default' in schema))
      .map(([key, schema]) => [key, sample(schema, key)]),
  ),
});

// Signs in as a browser would that is redirected at once.
export class SignIn {
  redirectUrl = 'http://localhost:3000/callback';
  clientMetadataUrl = 'https://conformance-test.local/client-metadata.json';
  clientMetadata = {
    client_name: 'weir-tests',
    redirect_uris: [this.redirectUrl],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'client_secret_post',
  };
  #client = given.client_id ? { client_id: given.client_id, client_secret: given.client_secret } : undefined;
  #tokens;
  #verifier;
  redirected;

  clientInformation() { return this.#client; }
  saveClientInformation(client) { this.#client = client; }
  tokens() { return this.#tokens; }
  saveTokens(tokens) { this.#tokens = tokens; }
  saveCodeVerifier(verifier) { this.#verifier = verifier; }
  codeVerifier() { return this.#verifier; }

  async redirectToAuthorization(place) {
    const answer = await fetch(place, { redirect: 'manual' });
    await answer.body?.cancel();
    const location = answer.headers.get('location');
    if (!location) throw new Error(`the authorization server did not redirect: ${answer.status}`);
    this.redirected = new URL(location);
  }
}

// Makes one client's whole tour. `make` gives a client and a transport; `unauthorized` knows the SDK's error for a 401.
export async function tour({ make, unauthorized }) {
  const signIn = new SignIn();
  const again = async (work) => {
    for (let round = 0; ; round += 1) {
      try {
        return await work();
      } catch (error) {
        if (!unauthorized(error) || !signIn.redirected || round > 3) throw error;
        const { searchParams } = signIn.redirected;
        signIn.redirected = undefined;
        await transport.finishAuth(...(transport.finishAuth.length > 1 || make.wholeAnswer ? [searchParams] : [searchParams.get('code')]));
      }
    }
  };
  let client;
  let transport;
  await again(async () => {
    ({ client, transport } = make(signIn));
    await client.connect(transport);
  });
  const failures = [];
  const attempt = async (what, work) => {
    try {
      return await again(work);
    } catch (error) {
      failures.push(`${what}: ${error.message}`);
      return undefined;
    }
  };
  const offered = client.getServerCapabilities() ?? {};
  if (offered.tools) {
    const { tools = [] } = (await attempt('tools/list', () => client.listTools())) ?? {};
    const asked = given.toolCalls ?? tools.map((tool) => ({ name: tool.name, arguments: sample(tool.inputSchema) }));
    for (const call of asked) await attempt(call.name, () => client.callTool(call));
  }
  if (offered.resources) {
    const { resources = [] } = (await attempt('resources/list', () => client.listResources())) ?? {};
    for (const { uri } of resources) await attempt(uri, () => client.readResource({ uri }));
  }
  if (offered.prompts) {
    const { prompts = [] } = (await attempt('prompts/list', () => client.listPrompts())) ?? {};
    for (const { name, arguments: names = [] } of prompts) {
      const filled = Object.fromEntries(names.map((each) => [each.name, each.name]));
      await attempt(name, () => client.getPrompt({ name, arguments: filled }));
    }
  }
  await client.close().catch(() => {});
  for (const failure of failures) console.error(failure);
}
