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

const PER_CALL: &str = "A profile of the calls under best_effort has no one place that is slow: its first is 8% (waking whom the kernel \
    has something for), and only four are above 3%. The thread that writes the log takes an eighth to a quarter of the agent's CPU. Of the threads \
    that carry calls, a quarter to two fifths is the kernel's (sending, receiving, waking, and switching between programs that share two \
    processors), a sixth malloc, free and memcpy, an eighth HTTP (hyper, and the parser before it that looks for ambiguous framing), a ninth TLS, \
    a twelfth the runtime, and masking, JSON, and the gate's own code 5 to 6% each. An exchange is answered in its connection's own task, which \
    drives the server's connection, too. What would mend it: another allocator (jemalloc and tcmalloc took a tenth off a call's CPU, and added 5 \
    to 20 MiB with 1,000 connections, mimalloc 45 and more); one reader of heads instead of two, which hyper's parser does not let itself be \
    made; and the caller, the same for all calls of a connection, is written anew in each intent: an event for the connection, to which calls \
    refer, would take it away, and is a change of the record's form.";
const STRICT_RATE: &str = "Under `strict` each call waits for its intent's sync, so that 32 connections make no more calls a \
    second than 32 in the time of one sync of this disk: compare with `best_effort`, which differs in nothing else. A disk with a \
    write cache that survives a power cut mends it; so do more connections.";
const ADDED: &str = "A call costs the agent three times the CPU that it does where calls follow one another at once: nothing is there to be \
    done together, and each call wakes the threads of two connections and the one that writes the log. A profile has two fifths of the agent's CPU in the kernel \
    (a quarter where calls are carried: sending, receiving, waking; 15% for the log's writes), two fifths in its own code, of which no part is above 3%, and a \
    ninth in malloc, free and memcpy. The profile is older than the log's waiting for more: what nobody waits for is written within 5 ms, together with \
    what comes after it, and wakes nobody. What would mend it: fewer wakes of the connections' own threads, and what mends a call.";
const FRESH_CONNECTIONS: &str = "The server's connection is one that the job's flow before left (`borrowed` in the record), so that one handshake is \
    left of two. A profile has a fifth of the agent's CPU in the kernel, a fifth in malloc, free and memcpy, an eighth on the thread that writes the \
    log (a flow has a record of its own), 6% in the SHA-384 of the cipher that clients prefer, for which this processor has no instruction, and \
    5% in X25519; the call itself takes the rest, as over a connection that stays. What would mend more: what mends a call, and a flow's futures made \
    where they are kept, and not moved there.";
const LARGE_ANSWERS: &str = "An answer of 1 MiB is read whole and parsed, its first 256 KiB are masked and written to disk, all of it is digested, \
    and all of it is encrypted twice as rustfloor does. A profile has a quarter of the agent's CPU in JSON's three passes (the envelope, the \
    limits, what the result says), 18% in the digest, 8% in memcpy, 5% on the thread that writes the log; 9% were a copy as text that nobody \
    needed, and is no longer made. What would mend more: one pass for the three.";
const EVENT_STREAMS: &str = "Each event is a message: it is parsed, masked and recorded by itself, twenty for each call here, where other \
    proxies pass on bytes. Events that are there together go out together, and none is held back for another. A profile has a fifth to a third of \
    the agent's CPU on the thread that writes the log (canonical JSON, SHA-256, CRC); over all threads a fifth is malloc and free, 4% memcpy, \
    5% SHA-256 (half of it by the shipper, which proves each segment), 3% masking and 2% parsing; a quarter is the kernel's. How far Envoy is \
    ahead depends on the machine: the dearer its system calls are, the less. What would mend more: events of one read handed to the writer of \
    the log together, which would save a place in the queue for each, and a record of an event whose texts lie in one buffer.";
const MEMORY: &str = "A client's connection that idles has none to its server: between exchanges those wait for all flows of their job, 64 for one \
    server at most. The allocator has two arenas, and gives pages back when no connection is open; about 20 MiB are there without any. What a \
    connection keeps are 16 KiB in two buffers of hyper's, which has them of one size whatever is in them, 4 KiB of rustls', 4 KiB more of both \
    and of the ciphers, and 6 KiB of its task. What would mend the rest: HTTP/1.1 with buffers that go when they are empty.";
const MASKING: &str = "Not profiled. A text that holds a secret in each member pays for the pseudonyms: one HMAC-SHA-256 for each secret.";
const ROWS: &str = "A row is made of an event that is read, proven canonical by writing it again, and hashed for its leaf. A profile has a \
    quarter of the time in SHA-256, a fifth in finding where texts end or have escapes (once in reading, once in writing), a tenth in memmove, a tenth \
    in malloc and free, and the rest in many small parts. What would mend it: to prove the form in the bytes, without writing it again.";
