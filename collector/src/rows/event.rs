//! One event as a row of `events`.

use std::collections::BTreeMap;
use std::sync::Arc;

use clickhouse::Row;
use serde::{Serialize, Serializer};
use weir_core::evidence::{Hash, leaf_hash};
use weir_core::mcp::TOOLS_CALL;
use weir_core::record::{
    Body, CallResult, Caller, Completeness, Connect, ConnectSums, ConnectVerdict, DecisionRecord, Durability,
    Flow, Gap, Intent, Marks, Mcp, Message, Oddity, Outcome, Payload, Proof, Server, Stored, Unread,
};

use super::{Batch, time};

/// A row of `events`. What does not apply to an event's kind is empty, 0 or null.
#[derive(Debug, Clone, PartialEq, Default, Row, Serialize)]
pub struct EventRow {
    pub tenant: String,
    pub host_name: String,
    pub origin: String,
    pub boot: String,
    pub seq: u64,
    pub time: i64,
    pub kind: &'static str,
    pub call_id: String,
    pub flow_id: String,
    pub approval_id: String,
    pub process_pid: u32,
    pub process_start_ticks: Option<u64>,
    pub process_user_id: u32,
    pub process_group_id: u32,
    pub process_comm: String,
    pub process_executable_path: String,
    pub process_command_line: String,
    pub process_linux_cgroup: String,
    pub process_seen_alive: bool,
    pub process_ancestor_pids: Vec<u32>,
    pub process_ancestor_start_ticks: Vec<Option<u64>>,
    pub process_ancestor_executable_paths: Vec<String>,
    pub process_linux_network_namespace: u32,
    pub container_id: String,
    pub job_key: String,
    pub cicd_provider: String,
    pub vcs_repository_name: String,
    pub cicd_pipeline_name: String,
    pub cicd_pipeline_run_id: String,
    pub cicd_pipeline_task_name: String,
    pub cicd_actor: String,
    pub vcs_ref_head_name: String,
    pub vcs_ref_head_revision: String,
    pub cicd_worker_name: String,
    pub server_name: String,
    pub server_address: String,
    pub server_port: u16,
    pub server_proof: &'static str,
    pub tls_client_server_name: String,
    pub mcp_method_name: String,
    pub gen_ai_tool_name: String,
    pub gen_ai_operation_name: &'static str,
    pub gen_ai_prompt_name: String,
    pub mcp_resource_uri: String,
    pub mcp_tool_digest: String,
    pub jsonrpc_request_id: String,
    pub mcp_session_id: String,
    pub mcp_protocol_version: String,
    pub mcp_begins_session_id: String,
    pub mcp_progress_token: String,
    pub mcp_task_id: String,
    pub mcp_request_state: String,
    pub mcp_result_type: String,
    pub mcp_oddities: Vec<&'static str>,
    pub regards_call_id: String,
    pub message_id: String,
    pub regards_message_id: String,
    pub trace_id: String,
    pub trace_parent_span_id: String,
    pub client_correlation: BTreeMap<String, String>,
    pub network_protocol_version: String,
    pub message_direction: &'static str,
    pub message_label: &'static str,
    pub policy_action: &'static str,
    pub policy_rule: String,
    pub policy_digest: String,
    pub durability: &'static str,
    pub decision: &'static str,
    pub approver: String,
    pub approver_key: String,
    pub justification: String,
    pub ticket: String,
    pub signed_at: Option<i64>,
    pub statement: String,
    pub signature: String,
    pub result: &'static str,
    pub http_response_status_code: Option<u16>,
    pub rpc_response_status_code: Option<i64>,
    pub error_type: String,
    pub unread_reason: &'static str,
    pub duration_us: Option<u64>,
    pub flow_treatment: &'static str,
    pub flow_end: &'static str,
    pub flow_reason: &'static str,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub connect_verdict: &'static str,
    pub connect_reason: &'static str,
    pub connect_protocol: u8,
    pub connect_boot_ns: u64,
    pub client_address: String,
    pub client_port: u16,
    pub job_name: String,
    pub job_closed: bool,
    pub kernel_connects: BTreeMap<&'static str, u64>,
    pub lost_connects: BTreeMap<&'static str, u64>,
    pub connects_in_flight: u64,
    pub table_counts: BTreeMap<String, u64>,
    pub gap_reason: &'static str,
    pub gap_count: u64,
    pub event_name: String,
    pub event_detail: BTreeMap<String, String>,
    pub payload: String,
    pub payload_bytes: u64,
    pub payload_truncated: bool,
    pub payload_digest: String,
    pub payload_masked_detectors: Vec<String>,
    pub payload_masked_pointers: Vec<String>,
    #[serde(serialize_with = "bytes")]
    pub canonical: Vec<u8>,
    pub batch_first_seq: u64,
    pub batch_digest: String,
    pub agent_uid: u32,
    pub ingested_at: i64,
    pub epoch: u32,
    pub leaf_hash: Hash,
    pub parse_error: String,
    pub sealed_at: i64,
    pub agent_identity: String,
}

/// Where a row that cannot be read as an event belongs: of its own words none counts.
#[derive(Debug, Clone)]
pub struct Place {
    pub tenant: String,
    pub host: String,
    pub origin: String,
    pub seq: u64,
}

/// As ClickHouse's String: any bytes.
fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl EventRow {
    /// `canonical` are the bytes that `event` was read from.
    pub fn of(event: Stored, canonical: Vec<u8>, batch: &Batch) -> Self {
        let leaf = leaf_hash(&canonical);
        Self::with_leaf(event, canonical, leaf, batch)
    }

    /// The same, where their leaf is known.
    pub fn with_leaf(event: Stored, canonical: Vec<u8>, leaf_hash: Hash, batch: &Batch) -> Self {
        let mut row = Self {
            tenant: event.tenant,
            host_name: event.host,
            origin: event.origin.to_string(),
            boot: event.boot.to_string(),
            seq: event.seq,
            time: time(event.time_us),
            kind: event.body.kind(),
            ..Self::came(canonical, leaf_hash, batch)
        };
        match event.body {
            Body::Intent(intent) => row.intent(*intent),
            Body::Decision(decision) => row.decision(decision),
            Body::Message(message) => row.message(message),
            Body::Outcome(outcome) => row.outcome(outcome),
            Body::Flow(flow) => row.flow(flow),
            Body::Agent(event) => {
                row.event_name = event.name;
                row.event_detail = event.detail;
            }
            Body::Completeness(sums) => row.completeness(sums),
            Body::Gap(gap) => row.gap(gap),
        }
        row
    }

    /// A leaf whose bytes are no event that this program can read, or one of another place: they are kept as they are.
    /// The time of sealing stands for its own.
    pub fn opaque(place: &Place, canonical: Vec<u8>, error: String, batch: &Batch) -> Self {
        let leaf_hash = leaf_hash(&canonical);
        Self {
            tenant: place.tenant.clone(),
            host_name: place.host.clone(),
            origin: place.origin.clone(),
            seq: place.seq,
            time: time(batch.sealed_us),
            parse_error: error,
            ..Self::came(canonical, leaf_hash, batch)
        }
    }

    fn came(canonical: Vec<u8>, leaf_hash: Hash, batch: &Batch) -> Self {
        Self {
            leaf_hash,
            canonical,
            epoch: batch.epoch,
            batch_first_seq: batch.first_seq,
            batch_digest: batch.digest.clone(),
            sealed_at: time(batch.sealed_us),
            agent_uid: batch.agent_uid,
            agent_identity: batch.agent_identity.clone(),
            ingested_at: batch.ingested_us,
            ..Self::default()
        }
    }

    fn intent(&mut self, intent: Intent<String>) {
        self.call_id = intent.call_id.to_string();
        self.flow_id = intent.flow_id.to_string();
        self.approval_id = intent.approval_id.map(|id| id.to_string()).unwrap_or_default();
        self.caller(intent.caller);
        self.server(intent.server);
        self.mcp(intent.mcp);
        self.policy_action = intent.verdict.action.as_str();
        self.policy_rule = intent.verdict.rule;
        self.policy_digest = intent.verdict.policy_digest;
        self.durability = match intent.durability {
            Durability::Strict => "strict",
            Durability::BestEffort => "best_effort",
        };
        self.payload(intent.payload);
    }

    fn decision(&mut self, decision: DecisionRecord<String>) {
        self.call_id = decision.call_id.to_string();
        self.approval_id = decision.approval_id.to_string();
        self.decision = decision.decision.as_str();
        self.approver = decision.approver;
        self.approver_key = decision.key;
        self.justification = decision.justification;
        self.ticket = decision.ticket;
        self.signed_at = decision.signed_us.map(time);
        self.statement = decision.statement;
        self.signature = decision.signature;
    }

    fn message(&mut self, message: Message<String>) {
        self.flow_id = message.flow_id.to_string();
        self.call_id = message.call_id.map(|id| id.to_string()).unwrap_or_default();
        self.message_direction = message.direction.as_str();
        self.message_label = message.label.as_str();
        self.mcp_method_name = message.method;
        self.jsonrpc_request_id = message.request_id.unwrap_or_default();
        self.mcp_session_id = message.session.unwrap_or_default();
        self.mcp_protocol_version = message.protocol_version.unwrap_or_default();
        self.message_id = message.message_id.map(|id| id.to_string()).unwrap_or_default();
        self.rpc_response_status_code = message.error_code;
        self.unread_reason = message.unread.map_or("", Unread::as_str);
        self.marks(message.marks);
        if let Some(id) = message.answers {
            self.regards_message_id = id.to_string();
        }
        self.payload(message.payload);
    }

    fn outcome(&mut self, outcome: Outcome<String>) {
        self.call_id = outcome.call_id.to_string();
        self.result = outcome.result.as_str();
        self.http_response_status_code = outcome.http_status;
        self.rpc_response_status_code = outcome.error_code;
        self.duration_us = outcome.duration_us;
        self.error_type = match (outcome.result, outcome.error_code) {
            (CallResult::Ok, _) => String::new(),
            (CallResult::Error, Some(code)) => code.to_string(),
            (result, _) => result.as_str().to_owned(),
        };
        self.unread_reason = outcome.unread.map_or("", Unread::as_str);
        self.marks(outcome.marks);
        self.payload(outcome.payload);
    }

    fn flow(&mut self, flow: Flow<String>) {
        self.flow_id = flow.flow_id.to_string();
        self.caller(flow.caller);
        self.server(flow.server);
        self.tls_client_server_name = flow.sni;
        self.flow_treatment = flow.treatment.as_str();
        self.flow_end = flow.end.as_str();
        self.flow_reason = flow.reason.as_str();
        self.bytes_up = flow.bytes_up;
        self.bytes_down = flow.bytes_down;
        self.duration_us = Some(flow.duration_us);
        if let Some(connect) = flow.connect {
            self.connect(connect);
        }
    }

    /// The job is the one that the kernel counted under, whatever the process's own is by now.
    fn connect(&mut self, connect: Connect) {
        self.job_key = connect.job_key;
        self.connect_verdict = connect.verdict.as_str();
        self.connect_reason = connect.reason.as_str();
        self.connect_protocol = connect.protocol;
        self.connect_boot_ns = connect.at_ns;
        self.client_address = connect.source;
        self.client_port = connect.source_port;
    }

    fn completeness(&mut self, sums: Completeness<String>) {
        self.job_key = sums.job_key;
        self.job_name = sums.name;
        self.job_closed = sums.closed;
        self.kernel_connects = by_verdict(&sums.kernel);
        self.lost_connects = by_verdict(&sums.lost);
        self.connects_in_flight = sums.in_flight;
        self.table_counts = sums.tables;
    }

    fn gap(&mut self, gap: Gap<String>) {
        self.job_key = gap.job_key;
        self.connect_verdict = gap.verdict.as_str();
        self.gap_reason = gap.reason.as_str();
        self.gap_count = gap.count;
        self.event_detail = gap.detail;
    }

    fn caller(&mut self, caller: Arc<Caller<String>>) {
        let caller = Arc::unwrap_or_clone(caller);
        self.process_pid = caller.pid;
        self.process_start_ticks = caller.start_time;
        self.process_user_id = caller.uid;
        self.process_group_id = caller.gid;
        self.process_comm = caller.comm;
        self.process_executable_path = caller.executable;
        self.process_command_line = caller.command_line;
        self.process_linux_cgroup = caller.cgroup;
        self.process_seen_alive = caller.seen_alive;
        for ancestor in caller.parents {
            self.process_ancestor_pids.push(ancestor.pid);
            self.process_ancestor_start_ticks.push(ancestor.start_time);
            self.process_ancestor_executable_paths.push(ancestor.executable);
        }
        self.process_linux_network_namespace = caller.netns;
        self.container_id = caller.container_id;
        self.job_key = caller.job_key;
        self.cicd_provider = caller.job.provider;
        self.vcs_repository_name = caller.job.repository;
        self.cicd_pipeline_name = caller.job.workflow;
        self.cicd_pipeline_run_id = caller.job.run_id;
        self.cicd_pipeline_task_name = caller.job.job;
        self.cicd_actor = caller.job.actor;
        self.vcs_ref_head_name = caller.job.reference;
        self.vcs_ref_head_revision = caller.job.commit;
        self.cicd_worker_name = caller.job.runner;
    }

    fn server(&mut self, server: Server<String>) {
        self.server_name = server.name;
        self.server_address = server.address;
        self.server_port = server.port;
        self.server_proof = match server.proof {
            Proof::Certificate => "certificate",
            Proof::Unproven => "unproven",
        };
    }

    fn mcp(&mut self, mcp: Mcp<String>) {
        self.gen_ai_operation_name = if mcp.method == TOOLS_CALL { "execute_tool" } else { "" };
        self.mcp_method_name = mcp.method;
        self.gen_ai_tool_name = mcp.tool.unwrap_or_default();
        self.jsonrpc_request_id = mcp.request_id.unwrap_or_default();
        self.mcp_session_id = mcp.session.unwrap_or_default();
        self.mcp_protocol_version = mcp.protocol_version.unwrap_or_default();
        self.marks(mcp.marks);
    }

    fn marks(&mut self, marks: Marks<String>) {
        self.gen_ai_prompt_name = marks.prompt.unwrap_or_default();
        self.mcp_resource_uri = marks.resource.unwrap_or_default();
        self.mcp_tool_digest = marks.tool_digest.unwrap_or_default();
        self.mcp_begins_session_id = marks.begins_session.unwrap_or_default();
        self.mcp_progress_token = marks.progress_token.unwrap_or_default();
        self.mcp_task_id = marks.task.unwrap_or_default();
        self.mcp_request_state = marks.request_state.unwrap_or_default();
        self.mcp_result_type = marks.result_type.unwrap_or_default();
        self.mcp_oddities = marks.odd.into_iter().map(Oddity::as_str).collect();
        self.regards_call_id = marks.regards.map(|id| id.to_string()).unwrap_or_default();
        self.regards_message_id = marks.regards_message.map(|id| id.to_string()).unwrap_or_default();
        if let Some((trace, span)) = marks.traceparent.as_deref().and_then(trace_context) {
            self.trace_id = trace.to_owned();
            self.trace_parent_span_id = span.to_owned();
        }
        self.client_correlation = marks.client;
        self.network_protocol_version = marks.http_version.unwrap_or_default();
    }

    fn payload(&mut self, payload: Payload<String>) {
        self.payload = payload.text;
        self.payload_bytes = payload.bytes;
        self.payload_truncated = payload.truncated;
        self.payload_digest = payload.digest.unwrap_or_default();
        (self.payload_masked_detectors, self.payload_masked_pointers) =
            payload.masked.into_iter().map(|span| (span.detector, span.pointer)).unzip();
    }
}

/// The trace and the parent's span of a `traceparent` (W3C Trace Context, 3.2): `00-<32 hex>-<16 hex>-<flags>`.
fn trace_context(traceparent: &str) -> Option<(&str, &str)> {
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = traceparent.split('-');
    let (version, trace, span, _flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let valid = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16);
    let named = trace.bytes().any(|byte| byte != b'0') && span.bytes().any(|byte| byte != b'0');
    (valid && named).then_some((trace, span))
}

fn by_verdict(sums: &ConnectSums) -> BTreeMap<&'static str, u64> {
    ConnectVerdict::ALL.iter().map(|verdict| (verdict.as_str(), sums.of(*verdict))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_taken_whole_or_not_at_all() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert_eq!(trace_context(&format!("00-{trace}-{span}-01")), Some((trace, span)));
        // A later version may have more parts.
        assert_eq!(trace_context(&format!("01-{trace}-{span}-01-more")), Some((trace, span)));
        let zeros = "0".repeat(32);
        for text in [
            format!("00-{trace}-{span}"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{zeros}-{span}-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            "[masked:overlong:p0:0]".to_owned(),
        ] {
            assert_eq!(trace_context(&text), None, "{text}");
        }
    }
}
