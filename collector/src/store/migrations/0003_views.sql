-- Calls: each intent with the end of its hold, if it had one, and its outcome, if that has arrived.
CREATE VIEW IF NOT EXISTS calls AS
SELECT
    intent.time AS time,
    intent.tenant AS tenant,
    intent.host_name AS host_name,
    intent.origin AS origin,
    intent.seq AS seq,
    intent.call_id AS call_id,
    intent.flow_id AS flow_id,
    intent.cicd_provider AS cicd_provider,
    intent.vcs_repository_name AS vcs_repository_name,
    intent.cicd_pipeline_name AS cicd_pipeline_name,
    intent.cicd_pipeline_run_id AS cicd_pipeline_run_id,
    intent.cicd_pipeline_task_name AS cicd_pipeline_task_name,
    intent.cicd_actor AS cicd_actor,
    intent.vcs_ref_head_name AS vcs_ref_head_name,
    intent.vcs_ref_head_revision AS vcs_ref_head_revision,
    intent.cicd_worker_name AS cicd_worker_name,
    intent.process_pid AS process_pid,
    intent.process_start_ticks AS process_start_ticks,
    intent.process_user_id AS process_user_id,
    intent.process_comm AS process_comm,
    intent.process_executable_path AS process_executable_path,
    intent.process_command_line AS process_command_line,
    intent.process_linux_cgroup AS process_linux_cgroup,
    intent.process_seen_alive AS process_seen_alive,
    intent.server_name AS server_name,
    intent.server_address AS server_address,
    intent.server_port AS server_port,
    intent.server_proof AS server_proof,
    intent.mcp_method_name AS mcp_method_name,
    intent.gen_ai_tool_name AS gen_ai_tool_name,
    intent.jsonrpc_request_id AS jsonrpc_request_id,
    intent.mcp_session_id AS mcp_session_id,
    intent.mcp_protocol_version AS mcp_protocol_version,
    intent.policy_action AS policy_action,
    intent.policy_rule AS policy_rule,
    intent.policy_digest AS policy_digest,
    intent.durability AS durability,
    intent.approval_id AS approval_id,
    answer.decision AS decision,
    answer.approver AS approver,
    answer.approver_key AS approver_key,
    answer.justification AS justification,
    answer.ticket AS ticket,
    answer.signed_at AS signed_at,
    if(ifNull(outcome.call_id, '') = '', 'open', outcome.result) AS result,
    outcome.http_response_status_code AS http_response_status_code,
    outcome.rpc_response_status_code AS rpc_response_status_code,
    outcome.duration_us AS duration_us,
    intent.payload AS arguments,
    intent.payload_bytes AS arguments_bytes,
    intent.payload_truncated AS arguments_truncated,
    intent.payload_masked_detectors AS arguments_masked_detectors,
    intent.payload_masked_pointers AS arguments_masked_pointers,
    outcome.payload AS result_payload,
    outcome.payload_bytes AS result_bytes,
    outcome.payload_truncated AS result_truncated,
    outcome.payload_masked_detectors AS result_masked_detectors,
    outcome.payload_masked_pointers AS result_masked_pointers
FROM
    (SELECT * FROM events WHERE kind = 'intent') AS intent
LEFT JOIN
    (SELECT * FROM events WHERE kind = 'outcome') AS outcome
    ON outcome.origin = intent.origin AND outcome.call_id = intent.call_id
LEFT JOIN
    (SELECT * FROM events WHERE kind = 'decision' AND decision != 'invalid') AS answer
    ON answer.origin = intent.origin AND answer.call_id = intent.call_id;

-- Flows: each connection that ended, with what Weir did with it.
CREATE VIEW IF NOT EXISTS flows AS
SELECT
    time, tenant, host_name, origin, seq, flow_id,
    cicd_provider, vcs_repository_name, cicd_pipeline_name, cicd_pipeline_run_id, cicd_pipeline_task_name, cicd_actor,
    process_pid, process_start_ticks, process_user_id, process_comm, process_executable_path, process_command_line,
    process_linux_cgroup, process_seen_alive,
    server_name, server_address, server_port, server_proof, tls_client_server_name,
    flow_treatment, flow_end, bytes_up, bytes_down, duration_us
FROM events
WHERE kind = 'flow';

-- Gaps: runs of sequence numbers that are missing between events that are there.
CREATE VIEW IF NOT EXISTS gaps AS
SELECT
    tenant, host_name, origin,
    toUInt64(previous + 1) AS first_missing_seq,
    toUInt64(next - 1) AS last_missing_seq,
    toUInt64(next - previous - 1) AS missing
FROM
(
    SELECT
        tenant, host_name, origin,
        toInt64(seq) AS next,
        lagInFrame(toInt64(seq), 1, toInt64(-1)) OVER (
            PARTITION BY origin ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS previous
    FROM events
)
WHERE next - previous > 1;
