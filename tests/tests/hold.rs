//! A held call waits for a human, and nothing but a signature by an allowed key over this very call lets it go.
//!
//! Out: what the client saw, what the server executed, and what the record says of who decided, when and why.

#[path = "hold/approver.rs"]
mod approver;
#[path = "hold/ends.rs"]
mod ends;
#[path = "hold/forgery.rs"]
mod forgery;
#[path = "hold/ladder.rs"]
mod ladder;
#[path = "hold/signing.rs"]
mod signing;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::approver::next_hold;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Job, World, WorldPlan, until};

/// How long a hold may take to come where approvers find it, and a decision to come back.
const ARRIVES: Duration = Duration::from_secs(20);
/// What the client is told when a call is not to be: the JSON-RPC error's code.
const REFUSED: i64 = -31403;

/// Nothing in it is a secret; but from "https:" to "@" it looks like a password in an address to whoever reads all of
/// it as one text.
const LOOKS_SECRET: &str = r#"{"url":"https://eu.example.test","owner":"bob@example.test"}"#;

/// A client whose call is held.
struct Held {
    job: Job,
    nonce: String,
    id: String,
    /// As `approvals list --json` shows it.
    hold: Value,
}

/// Starts a client that makes `calls`, the first of which is held, and waits until approvers can see it.
fn held(world: &World, kind: ClientKind, nonce: &str, calls: &str, more: &[&str]) -> Result<Held> {
    let arguments = [&["--calls", calls, "--nonce", nonce], more].concat();
    held_by(world, world.start_client(kind, "localhost", &arguments)?, nonce)
}

/// Waits until approvers can see the call of a client with this nonce.
fn held_by(world: &World, job: Job, nonce: &str) -> Result<Held> {
    // Held calls of other clients may be listed as well.
    let (id, hold) = until("the call to be held", ARRIVES, || {
        let (_, newest) = next_hold(&world.collector, ARRIVES)?;
        let arguments = newest["arguments"].as_str().unwrap_or_default();
        Ok(arguments
            .contains(nonce)
            .then(|| (newest["approval_id"].as_str().unwrap_or_default().into(), newest)))
    })?;
    Ok(Held { job, nonce: nonce.to_owned(), id, hold })
}

impl Held {
    /// The nonce of the client's first call, as the server would log it.
    fn first(&self) -> String {
        format!("{}-0", self.nonce)
    }

    /// How often the server has executed the held call.
    fn executed(&self, world: &World) -> Result<usize> {
        Ok(world.server.executed()?.iter().filter(|call| call.nonce == self.first()).count())
    }

    /// Waits until the record tells how the call ended.
    fn recorded_as(&self, world: &World, result: &str) -> Result<Value> {
        let question = format!("SELECT * FROM calls WHERE approval_id = '{}' AND result != 'open'", self.id);
        let row = world.sql_until(1, &question)?.into_iter().next().context("no row")?;
        ensure!(row["result"] == result, "the call ended otherwise than as {result}: {row}");
        Ok(row)
    }

    /// The decision events of the hold, in the order of the log.
    fn decisions(&self, world: &World) -> Result<Vec<Value>> {
        world.sql(&format!(
            "SELECT * FROM events WHERE kind = 'decision' AND approval_id = '{}' ORDER BY seq",
            self.id
        ))
    }
}

/// What stands in a decision's column, of each.
fn column<'a>(decisions: &'a [Value], name: &str) -> Vec<&'a str> {
    decisions.iter().map(|row| row[name].as_str().unwrap_or_default()).collect()
}

#[test]
fn an_approved_call_runs_once_and_only_after_the_signature() -> Result<()> {
    let world = World::start(&WorldPlan { keepalive: "300ms", ..WorldPlan::default() })?;
    for kind in ClientKind::BOTH {
        let mut held = held(&world, kind, kind.name(), "deploy,echo", &["--arguments", LOOKS_SECRET])?;
        // The call waits for as long as nobody signs, and its client hears from Weir meanwhile.
        let job = &mut held.job;
        let waited = until("the client to wait", Duration::from_secs(2), || Ok(job.ended()?.map(drop)));
        ensure!(waited.is_err(), "the client ended while its call was held");
        assert_eq!(held.executed(&world)?, 0);

        let why = format!("Change CHG-7 was agreed for {}", kind.name());
        let key = world.approver.key.to_string_lossy().into_owned();
        let answer = ["approvals", "approve", &held.id, "--justification", &why, "--ticket", "CHG-7"];
        let said = world.collector.run(&[&answer[..], &["--key", &key]].concat())?;
        assert!(said.contains("approved; the agent has released the call"), "{said}");
        let told = held.job.finish(CLIENT_DEADLINE)?;
        let call = told.first("deploy")?;
        assert_eq!((call.ok, call.text.as_deref()), (true, Some("deployed to production")), "{call:?}");
        assert!(told.first("echo")?.ok, "the session lives on: {told:?}");
        assert!(call.headers_ms.context("no headers")? < 1000, "the head comes at once: {call:?}");
        assert!(call.waited_with_headers() > Duration::from_secs(1), "{call:?}");
        assert!(kind == ClientKind::Python || call.arrivals >= 3, "comments come while it waits: {call:?}");

        let row = held.recorded_as(&world, "ok")?;
        assert_eq!(row["decision"], "approved");
        assert_eq!(row["approver"], weir_tests::world::APPROVER);
        assert_eq!(row["justification"], why.as_str());
        assert_eq!(row["ticket"], "CHG-7");
        assert_eq!(row["approver_key"], signing::fingerprint(&world.approver)?.as_str());
        let decisions = held.decisions(&world)?;
        assert_eq!(column(&decisions, "decision"), ["approved"]);
        signing::verify_recorded(&world, &decisions[0])?;

        // One execution, and the signature before it.
        let executed = world.server.executed()?;
        let mut ours = executed.iter().filter(|call| call.nonce == held.first());
        let executed_ns = ours.next().context("it was not executed")?.time_ns;
        assert!(ours.next().is_none());
        let signed = world.number(&format!(
            "SELECT toUnixTimestamp64Micro(signed_at) FROM calls WHERE approval_id = '{}'",
            held.id
        ))?;
        assert!(signed * 1000 < executed_ns.cast_unsigned(), "{signed} {executed_ns}");
    }
    Ok(())
}

#[test]
fn a_refused_call_is_never_executed_and_its_client_reads_why() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    for kind in ClientKind::BOTH {
        let mut held = held(&world, kind, kind.name(), "deploy,echo", &[])?;
        let why = "Nobody deploys on the eve of the audit";
        let refused = world.approver.refuse(&world.collector, &held.id, why)?;
        assert!(refused.status.success(), "{refused:?}");
        let told = held.job.finish(CLIENT_DEADLINE)?;
        let call = told.first("deploy")?;
        assert_eq!((call.ok, call.code), (false, Some(REFUSED)), "{call:?}");
        let message = call.message.as_deref().unwrap_or_default();
        assert!(message.contains(why) && message.contains("deploys-need-a-human"), "{message}");
        assert!(told.first("echo")?.ok, "the session lives on: {told:?}");
        let row = held.recorded_as(&world, "refused")?;
        assert_eq!((&row["decision"], &row["justification"]), (&"refused".into(), &why.into()));
        signing::verify_recorded(&world, &held.decisions(&world)?[0])?;
        assert_eq!(held.executed(&world)?, 0);
    }
    Ok(())
}

#[test]
fn several_held_calls_get_each_their_own_decision() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut all = Vec::new();
    for (number, kind) in
        [ClientKind::TypeScript, ClientKind::Python, ClientKind::TypeScript].iter().enumerate()
    {
        let environment = format!("{{\"environment\":\"stage-{number}\"}}");
        all.push(held(
            &world,
            *kind,
            &format!("several-{number}"),
            "deploy",
            &["--arguments", &environment],
        )?);
    }
    let listed = world.collector.run(&["approvals", "list", "--json"])?;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let why = "Each of them was looked at by itself";
    for at in [2, 0, 1] {
        let answered = match at {
            0 => world.approver.refuse(&world.collector, &all[at].id, why)?,
            _ => world.approver.approve(&world.collector, &all[at].id, why)?,
        };
        assert!(answered.status.success(), "{answered:?}");
        let told = all[at].job.finish(CLIENT_DEADLINE)?;
        let call = told.first("deploy")?;
        match at {
            0 => assert_eq!(call.code, Some(REFUSED), "{call:?}"),
            _ => assert_eq!(call.text, Some(format!("deployed to stage-{at}")), "{call:?}"),
        }
    }
    let executed: Vec<_> = world.server.executed()?.into_iter().map(|call| call.nonce).collect();
    assert_eq!(executed, ["several-2-0", "several-1-0"]);
    for (held, result) in all.iter().zip(["refused", "ok", "ok"]) {
        held.recorded_as(&world, result)?;
    }
    assert!(world.collector.run(&["approvals", "list"])?.contains("no call waits for a decision"));
    Ok(())
}
