//! What the ledger's tests play with: calls, and the log as it is read back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir::ledger::Carry;
use weir::ledger::{
    DurableIntent, Intended, Ledger, LedgerConfig, LedgerError, OpenRecord, QueuedIntent, Recovered, Text,
};
use weir::spool::faulty::Faulty;
use weir::spool::{Limits, Storage};
use weir_core::evidence::TreeState;
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::ids::{Boot, CallId, FlowId};
use weir_core::mask::{MaskKey, Masker};
use weir_core::policy::{Action, Verdict};
use weir_core::record::{
    Body, CallResult, Caller, Direction, Durability, Intent, Mcp, Message, MessageLabel, Outcome, Payload,
    Proof, Server, Stored,
};
use weir_core::segment::{FrameKind, Reader};

pub const DEADLINE: Duration = Duration::from_secs(30);
pub const FOREVER: Duration = Duration::from_secs(100_000);

pub fn masker() -> Masker {
    Masker::new(MaskKey::new([3; 32]))
}

pub fn text(text: &str) -> Text {
    masker().text(text)
}

pub fn config(storage: impl Storage + 'static) -> LedgerConfig {
    let boot = Boot::from_random([9; 16]);
    LedgerConfig {
        limits: Limits {
            max_bytes: 4 << 20,
            reserve_bytes: 1 << 16,
            seal_bytes: 4000,
            seal_events: 40,
            room_from: 500,
        },
        clock: Arc::new(|| 1_790_000_000_000_000),
        monotonic: Arc::new(|| Duration::ZERO),
        seal_after: FOREVER,
        ..LedgerConfig::new(Arc::new(storage), "t".into(), "h".into(), boot, masker())
    }
}

pub fn open(disk: &Faulty) -> (Ledger, Recovered) {
    Ledger::open(config(disk.clone())).unwrap()
}

/// Opens a folder on a disk with one fault. Where that is in the way, the error names it, and the next try has it behind itself.
pub fn open_behind_a_fault(disk: &Faulty, what: &str) -> (Ledger, Option<String>) {
    match Ledger::open(config(disk.clone())) {
        Ok((ledger, _)) => (ledger, None),
        Err(error) => {
            let told = error.to_string();
            assert!(names_a_fault(&told), "{what}: {told}");
            let again = Ledger::open(config(disk.clone()));
            (again.unwrap_or_else(|error| panic!("{what}: {told}; and then {error}")).0, Some(told))
        }
    }
}

/// Whether it says what the disk said.
pub fn names_a_fault(told: &str) -> bool {
    ["no storage space", "input/output error", "the spool is full"].iter().any(|fault| told.contains(fault))
}

pub fn call(n: u64) -> CallId {
    CallId::from_random((u128::from(n) + 1).to_be_bytes())
}

pub fn flow() -> FlowId {
    FlowId::from_random([5; 16])
}

pub fn intent(n: u64, action: Action) -> Intent<Text> {
    let caller = Caller { seen_alive: true, ..Caller::unseen(1, (0, 0), Text::default()) };
    Intent {
        call_id: call(n),
        flow_id: flow(),
        caller: Arc::new(caller),
        server: Server { address: "::1".into(), port: 1, name: Text::default(), proof: Proof::Unproven },
        mcp: Mcp { method: text("tools/call"), ..Mcp::default() },
        verdict: Verdict { action, rule: "default".into(), policy_digest: "d".into() },
        payload: Payload::default(),
        durability: Durability::Strict,
        approval_id: None,
    }
}

pub fn outcome(n: u64, result: CallResult) -> Outcome<Text> {
    Outcome { duration_us: Some(n), ..Outcome::new(call(n), result) }
}

pub fn message(content: &str) -> Message<Text> {
    let payload = Payload { text: text(content), bytes: content.len() as u64, ..Payload::default() };
    Message::new(flow(), Direction::ServerToClient, Text::default(), MessageLabel::Notification, payload)
}

pub async fn begin(ledger: &Ledger, n: u64) -> Result<(OpenRecord<Intended>, DurableIntent), LedgerError> {
    ledger.open_record(call(n), flow())?.intent(intent(n, Action::Allow)).await
}

/// The same for a call that does not wait for the disk.
pub async fn glance(ledger: &Ledger, n: u64) -> Result<(OpenRecord<Intended>, QueuedIntent), LedgerError> {
    let intent = Intent { durability: Durability::BestEffort, ..intent(n, Action::Allow) };
    ledger.open_record(call(n), flow())?.queue(intent).await
}

/// Opens a folder once more and reads all that is in it: that must have dense sequence numbers.
pub fn log(disk: impl Storage + 'static) -> Vec<Stored> {
    let mut events = log_with_gaps(disk);
    events.sort_by_key(|event| event.seq);
    let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "{seqs:?}");
    events
}

pub fn log_with_gaps(disk: impl Storage + 'static) -> Vec<Stored> {
    let found = weir::spool::open(Arc::new(disk), config(Faulty::new()).limits).unwrap();
    let mut events = BTreeMap::new();
    let mut before = None;
    for standing in &found.segments {
        let bytes = found.read(standing.file).unwrap();
        for frame in Reader::new(&bytes).unwrap().map(Result::unwrap).filter(|f| f.kind == FrameKind::Event) {
            let event = Stored::read(frame.bytes).unwrap();
            assert_eq!(event.seq, frame.seq);
            assert!(events.insert(event.seq, event).is_none(), "{} is there twice", frame.seq);
        }
        let last = Some(standing) == found.segments.last();
        assert!(standing.covered || standing.tree.is_none() || last, "a sealed segment is not closed");
        before = proven(&bytes, before);
    }
    events.into_values().collect()
}

/// Computes a segment's tree anew, from its own head on, and checks each checkpoint in it: gives the tree behind it.
pub fn proven(segment: &[u8], before: Option<TreeState>) -> Option<TreeState> {
    let reader = Reader::new(segment).unwrap();
    let first_seq = reader.first_seq();
    let (mut tree, mut key) = (None, None);
    for frame in reader.map(Result::unwrap) {
        match frame.kind {
            FrameKind::Tree => {
                let read = TreeState::read(frame.bytes).unwrap();
                assert_eq!(read.next_seq(), first_seq);
                // Those between two may have been trimmed.
                let before = before.as_ref().filter(|before| before.next_seq() == first_seq);
                match before {
                    Some(before) if before.epoch == read.epoch => assert_eq!(before, &read),
                    Some(_) => assert_eq!(read.first_seq, first_seq, "an epoch begins with a segment"),
                    None => {}
                }
                tree = Some(read);
            }
            FrameKind::Carry => key = Carry::read(frame.bytes).unwrap().key,
            FrameKind::Event => drop(tree.as_mut().map(|tree| tree.push(frame.bytes))),
            FrameKind::Checkpoint => {
                let note = std::str::from_utf8(frame.bytes).unwrap().parse().unwrap();
                let checkpoint = Checkpoint::open(&note, key.as_ref().unwrap()).unwrap();
                assert_eq!(
                    checkpoint,
                    Checkpoint::of(&checkpoint.log, tree.as_ref().unwrap(), checkpoint.time_us)
                );
            }
        }
    }
    tree
}

/// The outcomes of each intent, in the log's order. There is none without an intent before it.
pub fn outcomes(log: &[Stored]) -> BTreeMap<CallId, Vec<CallResult>> {
    let mut outcomes = BTreeMap::new();
    for event in log {
        match &event.body {
            Body::Intent(intent) => {
                assert!(outcomes.insert(intent.call_id.clone(), vec![]).is_none(), "two intents of a call");
            }
            Body::Outcome(outcome) => outcomes.get_mut(&outcome.call_id).unwrap().push(outcome.result),
            _ => {}
        }
    }
    outcomes
}

pub fn agent_events(log: &[Stored], named: &str) -> Vec<BTreeMap<String, String>> {
    let detail = |event: &Stored| match &event.body {
        Body::Agent(agent) if agent.name == named => Some(agent.detail.clone()),
        _ => None,
    };
    log.iter().filter_map(detail).collect()
}
