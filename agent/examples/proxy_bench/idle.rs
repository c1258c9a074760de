//! Connections that ask once and stay: what a proxy keeps in memory for them.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::load::{Options, call, connect};
use super::{on_all_cores, watch};

/// How many connect at a time, as clients come in.
const AT_A_TIME: usize = 50;

pub fn run(options: &Options) -> Result<Value> {
    let (options, (say, said)) = (options.clone(), std::sync::mpsc::channel());
    on_all_cores(async move {
        let (connector, request) = (TlsConnector::from(options.tls()?), options.request());
        let mut staying = Vec::with_capacity(options.connections);
        while staying.len() < options.connections {
            let mut coming = JoinSet::new();
            for _ in 0..AT_A_TIME.min(options.connections - staying.len()) {
                let (connector, request, port) = (connector.clone(), request.clone(), options.port);
                coming.spawn(async move {
                    let mut stream = connect(port, &connector).await?;
                    call(&mut stream, &request, &mut vec![0; 16 << 10]).await?;
                    anyhow::Ok(stream)
                });
            }
            for stream in coming.join_all().await {
                staying.push(stream?);
            }
        }
        // What was on its way is written, and given back.
        tokio::time::sleep(Duration::from_millis(options.warm_up)).await;
        let pss = watch::pss_mib(&options.watch)?;
        say.send(json!({ "connections": staying.len(), "pss_mib": pss })).context("nobody listens")
    })?;
    Ok(said.recv()?)
}
