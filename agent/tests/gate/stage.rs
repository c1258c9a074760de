//! A gate between a client and a server that the test plays itself, byte by byte, over in-memory pipes; its log is
//! on a disk in memory that fails on command. The server is a stub, since the point is what one does that no
//! released server would.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::TaskTracker;
use weir::approval::Approvals;
use weir::config::{Approval, Ladder, Limits};
use weir::gate::{Flow, Gate, HeldCalls, Place, Server, Sessions};
use weir::http::{Beginning, Dialled, Manners, Served, Upstream, serve};
use weir::ledger::{Clock, Ledger, LedgerConfig};
use weir::share::Shares;
use weir::ship::Collector;
use weir::spool::faulty::Faulty;
use weir::tasks::Tasks;
use weir::tls::{Protocol, Spoken};
use weir_core::approval::AllowedSigners;
use weir_core::ids::{Boot, FlowId};
use weir_core::mask::{MaskKey, Masked, Masker};
use weir_core::policy::{Action, Durability, Policy, Rule, When};
use weir_core::record::{self, Body, Caller, Outcome, Proof, Written};

pub const SERVER: &str = "mcp.test";
/// What a server answers to the call with the id 1 when all is well.
pub const OK: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
const DEADLINE: Duration = Duration::from_secs(20);

/// What has a result within the deadline.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("nothing came in time")
}

pub struct Stage {
    pub gate: Arc<Gate>,
    pub disk: Faulty,
    pub flow: Arc<Flow>,
    dial: mpsc::UnboundedSender<DuplexStream>,
    dialled: mpsc::UnboundedReceiver<DuplexStream>,
    events: Arc<(Mutex<Vec<Written>>, Notify)>,
    spoken: Spoken,
}

/// What a test changes of a usual stage.
pub struct Plan {
    pub limits: Limits,
    pub deadline: Duration,
    pub policy: Policy,
    pub ladder: Ladder,
    /// Where the collector listens, if there is one.
    pub collector: Option<PathBuf>,
    pub spoken: Spoken,
    /// The wall clock.
    pub clock: Clock,
}

/// HTTP/1.1 on both sides.
pub const HTTP1: Spoken = Spoken { by_client: Protocol::Http1, by_server: Protocol::Http1 };

impl Default for Plan {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            deadline: Duration::from_secs(600),
            policy: policy(),
            ladder: Ladder::default(),
            collector: None,
            spoken: HTTP1,
            clock: Arc::new(weir::clock::now_us),
        }
    }
}

fn policy() -> Policy {
    let rule = |id: &str, tool: &str, action| {
        let when = When { tool: Some(tool.into()), ..When::default() };
        Rule { id: id.into(), when, action, durability: Durability::Strict, mask: None }
    };
    let rules = vec![
        rule("no-deletes", "delete_*", Action::Deny),
        rule("deploys", "deploy", Action::Hold),
        Rule { durability: Durability::BestEffort, ..rule("glances", "glance", Action::Allow) },
    ];
    Policy::new(rules, Action::Allow).unwrap()
}

impl Stage {
    pub async fn new() -> Self {
        Self::of(Plan::default()).await
    }

    pub async fn of(plan: Plan) -> Self {
        let masker = Masker::new(MaskKey::new([3; 32]));
        let disk = Faulty::new();
        let events = Arc::new((Mutex::new(Vec::new()), Notify::new()));
        let seen = events.clone();
        let config = LedgerConfig {
            tap: Some(Arc::new(move |event: &Written| {
                seen.0.lock().unwrap().push(event.clone());
                seen.1.notify_waiters();
            })),
            clock: plan.clock,
            // The disk is in memory, and its reserve is, too.
            limits: weir::spool::Limits { max_bytes: 16 << 20, reserve_bytes: 1 << 16, ..Default::default() },
            ..LedgerConfig::new(
                Arc::new(disk.clone()),
                "t".into(),
                "h".into(),
                Boot::from_random([1; 16]),
                masker.clone(),
            )
        };
        let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
        let approvals = Approvals::new(plan.collector.map(Collector::new), ledger.origin().clone());
        let (tasks, shares) = (Tasks::default(), Shares::new(&plan.limits));
        let share = shares.of(1);
        let gate = Arc::new(Gate {
            policy: plan.policy,
            approvals,
            approval: Approval {
                signers: AllowedSigners::default(),
                deadline: plan.deadline,
                keepalive: Duration::from_millis(20),
                ladder: plan.ladder,
            },
            limits: plan.limits,
            place: Place { tenant: "t".into(), host: "h".into(), origin: ledger.origin().clone() },
            ledger,
            held: HeldCalls::default(),
            sessions: Sessions::default(),
            shares,
            tasks: tasks.clone(),
            masker: masker.clone(),
        });
        let (dial, dialled) = mpsc::unbounded_channel();
        let upstream = upstream(dial.clone(), plan.spoken, tasks).await;
        let record = record::Server {
            address: "192.0.2.1".into(),
            port: 443,
            name: masker.text(SERVER),
            proof: Proof::Certificate,
        };
        let server = Server { name: SERVER.into(), also: vec![], record };
        let caller = Arc::new(caller());
        let (id, tunnels) = (FlowId::from_random([2; 16]), TaskTracker::new());
        let flow = Arc::new(Flow { id, caller, server, upstream, share, tunnels });
        Self { gate, disk, flow, dial, dialled, events, spoken: plan.spoken }
    }

    /// From now on clients come over another connection, of the same process to the same server.
    pub async fn another_flow(&mut self) {
        let upstream = upstream(self.dial.clone(), self.spoken, self.gate.tasks.clone()).await;
        self.flow = Arc::new(Flow {
            id: FlowId::from_random([8; 16]),
            caller: self.flow.caller.clone(),
            server: self.flow.server.clone(),
            upstream,
            share: self.flow.share.clone(),
            tunnels: TaskTracker::new(),
        });
    }

    /// A client's connection. The task ends with it.
    pub fn connect(&self) -> (DuplexStream, tokio::task::JoinHandle<Served>) {
        let (near, far) = duplex(64 << 10);
        let (gate, flow, protocol) = (self.gate.clone(), self.flow.clone(), self.spoken.by_client);
        let served = tokio::spawn(async move {
            let exchange = |request| {
                let (gate, flow) = (gate.clone(), flow.clone());
                async move { gate.exchange(&flow, request).await }
            };
            let Limits { idle_timeout: idle, client_timeout: farewell, .. } = gate.limits;
            let served = tokio::select! {
                biased;
                served = serve(far, Manners { protocol, idle, farewell }, &gate.tasks, exchange) => served,
                () = flow.upstream.idling() => Served::Broken,
            };
            gate.note_framing(&flow, served).await;
            served
        });
        (near, served)
    }

    pub async fn client(&self) -> Client {
        let (stream, _) = self.connect();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Client(sender)
    }

    /// The server's side of the next connection that the gate opens.
    pub async fn accept(&mut self) -> Peer {
        Peer(soon(self.dialled.recv()).await.expect("the gate dials no more"), Vec::new())
    }

    /// The server's side of each connection that the gate opens from now on.
    pub fn all_dialled(&mut self) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (_, nothing) = mpsc::unbounded_channel();
        std::mem::replace(&mut self.dialled, nothing)
    }

    /// Whether the gate opened a connection that nobody accepted.
    pub fn dialled_again(&self) -> bool {
        !self.dialled.is_empty()
    }

    /// Whether the gate sent nothing, over this connection or another.
    pub fn untouched(&self, server: &mut Peer) -> bool {
        let mut byte = [0; 1];
        let reading = std::pin::pin!(server.0.read(&mut byte));
        let polled = reading.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        !self.dialled_again() && polled.is_pending() && server.1.is_empty()
    }

    pub fn events(&self) -> Vec<Body<Masked<String>>> {
        self.events.0.lock().unwrap().iter().map(|event| event.body.clone()).collect()
    }

    /// Forgets what was recorded by now.
    pub fn forget_events(&self) {
        self.events.0.lock().unwrap().clear();
    }

    /// Waits until something that `find` finds is on disk.
    pub async fn recorded<T>(&self, find: impl Fn(&[Body<Masked<String>>]) -> Option<T>) -> T {
        soon(async {
            loop {
                let told = self.events.1.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if let Some(found) = find(&self.events()) {
                    return found;
                }
                told.await;
            }
        })
        .await
    }

    /// The first outcome on disk.
    pub async fn outcome(&self) -> Outcome<Masked<String>> {
        let find = |body: &Body<Masked<String>>| match body {
            Body::Outcome(outcome) => Some(outcome.clone()),
            _ => None,
        };
        self.recorded(|events| events.iter().find_map(find)).await
    }

    /// The texts of the messages on disk with this label, once there are so many.
    pub async fn messages(&self, label: record::MessageLabel, number: usize) -> Vec<String> {
        let text = |body: &Body<Masked<String>>| match body {
            Body::Message(message) if message.label == label => {
                Some(message.payload.text.as_str().to_owned())
            }
            _ => None,
        };
        let all = |events: &[Body<Masked<String>>]| events.iter().filter_map(text).collect::<Vec<_>>();
        self.recorded(|events| Some(all(events)).filter(|texts| texts.len() >= number)).await
    }
}

/// A connection to the server that the test plays.
async fn upstream(dial: mpsc::UnboundedSender<DuplexStream>, spoken: Spoken, tasks: Tasks) -> Upstream {
    let connect = move || {
        let (near, far) = duplex(64 << 10);
        dial.send(far).map_err(|_| "nobody listens".to_owned())?;
        Ok::<_, String>(Dialled { stream: Box::new(near), proven: None })
    };
    let first = connect().unwrap();
    let redial = Box::new(move || {
        let connected = connect();
        Box::pin(async move { connected }) as _
    });
    let flow = FlowId::from_random([9; 16]);
    Upstream::new(flow, Beginning::Dialled(first), spoken, (redial, None), tasks).await.unwrap()
}

fn caller() -> Caller<Masked<String>> {
    let unseen = Caller::unseen(7, (1000, 1000), Masked::default());
    Caller { start_time: Some(1), seen_alive: true, ..unseen }
}

/// The body of a call of a tool.
pub fn call(id: u32, tool: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#
    )
}

/// A POST as MCP's clients send it.
pub fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/mcp")
        .header("host", SERVER)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(Full::new(body.into()))
        .unwrap()
}

pub struct Client(pub SendRequest<Full<Bytes>>);

impl Client {
    /// Sends a request and reads the whole answer.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> (StatusCode, http::HeaderMap, String) {
        soon(self.0.ready()).await.unwrap();
        let answer = soon(self.0.send_request(request)).await.unwrap();
        let (head, body) = answer.into_parts();
        let bytes = soon(body.collect()).await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Sends a request that is to be answered later; of its answer the head is wanted, too.
    pub fn begin_with_head(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> tokio::task::JoinHandle<Result<(http::HeaderMap, String), hyper::Error>> {
        let sent = self.0.send_request(request);
        tokio::spawn(async move {
            let (head, body) = sent.await?.into_parts();
            let bytes = body.collect().await?.to_bytes();
            Ok((head.headers, String::from_utf8_lossy(&bytes).into_owned()))
        })
    }

    /// Sends a request that is to be answered later.
    pub fn begin(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> tokio::task::JoinHandle<Result<(StatusCode, String), hyper::Error>> {
        let sent = self.0.send_request(request);
        tokio::spawn(async move {
            let (head, body) = sent.await?.into_parts();
            let bytes = body.collect().await?.to_bytes();
            Ok((head.status, String::from_utf8_lossy(&bytes).into_owned()))
        })
    }
}

/// One end of a connection, as bytes.
pub struct Peer(pub DuplexStream, Vec<u8>);

impl Peer {
    pub fn new(stream: DuplexStream) -> Self {
        Self(stream, Vec::new())
    }

    /// The next request: its head, lower-case, and its body.
    pub async fn request(&mut self) -> (String, String) {
        let (head, body) = self.request_bytes().await;
        (head, String::from_utf8(body).unwrap())
    }

    /// The same, of a body that is no text.
    pub async fn request_bytes(&mut self) -> (String, Vec<u8>) {
        let head = self.until(b"\r\n\r\n").await.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.1.len() < length {
            self.more().await;
        }
        (head, self.1.drain(..length).collect())
    }

    /// What comes up to and with `end`.
    pub async fn until(&mut self, end: &[u8]) -> String {
        String::from_utf8(self.until_bytes(end).await).unwrap()
    }

    /// The same, of what is no text.
    pub async fn until_bytes(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.1.windows(end.len()).position(|part| part == end) {
                return self.1.drain(..at + end.len()).collect();
            }
            self.more().await;
        }
    }

    async fn more(&mut self) {
        assert_ne!(soon(self.0.read_buf(&mut self.1)).await.unwrap(), 0, "the connection was closed");
    }

    pub async fn say(&mut self, text: &str) {
        self.say_bytes(text.as_bytes()).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        soon(self.0.write_all(bytes)).await.unwrap();
    }

    /// Answers with a JSON-RPC message.
    pub async fn answer(&mut self, json: &str) {
        let head = format!("content-type: application/json\r\ncontent-length: {}", json.len());
        self.say(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{json}")).await;
    }

    /// Waits until the other end has closed; says what came before.
    /// Says that it will say no more.
    pub async fn leave(&mut self) {
        soon(self.0.shutdown()).await.unwrap();
    }

    pub async fn closed(mut self) -> String {
        let _ = soon(self.0.read_to_end(&mut self.1)).await;
        String::from_utf8_lossy(&self.1).into_owned()
    }
}
