//! Agents of other hosts: how one enrols, who it is from then on, and what the others at that door get.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_collector::authority::{AGENT_LIFETIME, AskedKey, Authority, to_pem};
use weir_collector::config::Config;
use weir_collector::ingest::{self, Doors, Tls, Waits};
use weir_collector::witness::Witness;
use weir_core::identity::AgentName;
use weir_core::ids::{ApprovalId, Origin};
use weir_core::segment::MAX_SEGMENT;
use weir_core::wire::{
    HOLDS, HoldAck, POLL, PollRequest, PollResponse, Reason, Refusal, SEGMENTS, SegmentAck,
};
use weir_tests::Collector;
use weir_tests::collector::ForOthers;

use crate::agent::{Broken, reason};
use crate::records::{event, hold, many, outcome, sealed};
use crate::remote::Peer;
use crate::world::{World, store};

/// What records of these tests say of their host.
const HOST: [&str; 4] = ["--tenant", "demo", "--host", "runner-1"];
const SOON: Duration = Duration::from_secs(20);

fn origin(n: u8) -> Origin {
    Origin::from_random([n; 16])
}

fn others(world: &World) -> ForOthers {
    world.collector.for_others().expect("a door for others").clone()
}

fn token(world: &World, arguments: &[&str]) -> String {
    let (code, token, errors) = world.run(&[&["enrol-token"], arguments].concat());
    assert_eq!(code, 0, "{errors}");
    token.trim().to_owned()
}

async fn enrolled(world: &World, host: &str) -> Peer {
    let token = token(world, &["--tenant", "demo", "--host", host]);
    Peer::stranger(&others(world)).enrol(&token).await
}

fn refused<T: std::fmt::Debug>(answer: Result<Result<T, Refusal>, Broken>, expected: &str) {
    let refusal = answer.expect("an answer").expect_err("a refusal");
    assert!(refusal.reason == Reason::Forbidden && refusal.message.contains(expected), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_one_key_once_and_a_lost_answer_can_be_asked_for_again() {
    let world = World::start_for_others();
    let stranger = Peer::stranger(&others(&world));
    let whole = token(&world, &HOST);
    let (own, other) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let first = stranger.certify(&own, Some(&whole)).await.expect("an answer").expect("a certificate");
    let again = stranger.certify(&own, Some(&whole)).await.expect("an answer").expect("the same one");
    assert_eq!(first, again);
    refused(stranger.certify(&other, Some(&whole)).await, "used already");
    refused(stranger.certify(&other, None).await, "no such enrolment token");
    refused(stranger.certify(&other, Some(&whole.replace("demo", "demi"))).await, "no such enrolment token");
    let late = token(&world, &[&HOST[..], &["--valid", "1ms"]].concat());
    refused(stranger.certify(&other, Some(&late)).await, "expired at");
    let void = token(&world, &["--tenant", "demo", "--host", "runner-9"]);
    let revoke = ["agents", "revoke", "--tenant", "demo", "--host", "runner-9", "--reason", "lost"];
    assert_eq!(world.run(&revoke).0, 0);
    refused(stranger.certify(&other, Some(&void)).await, "revoked");

    let kept = world.sql("SELECT * FROM enrol_tokens").iter().map(ToString::to_string).collect::<String>();
    let secret = whole.split('.').next().expect("a secret").trim_start_matches("weir-enrol-");
    assert!(secret.len() == 64 && !kept.contains(secret), "the store has a keyed hash alone");
    assert_eq!(world.number("SELECT count() FROM agent_certificates"), 1);
    let (_, list, _) = world.run(&["agents", "list", "--json"]);
    let states = ["\"enrolled\"", "\"revoked\"", "\"lapsed\""];
    assert!(states.iter().all(|state| list.matches(state).count() == 1), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_use_a_token_at_two_collectors_at_once_one_gets_a_certificate() {
    let world = World::start_for_others();
    let folder = weir_tests::places::fresh_folder("second").expect("a folder");
    let (from, to) = (others(&world).ca, folder.path().join("ca"));
    std::fs::create_dir(&to).expect("a folder");
    for file in ["ca.pem", "ca.key", "server.pem", "server.key", "token.key"] {
        std::fs::copy(from.join(file), to.join(file)).expect(file);
    }
    let second =
        Collector::start_for_others(&world.store, folder.path(), "info", false).expect("a collector");
    let one = Peer::stranger(&others(&world));
    let two = one.at_port(second.for_others().expect("a door for others").port);
    for _ in 0..5 {
        let token = token(&world, &HOST);
        let mut asking = JoinSet::new();
        for peer in [&one, &two].into_iter().cycle().take(8) {
            let (peer, token) = (peer.clone(), token.clone());
            asking.spawn(async move {
                let key = KeyPair::generate().expect("a key");
                peer.certify(&key, Some(&token)).await.expect("an answer")
            });
        }
        let answers = asking.join_all().await;
        let given = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(given, 1, "{answers:?}");
    }
    assert_eq!(world.number("SELECT count() FROM agent_certificates"), 5);
    assert_eq!(world.number("SELECT uniqExact(token_hash) FROM agent_certificates"), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_who_its_certificate_says_whatever_its_records_say() {
    let world = World::start_for_others();
    let (own, other) = (enrolled(&world, "runner-1").await, enrolled(&world, "runner-2").await);
    let bytes = many(&origin(1), 0, 3);
    refused(other.post::<SegmentAck>(SEGMENTS, bytes.clone()).await, "demo/runner-2");
    let mut mixed = event(&origin(2), 1, outcome(1, weir_core::record::CallResult::Ok));
    mixed.tenant = "another".into();
    let first = event(&origin(2), 0, outcome(1, weir_core::record::CallResult::Ok));
    refused(own.post::<SegmentAck>(SEGMENTS, sealed(0, vec![first, mixed])).await, "another/runner-1");
    assert_eq!(world.number("SELECT count() FROM events"), 0, "nothing of it was stored");

    let put = own.post::<SegmentAck>(SEGMENTS, bytes).await.expect("an answer");
    assert_eq!(put.map(|ack| ack.last_seq), Ok(2));
    let whose = world.sql("SELECT DISTINCT agent_identity, agent_uid FROM events");
    let (_, list, _) = world.run(&["agents", "list", "--json", "--host", "runner-1"]);
    let enrolment = serde_json::from_str::<serde_json::Value>(&list).expect("JSON")["enrolment"].clone();
    let enrolment = enrolment.as_str().expect("an enrolment");
    assert_eq!(whose.len(), 1);
    assert_eq!(whose[0]["agent_identity"], format!("agent:{enrolment}"));

    let waiting = serde_json::to_vec(&hold(7, &origin(1), 1, u64::MAX >> 12)).expect("JSON");
    refused(other.post::<HoldAck>(HOLDS, waiting.clone()).await, "demo/runner-2");
    assert!(own.post::<HoldAck>(HOLDS, waiting).await.expect("an answer").is_ok());
    let id = ApprovalId::from_random([7; 16]);
    let sql = format!("INSERT INTO decisions (approval_id, statement, signature) VALUES ('{id}', 's', 'g')");
    world.execute(&sql).await;
    let poll = PollRequest { origin: origin(1), open: vec![id], wait_ms: 0 };
    let poll = serde_json::to_vec(&poll).expect("JSON");
    let told = |peer: Peer, poll: Vec<u8>| async move {
        let answer = peer.post::<PollResponse>(POLL, poll).await;
        answer.expect("an answer").expect("a poll").decisions.len()
    };
    assert_eq!((told(own, poll.clone()).await, told(other, poll).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_refused_on_each_connection_and_gets_no_other_certificate() {
    let world = World::start_for_others();
    let agent = enrolled(&world, "runner-1").await;
    let renewed = {
        let key = KeyPair::generate().expect("a key");
        let ack = agent.certify(&key, None).await.expect("an answer").expect("a renewal");
        agent.showing(&ack.certificate, &key)
    };
    let kept = agent.connect().await.expect("a connection");
    assert!(
        agent
            .send::<SegmentAck>(kept.clone(), SEGMENTS, many(&origin(1), 0, 1))
            .await
            .expect("an answer")
            .is_ok()
    );
    assert!(renewed.post::<SegmentAck>(SEGMENTS, many(&origin(1), 1, 1)).await.expect("an answer").is_ok());

    let revoke = [&["agents", "revoke"], &HOST[..], &["--reason", "its disk was stolen"]].concat();
    assert_eq!(world.run(&revoke).0, 0);
    let began = std::time::Instant::now();
    let poll = PollRequest { origin: origin(1), open: vec![], wait_ms: 250 };
    let poll = serde_json::to_vec(&poll).expect("JSON");
    // Collectors ask who was revoked every few seconds.
    loop {
        match agent.send::<PollResponse>(kept.clone(), POLL, poll.clone()).await.expect("an answer") {
            Err(refusal) if refusal.message.contains("revoked") => break,
            answer => assert!(answer.is_ok() && began.elapsed() < SOON, "{answer:?}"),
        }
    }
    refused(renewed.post::<SegmentAck>(SEGMENTS, many(&origin(1), 2, 1)).await, "revoked");
    refused(agent.certify(&KeyPair::generate().expect("a key"), None).await, "revoked");
    assert_eq!(world.number("SELECT count() FROM events"), 2);
    assert_ne!(world.run(&revoke).0, 0, "there is nothing left to revoke");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shows_no_certificate_or_a_bad_one_gets_nothing() {
    let world = World::start_for_others();
    let door = others(&world);
    let stranger = Peer::stranger(&door);
    for path in [SEGMENTS, HOLDS, POLL, "/v1/enrol", "/v1/checkpoints", "/"] {
        refused(stranger.post::<()>(path, many(&origin(1), 0, 1)).await, "shows no certificate");
    }
    let authority = Authority::open(&door.ca).expect("the CA");
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM");
    let name = AgentName { tenant: "demo".into(), host: "runner-1".into(), enrolment: "0".repeat(32) };
    let certificate = |authority: &Authority, now: SystemTime| {
        let issued = authority.sign_agent(&AskedKey::read(&csr).expect("a key"), &name, AGENT_LIFETIME, now);
        to_pem(&issued.expect("a certificate").certificate)
    };
    let good = certificate(&authority, SystemTime::now());
    let segment = many(&origin(1), 0, 1);
    let good = stranger.showing(&good, &key).post::<SegmentAck>(SEGMENTS, segment.clone()).await;
    assert!(good.expect("an answer").is_ok(), "what is refused below is not refused for another reason");

    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = Authority::init(elsewhere.path(), &["c.test".to_owned()], SystemTime::now()).expect("a CA");
    let own_signed = CertificateParams::default().self_signed(&key).expect("a certificate").pem();
    let server = std::fs::read_to_string(door.ca.join("server.pem")).expect("a certificate");
    let server_key = std::fs::read_to_string(door.ca.join("server.key")).expect("a key");
    let bad = [
        ("expired", stranger.showing(&certificate(&authority, SystemTime::now() - 2 * AGENT_LIFETIME), &key)),
        (
            "not yet valid",
            stranger.showing(&certificate(&authority, SystemTime::now() + AGENT_LIFETIME), &key),
        ),
        ("of another CA", stranger.showing(&certificate(&other, SystemTime::now()), &key)),
        ("signed by itself", stranger.showing(&own_signed, &key)),
        ("a server's", stranger.showing(&server, &KeyPair::from_pem(&server_key).expect("a key"))),
    ];
    for (what, peer) in bad {
        let answer = peer.post::<SegmentAck>(SEGMENTS, many(&origin(2), 0, 1)).await;
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    // In plain text.
    let mut plain = TcpStream::connect(("127.0.0.1", door.port)).await.expect("a connection");
    plain
        .write_all(b"POST /v1/segments HTTP/1.1\r\nhost: weir\r\ncontent-length: 0\r\n\r\n")
        .await
        .expect("a write");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut answer)).await.expect("an end");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(world.number("SELECT count() FROM events"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_zstd_are_stored_and_bombs_are_refused() {
    let world = World::start_for_others();
    let plain = enrolled(&world, "runner-1").await;
    let agent = plain.coded("zstd");
    let segment = many(&origin(1), 0, 500);
    let encoded = zstd::encode_all(&*segment, 3).expect("zstd");
    assert!(encoded.len() < segment.len() / 10);
    let ack = agent.post::<SegmentAck>(SEGMENTS, encoded).await.expect("an answer").expect("an ack");
    assert_eq!(plain.post::<SegmentAck>(SEGMENTS, segment.clone()).await.expect("an answer"), Ok(ack));
    assert_eq!(world.number("SELECT count() FROM events"), 500);

    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 4 * MAX_SEGMENT as u64), 3);
    let bomb = bomb.expect("zstd").repeat(8);
    for (what, body) in [("a bomb", bomb), ("not encoded", segment)] {
        let answer = agent.post::<SegmentAck>(SEGMENTS, body).await.expect("an answer");
        assert_eq!(reason(answer), Reason::Malformed, "{what}");
    }
    let gzip = plain.coded("gzip");
    assert_eq!(reason(gzip.post::<SegmentAck>(SEGMENTS, "x").await.expect("an answer")), Reason::Malformed);
    assert!(plain.post::<SegmentAck>(SEGMENTS, many(&origin(1), 500, 1)).await.expect("an answer").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_is_let_go_and_who_takes_more_than_its_share_waits_for_it() {
    let world = World::start_for_others();
    let door = others(&world);
    // A second collector, in this process: its patience is short.
    let authority = std::sync::Arc::new(Authority::open(&door.ca).expect("the CA"));
    let (certificate, key) = weir_collector::authority::server_files(&door.ca);
    let any = "127.0.0.1:0".parse().expect("an address");
    let tls = Tls::bind(any, authority, &certificate, &key).await.expect("a listener");
    let port = tls.address().expect("an address").port();
    // Long enough for three connections to be made meanwhile, on a busy machine too.
    let patience = Duration::from_secs(8);
    let waits = Waits { head: patience, body: patience, stranger: Duration::from_secs(2) };
    let stop = CancellationToken::new();
    let config = Config::read(world.collector.config()).expect("a configuration");
    let witness = Witness::open(&config.witness).expect("a witness");
    let doors = Doors { tls: Some(tls), waits, ..Doors::default() };
    let serving = tokio::spawn(ingest::serve(doors, world.operator(), witness, stop.clone()));

    let agent = enrolled(&world, "runner-1").await.at_port(port);
    // A body that does not come, in HTTP/1.1.
    let head = format!(
        "POST {SEGMENTS} HTTP/1.1\r\nhost: weir\r\n{}: {}\r\ncontent-length: 1000\r\n\r\nsome",
        weir_core::wire::VERSION_HEADER,
        weir_core::wire::VERSION
    );
    // One more than its share of segments on their way. Nothing else is sent meanwhile: whichever comes last is refused.
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let mut stream = agent.tls(b"http/1.1").await.expect("a connection");
        stream.write_all(head.as_bytes()).await.expect("a write");
        slow.spawn(async move {
            let mut answer = Vec::new();
            let end = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
            end.expect("an end").expect("an answer");
            String::from_utf8_lossy(&answer).into_owned()
        });
    }
    let answers = slow.join_all().await;
    let said = |why: &str| {
        let alike =
            answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 503") && answer.contains(why));
        alike.count()
    };
    assert_eq!((said("its share"), said("did not come in time")), (1, 2), "{answers:?}");
    // A stranger that says nothing.
    let mut silent = Peer::stranger(&door).at_port(port).tls(b"h2").await.expect("a connection");
    let _ = tokio::time::timeout(SOON, silent.read_to_end(&mut Vec::new())).await.expect("an end");

    assert!(agent.post::<SegmentAck>(SEGMENTS, many(&origin(1), 0, 1)).await.expect("an answer").is_ok());
    stop.cancel();
    assert!(serving.await.expect("a collector"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_its_share_of_connections_and_others_have_theirs() {
    let world = World::start_for_others();
    let (greedy, other) = (enrolled(&world, "runner-2").await, enrolled(&world, "runner-1").await);
    let poll = PollRequest { origin: origin(1), open: vec![], wait_ms: 0 };
    let poll = serde_json::to_vec(&poll).expect("JSON");
    let mut kept = Vec::new();
    // As many as it may have, and then it is hung up on.
    while let Ok(sender) = greedy.connect().await {
        if greedy.send::<PollResponse>(sender.clone(), POLL, poll.clone()).await.is_err() {
            break;
        }
        kept.push(sender);
        assert!(kept.len() < 100, "no bound");
    }
    assert_eq!(kept.len(), 8);
    assert!(other.post::<PollResponse>(POLL, poll.clone()).await.expect("an answer").is_ok());
    kept.clear();
    let began = std::time::Instant::now();
    while greedy.post::<PollResponse>(POLL, poll.clone()).await.is_err() {
        assert!(began.elapsed() < SOON, "a share is given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_whose_answer_was_lost_is_sent_again_and_stands_once() {
    let mut world = World::start_for_others();
    let agent = enrolled(&world, "runner-1").await.coded("zstd");
    for round in 0..6_u64 {
        let bytes = many(&origin(1), 400 * round, 400);
        let body = zstd::encode_all(&*bytes, 3).expect("zstd");
        let (sending, again) = (agent.clone(), body.clone());
        let first = tokio::spawn(async move { sending.post::<SegmentAck>(SEGMENTS, body).await });
        // At another moment of the request each time.
        tokio::time::sleep(Duration::from_millis(8 * round)).await;
        world.collector.daemon().kill().expect("an end");
        let _ = first.await.expect("a task");
        world.collector.start_again().expect("a collector");
        let ack = agent.post::<SegmentAck>(SEGMENTS, again).await.expect("an answer").expect("an ack");
        assert_eq!(ack.last_seq, 400 * round + 399);
    }
    assert_eq!(world.number("SELECT count() FROM events"), 2400);
    assert_eq!(world.number("SELECT uniqExact(seq) FROM events"), 2400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_without_a_ca_or_with_an_open_key_says_so() {
    let (store, folder) = store();
    let collector = Collector::start_for_others(&store, folder.path(), "info", false).expect("a collector");
    let (config, ca) = (collector.config().to_path_buf(), collector.for_others().expect("a door").ca.clone());
    drop(collector);
    let serve = || {
        let mut command =
            std::process::Command::new(weir_tests::places::binary("weir-collector").expect("it"));
        let output = command.arg("--config").arg(&config).arg("serve").output().expect("weir-collector runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(ca.join("ca.key"), PermissionsExt::from_mode(0o644)).expect("a mode");
    assert!(serve().contains("ca.key is open to others (mode 0644)"));
    std::fs::remove_dir_all(&ca).expect("an end");
    assert!(serve().contains("weir-collector ca init --name"));
}
