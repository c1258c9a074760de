use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use weir_core::ids::Origin;
use weir_core::policy::Action;
use weir_core::record::{AgentEvent, Body, CallResult, Stored, Treatment};
use weir_core::segment::{FrameKind, MAX_EVENTS, MAX_SEGMENT, Reader, batch_digest};
use weir_core::wire::{POLL, PollRequest, PollResponse, Reason, SEGMENTS, SegmentAck};

use crate::agent::{Agent, reason};
use crate::records::{self, event, flow, intent, many, outcome, sealed, segment, text};
use crate::world::World;

fn origin(n: u8) -> Origin {
    Origin::from_random([n; 16])
}

fn ack_of(bytes: &[u8], origin: &Origin) -> SegmentAck {
    let mut reader = Reader::new(bytes).expect("a segment");
    let first_seq = reader.first_seq();
    let frames: Vec<_> = reader.by_ref().map(|frame| frame.expect("a frame")).collect();
    let events = frames.iter().filter(|frame| frame.kind == FrameKind::Event).map(|frame| frame.bytes);
    let batch_digest = batch_digest(events);
    SegmentAck::new(origin.clone(), first_seq, reader.next_seq() - 1, batch_digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_becomes_rows_once_however_often_it_is_sent() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = origin(1);
    let bytes = segment(
        &origin,
        0,
        vec![
            Body::Agent(AgentEvent {
                name: "agent.started".into(),
                detail: [("version".into(), text("1"))].into(),
            }),
            intent(
                1,
                "echo",
                Action::Allow,
                r#"{"big":12345678901234567890123,"token":"ghp_abcdefghijklmnopqrstuvwxyz0123456789"}"#,
            ),
            outcome(1, CallResult::Ok),
            flow(Treatment::Terminated),
        ],
    );
    // At once from many sides, and then once more.
    let mut puts = JoinSet::new();
    for _ in 0..8 {
        let (agent, bytes) = (agent.clone(), bytes.clone());
        puts.spawn(async move { agent.post::<SegmentAck>(SEGMENTS, bytes).await });
    }
    while let Some(ack) = puts.join_next().await {
        assert_eq!(ack.expect("a put").expect("an ack"), ack_of(&bytes, &origin));
    }
    assert_eq!(agent.post::<SegmentAck>(SEGMENTS, bytes.clone()).await, Ok(ack_of(&bytes, &origin)));

    let rows = world.sql("SELECT seq, canonical, agent_uid, batch_first_seq FROM events ORDER BY seq");
    assert_eq!(rows.len(), 4);
    let frames = Reader::new(&bytes).expect("a segment").map(|frame| frame.expect("a frame"));
    for (row, frame) in rows.iter().zip(frames.filter(|frame| frame.kind == FrameKind::Event)) {
        let canonical = row["canonical"].as_str().expect("text");
        assert_eq!(canonical.as_bytes(), frame.bytes, "the very bytes that were sent");
        assert_eq!(Stored::read(canonical.as_bytes()).expect("an event").seq, row["seq"]);
    }
    let call = world.sql("SELECT *, toUnixTimestamp64Micro(time) AS us FROM calls");
    let call = call.first().expect("a call");
    for (column, value) in [
        ("tenant", "demo"),
        ("host_name", "runner-1"),
        ("vcs_repository_name", "example/payments"),
        ("cicd_pipeline_task_name", "deploy"),
        ("process_executable_path", "/usr/bin/node"),
        ("process_linux_cgroup", "/weir-demo/job"),
        ("server_name", "localhost"),
        ("server_proof", "certificate"),
        ("mcp_method_name", "tools/call"),
        ("gen_ai_tool_name", "echo"),
        ("policy_action", "allow"),
        ("result", "ok"),
    ] {
        assert_eq!(call[column], value, "{column}");
    }
    assert_eq!((&call["duration_us"], &call["process_pid"]), (&1234.into(), &4242.into()));
    assert_eq!(call["us"], records::TIME_US + 1);
    let arguments = call["arguments"].as_str().expect("text");
    assert!(
        arguments.contains("12345678901234567890123") && !arguments.contains("abcdefghij"),
        "{arguments}"
    );
    assert_eq!(call["arguments_masked_pointers"][0], "/token");
    assert_eq!(world.number("SELECT count() FROM gaps"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_the_largest_size_is_one_block() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let bytes = many(&origin(1), 0, MAX_EVENTS);
    assert_eq!(agent.post(SEGMENTS, bytes.clone()).await, Ok(ack_of(&bytes, &origin(1))));
    assert_eq!(world.number("SELECT count() FROM events"), MAX_EVENTS);
    let parts = "SELECT count() FROM system.parts WHERE database = 'weir' AND table = 'events' AND active";
    assert_eq!(world.number(parts), 1, "one block is one part");
    // Large in bytes, with much that JSON escapes.
    let text = serde_json::to_string(&"\\\"\u{1}é".repeat(20_000)).expect("JSON");
    let mut large = Vec::new();
    while large.len() * text.len() * 2 < MAX_SEGMENT {
        large.push(intent(1, "echo", Action::Allow, &text));
    }
    let bytes = segment(&origin(3), 0, large);
    assert!(bytes.len() > MAX_SEGMENT / 2, "{} bytes", bytes.len());
    assert_eq!(agent.post(SEGMENTS, bytes.clone()).await, Ok(ack_of(&bytes, &origin(3))));
    let more = many(&origin(2), 0, MAX_EVENTS + 1);
    assert_eq!(reason(agent.post::<SegmentAck>(SEGMENTS, more).await), Reason::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_events_at_the_same_place_are_a_conflict_and_change_nothing() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = origin(1);
    assert!(agent.post::<SegmentAck>(SEGMENTS, many(&origin, 10, 5)).await.is_ok());
    let other =
        |first: u64, n: u64| segment(&origin, first, (0..n).map(|_| outcome(2, CallResult::Ok)).collect());
    let forks = [
        ("the same place", other(10, 5)),
        ("longer", many(&origin, 10, 6)),
        ("shorter", many(&origin, 10, 4)),
        ("reaching in from before", many(&origin, 8, 3)),
        ("reaching out behind", many(&origin, 14, 3)),
        ("around it", many(&origin, 9, 7)),
        ("inside", many(&origin, 12, 1)),
    ];
    for (how, bytes) in forks {
        assert_eq!(reason(agent.post::<SegmentAck>(SEGMENTS, bytes).await), Reason::Conflict, "{how}");
    }
    assert_eq!(world.number("SELECT count() FROM events"), 5);
    // Two forks at once, at a place that is free: one of them, once.
    let sides = [other(20, 3), many(&origin, 20, 3)];
    let (one, two) = tokio::join!(
        agent.post::<SegmentAck>(SEGMENTS, sides[0].clone()),
        agent.post::<SegmentAck>(SEGMENTS, sides[1].clone())
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1, "{one:?} {two:?}");
    assert_eq!(world.number("SELECT count() FROM events WHERE seq >= 20"), 3);
    // Another log has its own places.
    assert!(agent.post::<SegmentAck>(SEGMENTS, many(&Origin::from_random([2; 16]), 10, 5)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_two_months_is_one_block_and_rows_that_it_lost_come_back_by_sending_it_again() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = origin(1);
    let at = |seq: u64, time_us: u64| {
        let mut event = event(&origin, seq, outcome(1, CallResult::Ok));
        event.time_us = time_us;
        event
    };
    let (october, november) = (1_793_000_000_000_000, records::TIME_US);
    let bytes = sealed(0, vec![at(0, october), at(1, october), at(2, november)]);
    let ack = Ok(ack_of(&bytes, &origin));
    assert_eq!(agent.post::<SegmentAck>(SEGMENTS, bytes.clone()).await, ack);
    let parts = "SELECT count() FROM system.parts WHERE database = 'weir' AND table = 'events' AND active";
    assert_eq!(world.number(parts), 1, "the sealing decides, and not what the events say");
    // The token of the insert is burnt, and the row that is there must not come twice.
    let lose = "ALTER TABLE events DELETE WHERE toYYYYMM(time) = 202610 SETTINGS mutations_sync = 2";
    world.execute(lose).await;
    assert_eq!(world.number("SELECT count() FROM events"), 1);
    assert_eq!(world.sql("SELECT first_missing_seq AS f, last_missing_seq AS l FROM gaps")[0]["l"], 1);
    assert_eq!(agent.post::<SegmentAck>(SEGMENTS, bytes).await, ack);
    assert_eq!(world.number("SELECT count() * 10 + uniqExact(seq) FROM events"), 33);
}

/// What a server killed at the wrong moment leaves behind: the token, and no rows for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_its_rows_does_not_keep_a_segment_out() {
    let mut world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = origin(1);
    let bytes = many(&origin, 0, 5);
    let ack = Ok(ack_of(&bytes, &origin));
    assert_eq!(agent.post::<SegmentAck>(SEGMENTS, bytes.clone()).await, ack);
    world.execute("ALTER TABLE events DELETE WHERE 1 SETTINGS mutations_sync = 2").await;
    assert_eq!(world.number("SELECT count() FROM events"), 0);
    assert_eq!(agent.post::<SegmentAck>(SEGMENTS, bytes).await, ack);
    assert_eq!(world.number("SELECT count() FROM events"), 5);
    let log = world.collector.daemon().log();
    assert!(log.contains("a burnt token"), "the first token was not burnt, so nothing was shown: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_told_to_stop_answers_what_it_has_begun() {
    let mut world = World::start();
    let agent = Agent::at(world.collector.socket());
    let socket = world.collector.socket().to_path_buf();
    let poll = PollRequest { origin: origin(1), open: vec![], wait_ms: 30_000 };
    let poll = serde_json::to_vec(&poll).expect("JSON");
    let waiting = tokio::spawn({
        let agent = agent.clone();
        async move { agent.post::<PollResponse>(POLL, poll).await }
    });
    let put = agent.post::<SegmentAck>(SEGMENTS, many(&origin(1), 0, 3)).await;
    assert!(put.is_ok() && !waiting.is_finished());
    world.collector.daemon().signal(Signal::SIGTERM).expect("a signal");
    let exit = world.collector.daemon().wait(Duration::from_secs(20)).expect("an end");
    assert_eq!(exit.code(), Some(0));
    assert_eq!(waiting.await.expect("a poll").expect("an answer").decisions, []);
    assert!(!socket.exists());
}
