//! The approver's command line: what it shows of a held call, and what it says when nothing can be approved.

use anyhow::{Context, Result};
use serde_json::Value;
use weir_tests::world::{APPROVER, CLIENT_DEADLINE};
use weir_tests::{ClientKind, World, WorldPlan};

use super::{Held, held};

const WHY: &str = "Change CHG-7 was agreed on Monday";
/// What a job might put into an argument to deceive whoever reads it: a colour, a C1 control, text that runs backwards.
const HOSTILE: &str = r#"{"environment":"prod\u001b[2K\u009b31m\u202egnigats"}"#;
const NOBODYS_HOLD: &str = "00000000000000000000000000000000";

/// `weir-collector approvals ARGUMENTS...`: its exit code, what it prints, what it says on standard error.
fn approvals(world: &World, arguments: &[&str]) -> Result<(i32, String, String)> {
    let output = world.collector.attempt(&[&["approvals"], arguments].concat())?;
    let text = |bytes| String::from_utf8(bytes).context("not UTF-8");
    Ok((output.status.code().context("no exit code")?, text(output.stdout)?, text(output.stderr)?))
}

#[test]
fn an_approver_sees_all_of_a_held_call_and_none_of_its_control_characters() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut held = held(&world, ClientKind::Python, "seen", "deploy", &["--arguments", HOSTILE])?;
    let hold = &held.hold;
    let arguments: Value = serde_json::from_str(hold["arguments"].as_str().context("no arguments")?)?;
    assert_eq!(arguments["arguments"]["environment"], "prod\u{1b}[2K\u{9b}31m\u{202e}gnigats");
    assert_eq!(
        (&hold["state"], &hold["tool"], &hold["rule"]),
        (&"open".into(), &"deploy".into(), &"deploys-need-a-human".into(),)
    );
    let (code, list, _) = approvals(&world, &["list"])?;
    assert_eq!(code, 0);
    let (code, shown, _) = approvals(&world, &["show", &held.id[..8]])?;
    assert_eq!(code, 0);
    let (code, json, _) = approvals(&world, &["show", &held.id, "--json"])?;
    assert_eq!(code, 0);
    let shown_json: Value = serde_json::from_str(&json)?;
    assert_eq!((&shown_json["hold"], &shown_json["approval_id"]), (&hold["hold"], &hold["approval_id"]));
    for text in [&list, &shown, &json] {
        assert!(text.contains(&held.id) && text.contains("gnigats"), "{text}");
        let hostile = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(hostile, None, "{text:?}");
        assert!(!text.contains("w2Xq8RkV5nTz"), "the token is not to be seen: {text}");
    }
    let place = ["localhost", "proven by its certificate", "uid 65534", "/job", "python"];
    let job = ["example/payments", "octocat", "release", "refs/heads/main", "runner-01", "7312905518"];
    for part in place.iter().chain(&job).chain(&["secret-name at /arguments/token"]) {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    world.approver.refuse(&world.collector, &held.id, WHY)?;
    held.job.finish(CLIENT_DEADLINE)?;
    Ok(())
}

#[test]
fn an_answer_that_cannot_count_is_not_signed_and_says_why() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let mut held = held(&world, ClientKind::TypeScript, "answers", "deploy", &[])?;
    let key = world.approver.key.to_string_lossy().into_owned();
    let id = held.id.as_str();
    let why = ["--justification", WHY];
    let signed = ["--key", &key];
    let unread = world.folder().join("unread");
    std::fs::write(&unread, "this is no key")?;
    let unread = unread.to_string_lossy().into_owned();
    let cases: [(&[&str], i32, &str); 11] = [
        (&["show", NOBODYS_HOLD], 1, "there is no hold 0000"),
        (&["show", "not-an-id"], 1, "\"not-an-id\" is not an approval id"),
        (&["approve", NOBODYS_HOLD, why[0], why[1], "--key", &key], 1, "there is no hold 0000"),
        (&["approve", id, "--justification", "because", "--key", &key], 1, "needs at least 15 characters"),
        (
            &["approve", id, "--justification", "               x ", "--key", &key],
            1,
            "at least 15 characters",
        ),
        (
            &["approve", id, why[0], "as agreed, password=correct-horse", "--key", &key],
            1,
            "looks like a secret",
        ),
        (&["approve", id, "--key", &key], 2, "--justification"),
        (&["refuse", id, why[0], why[1], "--key", "/nonexistent"], 1, "there is no key /nonexistent"),
        (&["approve", id, why[0], why[1], "--key", &unread], 1, "--as"),
        (&["approve", id, why[0], why[1], "--as", APPROVER, "--key", &unread], 1, "nothing was sent"),
        (&["approve"], 2, "Usage:"),
    ];
    for (arguments, code, sentence) in cases {
        let (got, out, errors) = approvals(&world, arguments)?;
        assert_eq!(got, code, "{arguments:?}: {out} {errors}");
        assert!(
            errors.contains(sentence) && out.is_empty(),
            "{arguments:?} says {errors:?} and not {sentence:?}"
        );
    }
    assert_eq!(world.number("SELECT count() FROM decisions")?, 0, "nothing was signed");
    assert!(held.job.ended()?.is_none());

    // The approver is whom the key's comment names, and an answer for scripts is JSON.
    let arguments = [&["approve", &id[..12], "--json"], &why[..], &signed[..]].concat();
    let (code, out, errors) = approvals(&world, &arguments)?;
    assert_eq!(code, 0, "{errors}");
    let answer: Value = serde_json::from_str(&out)?;
    assert_eq!((&answer["agent"], &answer["approver"]), (&"did".into(), &APPROVER.into()), "{answer}");
    assert!(held.job.finish(CLIENT_DEADLINE)?.first("deploy")?.ok);
    closed(&world, &held, &key)
}

/// What an approver reads of a hold that is over.
fn closed(world: &World, held: &Held, key: &str) -> Result<()> {
    let again = ["approve", &held.id, "--justification", WHY, "--key", key];
    let (code, out, errors) = approvals(world, &again)?;
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(errors.trim(), format!("weir-collector: the hold {} is no longer open: approved", held.id));
    let (_, listed, _) = approvals(world, &["list"])?;
    assert_eq!(listed, "no call waits for a decision\n");
    let (_, all, _) = approvals(world, &["list", "--all", "--json"])?;
    let all: Value = serde_json::from_str(&all)?;
    assert_eq!((&all["state"], &all["justification"]), (&"approved".into(), &WHY.into()), "{all}");
    let (_, shown, _) = approvals(world, &["show", &held.id])?;
    assert!(shown.contains(WHY) && shown.contains(APPROVER), "{shown}");
    Ok(())
}
