//! Clients and servers of HTTP/2 that the tests play frame by frame: what they say when, and what they reset with what.

use std::future::poll_fn;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::stage::{SERVER, Stage, soon};

/// A server's end of one connection.
pub struct Server {
    asked: mpsc::UnboundedReceiver<Asked>,
    leave: mpsc::UnboundedSender<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

/// A request that came to it.
pub struct Asked {
    pub head: http::request::Parts,
    pub body: RecvStream,
    pub reply: SendResponse<Bytes>,
}

impl Server {
    pub async fn accept(stage: &mut Stage) -> Self {
        Self::of(stage.accept().await.0, &h2::server::Builder::new()).await
    }

    pub async fn of(stream: DuplexStream, settings: &h2::server::Builder) -> Self {
        let mut connection = soon(settings.handshake(stream)).await.unwrap();
        let (asks, asked) = mpsc::unbounded_channel();
        let (leave, mut leaves) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let running = tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = connection.accept() => accepted,
                    Some(left) = leaves.recv() => {
                        connection.graceful_shutdown();
                        let _ = left.send(());
                        continue;
                    }
                };
                let Some(Ok((request, reply))) = accepted else { return };
                let (head, body) = request.into_parts();
                let _ = asks.send(Asked { head, body, reply });
            }
        });
        Self { asked, leave, running }
    }

    pub async fn request(&mut self) -> Asked {
        soon(self.asked.recv()).await.expect("the connection was closed")
    }

    pub fn untouched(&self) -> bool {
        self.asked.is_empty()
    }

    /// Takes no more requests, and answers those that came: it says so before anything else from now on.
    pub async fn leave(&self) {
        let (left, leaves) = oneshot::channel();
        self.leave.send(left).unwrap();
        soon(leaves).await.unwrap();
    }

    /// Closes the connection, whatever goes on.
    pub async fn die(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

impl Asked {
    /// Says something before the answer.
    pub fn say(&mut self, status: u16, headers: &[(&'static str, &str)]) {
        self.reply.send_informational(head(status, headers)).unwrap();
    }

    /// Begins the answer.
    pub fn begin(
        &mut self,
        status: u16,
        headers: &[(&'static str, &str)],
        is_all: bool,
    ) -> SendStream<Bytes> {
        self.reply.send_response(head(status, headers), is_all).unwrap()
    }

    /// Answers a call.
    pub fn answer(&mut self, json: &str) {
        let mut stream = self.begin(200, &[("content-type", "application/json")], false);
        stream.send_data(Bytes::copy_from_slice(json.as_bytes()), true).unwrap();
    }

    /// Why its client takes it back.
    pub async fn reset(&mut self) -> Reason {
        soon(poll_fn(|context| self.reply.poll_reset(context))).await.unwrap()
    }
}

/// A head of an answer, or of what comes before one.
pub fn head(status: u16, headers: &[(&'static str, &str)]) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        head.headers_mut().append(*name, value.parse().unwrap());
    }
    head
}

/// A client's end of one connection.
pub struct Client(SendRequest<Bytes>);

impl Client {
    pub async fn new(stage: &Stage) -> Self {
        Self::of(stage, &h2::client::Builder::new()).await
    }

    pub async fn of(stage: &Stage, settings: &h2::client::Builder) -> Self {
        let (stream, _served) = stage.connect();
        let (sender, connection) = soon(settings.handshake(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request's head. Its body is sent over the stream, if there is one.
    pub async fn ask(
        &mut self,
        (method, path): (&str, &str),
        headers: &[(&'static str, &str)],
        is_all: bool,
    ) -> (Told, SendStream<Bytes>) {
        let uri = format!("https://{SERVER}{path}");
        let mut request =
            Request::builder().version(http::Version::HTTP_2).method(method).uri(uri).body(()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        soon(poll_fn(|context| self.0.poll_ready(context))).await.unwrap();
        let (answer, stream) = self.0.send_request(request, is_all).unwrap();
        (Told(answer), stream)
    }

    /// Calls a tool, in a body of a length that is not told.
    pub async fn call(&mut self, body: &str) -> Told {
        let (told, mut stream) = self.ask(("POST", "/mcp"), &JSON, false).await;
        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
        told
    }
}

/// What a call's headers are.
pub const JSON: [(&str, &str); 2] =
    [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];

/// What a client is told over one stream.
pub struct Told(pub ResponseFuture);

impl Told {
    /// What comes before the answer; nothing when that comes next.
    pub async fn before(&mut self) -> Option<Response<()>> {
        soon(poll_fn(|context| self.0.poll_informational(context))).await.map(Result::unwrap)
    }

    pub async fn answer(self) -> Result<Response<RecvStream>, h2::Error> {
        soon(self.0).await
    }

    /// The answer's status and its body, as text.
    pub async fn whole(self) -> Result<(u16, String), h2::Error> {
        let (head, body) = self.answer().await?.into_parts();
        let (data, _) = all(body).await?;
        Ok((head.status.as_u16(), String::from_utf8(data).unwrap()))
    }
}

/// A body to its end, and its trailers. Room is given back as it is read.
pub async fn all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all, soon(body.trailers()).await?))
}

/// Sends a body in pieces, as the other side has room for them.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = soon(poll_fn(|context| stream.poll_capacity(context))).await.unwrap().unwrap();
        let piece = data.split_to(room.min(data.len()));
        stream.send_data(piece, false).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
}
