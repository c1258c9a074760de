// The log of the conformance suite's own process: each JSON-RPC message that the suite sent or got, and each connection, as the
// suite saw them. The suite keeps no such log; it is loaded beside the unmodified suite by `node --import`.
//
// In: WEIR_TAP, the file to append to, and WEIR_TAP_PORTS (`FIRST-LAST`), from which a server of the suite that asks for any port
// gets one, so that its ports can be named beforehand. Out: JSON lines {"way", "message"}, with the ids of the requests that an answer
// came to ("to"), {"connection"}, and {"abandoned"}: the ids of requests whose answers the suite did not read to their end. It changes
// no byte.

import { AsyncLocalStorage } from 'node:async_hooks';
import diagnostics from 'node:diagnostics_channel';
import { appendFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';

const file = process.env.WEIR_TAP;
const write = (line) => appendFileSync(file, `${JSON.stringify(line)}\n`);
const up = 'client_to_server';
const down = 'server_to_client';

function parse(text) {
  try {
    const parsed = JSON.parse(text);
    return (Array.isArray(parsed) ? parsed : [parsed]).filter((each) => each?.jsonrpc === '2.0');
  } catch {
    return [];
  }
}

function message(way, text, to) {
  for (const each of parse(text)) write({ way, message: each, to });
}

const idsIn = (text) => parse(text).map(({ id }) => id).filter((id) => id !== undefined);

// Bodies whose reader has not come to their end: what is in them has arrived all the same.
const open = new Set();
process.on('exit', () => open.forEach((body) => body.end(true)));

// Gathers a body: events one by one as they come, anything else at its end.
function gather(way, isStream, ended = () => {}, to = undefined) {
  const decoder = new TextDecoder();
  let text = '';
  const events = () => {
    const parts = text.split(/\r\n\r\n|\n\n|\r\r/);
    text = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r\n|\n|\r/).filter((line) => line.startsWith('data:'));
      if (data.length > 0) message(way, data.map((line) => line.slice(5)).join('\n'), to);
    }
  };
  const body = {
    chunk(bytes) {
      text += typeof bytes === 'string' ? bytes : decoder.decode(bytes, { stream: true });
      if (isStream()) events();
    },
    end(abandoned = false) {
      if (!isStream()) message(way, text, to);
      text = '';
      open.delete(body);
      ended(abandoned);
    },
  };
  open.add(body);
  return body;
}

// As a client: what goes through fetch, and what its dispatcher gives back.
await fetch('data:,');
const place = Symbol.for('undici.globalDispatcher.1');
const dispatcher = globalThis[place];
const nameOf = (header) => header.toString('latin1').toLowerCase();

// The body of the request that a fetch is about: its dispatcher gets another form of it.
const asked = new AsyncLocalStorage();

function tapped(handler, options) {
  const ids = idsIn(asked.getStore() ?? options.body);
  // Only then is there a connection to send it on.
  const sending = () => typeof options.body === 'string' && message(up, options.body);
  let type = '';
  let over = false;
  const body = gather(down, () => type.startsWith('text/event-stream'), (abandoned) => {
    if (!over && abandoned && ids.length > 0) write({ abandoned: ids });
    over = true;
  }, ids);
  const seen = {
    onConnect: sending,
    onRequestStart: sending,
    onHeaders: (_status, headers) => {
      for (let at = 0; at + 1 < headers.length; at += 2) {
        if (nameOf(headers[at]) === 'content-type') type = headers[at + 1].toString('latin1');
      }
    },
    onData: (chunk) => body.chunk(chunk),
    onComplete: () => body.end(),
    onError: () => body.end(true),
    onResponseStart: (_controller, _status, headers) => void (type = String(headers['content-type'] ?? '')),
    onResponseData: (_controller, chunk) => body.chunk(chunk),
    onResponseEnd: () => body.end(),
    onResponseError: () => body.end(true),
  };
  return new Proxy(handler, {
    get(target, name) {
      const value = target[name];
      if (typeof value !== 'function') return value;
      return (...given) => {
        seen[name]?.(...given);
        return value.apply(target, given);
      };
    },
  });
}

globalThis[place] = new Proxy(dispatcher, {
  get(target, name) {
    const value = target[name];
    if (typeof value !== 'function') return value;
    if (name === 'dispatch') return (options, handler) => target.dispatch(options, tapped(handler, options));
    return value.bind(target);
  },
});
const { fetch: real } = globalThis;
globalThis.fetch = (target, init) => {
  if (typeof init?.body === 'string') message(up, init.body);
  return asked.run(init?.body, () => real(target, init));
};
diagnostics.subscribe('undici:client:connected', () => write({ connection: 'made' }));

// What some scenarios write by Node's own HTTP client.
const { emit: emits, write: puts, end: ends } = http.ClientRequest.prototype;
const sent = new WeakMap();
const idsOf = new WeakMap();
const bodyOf = (request) => sent.get(request) ?? sent.set(request, gather(up, () => false)).get(request);
http.ClientRequest.prototype.write = function written(chunk, ...rest) {
  if (chunk) bodyOf(this).chunk(chunk);
  return puts.call(this, chunk, ...rest);
};
http.ClientRequest.prototype.end = function ended(chunk, ...rest) {
  // Of a body that it is given last, Node's end() makes a write() of its own for some, and none for others.
  const body = bodyOf(this);
  if (chunk && typeof chunk !== 'function') {
    body.chunk(chunk);
    idsOf.set(this, idsIn(String(chunk)));
  }
  body.chunk = () => {};
  body.end();
  return ends.call(this, chunk, ...rest);
};
http.ClientRequest.prototype.emit = function tap(event, ...given) {
  if (event === 'socket' && !this.reusedSocket) write({ connection: 'made' });
  if (event === 'response') {
    const isStream = () => String(given[0].headers['content-type']).startsWith('text/event-stream');
    gatherFrom(given[0], gather(down, isStream, () => {}, idsOf.get(this)));
  }
  return emits.call(this, event, ...given);
};

function gatherFrom(message, body) {
  const { push } = message;
  message.push = function pushed(chunk, ...rest) {
    if (chunk === null) body.end();
    else body.chunk(chunk);
    return push.call(this, chunk, ...rest);
  };
}

// As a server.
const { emit } = http.Server.prototype;
http.Server.prototype.emit = function tap(event, ...given) {
  if (event === 'connection') write({ connection: 'accepted' });
  if (event === 'request') {
    const [request, response] = given;
    gatherFrom(request, gather(up, () => false));
    let type = '';
    const got = gather(down, () => (type || String(response.getHeader('content-type') ?? '')).startsWith('text/event-stream'));
    const { writeHead } = response;
    response.writeHead = function headed(...head) {
      // Headers that are given here alone are never to be had from getHeader().
      const headers = head.find((part) => part && typeof part === 'object') ?? {};
      const pairs = Array.isArray(headers) ? [] : Object.entries(headers);
      type = String(pairs.find(([name]) => name.toLowerCase() === 'content-type')?.[1] ?? '');
      return writeHead.apply(this, head);
    };
    const { write: writes, end } = response;
    response.write = function written(chunk, ...rest) {
      if (chunk) got.chunk(chunk);
      return writes.call(this, chunk, ...rest);
    };
    response.end = function ended(chunk, ...rest) {
      if (chunk && typeof chunk !== 'function') got.chunk(chunk);
      got.end();
      return end.call(this, chunk, ...rest);
    };
  }
  return emit.call(this, event, ...given);
};

const [first, last] = (process.env.WEIR_TAP_PORTS ?? '').split('-').map(Number);
if (first) {
  let next = first;
  const { listen } = net.Server.prototype;
  net.Server.prototype.listen = function listening(...given) {
    if (given[0] === 0) {
      if (next > last) throw new Error(`all ports of WEIR_TAP_PORTS (${first}-${last}) are in use`);
      given[0] = next++;
    }
    return listen.apply(this, given);
  };
}
