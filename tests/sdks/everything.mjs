// What the official conformance suite asks of a server, as plain data and functions: the servers of both lines of the
// TypeScript SDK share it, and each puts its SDK's own types around it.
//
// In: a method's params, and `io`, by which a handler talks to its client. Out: results as the wire has them.

const pixel = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==';
const silence = 'UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA=';
const nothing = { type: 'object', properties: {} };
const form = (properties, required = Object.keys(properties)) => ({ type: 'object', properties, required });
const text = (...texts) => ({ content: texts.map((each) => ({ type: 'text', text: each })) });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const string = { type: 'string' };

// JSON Schema 2020-12 with what is beyond the plain object.
const vocabulary = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  $defs: {
    address: { $anchor: 'addressDef', type: 'object', properties: { street: string, city: string } },
  },
  properties: {
    name: string,
    address: { $ref: '#/$defs/address' },
    contactMethod: { type: 'string', enum: ['phone', 'email'] },
    phone: string,
    email: string,
  },
  allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
  if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
  then: { required: ['phone'] },
  else: { required: ['email'] },
  additionalProperties: false,
};

const embedded = (uri) => ({
  type: 'resource',
  resource: { uri, mimeType: 'text/plain', text: 'This is an embedded resource content.' },
});
const asksName = { method: 'elicitation/create', params: { mode: 'form', message: 'What is your name?', requestedSchema: form({ name: string }) } };
const asksModel = (question, maxTokens) => ({
  method: 'sampling/createMessage',
  params: { messages: [{ role: 'user', content: { type: 'text', text: question } }], maxTokens },
});
const asksRoots = { method: 'roots/list', params: {} };
const asks = (message, properties) => ({
  method: 'elicitation/create',
  params: { mode: 'form', message, requestedSchema: form(properties) },
});
const choices = (name, labels) => labels.map((label, at) => ({ const: `${name}${at + 1}`, title: label }));

const required = (inputRequests, requestState) => ({
  resultType: 'input_required',
  inputRequests,
  ...(requestState === undefined ? {} : { requestState }),
});
const accepted = (response, field) => response?.action === 'accept' && typeof response.content?.[field] === 'string';

// Tools of every revision.
const tools = {
  test_simple_text: [nothing, () => text('This is a simple text response for testing.')],
  test_image_content: [nothing, () => ({ content: [{ type: 'image', data: pixel, mimeType: 'image/png' }] })],
  test_audio_content: [nothing, () => ({ content: [{ type: 'audio', data: silence, mimeType: 'audio/wav' }] })],
  test_embedded_resource: [nothing, () => ({ content: [embedded('test://embedded-resource')] })],
  test_multiple_content_types: [nothing, () => ({
    content: [
      { type: 'text', text: 'Multiple content types test:' },
      { type: 'image', data: pixel, mimeType: 'image/png' },
      {
        type: 'resource',
        resource: { uri: 'test://mixed-content-resource', mimeType: 'application/json', text: '{"test":"data","value":123}' },
      },
    ],
  })],
  test_tool_with_logging: [nothing, async (_, io) => {
    for (const data of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
      await io.log('info', data);
      await pause(50);
    }
    return text('logged');
  }],
  test_error_handling: [nothing, () => ({ ...text('This tool intentionally returns an error for testing'), isError: true })],
  test_tool_with_progress: [nothing, async (_, io) => {
    for (const progress of [0, 50, 100]) {
      await io.progress(progress, 100);
      await pause(50);
    }
    return text('done');
  }],
  json_schema_2020_12_tool: [vocabulary, (given) => text(JSON.stringify(given))],
};

// Tools that ask the client while it waits: up to 2025-11-25.
const asking = {
  test_sampling: [form({ prompt: string }), async ({ prompt }, io) => {
    const { method, params } = asksModel(prompt, 100);
    const answer = await io.ask(method, params);
    return text(`LLM response: ${answer.content?.text ?? ''}`);
  }],
  test_elicitation: [form({ message: string }), async ({ message }, io) => {
    const answer = await io.ask('elicitation/create', asks(message, {
      username: { type: 'string', description: "User's response" },
      email: { type: 'string', description: "User's email address" },
    }).params);
    return text(`User response: action=${answer.action}, content=${JSON.stringify(answer.content)}`);
  }],
  test_elicitation_sep1034_defaults: [nothing, async (_, io) => {
    const answer = await io.ask('elicitation/create', asks('Please confirm', {
      name: { type: 'string', default: 'John Doe' },
      age: { type: 'integer', default: 30 },
      score: { type: 'number', default: 95.5 },
      status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
      verified: { type: 'boolean', default: true },
    }).params);
    return text(`Elicitation completed: action=${answer.action}, content=${JSON.stringify(answer.content)}`);
  }],
  test_elicitation_sep1330_enums: [nothing, async (_, io) => {
    const plain = ['option1', 'option2', 'option3'];
    const answer = await io.ask('elicitation/create', asks('Please choose', {
      untitledSingle: { type: 'string', enum: plain },
      titledSingle: { type: 'string', oneOf: choices('value', ['First Option', 'Second Option', 'Third Option']) },
      legacyEnum: { type: 'string', enum: ['opt1', 'opt2', 'opt3'], enumNames: ['Option One', 'Option Two', 'Option Three'] },
      untitledMulti: { type: 'array', items: { type: 'string', enum: plain } },
      titledMulti: { type: 'array', items: { anyOf: choices('value', ['First Choice', 'Second Choice', 'Third Choice']) } },
    }).params);
    return text(`Elicitation completed: action=${answer.action}, content=${JSON.stringify(answer.content)}`);
  }],
  test_reconnection: [nothing, async (_, io) => {
    await pause(50);
    io.closeStream();
    await pause(100);
    return text('Reconnection test completed');
  }],
};

// Tools of the stateless revision, which ask by their results.
const rounds = {
  test_missing_capability: [nothing, (_, io) => (io.can('sampling') ? text('sampled') : io.lacks({ sampling: {} }))],
  test_streaming_elicitation: [nothing, async (_, io) => {
    await io.progress(1, 2);
    return io.can('elicitation') ? required({ user_name: asksName }) : text('nobody to ask');
  }],
  test_logging_tool: [nothing, async (_, io) => {
    await io.log('info', 'a line');
    return text('logged');
  }],
  test_trigger_tool_change: [nothing, (_, io) => (io.changed('tools'), text('changed'))],
  test_trigger_prompt_change: [nothing, (_, io) => (io.changed('prompts'), text('changed'))],
  test_input_required_result_elicitation: [nothing, (_, io) =>
    (accepted(io.responses?.user_name, 'name')
      ? text(`Hello, ${io.responses.user_name.content.name}!`)
      : required({ user_name: asksName }))],
  test_input_required_result_sampling: [nothing, (_, io) =>
    (io.responses?.capital_question
      ? text(JSON.stringify(io.responses.capital_question))
      : required({ capital_question: asksModel('What is the capital of France?', 100) }))],
  test_input_required_result_list_roots: [nothing, (_, io) =>
    (io.responses?.client_roots ? text(JSON.stringify(io.responses.client_roots)) : required({ client_roots: asksRoots }))],
  test_input_required_result_request_state: [nothing, async (_, io) =>
    (io.responses?.confirm && io.state()
      ? text(`state-ok: ${JSON.stringify(io.responses.confirm)}`)
      : required({ confirm: asks('Please confirm', { ok: { type: 'boolean' } }) }, await io.mint({ round: 1 })))],
  test_input_required_result_multiple_inputs: [nothing, async (_, io) =>
    (io.responses?.user_name && io.state()
      ? text(JSON.stringify(io.responses))
      : required(
        { user_name: asksName, greeting: asksModel('Generate a greeting', 50), client_roots: asksRoots },
        await io.mint({ round: 1 }),
      ))],
  test_input_required_result_multi_round: [nothing, async (_, io) => {
    if (io.responses?.step2) return text(JSON.stringify(io.responses.step2));
    if (io.responses?.step1) {
      const asked = { step2: asks('Step 2: What is your favorite color?', { color: string }) };
      return required(asked, await io.mint({ round: 2 }));
    }
    return required({ step1: asks('Step 1: What is your name?', { name: string }) }, await io.mint({ round: 1 }));
  }],
  test_input_required_result_tampered_state: [nothing, async (_, io) =>
    (io.responses?.confirm && io.state()
      ? text('state-ok')
      : required({ confirm: asks('Please confirm', { ok: { type: 'boolean' } }) }, await io.mint({ round: 1 })))],
  test_input_required_result_capabilities: [nothing, (_, io) => {
    const all = { sampling: asksModel('Anything?', 10), elicitation: asksName, roots: asksRoots };
    const asked = Object.entries(all).filter(([capability]) => io.can(capability));
    return asked.length > 0 ? required(Object.fromEntries(asked)) : text('nobody to ask');
  }],
};

const argument = (name) => ({ name, description: name, required: true });
const says = (...contents) => ({ messages: contents.map((content) => ({ role: 'user', content })) });
const prompts = {
  test_simple_prompt: [[], () => says({ type: 'text', text: 'This is a simple prompt for testing.' })],
  test_prompt_with_arguments: [[argument('arg1'), argument('arg2')], ({ arg1, arg2 }) =>
    says({ type: 'text', text: `Prompt with arguments: arg1='${arg1}', arg2='${arg2}'` })],
  test_prompt_with_embedded_resource: [[argument('resourceUri')], ({ resourceUri }) =>
    says(
      { type: 'resource', resource: { uri: resourceUri, mimeType: 'text/plain', text: 'Embedded resource content for testing.' } },
      { type: 'text', text: 'Please process the embedded resource above.' },
    )],
  test_prompt_with_image: [[], () =>
    says({ type: 'image', data: pixel, mimeType: 'image/png' }, { type: 'text', text: 'Please analyze the image above.' })],
  test_input_required_result_prompt: [[], (_, io) =>
    (accepted(io.responses?.user_context, 'context')
      ? says({ type: 'text', text: io.responses.user_context.content.context })
      : required({ user_context: asks('What context should the prompt use?', { context: string }) }))],
};

const resources = {
  'test://static-text': { mimeType: 'text/plain', text: 'This is the content of the static text resource.' },
  'test://static-binary': { mimeType: 'image/png', blob: pixel },
  'test://watched-resource': { mimeType: 'text/plain', text: 'Watched resource content' },
};

export const capabilities = (modern) => ({
  tools: { listChanged: true },
  prompts: { listChanged: true },
  resources: { subscribe: true, listChanged: true },
  completions: {},
  ...(modern ? {} : { logging: {} }),
});

// The handlers, by method. `missing(uri)` makes the SDK's own error for a resource that is not there, `unknown(name)` for a tool.
export function handlers({ missing, unknown }) {
  const offered = (io) => ({ ...tools, ...(io.modern ? rounds : asking) });
  const hint = (io, result) => (io.modern ? { ...result, ttlMs: 1000, cacheScope: 'private' } : result);
  return {
    'tools/list': (_, io) => hint(io, {
      tools: Object.entries(offered(io)).map(([name, [inputSchema]]) => ({ name, description: name, inputSchema })),
    }),
    'tools/call': ({ name, arguments: given }, io) => {
      const tool = offered(io)[name];
      if (!tool) throw unknown(name);
      return tool[1](given ?? {}, io);
    },
    'prompts/list': (_, io) => hint(io, {
      prompts: Object.entries(prompts).map(([name, [given]]) => ({ name, description: name, arguments: given })),
    }),
    'prompts/get': ({ name, arguments: given }, io) => {
      if (!prompts[name]) throw unknown(name);
      return prompts[name][1](given ?? {}, io);
    },
    'resources/list': (_, io) => hint(io, {
      resources: Object.entries(resources).map(([uri, { mimeType }]) => ({ uri, name: uri, mimeType })),
    }),
    'resources/templates/list': (_, io) => hint(io, {
      resourceTemplates: [{ uriTemplate: 'test://template/{id}/data', name: 'template', mimeType: 'application/json' }],
    }),
    'resources/read': ({ uri }, io) => {
      const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1];
      const filled = id && { mimeType: 'application/json', text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }) };
      const found = resources[uri] ?? filled;
      if (!found) throw missing(uri);
      return hint(io, { contents: [{ uri, ...found }] });
    },
    'completion/complete': ({ argument: { value } }) => {
      const values = ['paris', 'park', 'party'].filter((each) => each.startsWith(value));
      return { completion: { values, total: values.length, hasMore: false } };
    },
  };
}

// The handlers that only revisions with sessions have.
export const sessionful = {
  'logging/setLevel': () => ({}),
  'resources/subscribe': () => ({}),
  'resources/unsubscribe': () => ({}),
};
