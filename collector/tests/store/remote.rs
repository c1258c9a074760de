//! An agent of another host, and whoever else comes to that door: TLS with or without a certificate, HTTP/2.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weir_core::wire::{self, CERTIFICATE, CertificateAck, CertificateRequest, Refusal};
use weir_tests::collector::ForOthers;

use crate::agent::Broken;

/// One who comes, with what it shows.
#[derive(Clone)]
pub struct Peer {
    port: u16,
    root: CertificateDer<'static>,
    shows: Option<(CertificateDer<'static>, Arc<PrivateKeyDer<'static>>)>,
    /// `content-encoding` of its bodies.
    coding: Option<&'static str>,
}

impl Peer {
    /// Without a certificate.
    pub fn stranger(others: &ForOthers) -> Self {
        let pem = std::fs::read(others.ca.join("ca.pem")).expect("the CA");
        let root = CertificateDer::from_pem_slice(&pem).expect("a certificate");
        Self { port: others.port, root, shows: None, coding: None }
    }

    pub fn at_port(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    pub fn coded(&self, coding: &'static str) -> Self {
        Self { coding: Some(coding), ..self.clone() }
    }

    pub fn showing(&self, certificate_pem: &str, key: &KeyPair) -> Self {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        Self { shows: Some((certificate, Arc::new(key))), ..self.clone() }
    }

    /// Asks for a certificate by a token, and comes back as the agent that it names.
    pub async fn enrol(&self, token: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let ack = self.certify(&key, Some(token)).await.expect("an answer").expect("a certificate");
        self.showing(&ack.certificate, &key)
    }

    pub async fn certify(
        &self,
        key: &KeyPair,
        token: Option<&str>,
    ) -> Result<Result<CertificateAck, Refusal>, Broken> {
        let csr = CertificateParams::default().serialize_request(key).expect("a request").pem().expect("PEM");
        let request = CertificateRequest { token: token.map(str::to_owned), csr };
        self.post(CERTIFICATE, serde_json::to_vec(&request).expect("JSON")).await
    }

    pub async fn tls(&self, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("TLS 1.3")
                .with_root_certificates(roots);
        let mut config = match &self.shows {
            Some((certificate, key)) => builder
                .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
                .expect("a certificate and its key"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Broken> {
        let stream = self.tls(b"h2").await.map_err(|_| Broken)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|_| Broken)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One request on a connection of its own.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Result<T, Refusal>, Broken> {
        self.send(self.connect().await?, path, body).await
    }

    pub async fn send<T: DeserializeOwned>(
        &self,
        mut to: SendRequest<Full<Bytes>>,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Result<T, Refusal>, Broken> {
        let mut request =
            Request::post(format!("https://localhost{path}")).header(wire::VERSION_HEADER, wire::VERSION);
        if let Some(coding) = self.coding {
            request = request.header("content-encoding", coding);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        to.ready().await.map_err(|_| Broken)?;
        let answer = to.send_request(request).await.map_err(|_| Broken)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|_| Broken)?.to_bytes();
        if status == 200 {
            return Ok(Ok(serde_json::from_slice(&body).expect("an answer's JSON")));
        }
        let refusal: Refusal = serde_json::from_slice(&body).expect("a refusal's JSON");
        assert_eq!(status, refusal.reason.status(), "{refusal}");
        Ok(Err(refusal))
    }
}
