//! What requests say in their heads: the authority, and what they repeat of their bodies.

use http::{HeaderMap, HeaderValue, Uri, Version};
use weir::http::Authority;
use weir_core::mcp::header::{decoded, encoded};

pub fn run(bytes: &[u8]) {
    repeated(bytes);
    let (target, host) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default()),
        None => (&b"/"[..], bytes),
    };
    let (Ok(target), Ok(host)) = (Uri::try_from(target), HeaderValue::from_bytes(host)) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("host", host.clone());
    let authority = Authority::of(Version::HTTP_11, &target, &headers);
    if let Some(authority) = &authority {
        let name = authority.as_str();
        assert_eq!(name, name.to_ascii_lowercase());
        assert!(!name.contains(['@', '/', '[', ']', ' ']), "{name:?}");
        // Whoever reads the header with nothing but string functions finds the same name.
        let text = host.to_str().expect("a host that is no text").to_ascii_lowercase();
        assert!(text.trim_start_matches('[').starts_with(name), "{text:?} names {name:?}");
        assert!(!name.contains(':') || text.starts_with('['), "{text:?} names {name:?}");
    }
    headers.append("host", host);
    assert_eq!(Authority::of(Version::HTTP_11, &target, &headers), None, "two hosts");
}

/// Header values that stand for a text: what is written reads back, and what is read is written as something that says the same.
fn repeated(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let written = HeaderValue::try_from(encoded(&text)).expect("a header's value");
    assert_eq!(decoded(written.as_bytes()).as_deref(), Some(&*text), "what is written reads back");
    let Some(read) = decoded(bytes) else { return };
    assert!(HeaderValue::from_bytes(bytes).is_ok(), "what no header can hold is read: {read:?}");
    assert_eq!(decoded(encoded(&read).as_bytes()), Some(read));
}
