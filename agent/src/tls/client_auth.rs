//! Servers that want to know who their client is. Whether one asked for a certificate is noted during its handshake, and whether it
//! went on without one is found out after it. Which servers asked is remembered for a while.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::sessions::Scope;

/// How long a server that asked for a certificate and got none may take to say that it needs one (TLS 1.3: after the
/// handshake). One that says nothing at all by then goes on without.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(2);
/// How long it is remembered that a server needs its client's certificate.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(10 * 60);
/// The most servers that are remembered; past it the oldest is forgotten.
pub const MAX_REMEMBERED: usize = 1024;

tokio::task_local! {
    static ASKED: Cell<bool>;
}

/// Runs a handshake; also tells whether the server asked for a certificate in it.
pub async fn noting<T>(handshake: impl Future<Output = T>) -> (T, bool) {
    ASKED
        .scope(Cell::new(false), async {
            let done = handshake.await;
            (done, ASKED.with(Cell::get))
        })
        .await
}

/// Has no certificate, and notes that it was asked for one. It is shared by all connections, since the library ties sessions
/// to it; so the note is the task's.
#[derive(Debug)]
pub struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let _ = ASKED.try_with(|asked| asked.set(true));
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Waits for what the server makes of a client without a certificate: true when it goes on. A ticket or any content says so,
/// an alert or an end the contrary. Nothing is consumed.
pub async fn goes_on<S>(stream: &mut TlsStream<S>) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let settled = poll_fn(|cx| {
        let spoke = match Pin::new(&mut *stream).poll_fill_buf(cx) {
            Poll::Ready(Ok(content)) => return Poll::Ready(!content.is_empty()),
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Pending => stream.get_ref().1.tls13_tickets_received() > 0,
        };
        if spoke { Poll::Ready(true) } else { Poll::Pending }
    });
    tokio::time::timeout(SETTLES_WITHIN, settled).await.unwrap_or(true)
}

/// The servers that need their client's own certificate.
#[derive(Debug, Default)]
pub struct Askers(Mutex<HashMap<(Scope, ServerName<'static>), Instant>>);

impl Askers {
    pub fn remember(&self, scope: Scope, name: ServerName<'static>) {
        let mut askers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        askers.retain(|_, since| since.elapsed() < REMEMBERED_FOR);
        if askers.len() >= MAX_REMEMBERED {
            let oldest = askers.iter().min_by_key(|(_, since)| **since).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                askers.remove(&oldest);
            }
        }
        askers.insert((scope, name), Instant::now());
    }

    pub fn knows(&self, scope: Scope, name: &ServerName<'static>) -> bool {
        let askers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        askers.get(&(scope, name.clone())).is_some_and(|since| since.elapsed() < REMEMBERED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(job: u64) -> Scope {
        Scope { job, namespace: 1, destination: ([192, 0, 2, 1], 443).into() }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_ask_are_remembered_for_a_while_and_up_to_a_number() {
        let (askers, name) = (Askers::default(), ServerName::try_from("a.test").unwrap());
        for job in 0..MAX_REMEMBERED as u64 {
            askers.remember(scope(job), name.clone());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(askers.knows(scope(0), &name));
        askers.remember(scope(u64::MAX), name.clone());
        assert!(!askers.knows(scope(0), &name) && askers.knows(scope(1), &name));
        assert!(!askers.knows(scope(1), &ServerName::try_from("b.test").unwrap()));
        tokio::time::advance(REMEMBERED_FOR).await;
        assert!(!askers.knows(scope(1), &name) && !askers.knows(scope(u64::MAX), &name));
    }
}
