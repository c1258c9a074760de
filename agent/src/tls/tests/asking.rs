//! Servers that ask who their client is.

use std::convert::Infallible;

use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};

use super::*;

const OFFER: &[Protocol] = &[Protocol::Http1];

/// A server that asks for certificates of its company, and may go on without.
fn asking(company: &Company, version: &'static SupportedProtocolVersion, goes_on: bool) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(company.root()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let verifier = if goes_on { verifier.allow_unauthenticated() } else { verifier }.build().unwrap();
    let (certificate, key) = company.certified(CertificateParams::new(["a.test".to_owned()]).unwrap());
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key.into())
        .unwrap()
}

async fn dial(tls: &UpstreamTls, server: ServerConfig) -> Result<Connected<DuplexStream>, UpstreamError> {
    let (near, far) = duplex(16 << 10);
    let name = name("a.test");
    let serve = async {
        if let Ok(mut stream) = TlsAcceptor::from(Arc::new(server)).accept(far).await {
            // It waits for a request, as servers do.
            let _ = stream.read_u8().await;
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        connected = tls.connect(near, wanted(&name, OFFER), WAIT) => connected,
        never = serve => match never {},
    }
}

#[tokio::test]
async fn a_server_that_needs_a_certificate_is_told_from_others_and_remembered() {
    for version in [&TLS12, &TLS13] {
        let company = Company::new("ours");
        let tls = upstream(&company);
        let (name, scope) = (name("a.test"), wanted(&name("a.test"), OFFER).scope);
        assert!(!tls.relays(&name, scope) && tls.may_relay());
        let error = dial(&tls, asking(&company, version, false)).await.expect_err("no stream");
        assert_eq!(error.label(), "client_certificate", "{error}");
        assert!(error.to_string().contains("upstream.client_certificate"), "{error}");
        assert!(tls.relays(&name, scope) && !tls.relays(&name, Scope { job: 2, ..scope }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_and_goes_on_without_is_connected_to() {
    for (version, tickets) in [(&TLS12, 2), (&TLS13, 2), (&TLS13, 0)] {
        let company = Company::new("ours");
        let tls = upstream(&company);
        let mut server = asking(&company, version, true);
        server.send_tls13_tickets = tickets;
        let begin = tokio::time::Instant::now();
        assert_eq!(dial(&tls, server).await.unwrap().protocol, Protocol::Http1);
        // One that says nothing is waited for.
        let waited = begin.elapsed() >= SETTLES_WITHIN;
        assert_eq!(waited, tickets == 0, "{:?}", begin.elapsed());
        assert!(!tls.relays(&name("a.test"), wanted(&name("a.test"), OFFER).scope));
    }
}

#[tokio::test]
async fn a_server_that_asks_and_is_not_trusted_is_not_relayed() {
    for version in [&TLS12, &TLS13] {
        let (company, stranger) = (Company::new("ours"), Company::new("theirs"));
        let tls = upstream(&company);
        let error = dial(&tls, asking(&stranger, version, false)).await.expect_err("no stream");
        assert_eq!(error.label(), "certificate_unknown_issuer");
        assert!(!tls.relays(&name("a.test"), wanted(&name("a.test"), OFFER).scope));
    }
}
