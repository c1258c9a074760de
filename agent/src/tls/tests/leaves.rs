//! Minting.

use std::collections::HashSet;

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;

use super::*;
use crate::trust::CA_BACKDATED;

fn parsed(leaf: &Leaf) -> X509Certificate<'_> {
    x509_parser::parse_x509_certificate(leaf.certificate()).unwrap().1
}

fn own_identifier<'a>(certificate: &'a X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

#[test]
fn a_leaf_serves_one_name_and_signs_nothing() {
    let host = Host::new();
    let minter = host.minter();
    let now = SystemTime::now();
    let leaf = minter.leaf_at(&name("mcp.example.test"), now).unwrap();
    let leaf = parsed(&leaf);
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::DNSName("mcp.example.test")]);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any);
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(now - CA_BACKDATED));
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(now + LEAF_LIFETIME));
    let (_, ca) = x509_parser::parse_x509_certificate(host.authority.certificate()).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
    let issuers = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    });
    assert!(issuers.is_some());
    assert_eq!(issuers, own_identifier(&ca));
    assert!(own_identifier(&leaf).is_some_and(|own| Some(own) != issuers));
}

#[test]
fn all_leaves_of_a_host_have_one_key() {
    let host = Host::new();
    let minter = host.minter();
    let key = |host: &str| {
        let leaf = minter.leaf(&name(host)).unwrap();
        parsed(&leaf).public_key().raw.to_vec()
    };
    assert_eq!(key("mcp.example.test"), key("192.0.2.1"));
    assert_ne!(key("mcp.example.test"), {
        let leaf = Host::new().minter().leaf(&name("mcp.example.test")).unwrap();
        parsed(&leaf).public_key().raw.to_vec()
    });
}

#[test]
fn a_leaf_for_an_address_names_the_address() {
    let host = Host::new();
    let minter = host.minter();
    for (address, octets) in [
        ("192.0.2.1", &[192, 0, 2, 1][..]),
        ("2001:db8::1", &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..]),
    ] {
        let leaf = minter.leaf(&name(address)).unwrap();
        let leaf = parsed(&leaf);
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names, &[GeneralName::IPAddress(octets)]);
    }
}

#[test]
fn a_leaf_is_kept_whatever_the_spelling_and_renewed_before_it_ends() {
    let host = Host::new();
    let minter = host.minter();
    let now = SystemTime::now();
    let first = minter.leaf_at(&name("mcp.example.test"), now).unwrap();
    let spelt = minter.leaf_at(&name("MCP.example.TEST."), now).unwrap();
    assert!(Arc::ptr_eq(&first, &spelt));
    let renewal = now + LEAF_LIFETIME - LEAF_RENEWED_BEFORE;
    let late = minter.leaf_at(&name("mcp.example.test"), renewal - Duration::from_secs(1)).unwrap();
    assert!(Arc::ptr_eq(&first, &late));
    let renewed = minter.leaf_at(&name("mcp.example.test"), renewal).unwrap();
    assert!(!Arc::ptr_eq(&first, &renewed));
    assert!(renewed.expires() > first.expires());
}

#[test]
fn no_two_leaves_share_a_serial_number() {
    let host = Host::new();
    let minter = host.minter();
    let serials: HashSet<String> = (0..50)
        .map(|number| parsed(&minter.leaf(&name(&format!("s{number}.test"))).unwrap()).raw_serial_as_string())
        .collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn the_oldest_leaf_makes_room_at_the_limit() {
    let host = Host::new();
    let minter = host.minter();
    let first = minter.leaf(&name("first.test")).unwrap();
    let second = minter.leaf(&name("second.test")).unwrap();
    for number in 2..MAX_LEAVES {
        minter.leaf(&name(&format!("s{number}.test"))).unwrap();
    }
    assert!(Arc::ptr_eq(&first, &minter.leaf(&name("first.test")).unwrap()), "all fit");
    minter.leaf(&name("one-more.test")).unwrap();
    assert!(Arc::ptr_eq(&second, &minter.leaf(&name("second.test")).unwrap()), "only the oldest went");
    assert!(!Arc::ptr_eq(&first, &minter.leaf(&name("first.test")).unwrap()));
}

#[test]
fn no_leaf_outlives_the_ca_and_none_is_minted_after_it() {
    let host = Host::new();
    let minter = host.minter();
    let end = host.authority.expires();
    let last = minter.leaf_at(&name("a.test"), end - Duration::from_secs(3600)).unwrap();
    assert_eq!(last.expires(), end);
    let error = minter.leaf_at(&name("a.test"), end).unwrap_err();
    assert_eq!(error.label(), "minting_failed");
    assert!(error.to_string().contains("the CA has expired"), "{error}");
}

#[test]
fn the_longest_name_gets_a_leaf() {
    let host = Host::new();
    let long = format!("{}.{}.{}.test", "a".repeat(63), "b".repeat(63), "c".repeat(63));
    let leaf = host.minter().leaf(&name(&long)).unwrap();
    assert_eq!(parsed(&leaf).subject().to_string(), "O=Weir");
}

#[test]
fn debug_shows_no_key() {
    let host = Host::new();
    let minter = host.minter();
    let leaf = minter.leaf(&name("a.test")).unwrap();
    for text in [format!("{minter:?}"), format!("{leaf:?}")] {
        assert!(text.contains("<redacted>") && text.len() < 500, "{text}");
    }
}
