//! What must hold in the end. The oracle is the server's own log; Weir's record is what is judged.

use std::collections::BTreeMap;
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::World;

use crate::Struck;
use crate::load::{REFUSED, Seen};
use crate::schedule::Part;

/// One call as it stands in ClickHouse.
pub struct Recorded {
    action: String,
    intended_us: i64,
    ended_us: i64,
    result: String,
    /// Where its intent stands in the log.
    seq: i64,
}

/// Reads the calls of tools, by nonce; fails when a nonce has two.
pub fn recorded(world: &World) -> Result<HashMap<String, Recorded>> {
    // Joined here by hand, and not by the view `calls`: nothing is to be taken on trust.
    let rows = world.sql(
        "SELECT JSONExtractString(intent.payload, 'arguments', 'nonce') AS nonce, \
                intent.policy_action AS action, toUnixTimestamp64Micro(intent.time) AS intended_us, \
                outcome.result AS result, toUnixTimestamp64Micro(outcome.time) AS ended_us, intent.seq AS seq \
         FROM (SELECT * FROM weir.events WHERE kind = 'intent' AND mcp_method_name = 'tools/call') AS intent \
         INNER JOIN (SELECT * FROM weir.events WHERE kind = 'outcome') AS outcome USING (origin, call_id)",
    )?;
    let mut calls = HashMap::new();
    for row in &rows {
        let text =
            |name: &str| row[name].as_str().map(str::to_owned).with_context(|| format!("{name}: {row}"));
        let recorded = Recorded {
            action: text("action")?,
            intended_us: number(&row["intended_us"])?,
            ended_us: number(&row["ended_us"])?,
            result: text("result")?,
            seq: number(&row["seq"])?,
        };
        let nonce = text("nonce")?;
        ensure!(calls.insert(nonce, recorded).is_none(), "two calls, or two outcomes: {row}");
    }
    Ok(calls)
}

/// Each intent has one outcome, and each place of the log one event.
///
/// `events_written` is what the spool says that it ever held, and `boots` how often the agent was started.
pub fn the_log_is_whole(world: &World, events_written: i64, boots: usize) -> Result<()> {
    for (what, question) in [
        (
            "intents or outcomes that are not one of each",
            "SELECT call_id, countIf(kind = 'intent') AS intents, countIf(kind = 'outcome') AS outcomes \
             FROM weir.events WHERE kind IN ('intent', 'outcome') \
             GROUP BY origin, call_id HAVING intents != 1 OR outcomes != 1 LIMIT 5",
        ),
        (
            "outcomes before their intent",
            "SELECT call_id, minIf(seq, kind = 'intent') AS intent, minIf(seq, kind = 'outcome') AS outcome \
             FROM weir.events WHERE kind IN ('intent', 'outcome') \
             GROUP BY origin, call_id HAVING outcome <= intent LIMIT 5",
        ),
        (
            "events twice",
            "SELECT origin, seq, count() AS times FROM weir.events GROUP BY origin, seq HAVING times > 1 LIMIT 5",
        ),
        ("gaps", "SELECT * FROM weir.gaps LIMIT 5"),
        (
            "batches that are not whole, or two at one place",
            "SELECT batch_first_seq, min(seq) AS first, max(seq) AS last, count() AS events, \
                    uniqExact(batch_digest) AS digests \
             FROM weir.events GROUP BY origin, batch_first_seq \
             HAVING first != batch_first_seq OR last - first + 1 != events OR digests != 1 LIMIT 5",
        ),
    ] {
        let found = world.sql(question)?;
        ensure!(found.is_empty(), "{what}: {found:#?}");
    }
    let whole = world.sql(
        "SELECT count() AS events, min(seq) AS first, max(seq) AS last, uniqExact(origin) AS logs, \
                uniqExact(boot) AS boots FROM weir.events",
    )?;
    let row = whole.first().context("no events")?;
    let seen = |name: &str| number(&row[name]);
    ensure!((seen("first")?, seen("logs")?) == (0, 1), "not one log from its beginning: {row}");
    ensure!(
        (seen("events")?, seen("last")? + 1) == (events_written, events_written),
        "{events_written} events were acknowledged: {row}"
    );
    ensure!(seen("boots")? == i64::try_from(boots)?, "the agent was started {boots} times: {row}");
    Ok(())
}

/// The server's log, call by call.
pub fn each_executed_call_was_recorded_before(seen: &Seen, calls: &HashMap<String, Recorded>) -> Result<()> {
    ensure!(seen.executed_again.is_empty(), "executed more than once: {:?}", seen.executed_again);
    for (nonce, executed) in &seen.executed {
        let recorded =
            calls.get(nonce).with_context(|| format!("executed, and not recorded: {executed:?}"))?;
        ensure!(
            recorded.intended_us * 1000 <= executed.time_ns,
            "{nonce} was executed at {} ns, and its intent is of {} us",
            executed.time_ns,
            recorded.intended_us
        );
        ensure!(recorded.action == "allow", "{nonce} was to be refused, and was executed: {executed:?}");
    }
    let mut refused = 0;
    for (nonce, recorded) in calls {
        let executed = seen.executed.contains_key(nonce);
        match recorded.result.as_str() {
            "ok" => ensure!(executed, "{nonce} is said to be done, and was not"),
            "refused" => ensure!(!executed, "{nonce} is said to be refused, and was done"),
            // Whether the server has it, the record does not say.
            "unknown" | "aborted" | "upstream_failed" | "client_gone" => {}
            other => anyhow::bail!("{nonce} ended as {other}"),
        }
        refused += usize::from(recorded.action == "deny");
    }
    for (nonce, call) in &seen.told {
        let told = || calls.get(nonce).map_or("nothing", |recorded| recorded.result.as_str());
        if call.ok {
            ensure!(["ok", "unknown"].contains(&told()), "{nonce} was answered, and recorded as {}", told());
        } else if call.code == Some(REFUSED) {
            ensure!(
                ["refused", "unknown"].contains(&told()),
                "{nonce} was refused, and recorded as {}",
                told()
            );
        }
    }
    ensure!(refused > 0, "no call was refused");
    Ok(())
}

/// The agent counted the calls that it found open, and gave each of them, and no other, the outcome `unknown`. Gives the number of
/// those whose intent had left the spool by then.
pub fn open_calls_became_unknown(
    world: &World,
    struck: &[Struck],
    calls: &HashMap<String, Recorded>,
) -> Result<usize> {
    let starts = world.sql(
        "SELECT toUInt64(event_detail['unknown_calls']) AS open, boot FROM weir.events \
         WHERE event_name = 'agent.started' ORDER BY seq",
    )?;
    let mut open = 0;
    for start in &starts {
        let boot = start["boot"].as_str().context("a boot")?;
        let ended = format!("SELECT count() FROM weir.events WHERE boot = '{boot}' AND result = 'unknown'");
        let unknown = world.number(&ended)?;
        ensure!(number(&start["open"])? == i64::try_from(unknown)?, "{unknown} are unknown: {start}");
        open += unknown;
    }
    let unknown = world.number("SELECT count() FROM weir.events WHERE result = 'unknown'")?;
    ensure!(unknown == open, "{unknown} outcomes are unknown, and {open} calls were found open: {starts:?}");
    // Those whose intent the agent no longer had when it came back: the carry of a later segment named them.
    let trimmed =
        struck.iter().filter_map(|kill| Some((kill, kill.trimmed_below?))).flat_map(|(kill, below)| {
            let open = |call: &&Recorded| call.intended_us < kill.before_us && call.ended_us > kill.dead_us;
            calls.values().filter(open).filter(move |call| call.seq < below).collect::<Vec<_>>()
        });
    let trimmed: Vec<_> = trimmed.collect();
    ensure!(trimmed.iter().all(|call| call.result == "unknown"), "a dead agent ended a call");
    eprintln!("{unknown} calls are unknown; the intents of {} had left the spool", trimmed.len());
    Ok(trimmed.len())
}

/// Each part was killed at least so many `times` with so many calls in flight: executed by the server before, and ended after.
/// Gives how often it was so in all.
pub fn calls_were_in_flight(
    least: usize,
    times: usize,
    struck: &[Struck],
    seen: &Seen,
    calls: &HashMap<String, Recorded>,
) -> Result<usize> {
    let mut counted: BTreeMap<Part, usize> = BTreeMap::new();
    for kill in struck {
        let in_flight = seen.executed.values().filter(|executed| {
            let ended = calls.get(&executed.nonce).is_some_and(|call| call.ended_us > kill.dead_us);
            executed.time_ns / 1000 < kill.before_us && ended
        });
        let in_flight = in_flight.count();
        eprintln!(
            "{:?} killed at {}: {in_flight} calls in flight ({:?})",
            kill.part, kill.before_us, kill.moment
        );
        *counted.entry(kill.part).or_default() += usize::from(in_flight >= least);
    }
    for part in Part::ALL {
        let was = counted.get(&part).copied().unwrap_or_default();
        ensure!(was >= times, "{part:?} was killed {was} times with {least} calls in flight");
    }
    Ok(counted.values().sum())
}

/// How calls ended, for people.
pub fn results(calls: &HashMap<String, Recorded>) -> BTreeMap<&str, usize> {
    let mut results = BTreeMap::new();
    for call in calls.values() {
        *results.entry(call.result.as_str()).or_default() += 1;
    }
    results
}

/// ClickHouse may quote 64-bit integers in JSON.
fn number(value: &Value) -> Result<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).with_context(|| format!("no number: {value}"))
}
