//! Bundles and replay: a run in a signed log, whose answers are those that a real MCP server gave, is bundled, checked,
//! changed, played against sandboxes, and held against other rules.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weir_collector::bundle::{Asked, Bundle, GatherError, Story, check, gather};
use weir_collector::masked::places;
use weir_collector::replay::{Sandbox, Target};
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::verify::{Item, Kind, Pin, StoredEvent, Trust};
use weir_core::evidence::{export, leaf_hash};
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, Intent, Job, Outcome, RulesTold, rules_told};
use weir_core::wire::{ENROL, EnrolAck, SEGMENTS, SegmentAck};
use weir_tests::places::Setup;
use weir_tests::{McpServer, Scheme};

use crate::agent::Agent;
use crate::log::Log;
use crate::records::{Text, caller, flow, intent, masker, outcome, payload, policy, policy_loaded, text};
use crate::world::{World, told};

const SECRET: &str = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";

/// The one rule of the policy that decided on the run.
const IN_FORCE: &str = "no-deletes";

/// A request as a client made it, and what became of it.
fn call(n: u8, method: &str, params: &str, session: bool, port: u16) -> Intent<Text> {
    let Body::Intent(mut one) = intent(n, "", Action::Allow, params) else { unreachable!("an intent") };
    let of = |params: &str| serde_json::from_str::<Value>(params).ok()?.get("name")?.as_str().map(text);
    one.mcp.method = text(method);
    one.mcp.tool = (method == "tools/call").then(|| of(params)).flatten();
    one.mcp.session = session.then(|| masker().pseudonym_of("session", "s"));
    one.mcp.request_id = (!method.starts_with("notifications/")).then(|| text("1"));
    one.server.port = port;
    *one
}

fn answered(n: u8, answer: &Value) -> Outcome<Text> {
    let Body::Outcome(mut one) = outcome(n, CallResult::Ok) else { unreachable!("an outcome") };
    one.payload = payload(&answer.to_string());
    one
}

fn of_run(one: &mut Intent<Text>, run: &str, repository: &str) {
    one.verdict.policy_digest = policy(IN_FORCE).digest().into();
    let job = Job { run_id: text(run), repository: text(repository), ..caller().job };
    one.caller = Arc::new(weir_core::record::Caller { job, ..caller() });
}

fn server(folder: &Path, options: &[&str]) -> McpServer {
    let setup = Setup::complete().expect("a setup");
    McpServer::start_with(&setup, folder, Scheme::Http, &["localhost"], false, options).expect("a server")
}

/// The calls of a run, and what the real server answers to each.
async fn recorded(port: u16) -> Vec<Body<Text>> {
    let target = Target::of(&format!("http://127.0.0.1:{port}/mcp"), &[], false).expect("a target");
    let sandbox = Sandbox::new(target, None, Vec::new(), Duration::from_secs(30)).expect("a sandbox");
    let hello =
        r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}"#;
    let secret = format!(r#"{{"name":"echo","arguments":{{"text":"{SECRET}","nonce":"n3"}}}}"#);
    let calls = [
        ("initialize", hello),
        ("notifications/initialized", ""),
        ("tools/list", "{}"),
        ("tools/call", r#"{"name":"echo","arguments":{"text":"12345678901234567890123","nonce":"n1"}}"#),
        ("tools/call", r#"{"name":"read_config","arguments":{"name":"prod","nonce":"n2"}}"#),
        ("tools/call", secret.as_str()),
    ];
    let (mut session, mut bodies) = (None, Vec::new());
    for (n, (method, params)) in (1..).zip(calls) {
        let is_request = !method.starts_with("notifications/");
        let mut message = json!({ "jsonrpc": "2.0", "method": method });
        if is_request {
            message["id"] = n.into();
        }
        if !params.is_empty() {
            message["params"] = serde_json::from_str(params).expect("params");
        }
        let headers: Vec<_> = session.iter().map(|id: &String| ("mcp-session-id", id.clone())).collect();
        let id = is_request.then_some(u64::from(n));
        let answer = sandbox.send(message.to_string(), id, &headers).await.expect("an answer");
        let mut intent = call(n, method, params, session.is_some(), port);
        of_run(&mut intent, "900", "example/payments");
        bodies.push(Body::Intent(Box::new(intent)));
        let said = answer.message.map_or(json!({}), |message| message["result"].clone());
        let mut outcome = answered(n, &said);
        outcome.http_status = Some(answer.status);
        if let Some(begun) = answer.session.filter(|_| method == "initialize") {
            session = Some(begun);
            outcome.marks.begins_session = Some(masker().pseudonym_of("session", "s"));
        }
        bodies.push(Body::Outcome(outcome));
    }
    let mut denied =
        call(7, "tools/call", r#"{"name":"delete_repo","arguments":{"repo":"r","nonce":"n"}}"#, true, port);
    of_run(&mut denied, "900", "example/payments");
    denied.verdict.action = Action::Deny;
    bodies.extend([Body::Intent(Box::new(denied)), outcome(7, CallResult::Refused)]);
    bodies
}

struct Scene {
    world: World,
    log: Log,
    original: McpServer,
}

/// A signed log with the run 900 in the second of its batches, behind a policy and among others' events.
async fn scene() -> Scene {
    let world = World::start();
    let original = server(&world.folder.path().join("original"), &[]);
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    agent.post::<EnrolAck>(ENROL, log.enrolment()).await.expect("an enrolment");
    let batches = [
        vec![policy_loaded("older"), policy_loaded(IN_FORCE), outcome(99, CallResult::Ok)],
        [vec![outcome(98, CallResult::Ok)], recorded(original.port()).await, vec![flow_of_other_run()]]
            .concat(),
        vec![policy_loaded("newer")],
    ];
    for bodies in batches {
        let segment = log.sealed(bodies);
        agent.post::<SegmentAck>(SEGMENTS, segment).await.expect("an ack");
    }
    Scene { world, log, original }
}

fn flow_of_other_run() -> Body<Text> {
    flow(weir_core::record::Treatment::Opaque)
}

/// A bundle's events alone, as from before logs were signed, with one text in the place of another.
fn without_proofs(mut lines: &[u8], (from, to): (&str, &str)) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((item, taken)) = export::read(lines).expect("an export") {
        match item {
            Item::Log { .. } => export::write(&item, &mut out),
            Item::Event(event) => {
                let canonical = std::str::from_utf8(event.canonical).expect("text");
                let canonical =
                    if from.is_empty() { canonical.into() } else { canonical.replacen(from, to, 1) };
                let leaf_hash = leaf_hash(canonical.as_bytes());
                let event = StoredEvent { epoch: 0, canonical: canonical.as_bytes(), leaf_hash, ..event };
                export::write(&Item::Event(event), &mut out);
            }
            _ => {}
        }
        lines = &lines[taken..];
    }
    out
}

fn asked(run: &str) -> Asked {
    Asked { run: run.into(), repository: None }
}

async fn bundle(scene: &Scene) -> Bundle {
    gather(&scene.world.operator(), &asked("900"), 1).await.expect("a bundle")
}

fn pinned(log: &Log) -> Trust {
    let key: VerifyingKey = log.key.verifying(&log.name.to_string()).expect("a key");
    let pin = Pin { key, first_seq: 0, stored: None, witnessed: None, also: Vec::new() };
    Trust { v: 1, witnesses: Vec::new(), heartbeat_s: 60, logs: vec![pin] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_holds_one_run_and_proves_itself_and_any_change_shows() {
    let scene = scene().await;
    let bundle = bundle(&scene).await;
    let trust = pinned(&scene.log);
    for trust in [None, Some(&trust)] {
        let checked = check(&bundle, trust).expect("a check");
        assert!(checked.is_whole(), "{:?}", checked.faults);
        assert_eq!((checked.events, checked.unsigned, checked.pinned), (15, 0, trust.is_some()));
    }
    let story = Story::of(&bundle);
    assert_eq!(story.calls.len(), 7);
    assert_eq!(story.kinds, [("agent", 1), ("intent", 7), ("outcome", 7)].into(), "nothing of others");
    let in_force = policy(IN_FORCE);
    let told = &story.policies[in_force.digest()];
    assert_eq!((story.policies.len(), &told["rules"]), (1, &in_force.text()), "the policy that was in force");
    assert_eq!(rules_told(told), RulesTold::Whole);
    let other = without_proofs(&bundle.lines, ("delete_*", "drop_*"));
    let checked = check(&Bundle { lines: other, ..bundle.clone() }, None).expect("a check");
    let told: Vec<_> = checked.faults.iter().map(|fault| fault.detail.as_str()).collect();
    assert!(told.iter().any(|told| told.contains("its rules do not have its digest")), "{told:?}");
    assert!(story.tools.iter().any(|tool| tool.name == "echo" && tool.definition.is_some()));
    assert_eq!(story.servers.len(), 1);

    // Somebody else's key.
    let mut stranger = scene.log.clone();
    stranger.key = weir_core::evidence::key::SigningKey::from_seed(&[9; 32]);
    let other = pinned(&stranger);
    let checked = check(&bundle, Some(&other)).expect("a check");
    assert!(checked.faults.iter().any(|fault| fault.kind == Kind::AnotherKey), "{:?}", checked.faults);

    // Each event, each batch and each key changed, and each event left out. (A cosignature counts with the witness's key alone.)
    let lines: Vec<&[u8]> = bundle.lines.split_inclusive(|byte| *byte == b'\n').collect();
    let rebuilt = |lines: &[Vec<u8>]| Bundle { lines: lines.concat(), ..bundle.clone() };
    let owned: Vec<Vec<u8>> = lines.iter().map(|line| line.to_vec()).collect();
    let mut changes = 0;
    for at in 0..owned.len() {
        if owned[at].starts_with(b"C ") || owned[at].starts_with(b"L ") {
            continue;
        }
        for byte in (0..owned[at].len()).step_by(97) {
            let mut changed = owned.clone();
            changed[at][byte] ^= 1;
            let checked = check(&rebuilt(&changed), None).expect("a check");
            assert!(!checked.is_whole(), "line {at}, byte {byte}: {}", String::from_utf8_lossy(&owned[at]));
            changes += 1;
        }
        if owned[at].starts_with(b"E ") {
            let mut cut = owned.clone();
            cut.drain(at..at + 2);
            assert!(!check(&rebuilt(&cut), None).expect("a check").is_whole(), "without line {at}");
        }
    }
    assert!(changes > 100, "{changes}");
    // An event that claims to be of before there were trees.
    let text = String::from_utf8_lossy(&bundle.lines).replacen("\nE 1 ", "\nE 0 ", 1);
    let unsigned = Bundle { lines: text.into_bytes(), ..bundle.clone() };
    assert!(!check(&unsigned, None).expect("a check").is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_id_of_two_repositories_must_be_chosen_from_and_an_unknown_one_is_refused() {
    let scene = scene().await;
    let agent = Agent::at(scene.world.collector.socket());
    let (mut log, mut other) = (scene.log.clone(), call(20, "tools/call", "{}", false, 1));
    of_run(&mut other, "900", "example/other");
    agent
        .post::<SegmentAck>(
            SEGMENTS,
            log.sealed(vec![Body::Intent(Box::new(other)), outcome(20, CallResult::Ok)]),
        )
        .await
        .expect("an ack");
    let store = scene.world.operator();
    let refused = gather(&store, &asked("900"), 1).await.expect_err("two runs");
    assert!(refused.to_string().contains("example/other, example/payments"), "{refused}");
    let chosen = Asked { repository: Some("example/other".into()), ..asked("900") };
    assert_eq!(Story::of(&gather(&store, &chosen, 1).await.expect("one of them")).calls.len(), 1);
    for unknown in [asked("901"), Asked { repository: Some("none".into()), ..asked("900") }] {
        assert!(matches!(gather(&store, &unknown, 1).await, Err(GatherError::Unknown(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_played_against_a_sandbox_and_what_has_changed_shows() {
    let scene = scene().await;
    let folder = scene.world.folder.path();
    let file = folder.join("run.tar.zst");
    let path = file.to_str().expect("a path");
    let (code, out, said) = scene.world.run(&["bundle", "--run", "900", "-o", path]);
    assert!(code == 0 && out.contains("15 of them under signed checkpoints"), "{out}{said}");
    assert_eq!(
        scene.world.run(&["bundle", "--run", "900", "-o", path]).0,
        1,
        "what is there is not written over"
    );
    // Neither a check nor a replay needs a store or a configuration.
    let alone = |arguments: &[&str]| {
        let program = weir_tests::places::binary("weir-collector").expect("a binary");
        told(
            std::process::Command::new(program)
                .args(["--config", "/nonexistent"])
                .args(arguments)
                .output()
                .expect("it runs"),
        )
    };
    let rows = |text: &str| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    let outcomes = |rows: &[Value]| -> Vec<Value> {
        rows.iter()
            .map(|row| {
                json!([row["tool"].as_str().or(row["method"].as_str()), row["outcome"], row["inexact"]])
            })
            .collect()
    };
    let (code, out, said) = alone(&["bundle", "--check", path, "--json"]);
    assert_eq!((code, rows(&out)[0]["story"]["calls"].as_array().map(Vec::len)), (0, Some(7)), "{said}");

    let ran = scene.original.executed().expect("a log").len();
    for host in ["127.0.0.1", "localhost", "[::1]"] {
        let (code, _, said) = alone(&["replay", path, "--against", &scene.original.url(host)]);
        assert!(
            code == 1 && said.contains("is a server of the record") && said.contains("--force-original"),
            "{said}"
        );
    }
    assert_eq!(scene.original.executed().expect("a log").len(), ran, "nothing was sent");

    let same = server(&folder.join("same"), &[]);
    let (url, changed) = (same.url("127.0.0.1"), server(&folder.join("changed"), &["--changed", "--json"]));
    let (code, out, _) = alone(&["replay", path, "--against", &url, "--dry-run", "--json"]);
    assert!(code == 0 && same.executed().expect("a log").is_empty(), "{out}");
    let (code, out, said) = alone(&["replay", path, "--against", &url, "--json"]);
    assert_eq!(
        (code, outcomes(&rows(&out))),
        (
            0,
            vec![
                json!(["initialize", "same", []]),
                json!(["notifications/initialized", "same", []]),
                json!(["tools/list", "same", []]),
                json!(["echo", "same", []]),
                json!(["read_config", "same", ["masked answer"]]),
                json!(["echo", "same", ["masked arguments"]]),
                json!(["delete_repo", "refused", []]),
            ]
        ),
        "{said}"
    );
    let (code, out, _) = alone(&["replay", path, "--against", &changed.url("127.0.0.1"), "--json"]);
    let played = rows(&out);
    assert_eq!(
        (code, &played[4]["outcome"], &played[3]["outcome"]),
        (1, &json!("different"), &json!("same"))
    );
    let told = played[4]["differences"].to_string();
    assert!(told.contains("/content/0/text") && told.contains("has moved"), "{told}");

    let masked = payload(&format!(r#"{{"text":"{SECRET}"}}"#));
    let pseudonym = places(masked.text.as_str())[0].pseudonym.to_owned();
    std::fs::write(folder.join("value"), SECRET).expect("a value");
    let bound = format!("{pseudonym}=@{}", folder.join("value").display());
    let (code, out, said) = alone(&["replay", path, "--against", &url, "--bind", &bound, "--json"]);
    assert_eq!((code, &rows(&out)[5]["inexact"]), (0, &json!([])), "{out}");
    assert!(!out.contains(SECRET) && !said.contains(SECRET), "a bound value is not shown");
    let executed = same.executed().expect("a log");
    assert!(executed.iter().any(|call| call.nonce == "n3" && call.arguments["text"] == SECRET));
    assert!(executed.iter().all(|call| call.tool != "delete_repo"), "what was refused is not played");

    let rules = folder.join("next.toml");
    std::fs::write(&rules, "[[rule]]\nid = \"no-config\"\nwhen = { tool = \"read_*\" }\naction = \"deny\"\n")
        .expect("rules");
    let (code, out, _) = alone(&["replay", path, "--policy", rules.to_str().expect("a path"), "--json"]);
    let judged: Vec<Value> = rows(&out)
        .into_iter()
        .filter(|row| row["changed"] == true)
        .map(|row| json!([row["tool"], row["recorded"]["action"], row["now"]["action"], row["now"]["rule"]]))
        .collect();
    assert_eq!(
        (code, judged),
        (
            1,
            vec![
                json!(["read_config", "allow", "deny", "no-config"]),
                json!(["delete_repo", "deny", "allow", "default"])
            ]
        )
    );

    // One without its proofs is as from before there were any: a script must not take it for a good one.
    let mut bundle = Bundle::read(std::fs::File::open(&file).expect("a file")).expect("a bundle");
    bundle.lines = without_proofs(&bundle.lines, ("", ""));
    let stripped = folder.join("stripped.tar.zst");
    bundle.write(std::fs::File::create(&stripped).expect("a file")).expect("a bundle");
    let check = ["bundle", "--check", stripped.to_str().expect("a path")];
    let (code, out, said) = alone(&check);
    assert!(code == 1 && out.contains("signed by nobody") && said.contains("--unsigned-ok"), "{out}{said}");
    assert_eq!(alone(&[&check[..], &["--unsigned-ok"]].concat()).0, 0);

    // Params that are more than one value would say another method than is shown.
    let params = r#"{\"name\":\"read_config\","#;
    let mut bundle = Bundle::read(std::fs::File::open(&file).expect("a file")).expect("a bundle");
    bundle.lines =
        without_proofs(&bundle.lines, (params, &format!(r#"{{}},\"method\":\"tools/list\",\"x\":{params}"#)));
    let pasted = folder.join("pasted.tar.zst");
    bundle.write(std::fs::File::create(&pasted).expect("a file")).expect("a bundle");
    let (_, out, said) =
        alone(&["replay", pasted.to_str().expect("a path"), "--against", &url, "--dry-run", "--json"]);
    assert!(
        rows(&out).iter().any(|row| row["note"] == "what is recorded as its params is not one JSON value"),
        "{out}{said}"
    );

    // A bundle that was changed is neither played nor judged.
    let mut bundle = Bundle::read(std::fs::File::open(&file).expect("a file")).expect("a bundle");
    let text = String::from_utf8(bundle.lines).expect("text").replacen("read_config", "read_konfig", 1);
    bundle.lines = text.into_bytes();
    let tampered = folder.join("tampered.tar.zst");
    bundle.write(std::fs::File::create(&tampered).expect("a file")).expect("a bundle");
    let tampered = tampered.to_str().expect("a path");
    for arguments in [&["replay", tampered, "--against", &url][..], &["bundle", "--check", tampered]] {
        let (code, out, said) = alone(arguments);
        assert!(code == 1 && (out.contains("altered") || said.contains("altered")), "{out}{said}");
    }
}
