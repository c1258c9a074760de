-- Correlation: what ties messages to calls, calls to calls, and both to traces; why something was not read; and the
-- keyed digest of contents that are not kept whole.
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS gen_ai_operation_name LowCardinality(String) AFTER gen_ai_tool_name,
    ADD COLUMN IF NOT EXISTS gen_ai_prompt_name LowCardinality(String) AFTER gen_ai_operation_name,
    ADD COLUMN IF NOT EXISTS mcp_resource_uri String CODEC(ZSTD(1)) AFTER gen_ai_prompt_name,
    ADD COLUMN IF NOT EXISTS mcp_tool_digest LowCardinality(String) AFTER mcp_resource_uri,
    ADD COLUMN IF NOT EXISTS mcp_begins_session_id String CODEC(ZSTD(1)) AFTER mcp_protocol_version,
    ADD COLUMN IF NOT EXISTS mcp_progress_token String CODEC(ZSTD(1)) AFTER mcp_begins_session_id,
    ADD COLUMN IF NOT EXISTS mcp_task_id String CODEC(ZSTD(1)) AFTER mcp_progress_token,
    ADD COLUMN IF NOT EXISTS mcp_request_state String CODEC(ZSTD(1)) AFTER mcp_task_id,
    ADD COLUMN IF NOT EXISTS mcp_result_type LowCardinality(String) AFTER mcp_request_state,
    ADD COLUMN IF NOT EXISTS mcp_oddities Array(LowCardinality(String)) AFTER mcp_result_type,
    ADD COLUMN IF NOT EXISTS regards_call_id String CODEC(ZSTD(1)) AFTER mcp_oddities,
    ADD COLUMN IF NOT EXISTS message_id String CODEC(ZSTD(1)) AFTER regards_call_id,
    ADD COLUMN IF NOT EXISTS regards_message_id String CODEC(ZSTD(1)) AFTER message_id,
    ADD COLUMN IF NOT EXISTS trace_id String CODEC(ZSTD(1)) AFTER regards_message_id,
    ADD COLUMN IF NOT EXISTS trace_parent_span_id String CODEC(ZSTD(1)) AFTER trace_id,
    ADD COLUMN IF NOT EXISTS client_correlation Map(String, String) AFTER trace_parent_span_id,
    ADD COLUMN IF NOT EXISTS network_protocol_version LowCardinality(String) AFTER client_correlation,
    ADD COLUMN IF NOT EXISTS error_type LowCardinality(String) AFTER rpc_response_status_code,
    ADD COLUMN IF NOT EXISTS unread_reason LowCardinality(String) AFTER error_type,
    ADD COLUMN IF NOT EXISTS payload_digest String CODEC(ZSTD(1)) AFTER payload_truncated,
    ADD INDEX IF NOT EXISTS trace_ids trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    ADD INDEX IF NOT EXISTS payload_digests payload_digest TYPE bloom_filter(0.01) GRANULARITY 1;

-- Calls: with what ties them to others.
CREATE OR REPLACE VIEW calls AS
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
    intent.gen_ai_prompt_name AS gen_ai_prompt_name,
    intent.mcp_resource_uri AS mcp_resource_uri,
    intent.mcp_tool_digest AS mcp_tool_digest,
    intent.jsonrpc_request_id AS jsonrpc_request_id,
    if(intent.mcp_session_id = '', outcome.mcp_begins_session_id, intent.mcp_session_id) AS mcp_session_id,
    intent.mcp_protocol_version AS mcp_protocol_version,
    if(intent.mcp_task_id = '', outcome.mcp_task_id, intent.mcp_task_id) AS mcp_task_id,
    outcome.mcp_result_type AS mcp_result_type,
    arrayDistinct(arrayConcat(intent.mcp_oddities, outcome.mcp_oddities)) AS mcp_oddities,
    intent.regards_call_id AS regards_call_id,
    intent.trace_id AS trace_id,
    intent.trace_parent_span_id AS trace_parent_span_id,
    intent.client_correlation AS client_correlation,
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
    outcome.error_type AS error_type,
    outcome.unread_reason AS unread_reason,
    outcome.duration_us AS duration_us,
    intent.payload AS arguments,
    intent.payload_bytes AS arguments_bytes,
    intent.payload_truncated AS arguments_truncated,
    intent.payload_digest AS arguments_digest,
    intent.payload_masked_detectors AS arguments_masked_detectors,
    intent.payload_masked_pointers AS arguments_masked_pointers,
    outcome.payload AS result_payload,
    outcome.payload_bytes AS result_bytes,
    outcome.payload_truncated AS result_truncated,
    outcome.payload_digest AS result_digest,
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

-- Messages: what was said besides calls and their answers.
CREATE VIEW IF NOT EXISTS messages AS
SELECT
    time, tenant, host_name, origin, seq, call_id, flow_id,
    message_direction, message_label, mcp_method_name, jsonrpc_request_id, mcp_session_id, mcp_protocol_version,
    mcp_resource_uri, mcp_progress_token, mcp_task_id, mcp_oddities, message_id, regards_message_id,
    rpc_response_status_code, unread_reason, trace_id, trace_parent_span_id,
    payload, payload_bytes, payload_truncated, payload_digest, payload_masked_detectors, payload_masked_pointers
FROM events
WHERE kind = 'message';
