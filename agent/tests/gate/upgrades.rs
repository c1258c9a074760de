//! Offers to change the protocol: a web socket's is passed on and recorded as one, HTTP/2's goes no further.

use http::{Request, StatusCode};
use tokio::io::AsyncWriteExt;
use weir::http::Served;
use weir_core::record::MessageLabel;

use crate::stage::{Peer, SERVER, Stage, soon};

/// What a server says to change the protocol.
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[tokio::test]
async fn an_offer_to_speak_http2_goes_no_further() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let request = Request::get("/x")
        .header("host", SERVER)
        .header("connection", "Upgrade, HTTP2-Settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAAQAAP__");
    let answer = client.begin(request.body(Default::default()).unwrap());
    let (head, _) = server.request().await;
    assert!(!head.contains("upgrade") && !head.contains("http2"), "{head}");
    // One that changes it all the same is heard no further, and the client is cut off.
    server.say(&format!("{SWITCHED}hello")).await;
    assert!(soon(answer).await.unwrap().is_err());
    let noted = stage.messages(MessageLabel::Http, 1).await.remove(0);
    assert!(noted.starts_with("GET /x -> ") && noted.contains("protocol"), "{noted}");
}

#[tokio::test]
async fn a_web_socket_is_passed_on_to_the_letter_and_recorded_as_one() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let (mut stream, served) = stage.connect();
    let asked = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n";
    let request = format!("GET /ws HTTP/1.1\r\nHost: {SERVER}\r\n{asked}\r\n");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let (head, _) = server.request().await;
    assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    server.say(&format!("{SWITCHED}\u{81}hello")).await;
    let mut client = Peer::new(stream);
    let head = client.until(b"\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.to_ascii_lowercase().contains("upgrade: websocket"),
        "{head}"
    );
    assert_eq!(client.until(b"hello").await, "\u{81}hello");
    // What the client says from now on is no HTTP, and must not be taken for any.
    client.say("\nGET \0 x").await;
    assert_eq!(server.until(b" x").await, "\nGET \0 x");
    drop(client);
    assert_eq!(server.closed().await, "");
    assert_eq!(soon(served).await.unwrap(), Served::Closed);
    assert_eq!(stage.messages(MessageLabel::Upgraded, 1).await, ["GET /ws -> 101"]);
    stage.flow.tunnels.close();
    soon(stage.flow.tunnels.wait()).await;
}

#[tokio::test]
async fn a_web_socket_that_its_server_declines_is_an_exchange_like_any() {
    let mut stage = Stage::new().await;
    let mut server = stage.accept().await;
    let mut client = stage.client().await;
    let asks = Request::get("/ws")
        .header("host", SERVER)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Default::default())
        .unwrap();
    let answer = client.begin(asks);
    server.request().await;
    server.say("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno").await;
    assert_eq!(soon(answer).await.unwrap().unwrap(), (StatusCode::BAD_REQUEST, "no".to_owned()));
}
