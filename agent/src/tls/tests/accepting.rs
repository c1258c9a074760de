//! The client's side.

use rustls::version::{TLS12, TLS13};

use super::*;

type Accepted = Result<server::TlsStream<Replayed<DuplexStream>>, AcceptError>;
type Met = std::io::Result<client::TlsStream<DuplexStream>>;

/// A client that wants `to` meets Weir, which sniffs, mints for the name asked for or else for `address`,
/// and accepts.
async fn meet(minter: &Minter, client: Arc<ClientConfig>, to: &str, address: &str) -> (Met, Accepted) {
    meet_with(minter, client, to, address, Protocol::Http1).await
}

async fn meet_with(
    minter: &Minter,
    client: Arc<ClientConfig>,
    to: &str,
    address: &str,
    protocol: Protocol,
) -> (Met, Accepted) {
    let (near, far) = duplex(16 << 10);
    let connect = TlsConnector::from(client).connect(name(to), near);
    let terminate = async {
        let (sniffed, stream) = sniff(far, WAIT).await.unwrap();
        let Sniffed::Tls(hello) = sniffed else { panic!("{sniffed:?}") };
        let wanted = hello.sni.map_or_else(|| name(address), ServerName::from);
        accept(stream, &minter.leaf(&wanted).unwrap(), protocol, WAIT).await
    };
    tokio::join!(connect, terminate)
}

fn refused(accepted: Accepted) -> AcceptError {
    accepted.expect_err("no stream")
}

#[tokio::test]
async fn a_client_that_trusts_the_bundle_reaches_a_terminated_name() {
    let host = Host::new();
    let minter = host.minter();
    for versions in [&[&TLS12], &[&TLS13]] {
        let config = client(&host.bundle, &[b"h2", b"http/1.1"], versions);
        let (near, far) = meet(&minter, config, "mcp.example.test", "192.0.2.1").await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        talk(&mut near, &mut far).await;
        assert_eq!(near.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let chain = near.get_ref().1.peer_certificates().unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(&chain[1], host.authority.certificate());
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert_eq!(leaf.issuer().to_string(), host.authority.issuer());
    }
}

#[tokio::test]
async fn a_client_that_names_no_server_gets_a_leaf_for_the_address() {
    let host = Host::new();
    let minter = host.minter();
    for address in ["192.0.2.1", "2001:db8::1"] {
        let config = client(&host.bundle, &[], &[&TLS13]);
        let (near, far) = meet(&minter, config, address, address).await;
        talk(&mut near.unwrap(), &mut far.unwrap()).await;
    }
}

#[tokio::test]
async fn a_client_that_comes_again_resumes_its_session() {
    let host = Host::new();
    let minter = host.minter();
    for versions in [&[&TLS12], &[&TLS13]] {
        let config = client(&host.bundle, &[], versions);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (near, far) = meet(&minter, Arc::clone(&config), "mcp.example.test", "192.0.2.1").await;
            let (mut near, mut far) = (near.unwrap(), far.unwrap());
            talk(&mut near, &mut far).await;
            kinds.push(far.get_ref().1.handshake_kind().unwrap());
        }
        assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_ca_is_named() {
    let host = Host::new();
    let stranger = Company::new("ours");
    for versions in [&[&TLS12], &[&TLS13]] {
        let config = client(&stranger.roots, &[], versions);
        let (near, far) = meet(&host.minter(), config, "mcp.example.test", "192.0.2.1").await;
        assert!(near.is_err());
        let error = refused(far);
        assert_eq!(error.label(), "client_distrusts_ca");
        let text = error.to_string();
        assert!(text.contains("UnknownCA") && text.contains("bundle.pem"), "{text}");
    }
}

#[tokio::test]
async fn a_client_is_told_what_its_server_speaks() {
    let host = Host::new();
    let minter = host.minter();
    let config = client(&host.bundle, &[b"http/1.1", b"h2"], &[&TLS13]);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let (near, far) = meet_with(&minter, config.clone(), "a.test", "192.0.2.1", protocol).await;
        assert_eq!(near.unwrap().get_ref().1.alpn_protocol(), Some(protocol.id()));
        assert_eq!(far.unwrap().get_ref().1.alpn_protocol(), Some(protocol.id()));
    }
}

#[tokio::test]
async fn a_client_that_offers_other_protocols_alone_is_refused() {
    let host = Host::new();
    let config = client(&host.bundle, &[b"foo"], &[&TLS13]);
    let (near, far) = meet(&host.minter(), config, "mcp.example.test", "192.0.2.1").await;
    assert!(near.unwrap_err().to_string().contains("NoApplicationProtocol"));
    assert_eq!(refused(far).label(), "client_handshake_broken");
}

#[tokio::test]
async fn a_client_that_leaves_during_the_handshake_is_named() {
    let host = Host::new();
    let leaf = host.minter().leaf(&name("a.test")).unwrap();
    let (near, far) = duplex(1024);
    drop(near);
    let error = accept(far, &leaf, Protocol::Http1, WAIT).await.expect_err("no stream");
    assert_eq!(error.label(), "client_left_handshake");
    assert!(error.to_string().contains("bundle.pem"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stays_silent_is_let_go_at_the_limit() {
    let host = Host::new();
    let leaf = host.minter().leaf(&name("a.test")).unwrap();
    let (_near, far) = duplex(1024);
    let begin = tokio::time::Instant::now();
    let error = accept(far, &leaf, Protocol::Http1, WAIT).await.expect_err("no stream");
    assert_eq!(error.label(), "client_handshake_timeout");
    assert!(begin.elapsed() >= WAIT && begin.elapsed() < WAIT + Duration::from_secs(1));
}

#[tokio::test]
async fn a_connection_lives_on_when_its_leaf_is_renewed() {
    let host = Host::new();
    let minter = host.minter();
    let config = client(&host.bundle, &[], &[&TLS13]);
    let (near, far) = meet(&minter, config.clone(), "mcp.example.test", "192.0.2.1").await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let old = minter.leaf(&name("mcp.example.test")).unwrap();
    let renewed = minter.leaf_at(&name("mcp.example.test"), old.expires()).unwrap();
    assert_ne!(old.certificate(), renewed.certificate());
    talk(&mut near, &mut far).await;
    // Whoever comes now takes its session up, or gets the new one.
    let (again, far) = meet(&minter, config, "mcp.example.test", "192.0.2.1").await;
    talk(&mut again.unwrap(), &mut far.unwrap()).await;
}
