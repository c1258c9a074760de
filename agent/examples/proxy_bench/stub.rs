//! The server: it reads requests as far as it must, and writes answers that were made before.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{certificates, messages};

struct Answers {
    plain: Vec<u8>,
    large: Vec<u8>,
    events: Vec<Vec<u8>>,
}

pub async fn serve(folder: &Path) -> Result<()> {
    let acceptor = TlsAcceptor::from(certificates::server(folder)?);
    let answers = Arc::new(Answers {
        plain: messages::plain_answer(),
        large: messages::large_answer(),
        events: messages::events_answer(),
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    listening(&listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, answers) = (acceptor.clone(), answers.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let mut stream = acceptor.accept(stream).await?;
            // A client that leaves is none of ours.
            let _ = converse(&mut stream, &answers).await;
            let _ = stream.shutdown().await;
            anyhow::Ok(())
        });
    }
}

/// Says on which port a server listens.
pub fn listening(listener: &TcpListener) -> Result<()> {
    println!("{{\"port\":{}}}", listener.local_addr()?.port());
    Ok(std::io::stdout().flush()?)
}

async fn converse(stream: &mut (impl AsyncRead + AsyncWriteExt + Unpin), answers: &Answers) -> Result<()> {
    let mut read = Vec::with_capacity(4096);
    loop {
        let (head, whole) = loop {
            if let Some(found) = request(&read)? {
                break found;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let line = read.get(..head).unwrap_or_default();
        let asks =
            |path: &str| line.strip_prefix(b"POST ").is_some_and(|line| line.starts_with(path.as_bytes()));
        let answer = if asks(messages::EVENTS) {
            for part in &answers.events {
                stream.write_all(part).await?;
            }
            None
        } else if asks(messages::LARGE) {
            Some(&answers.large)
        } else {
            Some(&answers.plain)
        };
        if let Some(answer) = answer {
            stream.write_all(answer).await?;
        }
        stream.flush().await?;
        read.drain(..whole);
    }
}

/// The length of the first request's head, and of all of it. `None` when it is not whole.
fn request(read: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(head) = read.windows(4).position(|part| part == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(read.get(..head).unwrap_or_default())?;
    let mut body = None;
    for line in text.lines().skip(1) {
        let (name, value) = line.split_once(':').context("a header without a colon")?;
        if name.eq_ignore_ascii_case("content-length") {
            body = Some(value.trim().parse::<usize>()?);
        }
        // Envoy and others may send chunks when they are not told otherwise; this server takes none.
        ensure!(!name.eq_ignore_ascii_case("transfer-encoding"), "a request in chunks");
    }
    let whole = head + 4 + body.unwrap_or(0);
    Ok((read.len() >= whole).then_some((head, whole)))
}
