use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use weir_core::ids::Origin;
use weir_core::record::CallResult;
use weir_core::segment::{FrameKind, HEADER_LEN, MAX_FRAME, MAX_SEGMENT, header, push_frame};
use weir_core::wire::{self, HOLDS, HoldAck, POLL, PollRequest, PollResponse, Reason, SEGMENTS, SegmentAck};
use weir_tests::machine::JOB_UID;

use crate::agent::{Agent, reason};
use crate::records::{event, many, outcome, sealed, segment};
use crate::world::{World, told};

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_and_nothing_of_it_is_stored() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let (ours, other) = (Origin::from_random([1; 16]), Origin::from_random([2; 16]));
    let whole = many(&ours, 0, 3);

    let mut bad: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), vec![]),
        ("garbage".into(), b"DROP TABLE events".repeat(100)),
        ("a header alone".into(), whole[..HEADER_LEN].to_vec()),
        ("no event".into(), sealed(0, vec![])),
        (
            "an event that lies about its place".into(),
            sealed(0, vec![event(&ours, 1, outcome(1, CallResult::Ok))]),
        ),
        (
            "events of two logs".into(),
            sealed(
                0,
                vec![
                    event(&ours, 0, outcome(1, CallResult::Ok)),
                    event(&other, 1, outcome(1, CallResult::Ok)),
                ],
            ),
        ),
        ("trailing bytes".into(), [&whole[..], b"x"].concat()),
    ];
    let mut spaced = header(0).to_vec();
    let canonical = event(&ours, 0, outcome(1, CallResult::Ok)).canonical().expect("canonical bytes");
    push_frame(&mut spaced, FrameKind::Event, 0, &[&canonical[..], b" "].concat());
    bad.push(("bytes that are not canonical".into(), spaced));
    for cut in (1..whole.len()).step_by(97) {
        bad.push((format!("cut at {cut}"), whole[..cut].to_vec()));
    }
    for at in (0..whole.len()).step_by(89) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        bad.push((format!("a bit flipped at {at}"), flipped));
    }
    for (what, bytes) in bad {
        // A cut between frames leaves a shorter segment, which is whole.
        match agent.post::<SegmentAck>(SEGMENTS, bytes).await {
            Err(refusal) => assert_eq!(refusal.reason, Reason::Malformed, "{what}: {refusal}"),
            Ok(ack) => panic!("{what} was taken: {ack:?}"),
        }
    }
    assert_eq!(world.number("SELECT count() FROM events"), 0);
    assert!(agent.post::<SegmentAck>(SEGMENTS, whole).await.is_ok(), "and it still serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_past_their_limit_and_unknown_requests_are_refused() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let huge = vec![0; MAX_SEGMENT + MAX_FRAME + (1 << 20)];
    for (path, body) in [(SEGMENTS, huge), (HOLDS, vec![b' '; MAX_FRAME + 1]), (POLL, vec![b' '; 1 << 20])] {
        // The collector may hang up on what it does not read.
        if let Ok(answer) = agent.try_post::<serde_json::Value>(path, body).await {
            assert_eq!(reason(answer), Reason::Malformed, "{path}");
        }
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in ["", "{}", "[]", "null", &deep] {
        assert_eq!(reason(agent.post::<HoldAck>(HOLDS, body.to_owned()).await), Reason::Malformed);
        assert_eq!(reason(agent.post::<PollResponse>(POLL, body.to_owned()).await), Reason::Malformed);
    }
    assert_eq!(reason(agent.post::<()>("/v1/elsewhere", "").await), Reason::Malformed);
    let poll = PollRequest { origin: Origin::from_random([1; 16]), open: vec![], wait_ms: 0 };
    let poll = serde_json::to_vec(&poll).expect("JSON");
    assert!(agent.post::<PollResponse>(POLL, poll.clone()).await.is_ok());

    for version in [None, Some("1")] {
        let mut request = Request::post(POLL).header("host", "weir");
        if let Some(version) = version {
            request = request.header(wire::VERSION_HEADER, version);
        }
        let request = request.body(Full::new(Bytes::from(poll.clone()))).expect("a request");
        let answer = agent.send::<PollResponse>(request).await.expect("an answer");
        assert_eq!(reason(answer), Reason::Version);
    }
    assert_eq!(world.number("SELECT count() FROM events"), 0);
}

/// Writes a file to a unix socket and prints what comes back: `perl` is on every Debian.
const CLIENT: &str = r#"
use Socket; my ($path, $file) = @ARGV;
socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!"; connect($s, pack_sockaddr_un($path)) or die "connect: $!";
open(my $f, '<:raw', $file) or die "open: $!"; local $/; my $request = <$f>;
my $sent = 0;
while ($sent < length $request) { my $n = syswrite($s, $request, length($request) - $sent, $sent); last unless $n; $sent += $n; }
print while sysread($s, $_, 65536);
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_agent_is_refused_by_what_the_kernel_says_of_it() {
    let world = World::start();
    let socket = world.collector.socket().to_path_buf();
    let forged = segment(&Origin::from_random([7; 16]), 0, vec![outcome(1, CallResult::Ok)]);
    let file = world.folder.path().join("request");
    let head = format!(
        "POST {SEGMENTS} HTTP/1.1\r\nhost: weir\r\n{}: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        wire::VERSION_HEADER,
        wire::VERSION,
        forged.len()
    );
    std::fs::write(&file, [head.as_bytes(), &forged].concat()).expect("a file");
    let job = |path: &std::path::Path| {
        let ids = [format!("--reuid={JOB_UID}"), format!("--regid={JOB_UID}")];
        let mut command = Command::new("setpriv");
        command.args(ids).args(["--clear-groups", "--", "perl", "-e", CLIENT]).arg(path).arg(&file);
        told(command.output().expect("setpriv runs"))
    };
    let (code, _, why) = job(&socket);
    assert!(code != 0 && why.contains("Permission denied"), "the socket's mode: {why}");

    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).expect("a mode");
    let (_, answer, why) = job(&socket);
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("\"reason\":\"forbidden\""),
        "{answer} {why}"
    );
    assert_eq!(world.number("SELECT count() FROM events"), 0);
}
