//! How the clients of held calls are made to wait, each in the way that it can bear. Nobody approves here: whatever a client
//! does, the server sees nothing.

use std::time::Duration;

use serde_json::{Value, json};
use weir::config::Ladder;
use weir_core::record::{Body, CallResult, MessageLabel};

use super::REFUSED;
use super::stage::{Client, Peer, Plan, Stage, post};

const ROUNDS: u32 = 3;

async fn stage(ladder: Ladder, deadline: Duration) -> (Stage, Peer) {
    let mut stage = Stage::of(Plan { ladder, deadline, ..Plan::default() }).await;
    let server = stage.accept().await;
    (stage, server)
}

fn ladder(answer_within: u64) -> Ladder {
    let answer_within = Duration::from_millis(answer_within);
    Ladder { answer_within, rounds: ROUNDS, ..Ladder::default() }
}

/// A call of `deploy`, which is held; of the revision without sessions if it says so.
fn deploy(id: u32, place: &str, stateless: bool, more: Value) -> String {
    let mut params = json!({"name": "deploy", "arguments": {"place": place}});
    if stateless {
        params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    }
    for (name, value) in more.as_object().unwrap() {
        params[name] = value.clone();
    }
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).to_string()
}

/// The message that an answer ends with.
async fn ask(client: &mut Client, body: String, accept: &str) -> Value {
    let mut request = post(body);
    request.headers_mut().insert("accept", accept.parse().unwrap());
    let (status, head, text) = client.ask(request).await;
    assert_eq!(status, 200, "{text}");
    let events = accept.contains("event-stream");
    assert_eq!(head["content-type"] == "text/event-stream", events, "{head:?}");
    let data =
        if events { text.lines().rev().find_map(|line| line.strip_prefix("data: ")) } else { Some(&*text) };
    serde_json::from_str(data.unwrap_or_else(|| panic!("{text}"))).unwrap()
}

const BOTH: &str = "application/json, text/event-stream";
const JSON: &str = "application/json";

#[tokio::test]
async fn a_client_without_a_stream_to_wait_on_is_invited_to_ask_again_and_then_told() {
    let (stage, mut server) = stage(ladder(40), Duration::from_secs(600)).await;
    let mut client = stage.client().await;
    let mut more = json!({});
    for round in 0..ROUNDS {
        let answer = ask(&mut client, deploy(round, "a", true, more.clone()), BOTH).await;
        assert_eq!(answer["id"], round);
        let result = &answer["result"];
        assert_eq!((&result["resultType"], &result["inputRequests"]), (&json!("input_required"), &json!({})));
        assert!(result["requestState"].as_str().unwrap().starts_with("weir-hold."), "{result}");
        more = json!({"requestState": result["requestState"], "inputResponses": {}});
    }
    // Its rounds are over. From now on the call is known by what it asks for.
    for more in [more, json!({})] {
        let answer = ask(&mut client, deploy(7, "a", true, more), BOTH).await;
        let result = &answer["result"];
        assert_eq!(
            (&result["isError"], &result["resultType"]),
            (&json!(true), &json!("complete")),
            "{answer}"
        );
        assert!(result["content"][0]["text"].as_str().unwrap().contains("pending approval"), "{result}");
    }
    // All of it was one call, and each later request is recorded with it.
    let count = |body: &dyn Fn(&Body<_>) -> bool| stage.events().iter().filter(|event| body(event)).count();
    assert_eq!(stage.messages(MessageLabel::Request, ROUNDS as usize + 1).await.len(), ROUNDS as usize + 1);
    assert_eq!(count(&|event| matches!(event, Body::Intent(_))), 1);
    assert_eq!(count(&|event| matches!(event, Body::Outcome(_))), 0);
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_state_that_is_not_good_for_a_call_is_refused_and_goes_to_no_server() {
    let (stage, mut server) = stage(ladder(40), Duration::from_secs(600)).await;
    let mut client = stage.client().await;
    let answer = ask(&mut client, deploy(1, "a", true, json!({})), BOTH).await;
    let state = answer["result"]["requestState"].as_str().unwrap().to_owned();
    // Another last sextet, whichever it was.
    let (rest, last) = state.split_at(state.len() - 1);
    let forged = format!("{rest}{}", if last == "A" { "E" } else { "A" });
    for (place, state) in [("b", state.as_str()), ("a", forged.as_str()), ("a", "weir-hold.x")] {
        let answer = ask(&mut client, deploy(2, place, true, json!({"requestState": state})), JSON).await;
        assert!(answer["error"].to_string().contains(REFUSED), "{answer}");
    }
    // The right one is good still.
    let answer = ask(&mut client, deploy(3, "a", true, json!({"requestState": state})), BOTH).await;
    assert_eq!(answer["result"]["resultType"], "input_required");
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_client_that_was_invited_and_does_not_come_back_has_left() {
    let ladder = Ladder { retry_within: Duration::from_millis(40), ..ladder(40) };
    let (stage, mut server) = stage(ladder, Duration::from_secs(600)).await;
    let mut client = stage.client().await;
    let answer = ask(&mut client, deploy(1, "a", true, json!({})), BOTH).await;
    assert_eq!(stage.outcome().await.result, CallResult::ClientGone);
    let state = answer["result"]["requestState"].clone();
    let late = ask(&mut client, deploy(2, "a", true, json!({"requestState": state})), JSON).await;
    assert!(late["error"].to_string().contains(REFUSED), "{late}");
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_client_that_takes_no_events_is_told_and_its_next_call_alike_is_the_same() {
    let (stage, mut server) = stage(ladder(40), Duration::from_secs(600)).await;
    let mut client = stage.client().await;
    let mut ids = Vec::new();
    for (id, place) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        let answer = ask(&mut client, deploy(id, place, false, json!({})), JSON).await;
        let result = &answer["result"];
        assert!(
            answer["id"] == id && result["isError"] == true && result.get("resultType").is_none(),
            "{answer}"
        );
        let text = result["content"][0]["text"].as_str().unwrap().to_owned();
        ids.push(text.split("approval ").nth(1).unwrap().split(' ').next().unwrap().to_owned());
    }
    assert!(ids[0] == ids[1] && ids[1] == ids[3] && ids[2] != ids[0], "{ids:?}");
    let intents = stage.events().iter().filter(|event| matches!(event, Body::Intent(_))).count();
    assert_eq!(intents, 2);
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_held_call_expires_whether_or_not_its_client_waits() {
    let (stage, mut server) = stage(ladder(30), Duration::from_millis(150)).await;
    let mut client = stage.client().await;
    let answer = ask(&mut client, deploy(1, "a", false, json!({})), JSON).await;
    assert_eq!(answer["result"]["isError"], true);
    assert_eq!(stage.outcome().await.result, CallResult::Expired);
    // Afterwards the same call is another one.
    let answer = ask(&mut client, deploy(2, "a", false, json!({})), JSON).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    let intents = stage.events().iter().filter(|event| matches!(event, Body::Intent(_))).count();
    assert_eq!(intents, 2);
    assert!(stage.untouched(&mut server));
}

#[tokio::test]
async fn a_client_that_asked_for_progress_is_told_of_some_that_rises() {
    let (stage, mut server) = stage(ladder(10), Duration::from_millis(200)).await;
    let mut client = stage.client().await;
    let token =
        json!({"_meta": {"progressToken": "p", "io.modelcontextprotocol/protocolVersion": "2026-07-28"}});
    let (_, _, text) = client.ask(post(deploy(1, "a", true, token))).await;
    let messages: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let (last, told) = messages.split_last().unwrap();
    assert!(last["error"].to_string().contains("nobody approved it in time"), "{text}");
    let values: Vec<f64> = told.iter().map(|told| told["params"]["progress"].as_f64().unwrap()).collect();
    assert!(
        values.len() > 2 && values.windows(2).all(|pair| pair[0] < pair[1]) && values[0] < 0.001,
        "{values:?}"
    );
    assert!(told.iter().all(|told| told["params"]["progressToken"] == "p"));
    assert!(text.matches(": weir: waiting").count() >= told.len());
    assert!(stage.untouched(&mut server));
}
