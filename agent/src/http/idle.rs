//! A flow's connections of HTTP/1.1 to its server, which nobody drives but who uses them. Between exchanges one that others may use is on
//! their shelf ([`super::shelf`]).
//!
//! Enters: a connection that was opened. Leaves: the body of an answer that it carries, then the connection itself, for the next exchange.
//! Must never: leave a connection undriven while somebody waits for it, or keep it open when both its flow and its exchange are gone.
//! Whoever drops one leaves it to a task that ends it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::{TrySendError, http1};
use hyper::{Request, Response};
use weir_core::ids::FlowId;

use super::guarded::Guard;
use super::outgoing::Outgoing;
use super::received::{Broke, Received};
use super::shelf::{Proven, Shelf};
use crate::tasks::Here;
use crate::tls::Protocol;

/// How many connections of one flow are kept for its next exchanges.
const KEPT: usize = 4;

/// A connection that carries one exchange at a time.
pub(super) struct Http1 {
    sender: http1::SendRequest<Outgoing>,
    pub guard: Guard,
    /// What reads and writes; nothing, if a task does.
    connection: Option<Here<()>>,
    /// What its server proved; nothing in plain text.
    pub proven: Option<Arc<Proven>>,
    /// Whoever authenticates does so for the connection, which is not for others then.
    pub is_personal: bool,
}

impl Http1 {
    pub fn new(
        sender: http1::SendRequest<Outgoing>,
        guard: Guard,
        connection: Here<()>,
        proven: Option<Arc<Proven>>,
    ) -> Self {
        Self { sender, guard, connection: Some(connection), proven, is_personal: false }
    }

    /// Whether other flows may have it: it waits for nothing of this one's.
    fn may_be_shared(&self) -> bool {
        self.proven.is_some()
            && !self.is_personal
            && self.connection.is_some()
            && !self.sender.is_closed()
            && self.guard.fault().is_none()
    }

    /// Whether its server has left it open, as far as is known by now.
    pub fn is_there(&mut self, context: &mut Context<'_>) -> bool {
        self.drive(context);
        !self.sender.is_closed()
    }

    /// Whether there can be another exchange, when the one before is over; if it is not, this waits or says no.
    pub async fn is_ready(&mut self, waits: bool) -> bool {
        let Self { sender, connection, .. } = self;
        let mut ready = pin!(driving(connection, sender.ready()));
        poll_fn(|context| match ready.as_mut().poll(context) {
            Poll::Pending if !waits => Poll::Ready(false),
            polled => polled.map(|ready| ready.is_ok()),
        })
        .await
    }

    pub async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Received>, TrySendError<Request<Outgoing>>> {
        if let Outgoing::Streamed(_) = request.body() {
            // It may go on while its answer waits for a reader.
            self.connection = None;
        }
        let answer = self.sender.try_send_request(request);
        Ok(driving(&mut self.connection, answer).await?.map(Received::Http1))
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        drive(&mut self.connection, context);
    }
}

/// Lets a connection read and write what it can.
fn drive(connection: &mut Option<Here<()>>, context: &mut Context<'_>) {
    if let Some(driven) = connection
        && Pin::new(driven).poll(context).is_ready()
    {
        *connection = None;
    }
}

/// Waits for something that a connection does, and drives it meanwhile.
async fn driving<T>(connection: &mut Option<Here<()>>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = pin!(wanted);
    poll_fn(|context| {
        if let Poll::Ready(done) = wanted.as_mut().poll(context) {
            return Poll::Ready(done);
        }
        drive(connection, context);
        wanted.as_mut().poll(context)
    })
    .await
}

/// Those that wait for their next exchange.
pub(super) struct Idle {
    connections: Mutex<Vec<Http1>>,
    /// Who drives them, where others than that one put them back.
    driver: Mutex<Option<Waker>>,
    client: Protocol,
    /// Where those wait that other flows may have, too.
    shelf: Option<Arc<Shelf>>,
}

impl Idle {
    pub fn of(client: Protocol, shelf: Option<Arc<Shelf>>) -> Self {
        Self { connections: Mutex::default(), driver: Mutex::default(), client, shelf }
    }

    /// Its exchange is over.
    pub fn put(&self, connection: Http1) {
        let left = match &self.shelf {
            Some(shelf) if connection.may_be_shared() => shelf.put(connection),
            _ => Some(connection),
        };
        // One that there is no room for is this flow's still.
        if let Some(own) = left {
            self.put_own(own);
        }
    }

    /// For this flow alone.
    pub fn put_own(&self, connection: Http1) {
        let mut connections = self.connections();
        if connections.len() >= KEPT {
            return;
        }
        connections.push(connection);
        drop(connections);
        // Exchanges of HTTP/1.1 are their flow's own task's, which comes here next anyway.
        if self.client == Protocol::Http2
            && let Some(driver) = self.driver().take()
        {
            driver.wake();
        }
    }

    /// The one of this flow's own that was used last.
    pub fn take(&self) -> Option<Http1> {
        self.connections().pop()
    }

    /// One that any of the job's flows may have, for this one.
    pub fn take_shared(&self, flow: &FlowId) -> Option<Http1> {
        self.shelf.as_ref()?.take(flow, SystemTime::now())
    }

    /// Drives them all, and lets go of those that the server closed.
    pub async fn drive(&self) {
        poll_fn(|context| {
            // First, so that none that is put back meanwhile is overlooked.
            if self.client == Protocol::Http2 {
                *self.driver() = Some(context.waker().clone());
            }
            let mut connections = self.connections();
            connections.iter_mut().for_each(|connection| connection.drive(context));
            connections.retain(|connection| !connection.sender.is_closed());
            Poll::Pending
        })
        .await
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Http1>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self) -> MutexGuard<'_, Option<Waker>> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a server's answer. Reading it drives the connection that it comes over, which is free for the next exchange with the body's
/// last byte.
pub struct AnswerBody {
    body: Received,
    over: Option<(Http1, Arc<Idle>)>,
}

impl AnswerBody {
    pub(super) fn new(body: Received, over: Http1, idle: Arc<Idle>) -> Self {
        let mut answer = Self { body, over: Some((over, idle)) };
        if answer.body.is_end_stream() {
            answer.release();
        }
        answer
    }

    /// One whose connection a task drives.
    pub(super) fn of_a_task(body: Received) -> Self {
        Self { body, over: None }
    }

    fn release(&mut self) {
        if let Some((connection, idle)) = self.over.take() {
            idle.put(connection);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broke;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broke>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Pending, Some((connection, _))) = (&polled, &mut self.over) {
            connection.drive(context);
            polled = Pin::new(&mut self.body).poll_frame(context);
        }
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(_))) => self.over = None,
            Poll::Ready(None) => self.release(),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.release(),
            Poll::Ready(Some(Ok(_))) => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
