//! The server's side.

use super::*;

type Dialled = Result<Connected<DuplexStream>, UpstreamError>;

const OFFER: &[Protocol] = &[Protocol::Http1];

/// Weir dials a server and wants it to be `to`.
async fn dial(
    tls: &UpstreamTls,
    server: Arc<ServerConfig>,
    to: &str,
) -> (Dialled, Option<server::TlsStream<DuplexStream>>) {
    let (near, far) = duplex(16 << 10);
    let name = name(to);
    let accept = async { TlsAcceptor::from(server).accept(far).await.ok() };
    tokio::join!(tls.connect(near, wanted(&name, OFFER), WAIT), accept)
}

fn refused(dialled: Dialled) -> UpstreamError {
    dialled.expect_err("no stream and no proof")
}

#[tokio::test]
async fn a_server_whose_certificate_verifies_proves_its_name() {
    let company = Company::new("ours");
    let tls = upstream(&company);
    for wanted in ["mcp.example.test", "127.0.0.1", "::1"] {
        let server = company.good_server(&["mcp.example.test", "127.0.0.1", "::1"]);
        let (dialled, accepted) = dial(&tls, server, wanted).await;
        let Connected { mut stream, proven, .. } = dialled.unwrap();
        assert_eq!(proven.name(), &name(wanted));
        assert_eq!(proven.to_string(), wanted);
        talk(&mut stream, &mut accepted.unwrap()).await;
    }
}

#[tokio::test]
async fn a_server_proves_all_names_of_its_certificate() {
    let company = Company::new("ours");
    let tls = upstream(&company);
    let server = company.good_server(&["mcp.Example.test", "*.other.test", "127.0.0.1", "::1"]);
    let (dialled, _accepted) = dial(&tls, server, "mcp.example.test").await;
    let proven = dialled.unwrap().proven;
    assert_eq!(proven.also(), ["mcp.example.test", "*.other.test", "127.0.0.1", "::1"]);
}

#[tokio::test]
async fn each_connection_proves_its_server_anew() {
    let company = Company::new("ours");
    let tls = upstream(&company);
    let server = company.good_server(&["mcp.example.test"]);
    for _ in 0..2 {
        let (dialled, accepted) = dial(&tls, Arc::clone(&server), "mcp.example.test").await;
        let mut stream = dialled.unwrap().stream;
        talk(&mut stream, &mut accepted.unwrap()).await;
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert!(stream.get_ref().1.peer_certificates().is_some());
    }
}

#[tokio::test]
async fn a_server_chooses_among_what_it_is_offered() {
    use Protocol::{Http1, Http2};
    let company = Company::new("ours");
    let tls = upstream(&company);
    for (offer, speaks, expected) in [
        (&[Http1][..], &[&b"h2"[..], b"http/1.1"][..], Some(Http1)),
        (&[Http2, Http1], &[b"h2", b"http/1.1"], Some(Http2)),
        (&[Http2, Http1], &[b"http/1.1"], Some(Http1)),
        (&[Http2, Http1], &[], Some(Http1)),
        (&[Http1], &[b"h2"], None),
        (&[Http2], &[b"http/1.1"], None),
    ] {
        let mut server = ServerConfig::clone(&company.good_server(&["mcp.example.test"]));
        server.alpn_protocols = speaks.iter().map(|id| id.to_vec()).collect();
        let (near, far) = duplex(16 << 10);
        let name = name("mcp.example.test");
        let accept = TlsAcceptor::from(Arc::new(server)).accept(far);
        let (dialled, _accepted) = tokio::join!(tls.connect(near, wanted(&name, offer), WAIT), accept);
        match expected {
            Some(expected) => assert_eq!(dialled.unwrap().protocol, expected, "{offer:?} to {speaks:?}"),
            None => assert_eq!(refused(dialled).label(), "upstream_handshake_broken", "{offer:?}"),
        }
    }
}

#[tokio::test]
async fn an_untrusted_server_gets_its_label_and_never_a_connection() {
    let (company, stranger, renewed) = (Company::new("ours"), Company::new("theirs"), Company::new("ours"));
    let tls = upstream(&company);
    let now = SystemTime::now();
    let cases = [
        (company.server(&["mcp.example.test"], now - 3 * DAY, now - DAY), "certificate_expired", "expired"),
        (
            company.server(&["mcp.example.test"], now + DAY, now + 3 * DAY),
            "certificate_not_yet_valid",
            "not valid yet",
        ),
        (company.good_server(&["other.example.test"]), "certificate_wrong_name", "other.example.test"),
        (company.good_server(&["*.mcp.example.test"]), "certificate_wrong_name", "mcp.example.test"),
        (
            stranger.good_server(&["mcp.example.test"]),
            "certificate_unknown_issuer",
            "add it to upstream.roots",
        ),
        (renewed.good_server(&["mcp.example.test"]), "certificate_bad_signature", "renewed"),
    ];
    for (server, label, reason) in cases {
        let (dialled, accepted) = dial(&tls, server, "mcp.example.test").await;
        let error = refused(dialled);
        assert_eq!(error.label(), label);
        let text = error.to_string();
        assert!(text.contains("mcp.example.test is not trusted") && text.contains(reason), "{text}");
        assert!(accepted.is_none(), "the server must not believe in a connection either");
    }
    let (dialled, _accepted) = dial(&tls, company.good_server(&["mcp.example.test"]), "127.0.0.1").await;
    assert_eq!(refused(dialled).label(), "certificate_wrong_name");
}

#[tokio::test]
async fn a_ca_that_serves_as_its_own_leaf_is_invalid() {
    let company = Company::new("ours");
    let mut params = CertificateParams::new(["mcp.example.test".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &company.issuer).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key.into())
        .unwrap();
    let tls = upstream(&company);
    let (dialled, _accepted) = dial(&tls, Arc::new(server), "mcp.example.test").await;
    assert_eq!(refused(dialled).label(), "certificate_invalid");
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_or_closes_breaks_the_handshake() {
    let company = Company::new("ours");
    let tls = upstream(&company);
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let (near, mut far) = duplex(16 << 10);
        let speak = async {
            let mut hello = [0_u8; 64];
            far.read_exact(&mut hello).await.unwrap();
            far.write_all(answer.as_bytes()).await.unwrap();
            drop(far);
        };
        let name = name("mcp.example.test");
        let (dialled, ()) = tokio::join!(tls.connect(near, wanted(&name, OFFER), WAIT), speak);
        assert_eq!(refused(dialled).label(), "upstream_handshake_broken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_silent_is_given_up_at_the_limit() {
    let company = Company::new("ours");
    let tls = upstream(&company);
    let (near, _far) = duplex(16 << 10);
    let begin = tokio::time::Instant::now();
    let error = refused(tls.connect(near, wanted(&name("mcp.example.test"), OFFER), WAIT).await);
    assert_eq!(error.label(), "upstream_handshake_timeout");
    assert!(begin.elapsed() >= WAIT && begin.elapsed() < WAIT + Duration::from_secs(1));
}

#[test]
fn a_bad_file_of_roots_keeps_the_agent_from_starting() {
    let error =
        UpstreamTls::new(&Upstream { roots: vec!["/nonexistent/roots.pem".into()], ..Upstream::default() })
            .unwrap_err()
            .to_string();
    assert!(
        error.starts_with("/nonexistent/roots.pem cannot serve as a file of roots: No such file"),
        "{error}"
    );
}
