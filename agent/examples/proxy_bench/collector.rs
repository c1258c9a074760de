//! A collector that keeps nothing: it acknowledges each segment, so that the agent's spool does not grow while it is measured.
//! What a real collector and its store take of the machine is not the agent's.

use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixListener;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;
use weir_core::ids::Origin;
use weir_core::segment::{FrameKind, Reader, batch_digest};
use weir_core::wire::{
    Advice, CHECKPOINTS, CheckpointAck, CheckpointPost, ENROL, EnrolAck, POLL, PollResponse, SEGMENTS,
    SegmentAck,
};

pub async fn serve(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    println!("{{}}");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let serving = hyper::server::conn::http1::Builder::new();
            serving.serve_connection(TokioIo::new(stream), service_fn(answer)).await
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let answer = match path.as_str() {
        SEGMENTS => serde_json::to_vec(&acknowledged(&body)?)?,
        ENROL => serde_json::to_vec(&EnrolAck { witness: witness().cosigning(NAME)? })?,
        CHECKPOINTS => {
            let posted: CheckpointPost = serde_json::from_slice(&body)?;
            let checkpoint = cosigned(&posted.note)?;
            serde_json::to_vec(&CheckpointAck { checkpoint, advice: Advice::default() })?
        }
        POLL => serde_json::to_vec(&PollResponse::default())?,
        _ => anyhow::bail!("nobody was to be held"),
    };
    Ok(Response::new(Full::new(answer.into())))
}

fn acknowledged(segment: &[u8]) -> Result<SegmentAck> {
    #[derive(Deserialize)]
    struct Placed {
        origin: Origin,
    }
    let mut reader = Reader::new(segment)?;
    let first_seq = reader.first_seq();
    let (mut events, mut checkpoint) = (Vec::new(), None);
    for frame in reader.by_ref() {
        let frame = frame?;
        match frame.kind {
            FrameKind::Event => events.push(frame.bytes),
            FrameKind::Checkpoint => checkpoint = Some(cosigned(std::str::from_utf8(frame.bytes)?)?),
            FrameKind::Carry | FrameKind::Tree => {}
        }
    }
    let first = events.first().context("a segment without events")?;
    let Placed { origin } = serde_json::from_slice(first)?;
    let batch_digest = batch_digest(events.into_iter());
    let ack = SegmentAck::new(origin, first_seq, reader.next_seq().saturating_sub(1), batch_digest);
    Ok(SegmentAck { checkpoint, ..ack })
}

const NAME: &str = "bench";

fn witness() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn cosigned(note: &str) -> Result<String> {
    let mut note: SignedNote = note.parse()?;
    note.cosign(&witness(), NAME, 0)?;
    Ok(note.to_string())
}
