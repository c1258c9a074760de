//! The goals, and how far off the run is. What is said of a missed one is here; its numbers are the run's.

use serde_json::Value;

use super::cells::{CLOSED, Cells, EVENTS, FRESH, IDLE, LARGE, PACED};
use super::peers::{BEST_EFFORT, DIRECT, ENVOY, FLOOR, STRICT};
use crate::bench::goal::Goal;

/// What the large answers hold, in MB.
const LARGE_MB: f64 = 1.048_576;

pub fn goals(cells: &Cells, masking: &Value, rows: &Value) -> Vec<Goal> {
    let added = |what| Some(cells.number(PACED, BEST_EFFORT, what)? - cells.number(PACED, DIRECT, what)?);
    let corpora = masking.get("corpora").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let speed = |corpus: &Value| corpus.get("mb_per_s").and_then(Value::as_f64);
    let keyed = |corpus: &&Value| corpus.get("corpus").and_then(Value::as_str) == Some("keyword-rich JSON");
    let goal = |title, unit, at_most, goal, stretch, measured, why| Goal {
        title,
        unit,
        at_most,
        goal,
        stretch,
        measured,
        why,
    };
    vec![
        goal(
            "CPU per call, 32 connections, to rustfloor",
            "x",
            true,
            2.1,
            cells.ratio(CLOSED, "cpu_s_per_1k", ENVOY, FLOOR),
            cells.ratio(CLOSED, "cpu_s_per_1k", STRICT, FLOOR),
            PER_CALL,
        ),
        goal(
            "calls a second, 32 connections, to direct",
            "x",
            false,
            0.25,
            cells.ratio(CLOSED, "rps", ENVOY, DIRECT),
            cells.ratio(CLOSED, "rps", STRICT, DIRECT),
            STRICT_RATE,
        ),
        goal(
            "the same under best_effort",
            "x",
            false,
            0.25,
            cells.ratio(CLOSED, "rps", ENVOY, DIRECT),
            cells.ratio(CLOSED, "rps", BEST_EFFORT, DIRECT),
            PER_CALL,
        ),
        goal(
            "added at the median, 1,000 calls a second, best_effort",
            "us",
            true,
            150.0,
            Some(100.0),
            added("p50_us"),
            ADDED,
        ),
        goal("added at the 99th percentile, the same", "us", true, 300.0, None, added("p99_us"), ADDED),
        goal(
            "new TLS connection per call, to direct",
            "x",
            false,
            0.75,
            Some(0.82),
            cells.ratio(FRESH, "rps", BEST_EFFORT, DIRECT),
            FRESH_CONNECTIONS,
        ),
        goal(
            "answers of 1 MiB",
            "MB/s",
            false,
            350.0,
            Some(763.0),
            cells.number(LARGE, BEST_EFFORT, "rps").map(|rps| rps * LARGE_MB),
            LARGE_ANSWERS,
        ),
        goal(
            "answers of 20 events, to Envoy",
            "x",
            false,
            0.5,
            Some(0.8),
            cells.ratio(EVENTS, "rps", BEST_EFFORT, ENVOY),
            EVENT_STREAMS,
        ),
        goal(
            "memory with 1,000 connections (PSS)",
            "MiB",
            true,
            60.0,
            Some(45.0),
            cells.number(IDLE, BEST_EFFORT, "pss_mib"),
            MEMORY,
        ),
        goal(
            "masking keyword-rich JSON, one core",
            "MB/s",
            false,
            200.0,
            Some(400.0),
            corpora.iter().find(keyed).and_then(speed),
            MASKING,
        ),
        goal(
            "masking the slowest corpus, one core",
            "MB/s",
            false,
            20.0,
            None,
            corpora.iter().filter_map(speed).min_by(f64::total_cmp),
            MASKING,
        ),
        goal(
            "CPU to make a row of an event",
            "us",
            true,
            5.0,
            None,
            rows.get("us_per_row").and_then(Value::as_f64),
            ROWS,
        ),
    ]
}

const PER_CALL: &str = "A profile taken before canonical JSON was written in one pass and before masking looked at the places of words \
    alone had more than a third of the time on the thread that writes the log (canonical bytes, and the memory for them), and most of the rest in \
    patterns, memory management and sending; since then none was taken. Each exchange still passes through two tasks beside its connections', \
    and the caller, which is the same for all calls of a connection, is written anew in each intent: an event for the connection, to which calls \
    refer, would take it away, and is a change of the record's form.";
const STRICT_RATE: &str = "Under `strict` each call waits for its intent's sync, so that 32 connections make no more calls a \
    second than 32 in the time of one sync of this disk: compare with `best_effort`, which differs in nothing else. A disk with a \
    write cache that survives a power cut mends it; so do more connections.";
const ADDED: &str = "Not profiled at this rate. What is known of the code: an exchange wakes a task to answer it and one to read the answer, beside \
    those of the two connections. Answering in the connection's own task would save wake-ups, and must not lose what is recorded when a client \
    leaves in the middle.";
const FRESH_CONNECTIONS: &str = "A flow dials its server by itself, so that each new connection costs two full handshakes, and its caller \
    is described from /proc and the kernel's tables. Keeping the server's connection for the next flow of the same job and name would save one \
    handshake, as rustfloor does.";
const LARGE_ANSWERS: &str = "Not profiled. What is known of the code: an answer of 1 MiB is read whole and parsed, its first 256 KiB are masked and \
    written to disk, and all of it is encrypted twice as rustfloor does.";
const EVENT_STREAMS: &str = "Each event is a message: it is parsed, masked and recorded by itself, twenty for each call here, where \
    other proxies pass on bytes; and each goes out with a write of its own. Sending together what is ready together would mend the second.";
const MEMORY: &str = "A connection has two TLS sessions, two HTTP connections with their buffers, and the tasks that serve them; how \
    much of it is memory that was given back and is kept by the allocator was not looked into.";
const MASKING: &str = "Not profiled. A text that holds a secret in each member pays for the pseudonyms: one HMAC-SHA-256 for each secret.";
const ROWS: &str =
    "Not profiled. A row is made of an event that was parsed, and proven canonical by writing it again.";
