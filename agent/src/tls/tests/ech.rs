//! Encrypted ClientHello, and what looks like it: Weir sees the outer name, and answers for that one.

use rustls::client::{EchConfig, EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::hpke::{ALL_SUPPORTED_SUITES, DH_KEM_X25519_HKDF_SHA256_AES_128};
use rustls::crypto::hpke::Hpke;
use rustls::pki_types::EchConfigListBytes;

use super::*;

fn suite() -> &'static dyn Hpke {
    DH_KEM_X25519_HKDF_SHA256_AES_128
}

fn client_with(host: &Host, mode: EchMode) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(host.authority.certificate().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider()).with_ech(mode).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// What a server's DNS record would say: encrypt to this key, and call me by that name (RFC 9849, section 4).
fn config_list(public_name: &str) -> EchConfigListBytes<'static> {
    let (key, _) = suite().generate_key_pair().unwrap();
    let with_length = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    // Config 7, X25519; HKDF-SHA256 with AES-128-GCM; names of 64 bytes at most; no extensions.
    let key_config = [&[7, 0, 0x20][..], &with_length(&key.0), &with_length(&[0, 1, 0, 1])].concat();
    let name = [&[64, u8::try_from(public_name.len()).unwrap()][..], public_name.as_bytes()].concat();
    let contents = [key_config, name, vec![0, 0]].concat();
    let config = [vec![0xfe, 0x0d], with_length(&contents)].concat();
    with_length(&config).into()
}

/// A client meets Weir: what it made of that, and the bytes and the name that Weir saw.
async fn meet(
    host: &Host,
    config: Arc<ClientConfig>,
    to: &str,
) -> (std::io::Result<()>, Vec<u8>, Option<String>) {
    let (near, far) = duplex(16 << 10);
    let minter = host.minter();
    let terminate = async {
        let (sniffed, stream) = sniff(far, WAIT).await.unwrap();
        let Sniffed::Tls(hello) = sniffed else { panic!("{sniffed:?}") };
        let sni = hello.sni.clone().unwrap();
        let (seen, stream) = stream.into_parts();
        let leaf = minter.leaf(&ServerName::from(sni.clone())).unwrap();
        let _ = accept(Replayed::new(seen.clone(), stream), &leaf, Protocol::Http1, WAIT).await;
        (seen.to_vec(), Some(sni.as_ref().to_owned()))
    };
    let connect = TlsConnector::from(config).connect(name(to), near);
    let (connected, (seen, sni)) = tokio::join!(connect, terminate);
    (connected.map(|_| ()), seen, sni)
}

fn holds(seen: &[u8], word: &str) -> bool {
    seen.windows(word.len()).any(|window| window == word.as_bytes())
}

#[tokio::test]
async fn a_client_that_only_looks_as_if_it_encrypted_its_hello_is_terminated_like_any_other() {
    let host = Host::new();
    let (key, _) = suite().generate_key_pair().unwrap();
    let config = client_with(&host, EchMode::Grease(EchGreaseConfig::new(suite(), key)));
    let (met, seen, sni) = meet(&host, config, "mcp.example.test").await;
    met.unwrap();
    assert_eq!(sni.as_deref(), Some("mcp.example.test"));
    assert!(seen.windows(2).any(|window| window == [0xfe, 0x0d]), "it has no such extension");
}

#[tokio::test]
async fn a_client_that_encrypts_its_hello_sees_the_outer_names_server_and_is_told_to_do_without() {
    let host = Host::new();
    let config = EchConfig::new(config_list("public.test"), ALL_SUPPORTED_SUITES).unwrap();
    let (met, seen, sni) = meet(&host, client_with(&host, config.into()), "secret.test").await;
    assert_eq!(sni.as_deref(), Some("public.test"));
    assert!(!holds(&seen, "secret.test") && holds(&seen, "public.test"));
    // It trusts the leaf for the outer name, and so believes that the server has no such keys any more: it may come
    // again with its name in the open.
    let error = met.expect_err("no stream").to_string();
    assert!(error.contains("RejectedEncryptedClientHello") || error.contains("Ech"), "{error}");
}
