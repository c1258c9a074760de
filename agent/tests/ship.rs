//! Shipping, against a collector that is a stub here (it acknowledges what it is told to): the real one is met
//! in the end-to-end tests. The spool is the real one, on a real folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use weir::ledger::{Ledger, LedgerConfig};
use weir::ship::{Collector, Shipper};
use weir::spool::Folder;
use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};
use weir_core::record::{AgentEvent, Stored};
use weir_core::segment::{FrameKind, Reader, batch_digest};
use weir_core::wire::{Reason, Refusal, SegmentAck};

/// The events that a stub took, by sequence number, and the places it calls a fork.
#[derive(Default)]
struct Stub {
    taken: Mutex<BTreeMap<u64, String>>,
    forks_at: Option<u64>,
}

impl Stub {
    async fn serve(self: Arc<Self>, listener: UnixListener) {
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
        let body = request.into_body().collect().await?.to_bytes();
        let mut reader = Reader::new(&body).unwrap();
        let first_seq = reader.first_seq();
        let frames: Vec<_> =
            reader.by_ref().map(Result::unwrap).filter(|f| f.kind == FrameKind::Event).collect();
        if self.forks_at == Some(first_seq) {
            let refusal = Refusal { reason: Reason::Conflict, message: "a fork".into() };
            let body = serde_json::to_vec(&refusal).unwrap();
            let mut response = Response::new(Full::new(body.into()));
            *response.status_mut() = http::StatusCode::CONFLICT;
            return Ok(response);
        }
        let ack = SegmentAck::new(
            Stored::read(frames[0].bytes).unwrap().origin,
            first_seq,
            reader.next_seq() - 1,
            batch_digest(frames.iter().map(|f| f.bytes)),
        );
        let mut taken = self.taken.lock().unwrap();
        for frame in &frames {
            taken.insert(frame.seq, String::from_utf8(frame.bytes.to_vec()).unwrap());
        }
        Ok(Response::new(Full::new(serde_json::to_vec(&ack).unwrap().into())))
    }
}

/// A ledger with three sealed segments, and its shipper.
async fn three_segments(folder: &Path, stub: Arc<Stub>) -> Shipper {
    let socket = folder.join("collector.sock");
    tokio::spawn(stub.serve(UnixListener::bind(&socket).unwrap()));
    let storage = Arc::new(Folder::open(folder.join("spool")).unwrap());
    let masker = Masker::new(MaskKey::new([1; 32]));
    let boot = Boot::from_random([2; 16]);
    let config = LedgerConfig::new(storage, "t".into(), "h".into(), boot, masker.clone());
    let ledger = tokio::task::spawn_blocking(|| Ledger::open(config)).await.unwrap().unwrap().0;
    for name in ["first", "second", "third"] {
        ledger.write(AgentEvent { name: name.into(), detail: BTreeMap::new() }).await.unwrap();
        ledger.seal_if_older(std::time::Duration::ZERO).await.unwrap();
    }
    assert_eq!(ledger.sealed().len(), 3);
    Shipper { collector: Collector::new(socket), origin: ledger.origin().clone(), ledger, masker }
}

fn names_in(folder: &Path, suffix: &str) -> usize {
    let entries = std::fs::read_dir(folder.join("spool")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(suffix)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_trimmed() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    shipper.ship_all().await.unwrap();
    assert!(shipper.ledger.sealed().is_empty());
    let seqs: Vec<u64> = stub.taken.lock().unwrap().keys().copied().collect();
    assert_eq!(seqs, [0, 1, 2, 3], "agent.started and the three");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_set_aside_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    let second = shipper.ledger.sealed()[1].first_seq;
    let path = folder.path().join(format!("spool/{second:020}.seg"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    shipper.ship_all().await.unwrap();
    assert!(shipper.ledger.sealed().is_empty());
    assert_eq!(names_in(folder.path(), ".damaged"), 1);
    shipper.ledger.seal_if_older(std::time::Duration::ZERO).await.unwrap();
    shipper.ship_all().await.unwrap();
    let taken = stub.taken.lock().unwrap();
    assert!(!taken.contains_key(&second), "the damaged one never arrived");
    assert!(taken.values().any(|event| event.contains("third")));
    assert!(taken.values().any(|event| event.contains("spool.set_aside")), "and the record says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_kept_for_a_human_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub { forks_at: Some(2), ..Stub::default() });
    let shipper = three_segments(folder.path(), stub.clone()).await;
    shipper.ship_all().await.unwrap();
    assert_eq!(names_in(folder.path(), ".conflict"), 1);
    assert!(stub.taken.lock().unwrap().values().any(|event| event.contains("third")));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_everything_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut shipper = three_segments(folder.path(), Arc::default()).await;
    shipper.collector = Collector::new(folder.path().join("nobody.sock"));
    let error = shipper.ship_all().await.unwrap_err();
    assert!(error.to_string().contains("nobody.sock"), "{error}");
    assert_eq!(shipper.ledger.sealed().len(), 3);
}
