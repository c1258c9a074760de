// `fetch` over Node's own HTTP/2, which offers nothing else: a client behind it speaks HTTP/2 or nothing.
//
// In: what `fetch` takes, as far as an MCP client uses it. Out: a `Response`. One connection for each origin, until `close` is called.

import { connect, constants } from 'node:http2';
import { Readable } from 'node:stream';

const WITHOUT_BODY = [204, 205, 304];

export function overHttp2() {
  const connections = new Map();
  const connection = (origin) => {
    let open = connections.get(origin);
    if (!open || open.closed || open.destroyed) {
      open = connect(origin);
      open.on('error', () => {});
      connections.set(origin, open);
    }
    return open;
  };
  const fetch = async (input, init = {}) => {
    const url = new URL(input);
    const head = Object.fromEntries(new Headers(init.headers));
    head[':method'] = init.method ?? 'GET';
    head[':path'] = url.pathname + url.search;
    const stream = connection(url.origin).request(head, { endStream: init.body == null });
    init.signal?.addEventListener('abort', () => stream.close(constants.NGHTTP2_CANCEL));
    if (init.body != null) stream.end(init.body);
    const answer = await new Promise((resolve, reject) => {
      stream.once('response', resolve);
      stream.once('error', reject);
      stream.once('close', () => reject(new Error('the stream was closed before its answer')));
    });
    // What breaks off later is the body's reader's.
    stream.on('error', () => {});
    const headers = new Headers();
    for (const [name, values] of Object.entries(answer)) {
      if (name.startsWith(':')) continue;
      for (const value of [values].flat()) headers.append(name, String(value));
    }
    const status = answer[':status'];
    if (WITHOUT_BODY.includes(status)) stream.resume();
    return new Response(WITHOUT_BODY.includes(status) ? null : Readable.toWeb(stream), { status, headers });
  };
  return { fetch, close: () => connections.forEach((open) => open.destroy()) };
}
