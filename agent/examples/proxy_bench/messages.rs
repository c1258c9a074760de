//! The messages of a measurement: a `tools/call` of 0.6 KB, and answers of 2.1 KB, of 20 events, and of 1 MiB.

/// The paths that the server knows, by what it answers.
pub const PLAIN: &str = "/mcp";
pub const EVENTS: &str = "/events";
pub const LARGE: &str = "/large";

/// How many events there are in an answer of events.
pub const EVENT_COUNT: usize = 20;
/// The bytes of a large answer.
pub const LARGE_BYTES: usize = 1 << 20;
/// The id of every call.
const ID: u32 = 7;

const WORDS: &str = "The pipeline builds three images, runs 1,204 tests and publishes what passed. fn main() { let \
    config = Config::load(\\\"ci.toml\\\")?; }\\n\\tassert_eq!(sum(&[1, 2, 3]), 6); // see the ticket\\n";

/// A request with all that an MCP client sends, for a tool.
pub fn request(path: &str, tool: &str, authority: &str) -> Vec<u8> {
    let text: String = WORDS.chars().cycle().take(360).collect();
    // A cut through an escape would be no JSON.
    let text = text.trim_end_matches('\\');
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":{ID},"method":"tools/call","params":{{"name":"{tool}","arguments":{{"path":"src/main.rs","line":120,"text":"{text}","options":{{"recursive":true,"depth":3,"exclude":["target","node_modules"]}}}},"_meta":{{"progressToken":3}}}}}}"#
    );
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nAccept: application/json, text/event-stream\r\nContent-Type: application/json\r\nMCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: 1868a90c-5dbf-4c5f-93e9-7f4a3d6f2b11\r\nUser-Agent: bench/1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// A JSON-RPC result of this many bytes.
fn result(bytes: usize) -> String {
    let head = format!(r#"{{"jsonrpc":"2.0","id":{ID},"result":{{"content":[{{"type":"text","text":""#);
    let tail = r#""}],"isError":false}}"#;
    let room = bytes.saturating_sub(head.len() + tail.len());
    let mut text = WORDS.repeat(room / WORDS.len());
    text.extend(std::iter::repeat_n('.', room - text.len()));
    head + &text + tail
}

fn whole(body: &str) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Mon, 01 Jun 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

pub fn plain_answer() -> Vec<u8> {
    whole(&result(2150))
}

pub fn large_answer() -> Vec<u8> {
    whole(&result(LARGE_BYTES))
}

/// An answer in parts: its head, then one chunk an event, the last one the call's own answer; then its end. Each is
/// a write of its own, as servers do it.
pub fn events_answer() -> Vec<Vec<u8>> {
    let chunk = |data: &str| {
        let event = format!("event: message\ndata: {data}\n\n");
        format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
    };
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    let progress = (1..EVENT_COUNT).map(|n| {
        chunk(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":3,"progress":{n},"total":20,"message":"step {n} of the work"}}}}"#
        ))
    });
    std::iter::once(head.as_bytes().to_vec())
        .chain(progress)
        .chain([chunk(&result(300)), b"0\r\n\r\n".to_vec()])
        .collect()
}

/// Corpora that are masked: name, and text.
pub fn corpora() -> Vec<(&'static str, String)> {
    const BYTES: usize = 1 << 20;
    let lines = |line: &str| line.repeat(BYTES / line.len());
    let as_json = |text: &str| format!(r#"{{"content":[{{"type":"text","text":"{text}"}}]}}"#);
    let numbers = lines(r#"{"x":12.25,"y":-7,"z":[1,2,3],"on":true},"#);
    let prose = lines("A quick walk along the river, where the boats lie, takes an hour or two. ");
    let code = lines(
        "    pub fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> { let mut file = File::open(path)?; self.total += 1; }\\n",
    );
    let keyed = lines(
        r#"{"id":81723,"access_token":null,"author":"kim","key":"a7","note":"the api key and the secret are in the vault, see bearer auth"},"#,
    );
    let names = lines(
        "const token = getToken(); // secret: none; password is asked for. Authorization follows https://docs.example.test/auth, sk-, key_, \\n",
    );
    let secrets = lines(
        r#"{"user":"kim","password":"correct-horse-battery","header":"Bearer abcdefgh12345678","url":"postgres://u:hunter2@db/x"},"#,
    );
    vec![
        ("numbers and members", format!("[{}0]", numbers)),
        ("prose in one string", as_json(&prose)),
        ("source code in one string", as_json(&code)),
        ("keyword-rich JSON", format!("[{}0]", keyed)),
        ("keyword-rich source code in one string", as_json(&names)),
        ("a secret in each member", format!("[{}0]", secrets)),
        ("plain text with keywords", names.replace("\\n", "\n")),
    ]
}
