//! What was looked at comes again.

use super::*;

#[tokio::test]
async fn what_was_sniffed_is_replayed_and_writing_goes_through() {
    let (mut near, far) = duplex(1024);
    near.write_all(b"POST /mcp HTTP/1.1\r\n").await.unwrap();
    let (sniffed, mut stream) = sniff(far, WAIT).await.unwrap();
    assert_eq!(sniffed, Sniffed::Http(Protocol::Http1));
    near.write_all(b"host: a\r\n\r\n").await.unwrap();
    // Less at a time than is to be replayed.
    let mut begin = [0_u8; 4];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"POST");
    stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    near.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "HTTP/1.1 200 OK\r\n");
    drop(near);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, " /mcp HTTP/1.1\r\nhost: a\r\n\r\n");
}

#[tokio::test]
async fn an_opaque_relay_passes_on_every_byte_of_a_client_hello() {
    // To a server that the client trusts and Weir does not know: Weir only looks, and passes on.
    let company = Company::new("ours");
    let (near, outer) = duplex(1024);
    let (mut inner, far) = duplex(1024);
    let config = client(&company.roots, &[], rustls::ALL_VERSIONS);
    let relay = async {
        let (sniffed, mut stream) = sniff(outer, WAIT).await.unwrap();
        tokio::io::copy_bidirectional(&mut stream, &mut inner).await.unwrap();
        sniffed
    };
    let ends = async {
        let (near, far) = tokio::join!(
            TlsConnector::from(config).connect(name("mcp.example.test"), near),
            TlsAcceptor::from(company.good_server(&["mcp.example.test"])).accept(far)
        );
        talk(&mut near.unwrap(), &mut far.unwrap()).await;
    };
    let (sniffed, ()) = tokio::join!(relay, ends);
    let Sniffed::Tls(hello) = sniffed else { panic!("{sniffed:?}") };
    assert_eq!(hello.sni.as_ref().map(AsRef::as_ref), Some("mcp.example.test"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_too_little_in_time_is_silent_and_loses_nothing() {
    let (mut near, far) = duplex(1024);
    near.write_all(b"PO").await.unwrap();
    let begin = tokio::time::Instant::now();
    let (sniffed, stream) = sniff(far, WAIT).await.unwrap();
    assert_eq!(sniffed, Sniffed::Other(Unreadable::Silent));
    assert!(begin.elapsed() >= WAIT);
    assert_eq!(&stream.into_parts().0[..], b"PO");
}

#[tokio::test]
async fn a_client_that_closes_early_has_ended() {
    let (mut near, far) = duplex(1024);
    near.write_all(b"\x16\x03").await.unwrap();
    drop(near);
    let (sniffed, stream) = sniff(far, WAIT).await.unwrap();
    assert_eq!(sniffed, Sniffed::Other(Unreadable::Ended));
    assert!(!format!("{stream:?}").contains('\u{16}'), "a payload is not for logs");
}
