//! A collector of a few lines: it keeps what it is given, in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixListener;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;
use weir_core::record::Stored;
use weir_core::segment::{FrameKind, Reader, batch_digest};
use weir_core::wire::{
    self, Advice, CheckpointAck, CheckpointPost, EnrolAck, EnrolRequest, Reason, Refusal, SegmentAck,
};

#[derive(Default)]
pub struct Stub(Mutex<Says>);

/// What the stub has seen, and what it is to say.
pub struct Says {
    /// Events, by sequence number.
    pub taken: BTreeMap<u64, String>,
    pub enrolled: Vec<EnrolRequest>,
    pub shown: Vec<CheckpointPost>,
    /// The places that it refuses, and why.
    pub refuses: BTreeMap<u64, Reason>,
    pub witness: SigningKey,
    /// By which it cosigns instead.
    pub signs_with: Option<SigningKey>,
    /// What it gives back instead of the next checkpoint.
    pub gives_back: Option<String>,
    /// With each answer, one.
    pub advice: VecDeque<Advice>,
}

impl Default for Says {
    fn default() -> Self {
        Self {
            taken: BTreeMap::new(),
            enrolled: Vec::new(),
            shown: Vec::new(),
            refuses: BTreeMap::new(),
            witness: SigningKey::from_seed(&[7; 32]),
            signs_with: None,
            gives_back: None,
            advice: VecDeque::new(),
        }
    }
}

impl Says {
    fn cosigned(&mut self, note: &str) -> String {
        let mut note: SignedNote = note.parse().unwrap();
        let key = self.signs_with.as_ref().unwrap_or(&self.witness);
        note.cosign(key, "collector", 1_790_000_000).unwrap();
        self.gives_back.take().unwrap_or(note.to_string())
    }
}

fn ok(answer: &impl Serialize) -> Response<Full<Bytes>> {
    Response::new(Full::new(serde_json::to_vec(answer).unwrap().into()))
}

impl Stub {
    pub fn says(&self) -> MutexGuard<'_, Says> {
        self.0.lock().unwrap()
    }

    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stub = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| stub.answer(request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await?.to_bytes();
        let mut says = self.says();
        Ok(match &*path {
            wire::SEGMENTS => segment(&mut says, &body),
            wire::ENROL => {
                says.enrolled.push(serde_json::from_slice(&body).unwrap());
                ok(&EnrolAck { witness: says.witness.cosigning("collector").unwrap() })
            }
            wire::CHECKPOINTS => {
                let post: CheckpointPost = serde_json::from_slice(&body).unwrap();
                let checkpoint = says.cosigned(&post.note);
                says.shown.push(post);
                ok(&CheckpointAck { checkpoint, advice: says.advice.pop_front().unwrap_or_default() })
            }
            other => panic!("{other}"),
        })
    }
}

fn segment(says: &mut Says, body: &[u8]) -> Response<Full<Bytes>> {
    let mut reader = Reader::new(body).unwrap();
    let first_seq = reader.first_seq();
    let frames: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
    if let Some(reason) = says.refuses.get(&first_seq) {
        let refusal = Refusal { reason: *reason, message: "as it was told to".into() };
        let mut response = ok(&refusal);
        *response.status_mut() = reason.status().try_into().unwrap();
        return response;
    }
    let events: Vec<_> = frames.iter().filter(|frame| frame.kind == FrameKind::Event).collect();
    let last = frames.last().filter(|frame| frame.kind == FrameKind::Checkpoint).unwrap();
    let checkpoint = says.cosigned(std::str::from_utf8(last.bytes).unwrap());
    let origin = Stored::read(events[0].bytes).unwrap().origin;
    let digest = batch_digest(events.iter().map(|frame| frame.bytes));
    for event in &events {
        says.taken.insert(event.seq, String::from_utf8(event.bytes.to_vec()).unwrap());
    }
    let advice = says.advice.pop_front().unwrap_or_default();
    let ack = SegmentAck::new(origin, first_seq, reader.next_seq() - 1, digest);
    ok(&SegmentAck { checkpoint: Some(checkpoint), advice, ..ack })
}
