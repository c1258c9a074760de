-- Events: one row for each canonical event. Every column down to `payload_masked_pointers` derives from `canonical`.
CREATE TABLE IF NOT EXISTS events
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    boot LowCardinality(String),
    seq UInt64 CODEC(Delta(8), ZSTD(1)),
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    kind LowCardinality(String),

    call_id String CODEC(ZSTD(1)),
    flow_id String CODEC(ZSTD(1)),
    approval_id String CODEC(ZSTD(1)),

    process_pid UInt32,
    process_start_ticks Nullable(UInt64),
    process_user_id UInt32,
    process_group_id UInt32,
    process_comm LowCardinality(String),
    process_executable_path LowCardinality(String),
    process_command_line String CODEC(ZSTD(3)),
    process_linux_cgroup LowCardinality(String),
    process_seen_alive Bool,

    cicd_provider LowCardinality(String),
    vcs_repository_name LowCardinality(String),
    cicd_pipeline_name LowCardinality(String),
    cicd_pipeline_run_id String CODEC(ZSTD(1)),
    cicd_pipeline_task_name LowCardinality(String),
    cicd_actor LowCardinality(String),
    vcs_ref_head_name LowCardinality(String),
    vcs_ref_head_revision String CODEC(ZSTD(1)),
    cicd_worker_name LowCardinality(String),

    server_name LowCardinality(String),
    server_address LowCardinality(String),
    server_port UInt16,
    server_proof LowCardinality(String),
    tls_client_server_name LowCardinality(String),

    mcp_method_name LowCardinality(String),
    gen_ai_tool_name LowCardinality(String),
    jsonrpc_request_id String CODEC(ZSTD(1)),
    mcp_session_id String CODEC(ZSTD(1)),
    mcp_protocol_version LowCardinality(String),
    message_direction LowCardinality(String),
    message_label LowCardinality(String),

    policy_action LowCardinality(String),
    policy_rule LowCardinality(String),
    policy_digest LowCardinality(String),
    durability LowCardinality(String),

    decision LowCardinality(String),
    approver LowCardinality(String),
    approver_key LowCardinality(String),
    justification String CODEC(ZSTD(3)),
    ticket String CODEC(ZSTD(1)),
    signed_at Nullable(DateTime64(6, 'UTC')),
    statement String CODEC(ZSTD(3)),
    signature String CODEC(ZSTD(1)),

    result LowCardinality(String),
    http_response_status_code Nullable(UInt16),
    rpc_response_status_code Nullable(Int64),
    duration_us Nullable(UInt64),

    flow_treatment LowCardinality(String),
    flow_end LowCardinality(String),
    bytes_up UInt64,
    bytes_down UInt64,

    event_name LowCardinality(String),
    event_detail Map(String, String),

    payload String CODEC(ZSTD(3)),
    payload_bytes UInt64,
    payload_truncated Bool,
    payload_masked_detectors Array(LowCardinality(String)),
    payload_masked_pointers Array(String),

    canonical String CODEC(ZSTD(3)),

    -- What the collector adds.
    batch_first_seq UInt64 CODEC(Delta(8), ZSTD(1)),
    batch_digest LowCardinality(String),
    agent_uid UInt32,
    ingested_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),

    INDEX seq_range seq TYPE minmax GRANULARITY 1,
    INDEX call_ids call_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX flow_ids flow_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX approval_ids approval_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX run_ids cicd_pipeline_run_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX sessions mcp_session_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (tenant, origin, toStartOfHour(time), seq)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;
