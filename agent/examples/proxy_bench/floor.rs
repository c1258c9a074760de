//! `rustfloor`: the least that a proxy of hyper and rustls can do. It decrypts, sends on over connections that it keeps,
//! and encrypts again; it reads no body and records nothing. What Weir takes is told as a multiple of this.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{certificates, stub};

struct Upstream {
    port: u16,
    connector: TlsConnector,
    idle: Mutex<Vec<SendRequest<Incoming>>>,
}

pub async fn serve(folder: &Path, port: u16) -> Result<()> {
    let acceptor = TlsAcceptor::from(certificates::server(folder)?);
    let connector = TlsConnector::from(certificates::client(&folder.join("ca.pem"), true)?);
    let upstream = Arc::new(Upstream { port, connector, idle: Mutex::default() });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    stub::listening(&listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let stream = acceptor.accept(stream).await?;
            // A client's connection has one upstream connection at a time, and leaves it to others when it ends.
            let own = Mutex::new(None);
            let exchange = service_fn(|request| upstream.exchange(&own, request));
            let serving = hyper::server::conn::http1::Builder::new();
            let served = serving.serve_connection(TokioIo::new(stream), exchange).await;
            upstream.idle().extend(own.into_inner().unwrap_or_else(PoisonError::into_inner));
            anyhow::Ok(served?)
        });
    }
}

type Own = Mutex<Option<SendRequest<Incoming>>>;

impl Upstream {
    fn idle(&self) -> MutexGuard<'_, Vec<SendRequest<Incoming>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, own: &Own, request: Request<Incoming>) -> Result<Response<Incoming>> {
        let mut next = own.lock().unwrap_or_else(PoisonError::into_inner).take();
        if next.is_none() {
            next = self.idle().pop();
        }
        let mut sender = loop {
            match next {
                Some(mut sender) => {
                    if sender.ready().await.is_ok() {
                        break sender;
                    }
                }
                None => break self.dial().await?,
            }
            next = self.idle().pop();
        };
        let answer = sender.send_request(request).await?;
        *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok(answer)
    }

    async fn dial(&self) -> Result<SendRequest<Incoming>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(ServerName::try_from(certificates::NAME)?, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move { connection.await.context("an upstream connection ended") });
        Ok(sender)
    }
}
