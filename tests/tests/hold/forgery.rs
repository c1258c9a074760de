//! What does not release a call: each forged statement is recorded as invalid, and the hold goes on waiting.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::world::{APPROVER, CLIENT_DEADLINE};
use weir_tests::{Approver, ClientKind, World, WorldPlan};

use super::signing::sign;
use super::{ARRIVES, column, held};

const BOB: &str = "bob@example.test";
const WHY: &str = "Change CHG-7 was agreed on Monday";

/// The statement that an approver would sign for a hold.
fn statement(hold: &Value) -> Result<Value> {
    let issued_us = hold["created_us"].as_u64().context("no time")? + 1;
    Ok(json!({
        "type": "weir.approval/1", "hold": hold, "answer": "approve", "justification": WHY, "ticket": "",
        "approver": APPROVER, "issued_us": issued_us, "max_uses": 1,
    }))
}

/// Canonical JSON (RFC 8785), as far as a statement has need of it: members in order, and no spaces.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            let members: Vec<_> =
                members.iter().map(|(name, value)| format!("{}:{}", json!(name), canonical(value))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        plain => plain.to_string(),
    }
}

/// Puts a row into the store's table of decisions, as whoever has taken the store over can.
fn insert(world: &World, id: &str, statement: &str, signature: &str) -> Result<()> {
    let row = json!({
        "approval_id": id, "answer": "approve", "approver": APPROVER, "justification": WHY, "ticket": "",
        "issued_at": 0, "statement": statement, "signature": signature, "submitted_by": "mallory", "submitted_at": 0,
    });
    world.store.execute(&format!("INSERT INTO decisions FORMAT JSONEachRow {row}")).map(drop)
}

fn stranger_folder(world: &World) -> Result<std::path::PathBuf> {
    let folder = world.folder().join("stranger");
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

#[test]
fn a_key_that_is_not_the_approvers_releases_nothing_and_the_right_one_still_does() -> Result<()> {
    let world = World::start(&WorldPlan { colleagues: vec![BOB], ..WorldPlan::default() })?;
    let mut held = held(&world, ClientKind::TypeScript, "keys", "deploy", &[])?;
    // A stranger's key under an approver's name; an approver's key under another approver's name.
    let stranger = Approver::with_new_key(&stranger_folder(&world)?, APPROVER)?;
    let bob = &world.colleagues[0];
    let bob_as_alice = Approver { principal: APPROVER.to_owned(), ..bob.clone() };
    for (who, expected) in [(&stranger, "no allowed signer has the key"), (&bob_as_alice, "is not one of")] {
        let tried = who.approve(&world.collector, &held.id, WHY)?;
        let said = String::from_utf8_lossy(&tried.stdout);
        assert_eq!(tried.status.code(), Some(1), "{tried:?}");
        assert!(said.contains("the agent did not accept it") && said.contains(expected), "{said}");
    }
    assert!(held.job.ended()?.is_none(), "the call still waits");
    assert_eq!(held.executed(&world)?, 0);

    let approved = bob.approve(&world.collector, &held.id, WHY)?;
    assert!(approved.status.success(), "{approved:?}");
    assert!(held.job.finish(CLIENT_DEADLINE)?.first("deploy")?.ok);
    assert_eq!(held.executed(&world)?, 1);
    let row = held.recorded_as(&world, "ok")?;
    assert_eq!(row["approver"], BOB);
    let decisions = held.decisions(&world)?;
    assert_eq!(column(&decisions, "decision"), ["invalid", "invalid", "approved"]);
    // What was tried is in the record, with the reason.
    assert!(column(&decisions, "justification")[0].contains("no allowed signer"), "{decisions:?}");
    assert!(column(&decisions, "signature")[0].contains("SSH SIGNATURE"), "{decisions:?}");
    Ok(())
}

#[test]
fn a_statement_altered_in_the_store_releases_nothing() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    // An approval of another call, to be used once more.
    let mut earlier = held(&world, ClientKind::Python, "earlier", "deploy", &[])?;
    ensure!(world.approver.approve(&world.collector, &earlier.id, WHY)?.status.success());
    earlier.job.finish(CLIENT_DEADLINE)?;
    earlier.recorded_as(&world, "ok")?;
    let decisions = earlier.decisions(&world)?;
    let replayed =
        [column(&decisions, "statement")[0], column(&decisions, "signature")[0]].map(str::to_owned);

    let mut held = held(&world, ClientKind::TypeScript, "altered", "deploy", &[])?;
    let hold = &held.hold["hold"];
    let honest = statement(hold)?;
    let altered = |change: &dyn Fn(&mut Value)| {
        let mut statement = honest.clone();
        change(&mut statement);
        canonical(&statement)
    };
    let other_arguments = altered(&|it| {
        let text =
            it["hold"]["arguments"]["text"].as_str().unwrap_or_default().replace("production", "staging");
        it["hold"]["arguments"]["text"] = text.into();
    });
    let other_digest = altered(&|it| it["hold"]["call_digest"] = "00".repeat(32).into());
    let other_answer = altered(&|it| it["answer"] = "refuse".into());
    let short = altered(&|it| it["justification"] = "ok".into());
    let more_uses = altered(&|it| it["max_uses"] = 2.into());
    let spaced = canonical(&honest).replace("\"approver\":", "\"approver\": ");
    let late = altered(&|it| it["issued_us"] = (hold["expires_us"].as_u64().unwrap_or_default() + 1).into());
    let (alice, honest) = (&world.approver, canonical(&honest));
    let forged = [
        // Another call was shown to the approver, who signed that.
        (&other_arguments, sign(alice, &other_arguments)?, "arguments differs"),
        (&other_digest, sign(alice, &other_digest)?, "call_digest differs"),
        // The approver signed this call, and the store's copy was altered afterwards.
        (&other_arguments, sign(alice, &honest)?, "arguments differs"),
        (&honest, sign(alice, &other_answer)?, "the signature does not hold"),
        // Of another call, under this one's id.
        (&replayed[0], replayed[1].clone(), "approval_id differs"),
        // What the command line would not have signed.
        (&short, sign(alice, &short)?, "fewer than 15 characters"),
        (&more_uses, sign(alice, &more_uses)?, "form differs"),
        (&spaced, sign(alice, &spaced)?, "form differs"),
        (&late, sign(alice, &late)?, "outside of the hold's time"),
        (&honest, "no signature at all".to_owned(), "the signature does not hold"),
        (&"{}".to_owned(), sign(alice, "{}")?, "cannot be read"),
    ];
    for (text, signature, _) in &forged {
        insert(&world, &held.id, text, signature)?;
    }
    let question =
        format!("SELECT seq FROM events WHERE approval_id = '{}' AND decision = 'invalid'", held.id);
    world.sql_until(forged.len(), &question)?;
    let decisions = held.decisions(&world)?;
    assert!(column(&decisions, "decision").iter().all(|decision| *decision == "invalid"), "{decisions:?}");
    for (text, signature, reason) in &forged {
        let recorded = decisions.iter().any(|row| {
            row["signature"] == signature.as_str()
                && row["statement"] == text.as_str()
                && row["justification"].as_str().is_some_and(|why| why.contains(reason))
        });
        assert!(recorded, "{reason} of {text} is not in {decisions:#?}");
    }
    assert!(held.job.ended()?.is_none(), "the call still waits");
    assert_eq!(held.executed(&world)?, 0);

    // The honest statement, put there by the same way, is what the agent waits for.
    insert(&world, &held.id, &honest, &sign(alice, &honest)?)?;
    let approved = weir_tests::until("the call to be released", ARRIVES, || held.job.ended())?;
    assert!(approved.success());
    assert!(held.job.finish(CLIENT_DEADLINE)?.first("deploy")?.ok);
    assert_eq!(held.executed(&world)?, 1);
    Ok(())
}
