//! Sessions with servers that are taken up again, and the bounds of that.

use rustls::HandshakeKind;

use super::*;

const OFFER: &[Protocol] = &[Protocol::Http1];

fn resuming(company: &Company) -> UpstreamTls {
    let roots = vec![company.roots.clone()];
    UpstreamTls::new(&Upstream { roots, ..Upstream::default() }).unwrap()
}

fn scope(job: u64) -> Scope {
    Scope { job, namespace: 1, destination: ([192, 0, 2, 1], 443).into() }
}

/// One connection at some time, which carries something: whether it took a session up, and what it proved.
async fn dial(
    tls: &UpstreamTls,
    server: &Arc<ServerConfig>,
    to: &str,
    scope: Scope,
    at: SystemTime,
) -> (HandshakeKind, ProvenName) {
    let (near, far) = duplex(16 << 10);
    let name = name(to);
    let wanted = Wanted { name: &name, offer: OFFER, scope };
    let accept = TlsAcceptor::from(Arc::clone(server)).accept(far);
    let (connected, accepted) = tokio::join!(tls.handshake(near, wanted, at), accept);
    let Connected { mut stream, proven, .. } = connected.unwrap();
    talk(&mut stream, &mut accepted.unwrap()).await;
    (stream.get_ref().1.handshake_kind().unwrap(), proven)
}

#[tokio::test]
async fn a_job_that_comes_again_takes_its_session_up_and_the_proof_is_the_same() {
    let company = Company::new("ours");
    let (tls, now) = (resuming(&company), SystemTime::now());
    let server = company.good_server(&["mcp.example.test", "other.test"]);
    let (first, proven) = dial(&tls, &server, "mcp.example.test", scope(1), now).await;
    let (second, again) = dial(&tls, &server, "mcp.example.test", scope(1), now).await;
    assert_eq!([first, second], [HandshakeKind::Full, HandshakeKind::Resumed]);
    assert_eq!(proven, again);
    assert_eq!(again.also(), ["mcp.example.test", "other.test"]);
}

#[tokio::test]
async fn no_session_is_taken_up_by_another_job_for_another_name_address_or_namespace() {
    let company = Company::new("ours");
    let (tls, now) = (resuming(&company), SystemTime::now());
    let server = company.good_server(&["mcp.example.test", "other.test"]);
    dial(&tls, &server, "mcp.example.test", scope(1), now).await;
    let elsewhere = Scope { destination: ([192, 0, 2, 2], 443).into(), ..scope(1) };
    for (to, scope) in [
        ("mcp.example.test", scope(2)),
        ("other.test", scope(1)),
        ("mcp.example.test", elsewhere),
        ("mcp.example.test", Scope { namespace: 2, ..scope(1) }),
    ] {
        let (kind, _) = dial(&tls, &server, to, scope, now).await;
        assert_eq!(kind, HandshakeKind::Full, "{to} {scope:?}");
    }
}

#[tokio::test]
async fn a_verified_certificate_stands_for_ten_minutes_however_often_its_session_is_taken_up() {
    let company = Company::new("ours");
    let (tls, now) = (resuming(&company), SystemTime::now());
    let server = company.good_server(&["mcp.example.test"]);
    let minute = Duration::from_secs(60);
    let mut kinds = Vec::new();
    for minutes in [0, 4, 9, 10, 11] {
        kinds.push(dial(&tls, &server, "mcp.example.test", scope(1), now + minutes * minute).await.0);
    }
    use HandshakeKind::{Full, Resumed};
    // Verified at 0, and again at 10.
    assert_eq!(kinds, [Full, Resumed, Resumed, Full, Resumed]);
    assert_eq!(PROVEN_FOR, 10 * minute);
}

#[tokio::test]
async fn no_session_outlives_its_certificate() {
    let company = Company::new("ours");
    let (tls, now) = (resuming(&company), SystemTime::now());
    let soon = Duration::from_secs(60);
    let server = company.server(&["mcp.example.test"], now - DAY, now + soon);
    dial(&tls, &server, "mcp.example.test", scope(1), now).await;
    let (kind, _) = dial(&tls, &server, "mcp.example.test", scope(1), now + soon).await;
    assert_eq!(kind, HandshakeKind::Full);
}

#[tokio::test]
async fn tls12_is_not_taken_up() {
    let company = Company::new("ours");
    let (tls, now) = (resuming(&company), SystemTime::now());
    let (certificate, key) = company.certified(CertificateParams::new(["a.test".to_owned()]).unwrap());
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let server = Arc::new(server);
    for _ in 0..2 {
        assert_eq!(dial(&tls, &server, "a.test", scope(1), now).await.0, HandshakeKind::Full);
    }
}

#[tokio::test]
async fn tickets_and_servers_are_kept_up_to_a_number() {
    let company = Company::new("ours");
    let (tls, now) = (resuming(&company), SystemTime::now());
    let mut server = ServerConfig::clone(&company.good_server(&["mcp.example.test"]));
    server.send_tls13_tickets = MAX_TICKETS + 2;
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(4 * MAX_SERVERS * MAX_TICKETS);
    let server = Arc::new(server);
    let sessions = tls.sessions.clone().unwrap();
    dial(&tls, &server, "mcp.example.test", scope(0), now).await;
    assert_eq!(sessions.tickets(), [MAX_TICKETS]);
    for job in 1..MAX_SERVERS as u64 {
        dial(&tls, &server, "mcp.example.test", scope(job), now).await;
    }
    // All fit; the first was used last.
    assert_eq!(dial(&tls, &server, "mcp.example.test", scope(0), now).await.0, HandshakeKind::Resumed);
    dial(&tls, &server, "mcp.example.test", scope(u64::MAX), now).await;
    assert_eq!(sessions.tickets().len(), MAX_SERVERS);
    for (job, expected) in
        [(0, HandshakeKind::Resumed), (2, HandshakeKind::Resumed), (1, HandshakeKind::Full)]
    {
        assert_eq!(dial(&tls, &server, "mcp.example.test", scope(job), now).await.0, expected, "{job}");
    }
}
