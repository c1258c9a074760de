-- Holds: calls that wait for a human, as the agent submitted them. `hold` is what an approver's statement repeats.
CREATE TABLE IF NOT EXISTS holds
(
    approval_id String,
    call_id String,
    tenant LowCardinality(String),
    origin LowCardinality(String),
    host_name LowCardinality(String),
    created_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    expires_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    policy_rule LowCardinality(String),
    server_name LowCardinality(String),
    gen_ai_tool_name LowCardinality(String),
    cicd_pipeline_task_name LowCardinality(String),
    hold String CODEC(ZSTD(3)),
    agent_uid UInt32,
    ingested_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(created_at)
ORDER BY approval_id
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Decisions: what approvers signed. The agent checks each; this table proves nothing by itself.
CREATE TABLE IF NOT EXISTS decisions
(
    approval_id String,
    answer LowCardinality(String),
    approver LowCardinality(String),
    justification String CODEC(ZSTD(3)),
    ticket String,
    issued_at DateTime64(6, 'UTC'),
    statement String CODEC(ZSTD(3)),
    signature String,
    submitted_by LowCardinality(String),
    submitted_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(submitted_at)
ORDER BY (approval_id, submitted_at)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;
