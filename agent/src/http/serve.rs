//! The client's side: exchanges of one connection, one after the other, until either side closes it.

use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Body, MAX_HEAD};
use crate::tasks::Tasks;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Either side closed it, or the time for the next request was over.
    Closed,
    /// What came was no HTTP.
    Unreadable,
    Broken,
}

/// Speaks HTTP/1.1 with a client. `idle` is the time that it has to send a request's whole head. When the agent
/// ends, the connection may finish its exchange, as long as tasks may. When another agent takes new connections, each answer
/// says that it is the connection's last; one that is idle is left to its client, who may be about to use it.
pub async fn serve<S, A, E>(
    client: S,
    idle: Duration,
    tasks: &Tasks,
    exchange: impl Fn(Request<Incoming>) -> A,
) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Result<Response<Body>, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .preserve_header_case(true)
        .serve_connection(
            TokioIo::new(client),
            service_fn(|request| {
                let answer = exchange(request);
                async {
                    let mut answer = answer.await?;
                    if tasks.is_retiring() {
                        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, E>(answer)
                }
            }),
        );
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = tasks.ending() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                served = connection => served,
                () = tasks.over() => return Served::Broken,
            }
        }
    };
    match served {
        Ok(()) => Served::Closed,
        Err(error) if error.is_timeout() => Served::Closed,
        Err(error) if error.is_parse() => Served::Unreadable,
        Err(_) => Served::Broken,
    }
}
