// A server of HTTP/2 and HTTP/1.1 over TLS. In: the files of its certificate and key. It answers a POST with a JSON-RPC result, GET /much with
// 64 MiB, and any other GET with nothing. Out: a line of JSON with its port, once it listens.
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";

const [cert, key] = process.argv.slice(2).map((file) => readFileSync(file));
const result = '{"jsonrpc":"2.0","id":1,"result":{}}';
const piece = Buffer.alloc(64 << 10, "x");

function much(response) {
  let left = 1024;
  const more = () => {
    while (left-- > 0) {
      if (!response.write(piece)) return response.once("drain", more);
    }
    response.end();
  };
  more();
}

const server = createSecureServer({ cert, key, allowHTTP1: true }, (request, response) => {
  request.resume();
  request.on("error", () => {});
  response.on("error", () => {});
  if (request.url === "/much") return much(response);
  request.on("end", () => {
    const body = request.method === "POST" ? result : "";
    response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
    response.end(body);
  });
});
server.on("sessionError", () => {});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
