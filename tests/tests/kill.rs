//! Nothing is lost, shown under load: with at least 200 calls in flight, kill -9 of the agent, the collector and the
//! store, each at moments drawn from seeds. The oracle is the MCP server's own log.
//!
//! While the agent is down the chosen failure mode lets the clients come to the server itself. They trust
//! Weir's CA alone and turn away: what the server executes, it executes through Weir, or the oracle finds it.

#[path = "kill/load.rs"]
mod load;
#[path = "kill/many.rs"]
mod many;
#[path = "kill/oracle.rs"]
mod oracle;
#[path = "kill/schedule.rs"]
mod schedule;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use weir_tests::daemon::Daemon;
use weir_tests::{ClientKind, Trust, World, WorldPlan, until};

use load::Load;
use schedule::{Kill, Moment, Part};

/// Calls in flight at a kill, by the records.
const IN_FLIGHT: usize = 200;
/// How often each part is to be killed with so many in flight, at least,
const EACH_AT_LEAST: usize = 2;
/// and all of them together. The many kills make up what the fifty of each run want.
pub const SCHEDULED_AT_LEAST: u64 = (EACH_AT_LEAST * Part::ALL.len()) as u64;
/// Calls in flight before a kill is dealt: some end before it strikes.
const BEFORE_A_KILL: usize = 240;
/// The longest wait for anything; a busy machine takes its time, and no wait decides the test.
const DEADLINE: Duration = Duration::from_secs(120);
/// How many files a program may have open at most if it says nothing.
const SOFT_OPEN_FILES: u64 = 1024;
/// Handles that an idle agent may have open more than at its start.
const SPARE_HANDLES: usize = 8;

/// A kill that was dealt; microseconds since 1970.
pub struct Struck {
    part: Part,
    moment: Moment,
    before_us: i64,
    dead_us: i64,
    /// What a dead agent had left of its log: all before has been shipped and trimmed.
    trimmed_below: Option<i64>,
}

#[test]
fn nothing_is_lost_when_agent_collector_and_store_are_killed_under_load() -> Result<()> {
    let seeds = schedule::seeds()?;
    eprintln!("seeds {seeds:?}; {}=... takes others", schedule::SEED_VARIABLE);
    let plan = WorldPlan { kind: "kill", failure: "intercepted = \"open\"", ..WorldPlan::default() };
    // As a login shell has it; the agent must help itself.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, SOFT_OPEN_FILES.min(hard), hard)?;
    let mut world = World::start(&plan)?;
    // A panic leaves the world's files in place.
    nothing_is_lost(&mut world, &seeds).unwrap_or_else(|error| panic!("seeds {seeds:?}: {error:?}"));
    Ok(())
}

fn nothing_is_lost(world: &mut World, seeds: &[u64]) -> Result<()> {
    clients_that_trust_weir_alone_turn_away_from_the_server(world)?;
    let at_rest = Process::of(world.agent.daemon())?;
    ensure!(at_rest.allowed_handles.0 == at_rest.allowed_handles.1, "{:?}", at_rest.allowed_handles);

    let mut load = Load::start(world)?;
    let mut struck = Vec::new();
    for kill in seeds.iter().enumerate().flat_map(|(number, &seed)| schedule::round(number, seed)) {
        strike(world, &mut load, kill, &mut struck)?;
    }
    load.until_in_flight(BEFORE_A_KILL, DEADLINE)?;
    let busy = Process::of(world.agent.daemon())?;
    let told = load.stop(DEADLINE)?;
    let issuer = world.agent.status()?.ca.common_name().to_owned();
    for client in &told {
        ensure!(client.issuer.as_deref() == Some(&issuer), "a client saw {:?}", client.issuer);
    }

    let events_written = until_all_arrived(world)?;
    until("the agent to close what the load had opened", DEADLINE, || {
        let now = Process::of(world.agent.daemon())?;
        Ok((now.handles <= at_rest.handles + SPARE_HANDLES).then_some(()))
    })?;
    let after = Process::of(world.agent.daemon())?;
    eprintln!("the agent at rest {at_rest}; under load {busy}; afterwards {after}");

    let calls = oracle::recorded(world)?;
    eprintln!(
        "{} calls executed, {events_written} events: {:?}",
        load.seen.executed.len(),
        oracle::results(&calls)
    );
    let boots = 1 + struck.iter().filter(|kill| kill.part == Part::Agent).count();
    oracle::the_log_is_whole(world, events_written, boots)?;
    oracle::each_executed_call_was_recorded_before(&load.seen, &calls)?;
    let trimmed = oracle::open_calls_became_unknown(world, &struck, &calls)?;
    ensure!(trimmed > 0, "no call was open whose intent had left the spool");
    let counted = oracle::calls_were_in_flight(IN_FLIGHT, EACH_AT_LEAST, &struck, &load.seen, &calls)?;
    ensure!(counted as u64 >= SCHEDULED_AT_LEAST, "only {counted} kills met {IN_FLIGHT} calls in flight");
    let exit = world.agent.daemon().terminate()?;
    ensure!(exit.success(), "the agent ended with {exit}");
    Ok(())
}

/// The ground the oracle stands on: a client that is not led to Weir executes nothing.
fn clients_that_trust_weir_alone_turn_away_from_the_server(world: &World) -> Result<()> {
    for kind in ClientKind::BOTH {
        let trust = Trust::only(&world.agent.status()?.ca.certificate);
        let plan = world.job_in(&world.outside, Some(trust));
        let mut job = plan.client(kind, &world.server.url("localhost"), &[])?;
        job.wait(DEADLINE)?;
        let failed = job.told()?.failed.context("it did not say why")?.to_lowercase();
        ensure!(failed.contains("certif"), "{kind:?}: {failed}");
    }
    ensure!(world.server.executed()?.is_empty(), "a client that does not trust the server made a call");
    Ok(())
}

fn strike(world: &mut World, load: &mut Load, kill: Kill, struck: &mut Vec<Struck>) -> Result<()> {
    let Kill { part, moment, down_for_calls } = kill;
    eprintln!("{kill:?}");
    let mut other = None;
    load.until_in_flight(BEFORE_A_KILL, DEADLINE)?;
    let then_us = match moment {
        Moment::Load { calls, then_us } => {
            if part == Part::Agent {
                until_intents_left_the_spool(world)?;
            }
            load.until_executed(calls, DEADLINE)?;
            then_us
        }
        Moment::Shipping { then_us } => {
            until_sealed(world)?;
            then_us
        }
        Moment::WhileDown { other: first, calls, then_us } => {
            struck.push(deal(world, first, moment)?);
            load.until_executed(calls, DEADLINE)?;
            other = Some(first);
            then_us
        }
    };
    let began = Instant::now();
    until("the drawn moment", DEADLINE, || {
        Ok((began.elapsed() >= Duration::from_micros(then_us)).then_some(()))
    })?;
    if !matches!(moment, Moment::Shipping { .. }) {
        load.until_in_flight(BEFORE_A_KILL, DEADLINE)?;
    }
    let mut dealt = deal(world, part, moment)?;
    match part {
        Part::Agent => {
            dealt.trimmed_below = segments(world)?.first().copied();
            load.seen.agent_died(dealt.dead_us);
            until_clients_turned_away(load)?;
        }
        Part::Collector | Part::Store => load.until_executed(down_for_calls, DEADLINE)?,
    }
    struck.push(dealt);
    // The collector looks for its store when it starts, so the store is the first to come back.
    let mut down = vec![part];
    down.extend(other);
    down.sort_by(|a, b| b.cmp(a));
    for part in down {
        match part {
            Part::Agent => world.agent.start_again()?,
            Part::Collector => world.collector.start_again()?,
            Part::Store => world.store.start_again()?,
        }
    }
    Ok(())
}

/// kill -9, and how long it was so.
fn deal(world: &mut World, part: Part, moment: Moment) -> Result<Struck> {
    let daemon = match part {
        Part::Agent => world.agent.daemon(),
        Part::Collector => world.collector.daemon(),
        Part::Store => world.store.daemon(),
    };
    ensure!(daemon.ended()?.is_none(), "{part:?} ended by itself");
    let before_us = now_us()?;
    daemon.kill()?;
    Ok(Struck { part, moment, before_us, dead_us: now_us()?, trimmed_below: None })
}

/// Waits until intents of calls that are in flight are in the store, and nowhere else.
fn until_intents_left_the_spool(world: &World) -> Result<()> {
    let active = segments(world)?.last().copied();
    until("what is written now to be shipped and trimmed", DEADLINE, || {
        Ok((segments(world)?.first().copied() > active).then_some(()))
    })
}

/// Waits until a segment is sealed. A fresh one: of one that waits already nobody knows when it will go.
fn until_sealed(world: &World) -> Result<()> {
    until("all sealed segments to be gone", DEADLINE, || Ok((segments(world)?.len() == 1).then_some(())))?;
    until("another to be sealed", DEADLINE, || Ok((segments(world)?.len() > 1).then_some(())))
}

/// While the agent is down, clients of both kinds come to the server, and do not stay.
fn until_clients_turned_away(load: &mut Load) -> Result<()> {
    let before = ClientKind::BOTH.map(|kind| load.turned_away(kind));
    until("clients to turn away from the server", DEADLINE, || {
        load.look()?;
        let now = ClientKind::BOTH.map(|kind| load.turned_away(kind));
        Ok(now.iter().zip(before).all(|(now, before)| *now > before).then_some(()))
    })
}

/// Waits until the spool is empty, and gives the number of events that were ever in it: the sequence number that its
/// last segment begins with. For as long as some arrive: how fast they do depends on what else the machine does.
fn until_all_arrived(world: &World) -> Result<i64> {
    let mut left = u64::MAX;
    loop {
        let waited = format!("some of {left} events to arrive, or all to have");
        let (unshipped, segments) = until(&waited, DEADLINE, || {
            let unshipped = world.agent.status()?.spool.unshipped_events;
            let segments = segments(world)?;
            let all = segments.len() == 1 && unshipped == 0;
            Ok((all || unshipped < left).then_some((unshipped, segments)))
        })?;
        match segments[..] {
            [only] if unshipped == 0 => return Ok(only),
            _ => left = unshipped,
        }
    }
}

/// The first sequence numbers of the segments in the spool; anything that was set aside is a fault.
fn segments(world: &World) -> Result<Vec<i64>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(world.agent.state().join("spool"))? {
        let name = entry?.file_name();
        let name = name.to_str().context("a file name")?;
        ensure!(!name.contains(".seg."), "{name} was set aside");
        if let Some(first) = name.strip_suffix(".seg") {
            segments.push(first.parse()?);
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// What a process has of the host.
struct Process {
    handles: usize,
    resident_kib: u64,
    most_resident_kib: u64,
    /// Softly, and at all.
    allowed_handles: (String, String),
}

impl Process {
    fn of(daemon: &mut Daemon) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{}", daemon.pid()));
        let handles = std::fs::read_dir(proc.join("fd"))?.count();
        let status = std::fs::read_to_string(proc.join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a field")?;
            anyhow::Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let limits = std::fs::read_to_string(proc.join("limits"))?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("a limit")?;
        let mut allowed = line.split_whitespace().map(str::to_owned);
        let allowed_handles = (allowed.next().context("a limit")?, allowed.next().context("a limit")?);
        Ok(Self {
            handles,
            allowed_handles,
            resident_kib: field("VmRSS:")?,
            most_resident_kib: field("VmHWM:")?,
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handles, resident_kib, most_resident_kib, .. } = self;
        write!(f, "{handles} handles, {resident_kib} KiB, at most {most_resident_kib} KiB")
    }
}

fn now_us() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}
