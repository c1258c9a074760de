//! A hundred thousand exchanges made by a seed: requests and answers that are broken in all ways that chance finds, some whole
//! ones among them. No panic, no wait of a second, no memory that is not given back, and nothing at the server that
//! could be read in two ways or that policy denies.

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weir_core::http1::Framing;
use weir_fuzz::Mutator;

use crate::stage::{SERVER, Stage, call};

const SEED: u64 = 4;
const EXCHANGES: usize = 100_000;
/// Each with a runtime of its own, on a thread of this name.
const LANE: &str = "lane";
const LANES: usize = 2;
/// Exchanges over one log, after which it and its disk in memory are new.
const OF_ONE_STAGE: usize = 2500;
/// Exchanges at a time in a lane: while some wait for what does not come, others go on.
const AT_A_TIME: usize = 25;
/// After so long without a byte from the gate, a client leaves.
const QUIET: Duration = Duration::from_millis(4);
/// A wait of so many steps is a hang: a second, not counting what the machine takes for others meanwhile.
const HANG: usize = 50;
const STEP: Duration = Duration::from_millis(20);
const MAX_GROWTH: usize = 64 << 20;

static PANICS: AtomicUsize = AtomicUsize::new(0);
/// What was seen of each kind, so that a run in which nothing happened does not pass.
static ASKED: AtomicUsize = AtomicUsize::new(0);
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_hundred_thousand_malformed_exchanges_neither_break_nor_hang_nor_swell_it() {
    println!("seed {SEED}");
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // Other tests may run in this process, and may fail.
        if thread::current().name().is_some_and(|name| name.starts_with(LANE)) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        usual(info);
    }));
    // What stays after the first log is what any number of logs may need.
    in_lane(SEED, OF_ONE_STAGE).join().unwrap();
    let before = resident();
    let lanes: Vec<_> = (1..=LANES).map(|number| in_lane(SEED + number as u64, EXCHANGES / LANES)).collect();
    lanes.into_iter().for_each(|lane| lane.join().unwrap());
    let after = resident();
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "panics");
    assert!(after < before + MAX_GROWTH, "grew from {before} to {after} bytes");
    let [asked, answered, refused] = [&ASKED, &ANSWERED, &REFUSED].map(|count| count.load(Ordering::Relaxed));
    println!("{asked} requests reached the server; {answered} answers, {refused} of them refusals");
    assert!(asked > EXCHANGES / 20 && answered > EXCHANGES / 10 && refused > EXCHANGES / 20);
}

fn in_lane(seed: u64, exchanges: usize) -> thread::JoinHandle<()> {
    thread::Builder::new().name(LANE.into()).spawn(move || lane(seed, exchanges)).unwrap()
}

fn lane(seed: u64, exchanges: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut mutator = Mutator::new(seed);
    let beating = runtime.spawn(heartbeat());
    for _ in 0..exchanges.div_ceil(OF_ONE_STAGE) {
        runtime.block_on(stage(&mut mutator, OF_ONE_STAGE));
    }
    assert!(!beating.is_finished(), "the heart stopped");
}

async fn stage(mutator: &mut Mutator, exchanges: usize) {
    let mut stage = Stage::new().await;
    let mut dialled = stage.all_dialled();
    let mut answers = Mutator::new(mutator.below(usize::MAX) as u64);
    let server = tokio::spawn(async move {
        let mut served = JoinSet::new();
        while let Some(stream) = dialled.recv().await {
            let own = Mutator::new(answers.below(usize::MAX) as u64);
            served.spawn(serve(stream, own));
            while let Some(done) = served.try_join_next() {
                done.unwrap();
            }
        }
        while let Some(done) = served.join_next().await {
            done.unwrap();
        }
    });
    let (whole, corpus) = (whole_requests(), requests());
    let mut under_way = JoinSet::new();
    let stage = Arc::new(stage);
    for _ in 0..exchanges {
        if under_way.len() == AT_A_TIME {
            under_way.join_next().await.unwrap().unwrap();
        }
        let (bytes, is_whole) = match mutator.below(4) {
            0 => (mutator.one_of(&whole).cloned().unwrap(), true),
            _ => (mutator.input(&corpus), false),
        };
        let cut = mutator.below(bytes.len() + 1);
        under_way.spawn(exchange(stage.clone(), bytes, cut, is_whole));
        if under_way.len() % 8 == 0 {
            stage.forget_events();
        }
    }
    while let Some(done) = under_way.join_next().await {
        done.unwrap();
    }
    // What waits for an answer on another stream would keep all of this for as long as it may wait.
    stage.gate.tasks.end(Duration::ZERO, STEP * HANG as u32).await;
    drop(stage);
    server.await.unwrap();
}

/// One client: it says its bytes, hears what the gate says, and leaves.
async fn exchange(stage: Arc<Stage>, bytes: Vec<u8>, cut: usize, is_whole: bool) {
    let (mut stream, served) = stage.connect();
    let said = async {
        let (first, second) = bytes.split_at(cut);
        for piece in [first, second] {
            // The gate may have closed by now.
            let _ = stream.write_all(piece).await;
            tokio::task::yield_now().await;
        }
    };
    let what = || bytes.escape_ascii().to_string();
    soon(said).await.unwrap_or_else(|| panic!("not read: {}", what()));
    let mut heard = Vec::new();
    // A whole request is answered, or its connection ends; what is not whole may wait for more.
    let read = match is_whole {
        true => soon(stream.read_buf(&mut heard)).await,
        false => timeout(QUIET, stream.read_buf(&mut heard)).await.ok(),
    };
    match read {
        None if is_whole => panic!("not answered: {}", what()),
        Some(Ok(read)) if read > 0 => {
            while let Ok(Ok(1..)) = timeout(QUIET, stream.read_buf(&mut heard)).await {}
            ANSWERED.fetch_add(1, Ordering::Relaxed);
            if heard.windows(6).any(|part| part == b"-31403") || heard.starts_with(b"HTTP/1.1 4") {
                REFUSED.fetch_add(1, Ordering::Relaxed);
            }
        }
        _ => {}
    }
    drop(stream);
    let end = soon(served).await;
    end.unwrap_or_else(|| panic!("served on after its client had left: {}", what())).unwrap();
}

/// What is there before it is a hang.
async fn soon<T>(work: impl Future<Output = T>) -> Option<T> {
    let hang = async {
        for _ in 0..HANG {
            sleep(STEP).await;
        }
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = hang => None,
    }
}

/// Fails when one piece of work keeps a lane's thread to itself for as long, by the thread's own time.
async fn heartbeat() {
    let mut before = computed();
    loop {
        sleep(STEP).await;
        let now = computed();
        assert!(now - before < STEP * HANG as u32, "its thread computed for {:?} on end", now - before);
        before = now;
    }
}

/// For how long this thread was given a processor.
fn computed() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(told.split(' ').next().unwrap().parse().unwrap())
}

/// The server: it reads strictly what comes, and answers as chance will have it.
async fn serve(mut stream: DuplexStream, mut mutator: Mutator) {
    let (mut framing, mut read, corpus) = (Framing::of_requests(), Vec::new(), answers());
    loop {
        let before = read.len();
        if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
            return;
        }
        let fed = framing.feed(&read[before..]);
        assert_eq!(fed, Ok(()), "the server was sent {:?}", read.escape_ascii().to_string());
        if !framing.is_between_messages() {
            continue;
        }
        ASKED.fetch_add(1, Ordering::Relaxed);
        let body = read.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
        assert!(!is_denied(&read[body..]), "the server was sent {:?}", read.escape_ascii().to_string());
        read.clear();
        let (answer, is_whole) = match mutator.below(3) {
            0 => (corpus[0].clone(), true),
            _ => (mutator.input(&corpus), false),
        };
        // The gate may have given up by now.
        if stream.write_all(&answer).await.is_err() || !is_whole {
            return;
        }
    }
}

/// Whether a lenient reader finds a call in it that policy denies.
fn is_denied(body: &[u8]) -> bool {
    fn denied(value: &Value) -> bool {
        let member = |value: &Value, name: &str| {
            let mut members = value.as_object()?.iter();
            members.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        match value {
            Value::Array(values) => values.iter().any(denied),
            value => {
                let calls = member(value, "method").is_some_and(|method| method == "tools/call");
                let tool = member(value, "params").and_then(|params| member(&params, "name"));
                calls
                    && tool.is_some_and(|tool| tool.as_str().is_some_and(|tool| tool.starts_with("delete_")))
            }
        }
    }
    serde_json::from_slice(body).is_ok_and(|value| denied(&value))
}

/// What this process has in memory.
fn resident() -> usize {
    let told = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = told.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn post(more: &str, body: &str) -> Vec<u8> {
    let head = format!("POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\nContent-Type: application/json\r\n{more}");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn whole_requests() -> Vec<Vec<u8>> {
    let stream = format!("GET /mcp HTTP/1.1\r\nHost: {SERVER}\r\nAccept: text/event-stream\r\n\r\n");
    let chunked = format!("POST /mcp HTTP/1.1\r\nHost: {SERVER}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let body = call(1, "glance");
    vec![
        post("", &call(1, "echo")),
        post("", &call(2, "delete_repo")),
        post("", &format!("[{},{}]", call(3, "glance"), call(4, "echo"))),
        post("Mcp-Session-Id: s\r\n", r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#),
        post("", r#"{"jsonrpc":"2.0","id":9,"result":{}}"#),
        post("Connection: close\r\n", "{}"),
        stream.into_bytes(),
        format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes(),
        format!("DELETE /mcp HTTP/1.1\r\nHost: {SERVER}\r\nMcp-Session-Id: s\r\n\r\n").into_bytes(),
    ]
}

/// What is made broken.
fn requests() -> Vec<Vec<u8>> {
    let denied = call(1, "delete_repo");
    let mut requests = whole_requests();
    requests.extend([
        post("", &denied.replace("\"method\"", "\"Method\"")),
        post("", &format!("[7,{denied}]")),
        post("Content-Encoding: gzip\r\n", "\u{1f}\u{8b}"),
        post("Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{denied}\r\n0\r\n\r\n", denied.len())),
        post("Connection: Upgrade\r\nUpgrade: websocket\r\n", ""),
        post("Expect: 100-continue\r\n", &call(5, "echo")),
        [post("", &call(6, "glance")), post("", &denied)].concat(),
        format!("CONNECT {SERVER}:443 HTTP/1.1\r\nHost: {SERVER}\r\n\r\n").into_bytes(),
    ]);
    requests
}

/// The first one is whole, and for any request.
fn answers() -> Vec<Vec<u8>> {
    let whole = |kind: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    let event = "event: message\r\nid: 1\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\r\n\r\n";
    let progress =
        "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progress\":1}}\n\n";
    let chunked = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    vec![
        whole("application/json", r#"{"jsonrpc":"2.0","id":1,"result":{"isError":false}}"#),
        whole("application/json", r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}"#),
        whole("text/event-stream", &format!("{progress}{event}")),
        format!("{chunked}{:x}\r\n{progress}\r\n{:x}\r\n{event}\r\n0\r\n\r\n", progress.len(), event.len())
            .into_bytes(),
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00"
            .to_vec(),
        b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            .to_vec(),
    ]
}
