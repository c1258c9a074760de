use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use weir_core::approval::{AllowedSigners, Decision, SubmittedHold};
use weir_core::ids::Origin;
use weir_core::record::HoldEnd;
use weir_core::wire::{HOLDS, HoldAck, POLL, PollRequest, PollResponse, Reason, SEGMENTS, SegmentAck};
use weir_tests::{Approver, until};

use crate::agent::{Agent, reason};
use crate::records::{decision, hold, segment};
use crate::world::World;

const REASON: &str = "release 1.4 as planned";

fn origin() -> Origin {
    Origin::from_random([1; 16])
}

fn now_us() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    u64::try_from(since.as_micros()).expect("a time")
}

/// A hold that is open for a while.
fn open(approval: u8) -> SubmittedHold {
    hold(approval, &origin(), now_us(), now_us() + 600_000_000)
}

async fn put(agent: &Agent, hold: &SubmittedHold) -> Result<HoldAck, weir_core::wire::Refusal> {
    agent.post(HOLDS, serde_json::to_vec(hold).expect("JSON")).await
}

async fn poll(agent: &Agent, open: &[&SubmittedHold], wait_ms: u64) -> PollResponse {
    let open = open.iter().map(|hold| hold.approval_id.clone()).collect();
    let request = PollRequest { origin: origin(), open, wait_ms };
    agent.post(POLL, serde_json::to_vec(&request).expect("JSON")).await.expect("an answer")
}

fn alice(world: &World) -> (Approver, AllowedSigners) {
    let alice = Approver::with_new_key(world.folder.path(), "alice").expect("a key");
    let signers = AllowedSigners::parse(&alice.allowed_signers_line().expect("a line")).expect("signers");
    (alice, signers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_reaches_its_approver_and_a_signature_reaches_the_agent() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let (alice, signers) = alice(&world);
    let held = open(1);
    let ack = HoldAck { approval_id: held.approval_id.clone() };
    assert_eq!(put(&agent, &held).await, Ok(ack.clone()));
    assert_eq!(put(&agent, &held).await, Ok(ack), "again, as after a lost answer");
    let mut other = held.clone();
    other.rule = "another".into();
    assert_eq!(reason(put(&agent, &other).await), Reason::Conflict);
    assert_eq!(world.number("SELECT count() FROM holds"), 1);

    let (code, listed, _) = world.run(&["approvals", "list", "--json"]);
    let listed: Value = serde_json::from_str(listed.trim()).expect("one line of JSON");
    assert_eq!((code, &listed["tool"], &listed["state"]), (0, &"deploy".into(), &"open".into()));
    let id = listed["approval_id"].as_str().expect("an id").to_owned();
    for shown in [world.run(&["approvals", "list"]).1, world.run(&["approvals", "show", &id[..6]]).1] {
        assert!(!shown.contains('\u{1b}'), "escapes would reach the terminal: {shown:?}");
        assert!(shown.contains("deploy") && !shown.contains("hunter2"), "{shown}");
    }
    let (_, shown, _) = world.run(&["approvals", "show", &id]);
    for part in
        ["\\u{1b}[8m --hidden", "at /password", "example/payments", "alice", "proven by its certificate"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    assert!(poll(&agent, &[&held], 50).await.decisions.is_empty());
    let waiting = tokio::spawn({
        let (agent, held) = (agent.clone(), held.clone());
        async move { poll(&agent, &[&held], 30_000).await }
    });
    let key = alice.key.display().to_string();
    let answer =
        ["approvals", "approve", &id[..8], "--justification", REASON, "--ticket", "CHG-7", "--key", &key];
    // Without --as: whom the key's comment names.
    let (code, out, told) = world.run(&[&answer[..], &["--no-wait", "--json"]].concat());
    assert_eq!(code, 0, "{told}");
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON")["approver"], "alice");

    let polled = waiting.await.expect("a poll").decisions;
    let [only] = &polled[..] else { panic!("{polled:?}") };
    assert_eq!(only.approval_id, held.approval_id);
    let decided = Decision::verify(&held, only.signed.clone(), &signers, now_us()).expect("a valid decision");
    assert!(decided.is_approval());
    let statement = decided.statement();
    assert_eq!(
        (statement.justification.as_str(), statement.ticket.as_str(), statement.approver.as_str()),
        (REASON, "CHG-7", "alice")
    );
    assert!(poll(&agent, &[&open(2)], 50).await.decisions.is_empty(), "for this hold alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_approver_is_told_what_the_agent_made_of_the_signature() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let (alice, _) = alice(&world);
    let cases = [
        (1, "approve", HoldEnd::Approved, 0, "approved; the agent has released the call"),
        (2, "refuse", HoldEnd::Refused, 0, "refused; the agent has refused the call"),
        (3, "approve", HoldEnd::Invalid, 1, "the agent did not accept it: no allowed signer has the key"),
    ];
    for (n, verb, end, expected, says) in cases {
        let held = open(n);
        put(&agent, &held).await.expect("an ack");
        let (id, key) = (held.approval_id.to_string(), alice.key.display().to_string());
        let command = ["approvals", verb, &id, "--justification", REASON, "--key", &key].map(str::to_owned);
        let config: PathBuf = world.collector.config().to_owned();
        let answering = tokio::task::spawn_blocking(move || {
            let mut program =
                std::process::Command::new(weir_tests::places::binary("weir-collector").expect("a binary"));
            crate::world::told(program.arg("--config").arg(config).args(command).output().expect("it runs"))
        });
        let polled = poll(&agent, &[&held], 30_000).await.decisions;
        let signed = &polled.first().expect("a decision").signed;
        // Somebody else's statement under the same signature is judged first; it is not this one's judgement.
        let copied = decision(n, HoldEnd::Invalid, ["{}", &signed.signature], "the signature does not hold");
        let reason = "no allowed signer has the key SHA256:x";
        let judged = decision(n, end, [&signed.statement, &signed.signature], reason);
        agent
            .post::<SegmentAck>(SEGMENTS, segment(&origin(), 2 * u64::from(n), vec![copied, judged]))
            .await
            .expect("an ack");
        let (code, out, told) = answering.await.expect("an answer");
        assert_eq!(code, expected, "{out}{told}");
        assert!(out.contains(says), "{out}{told}");
        assert!(poll(&agent, &[&held], 50).await.decisions.is_empty(), "it is not told what it has judged");
    }
    let open = |all: &[&str]| world.run(&[&["approvals", "list", "--json"], all].concat()).1.lines().count();
    assert_eq!((open(&[]), open(&["--all"])), (1, 3), "an invalid statement leaves the hold open");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_count_is_refused_before_it_is_signed() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let (alice, _) = alice(&world);
    let key = alice.key.display().to_string();
    let (expired, closed, live) = (hold(1, &origin(), 1, 2), open(2), open(3));
    for held in [&expired, &closed, &live] {
        put(&agent, held).await.expect("an ack");
    }
    let ended = decision(2, HoldEnd::ClientGone, ["", ""], "");
    agent.post::<SegmentAck>(SEGMENTS, segment(&origin(), 0, vec![ended])).await.expect("an ack");
    let ids = [&expired, &closed, &live].map(|held| held.approval_id.to_string());
    let missing = world.folder.path().join("no-key").display().to_string();
    let mut nameless = weir_tests::Approver::with_new_key(world.folder.path(), "bob").expect("a key");
    std::fs::remove_file(nameless.key.with_extension("key.pub")).expect("its public half");
    let nameless = std::mem::take(&mut nameless.key).display().to_string();
    for (id, justification, key, says) in [
        (ids[2].as_str(), "ok", &key, "needs at least 15 characters"),
        (&ids[2], "               ", &key, "needs at least 15 characters"),
        (&ids[2], "as ghp_abcdefghijklmnopqrstuvwxyz0123456789 says", &key, "holds what looks like a secret"),
        ("ffff", REASON, &key, "there is no hold ffff"),
        ("0", REASON, &key, "3 holds begin with 0; give more of the id"),
        ("x' OR 1", REASON, &key, "is not an approval id"),
        (&ids[0], REASON, &key, "no longer open: expired"),
        (&ids[1], REASON, &key, "no longer open: client_gone"),
        (&ids[2], REASON, &missing, "there is no key"),
        (&ids[2], REASON, &nameless, "say with --as who you are"),
    ] {
        let (code, out, told) =
            world.run(&["approvals", "approve", id, "--justification", justification, "--key", key]);
        assert_eq!((code, out.as_str()), (1, ""), "{told}");
        assert!(told.contains(says) && told.trim_end().lines().count() == 1, "{says}: {told}");
    }
    assert_eq!(world.number("SELECT count() FROM decisions"), 0);
    let (code, out, told) = world.run(&[
        "approvals",
        "refuse",
        &ids[2],
        "--justification",
        REASON,
        "--key",
        &nameless,
        "--as",
        "bob",
        "--no-wait",
    ]);
    assert!(code == 0 && out.contains("the agent has not answered yet"), "{out}{told}");
    let seen = until("the decision to be stored", Duration::from_secs(5), || {
        Ok((world.number("SELECT count() FROM decisions WHERE answer = 'refuse' AND approver = 'bob'") == 1)
            .then_some(()))
    });
    seen.expect("a decision");
}
