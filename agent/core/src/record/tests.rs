use super::*;
use crate::mask::{MaskKey, Masker};

fn event() -> Written {
    let masker = Masker::new(MaskKey::new([1; 32]));
    let (text, masked) = masker.json(r#"{"b":1,"a":12345678901234567890123,"password":"x"}"#);
    Event {
        v: VERSION,
        tenant: "t".into(),
        host: "h".into(),
        origin: Origin::from_random([1; 16]),
        boot: Boot::from_random([2; 16]),
        seq: 9,
        time_us: 1_790_000_000_000_000,
        body: Body::Outcome(Outcome {
            http_status: Some(200),
            duration_us: Some(12),
            payload: Payload { text, bytes: 50, masked, ..Payload::default() },
            ..Outcome::new(CallId::from_random([3; 16]), CallResult::Ok)
        }),
    }
}

#[test]
fn an_event_reads_back_from_its_canonical_bytes() {
    let bytes = event().canonical().unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.starts_with(r#"{"body":{"call_id":"#) && text.contains("12345678901234567890123"), "{text}");
    let read = Stored::read(&bytes).unwrap();
    assert_eq!((read.seq, read.body.kind()), (9, "outcome"));
}

#[test]
fn a_body_in_its_place_has_the_bytes_of_its_event() {
    let event = event();
    let Event { body, boot, host, origin, seq, tenant, time_us, v } = &event;
    let (seq, time_us, v) = (*seq, *time_us, *v);
    let mut out = b"before".to_vec();
    Placed { body, boot, host, origin, seq, tenant, time_us, v }
        .append(&mut Scribe::default(), &mut out)
        .unwrap();
    assert_eq!(out.strip_prefix(b"before"), Some(&event.canonical().unwrap()[..]));
}

#[test]
fn a_member_that_is_named_as_the_kind_is_does_not_mislead_the_quick_reader() {
    for name in ["gap", "agent", "none", "a\"kind\":\"gap"] {
        let detail = [("kind".to_owned(), Masker::new(MaskKey::new([1; 32])).text(name))].into();
        let told = Written { body: Body::Agent(AgentEvent { name: "clock.step".into(), detail }), ..event() };
        let read = Stored::read(&told.canonical().unwrap()).unwrap();
        let Body::Agent(read) = read.body else { panic!("{name}") };
        assert_eq!(read.detail["kind"], name);
    }
}

#[test]
fn events_of_before_connects_were_accounted_for_read_back() {
    let caller = r#""caller":{"cgroup":"/job","comm":"node","command_line":"node","executable":"/bin/node","gid":1,"job":{"actor":"","commit":"","job":"","provider":"","reference":"","repository":"","run_id":"","runner":"","workflow":""},"pid":7,"seen_alive":true,"start_time":9,"uid":1}"#;
    let server = r#""server":{"address":"::1","name":"::1","port":1,"proof":"unproven"}"#;
    let id = "0".repeat(32);
    let flow = format!(
        r#"{{"bytes_down":2,"bytes_up":1,{caller},"duration_us":3,"end":"closed","flow_id":"{id}","kind":"flow",{server},"sni":"","treatment":"opaque"}}"#
    );
    let intent = format!(
        r#"{{"call_id":"{id}",{caller},"durability":"strict","flow_id":"{id}","kind":"intent","mcp":{{"method":"m"}},"payload":{{"bytes":2,"text":"{{}}","truncated":false}},{server},"verdict":{{"action":"allow","policy_digest":"d","rule":"r"}}}}"#
    );
    for body in [flow, intent] {
        let bytes = format!(
            r#"{{"body":{body},"boot":"{id}","host":"h","origin":"{id}","seq":9,"tenant":"t","time_us":5,"v":1}}"#
        );
        let caller = match Stored::read(bytes.as_bytes()).unwrap().body {
            Body::Intent(intent) => intent.caller,
            Body::Flow(flow) => {
                assert_eq!(flow.connect, None);
                flow.caller
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((caller.pid, caller.parents.len(), caller.netns), (7, 0, 0));
        assert_eq!((caller.container_id.as_str(), caller.job_key.as_str()), ("", ""));
    }
}

#[test]
fn an_account_reads_back_with_each_sum_under_its_verdict() {
    let masker = Masker::new(MaskKey::new([1; 32]));
    let mut kernel = ConnectSums::default();
    for (n, verdict) in (1..).zip(ConnectVerdict::ALL) {
        *kernel.of_mut(*verdict) = n;
    }
    assert_eq!(kernel.total(), 28);
    let sums = Completeness {
        job_key: "e-j".into(),
        name: masker.text("/job"),
        closed: true,
        kernel,
        lost: ConnectSums::default(),
        in_flight: 2,
        tables: BTreeMap::from([("tasks_full".into(), 3)]),
    };
    let gap = Gap {
        job_key: "e-j".into(),
        verdict: ConnectVerdict::Passed,
        reason: GapReason::RingFull,
        count: 4,
        detail: BTreeMap::new(),
    };
    let written = |body| Written { body, ..event() }.canonical().unwrap();
    let (sums, gap) = (written(Body::Completeness(sums)), written(Body::Gap(gap)));
    let text = String::from_utf8(sums.clone()).unwrap();
    let kernel = r#""kernel":{"datagram":6,"failed":5,"passed":2,"redirected":1,"refused":3,"socket":7,"unanswered":4}"#;
    assert!(text.contains(kernel) && text.contains(r#""kind":"completeness""#), "{text}");
    assert_eq!(Stored::read(&sums).unwrap().body.kind(), "completeness");
    let Body::Gap(gap) = Stored::read(&gap).unwrap().body else { panic!() };
    assert_eq!((gap.verdict.as_str(), gap.reason.as_str(), gap.count), ("passed", "ring_full", 4));
}

#[test]
fn bytes_that_are_not_canonical_or_of_another_version_are_refused() {
    let bytes = event().canonical().unwrap();
    let spaced = [b" ", &bytes[..]].concat();
    assert!(matches!(Stored::read(&spaced), Err(ReadError::NotCanonical)));
    let newer = String::from_utf8(bytes).unwrap().replace("\"v\":1}", "\"v\":2}");
    assert!(matches!(Stored::read(newer.as_bytes()), Err(ReadError::Version(2))));
    assert!(matches!(Stored::read(b"{}"), Err(ReadError::Malformed(_))));
}

#[test]
fn what_ties_messages_together_reads_back_and_what_is_absent_leaves_no_trace() {
    let masker = Masker::new(MaskKey::new([1; 32]));
    let (call, message) = (CallId::from_random([3; 16]), MessageId::from_random([4; 16]));
    let plain = Message::new(
        FlowId::from_random([5; 16]),
        Direction::ServerToClient,
        masker.text("sampling/createMessage"),
        MessageLabel::Request,
        Payload::default(),
    );
    let text = |message: &Message<Masked<String>>| {
        let body = Body::Message(message.clone());
        String::from_utf8(Written { body, ..event() }.canonical().unwrap()).unwrap()
    };
    for absent in ["marks", "message_id", "answers", "request_id", "digest", "unread", "session"] {
        assert!(!text(&plain).contains(&format!("\"{absent}\"")), "{absent}");
    }
    let marked = Message {
        call_id: Some(call.clone()),
        message_id: Some(message.clone()),
        answers: Some(message.clone()),
        request_id: Some(masker.text("\"1\"")),
        unread: Some(Unread::TooDeep),
        error_code: Some(-32601),
        marks: Marks {
            regards: Some(call.clone()),
            progress_token: Some(masker.text("7")),
            client: BTreeMap::from([("claudecode/toolUseId".into(), masker.text("toolu_1"))]),
            odd: vec![Oddity::UnknownMethod],
            ..Marks::default()
        },
        payload: Payload { digest: Some(masker.digest(b"x")), ..Payload::default() },
        ..plain
    };
    let bytes = text(&marked);
    let Body::Message(read) = Stored::read(bytes.as_bytes()).unwrap().body else { panic!("{bytes}") };
    assert_eq!(read.request_id.as_deref(), Some("\"1\""), "the id's type survives");
    assert_eq!((read.call_id, read.message_id), (Some(call.clone()), Some(message)));
    assert_eq!(
        (read.unread, read.marks.regards, read.marks.odd),
        (Some(Unread::TooDeep), Some(call), vec![Oddity::UnknownMethod])
    );
    assert!(!Marks { client: read.marks.client, ..Marks::default() }.is_empty());
    assert!(Marks::<String>::default().is_empty());
}
