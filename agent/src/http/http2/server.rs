//! The client's side: a connection whose streams are exchanges.
//!
//! Enters: a client's connection. Leaves: its requests, and for each an answer, before which the client is told what comes earlier (1xx).
//! Must never: answer a stream that its client has reset, or leave an exchange waiting for one.

use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use weir_core::http1::Ambiguous;

use super::pump::Pump;
use super::refusals::Watched;
use super::stream::StreamBody;
use super::{CONNECTION_WINDOW, MAX_FAULTS, MAX_FRAME, STREAM_WINDOW, reason_of, refused};
use crate::http::MAX_HEAD;
use crate::http::guarded::First;
use crate::http::head::{one_connections_alone, two_readings};
use crate::http::interim::Interim;
use crate::http::received::{Broke, Received};
use crate::http::serve::MAX_STREAMS;

/// How many bytes of an answer wait for one stream's client.
const SEND_BUFFER: usize = 64 << 10;

/// A client's connection.
pub struct Accepting<S> {
    stage: Stage<Watched<S>>,
    leaves: bool,
    first: First,
}

enum Stage<S> {
    Greeting(Handshake<S, Bytes>),
    Open(Connection<S, Bytes>),
}

/// One request, and where its answer goes.
pub struct Asked {
    pub request: Request<Received>,
    pub reply: Reply,
}

/// See [`answer`].
pub struct Reply {
    stream: SendResponse<Bytes>,
    interim: Interim,
    is_head: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Accepting<S> {
    pub fn new(client: S) -> Self {
        let first = First::default();
        let greeting = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_local_error_reset_streams(Some(MAX_FAULTS))
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_STREAMS)
            .handshake(Watched::to_client(client, first.clone()));
        Self { stage: Stage::Greeting(greeting), leaves: false, first }
    }

    /// The next request; `None` when the client has closed, or all that it may still ask is answered. Whoever waits here drives the
    /// connection.
    pub async fn next(&mut self) -> Option<Result<Asked, h2::Error>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// What the client sent that was refused before it was anybody's request, the first of all.
    pub fn ambiguous(&self) -> Option<Ambiguous> {
        self.first.get().copied()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Asked, h2::Error>>> {
        let polled = self.poll_asked(context);
        if let Poll::Ready(Some(Err(error))) = &polled
            && let Some(what) = refused(error)
        {
            let _ = self.first.set(what);
        }
        polled
    }

    fn poll_asked(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Asked, h2::Error>>> {
        loop {
            match &mut self.stage {
                Stage::Greeting(greeting) => match ready!(Pin::new(greeting).poll(context)) {
                    Ok(mut connection) => {
                        if self.leaves {
                            connection.graceful_shutdown();
                        }
                        self.stage = Stage::Open(connection);
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                Stage::Open(connection) => {
                    let mut accepted = ready!(connection.poll_accept(context));
                    if let Some(Ok((request, stream))) = &mut accepted
                        && let Some(what) = two_readings(request.headers())
                    {
                        let _ = self.first.set(what);
                        stream.send_reset(Reason::PROTOCOL_ERROR);
                        continue;
                    }
                    return Poll::Ready(
                        accepted.map(|accepted| accepted.map(|asked| Asked::of(asked, self.first.clone()))),
                    );
                }
            }
        }
    }

    /// Tells the client to ask nothing more; what it has asked is answered.
    pub fn leave(&mut self) {
        self.leaves = true;
        if let Stage::Open(connection) = &mut self.stage {
            connection.graceful_shutdown();
        }
    }
}

impl Asked {
    /// What was accepted; `first` is told if its trailers are refused.
    fn of((request, stream): (Request<RecvStream>, SendResponse<Bytes>), first: First) -> Self {
        let interim = Interim::new();
        let (mut parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let body = if parts.method == Method::CONNECT {
            // What comes over such a stream is no body, and no tunnel is made.
            Received::Nothing
        } else {
            let waits = (asks_first(&parts.headers) && !body.is_end_stream()).then(|| interim.clone());
            Received::Http2(StreamBody::new(body, &parts.headers, waits, first))
        };
        parts.extensions.insert(interim.clone());
        let reply = Reply { stream, interim, is_head };
        Self { request: Request::from_parts(parts, body), reply }
    }
}

/// Whether a client sends its body only when it is told to go on (RFC 9110, 10.1.1).
fn asks_first(headers: &HeaderMap) -> bool {
    let expect = headers.get(header::EXPECT).map_or(&b""[..], HeaderValue::as_bytes);
    expect.eq_ignore_ascii_case(b"100-continue")
}

/// Takes one exchange to its end: what there is to tell before it, the answer's head, and its body. A client that resets the stream
/// makes `exchange`, or the body, be dropped.
pub async fn answer<A, B, E>(mut reply: Reply, exchange: A)
where
    A: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Error + 'static,
    E: Error + 'static,
{
    let answered = {
        let mut exchange = pin!(exchange);
        poll_fn(|context| {
            let polled = exchange.as_mut().poll(context);
            if reply.stream.poll_reset(context).is_ready() {
                // Whatever the answer is, there is nobody for it.
                return Poll::Ready(None);
            }
            reply.tell(context);
            polled.map(Some)
        })
        .await
    };
    match answered {
        None => tracing::debug!("a client took an exchange back"),
        Some(Ok(answer)) => reply.send(answer).await,
        Some(Err(error)) => reply.stream.send_reset(reason_of(&error)),
    }
}

impl Reply {
    /// Tells what is to be told now.
    fn tell(&mut self, context: &Context<'_>) {
        for head in self.interim.take(context) {
            if let Err(error) = self.stream.send_informational(head) {
                tracing::debug!(error = %Broke::from(error), "a client was not told what came before its answer");
            }
        }
    }

    async fn send<B>(mut self, answer: Response<B>)
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Error + 'static,
    {
        let (mut head, mut body) = answer.into_parts();
        one_connections_alone(&mut head.headers, false);
        head.headers.remove(header::TE);
        let may_have_none =
            self.is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut is_all = body.is_end_stream();
        if may_have_none && !is_all {
            // Whatever it is, it is not sent.
            is_all = poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context).is_ready())).await;
        }
        let length = &header::CONTENT_LENGTH;
        if may_have_none && !is_all && !self.is_head {
            // Behind a head that is not all, clients look for what the length tells.
            head.headers.remove(length);
        }
        if !may_have_none
            && !is_all
            && let Some(exact) = body.size_hint().exact()
            && !head.headers.contains_key(length)
        {
            head.headers.insert(length, exact.into());
        }
        match self.stream.send_response(Response::from_parts(head, ()), is_all) {
            Ok(_) if is_all => {}
            Ok(stream) if may_have_none => end(stream, body).await,
            Ok(stream) => Pump::new(stream, body).await,
            Err(error) => {
                tracing::debug!(error = %Broke::from(error), "an answer cannot be sent");
                self.stream.send_reset(Reason::INTERNAL_ERROR);
            }
        }
    }
}

/// Ends a stream over which no body goes, when that ends whose end somebody may wait for. Until then the stream counts as open, and its
/// client may leave.
async fn end(mut stream: SendStream<Bytes>, mut body: impl Body<Data = Bytes> + Unpin) {
    poll_fn(|context| {
        let is_over = stream.poll_reset(context).is_ready();
        if is_over { Poll::Ready(()) } else { Pin::new(&mut body).poll_frame(context).map(drop) }
    })
    .await;
    if let Err(error) = stream.send_data(Bytes::new(), true) {
        tracing::debug!(error = %Broke::from(error), "an answer was not ended");
    }
}
