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

const PER_CALL: &str = "A profile of the calls under best_effort, taken when an exchange still had two tasks of its own, has no one place \
    that is slow: a quarter of the time was that of the thread that writes the log; by what was done, a quarter was the kernel's (sending, \
    receiving, and the log's disk), a fifth malloc and free, and masking and parsing 7% each. An exchange is answered in its connection's own \
    task, which drives the server's connection, too. What would mend it: another allocator (mimalloc in the system's place took 10 to 30% \
    off a call's time, and added 45 MiB and more with 1,000 connections); and the caller, the same for all calls of a connection, is written \
    anew in each intent: an event for the connection, to which calls refer, would take it away, and is a change of the record's form.";
const STRICT_RATE: &str = "Under `strict` each call waits for its intent's sync, so that 32 connections make no more calls a \
    second than 32 in the time of one sync of this disk: compare with `best_effort`, which differs in nothing else. A disk with a \
    write cache that survives a power cut mends it; so do more connections.";
const ADDED: &str = "Not profiled at this rate. What is known of the code: a call and its answer are handled in the task of their two \
    connections, which wakes nobody but the thread that writes the log; what is recorded of an answer comes after its bytes, and is in the \
    way of what comes next.";
const FRESH_CONNECTIONS: &str = "A profile has a quarter of the time in the two handshakes, a third in the kernel, a seventh on the thread \
    that writes the log (a flow has a record of its own, which its end waits for), and had a tenth in /proc, which by now is asked once a \
    second for a process that connects again and again. What would mend more: to keep a server's connection for the next flow of the same \
    job and name, as rustfloor does.";
const LARGE_ANSWERS: &str = "Not profiled. What is known of the code: an answer of 1 MiB is read whole and parsed, its first 256 KiB are masked and \
    written to disk, and all of it is encrypted twice as rustfloor does.";
const EVENT_STREAMS: &str = "Each event is a message: it is parsed, masked and recorded by itself, twenty for each call here, where other \
    proxies pass on bytes. Events that are there together go out together, and none is held back for another. Not profiled since. What would \
    mend more: events of one read handed to the writer of the log together.";
const MEMORY: &str = "Of what is live of a connection (81 KiB when it was counted by sizes) 32 KiB are four buffers of hyper's, which has \
    them of one size whatever is in them, 8 KiB two of rustls', and 21 KiB were its two tasks, which are smaller now; about 30 MiB are there \
    without any. With two arenas of malloc (MALLOC_ARENA_MAX=2 in the agent's environment) it is 20 MiB less. What would mend the rest: a \
    server's connection that is let go when it has been idle, and HTTP/1.1 with buffers that go when they are empty.";
const MASKING: &str = "Not profiled. A text that holds a secret in each member pays for the pseudonyms: one HMAC-SHA-256 for each secret.";
const ROWS: &str =
    "Not profiled. A row is made of an event that was parsed, and proven canonical by writing it again.";
