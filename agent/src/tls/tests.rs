//! Handshakes as they are: real clients and servers of this library over in-memory pipes, real programs over
//! loopback (`clients`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::config::Upstream;
use crate::trust::Authority;

mod accepting;
mod asking;
mod clients;
mod dialling;
mod ech;
mod leaves;
mod relaying;
mod resuming;
mod stapling;

const WAIT: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).unwrap()
}

/// A host's CA with its bundle, in a folder that goes with it.
struct Host {
    authority: Arc<Authority>,
    bundle: PathBuf,
    _place: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        // Jobs may run as another user.
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let authority = Arc::new(Authority::open_or_create(&place.path().join("ca"), "test").unwrap());
        let bundle = authority.write_bundle(&[]).unwrap();
        Self { authority, bundle, _place: place }
    }

    fn minter(&self) -> Minter {
        Minter::new(Arc::clone(&self.authority)).unwrap()
    }
}

/// A client that trusts what is in the PEM file `roots`.
fn client(roots: &Path, alpn: &[&[u8]], versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots).unwrap() {
        store.add(root.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Somebody's CA, for the servers behind Weir.
struct Company {
    issuer: CertifiedIssuer<'static, KeyPair>,
    roots: PathBuf,
    _place: tempfile::TempDir,
}

impl Company {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let place = tempfile::tempdir().unwrap();
        let roots = place.path().join("company.pem");
        std::fs::write(&roots, issuer.pem()).unwrap();
        Self { issuer, roots, _place: place }
    }

    fn root(&self) -> CertificateDer<'static> {
        AsRef::<rcgen::Certificate>::as_ref(&self.issuer).der().clone()
    }

    /// A certificate of this company's, with its key.
    fn certified(&self, params: CertificateParams) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.into(), PrivatePkcs8KeyDer::from(key.serialize_der()))
    }

    /// A server with a certificate for `names`, valid from `from` to `until`.
    fn server(&self, names: &[&str], from: SystemTime, until: SystemTime) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = from.into();
        params.not_after = until.into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key.into())
            .unwrap();
        Arc::new(config)
    }

    fn good_server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let now = SystemTime::now();
        self.server(names, now - DAY, now + DAY)
    }
}

/// What dials servers of this company, without taking sessions up again.
fn upstream(company: &Company) -> UpstreamTls {
    let roots = vec![company.roots.clone()];
    UpstreamTls::new(&Upstream { roots, resumption: false, ..Upstream::default() }).unwrap()
}

/// A server that some job wants, at one address.
fn wanted<'a>(name: &'a ServerName<'static>, offer: &'a [Protocol]) -> Wanted<'a> {
    let scope = Scope { job: 1, namespace: 1, destination: ([192, 0, 2, 1], 443).into() };
    Wanted { name, offer, scope }
}

/// `ping` there and `pong` back: the streams really carry.
async fn talk<A, B>(client: &mut A, server: &mut B)
where
    A: AsyncReadExt + AsyncWriteExt + Unpin,
    B: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let mut heard = [0_u8; 4];
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    server.write_all(b"pong").await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"pong");
}
