-- Questions: what makes them answer at once. Nothing here is evidence: all of it derives from `events`, and whoever
-- wants to be sure reads `events`.

-- Each secret by its pseudonym: wherever in the event it stands, and in the content alone.
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS masked_pseudonyms Array(String)
        MATERIALIZED arrayDistinct(extractAll(canonical, '\\[masked:[^:\\]]+:(p[0-9]+:[0-9a-f]{16})\\]')) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS payload_pseudonyms Array(String)
        MATERIALIZED arrayDistinct(extractAll(payload, '\\[masked:[^:\\]]+:(p[0-9]+:[0-9a-f]{16})\\]')) CODEC(ZSTD(1));

-- A question for a run's outcomes names hundreds of calls: the filter must be wrong rarely, or each block is read.
ALTER TABLE events
    DROP INDEX IF EXISTS call_ids,
    DROP INDEX IF EXISTS flow_ids,
    ADD INDEX IF NOT EXISTS calls call_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    ADD INDEX IF NOT EXISTS connections flow_id TYPE bloom_filter(0.0001) GRANULARITY 1,
    ADD INDEX IF NOT EXISTS pseudonyms masked_pseudonyms TYPE bloom_filter(0.001) GRANULARITY 1,
    ADD INDEX IF NOT EXISTS tasks cicd_pipeline_task_name TYPE bloom_filter(0.01) GRANULARITY 1,
    ADD INDEX IF NOT EXISTS names event_name TYPE set(20) GRANULARITY 1,
    ADD INDEX IF NOT EXISTS arguments if(kind = 'intent', payload, '') TYPE text(tokenizer = splitByNonAlpha);

-- What stands there of each segment, and when its log was heard of. A projection is part of the rows' own part: it
-- comes and goes with them, however they were written or deleted.
ALTER TABLE events MODIFY SETTING lightweight_mutation_projection_mode = 'rebuild';

ALTER TABLE events
    ADD PROJECTION IF NOT EXISTS by_segment
    (
        SELECT
            tenant, host_name, origin, batch_first_seq, toStartOfFiveMinutes(time),
            count(), countIf(kind = 'intent'), min(seq), max(seq), sum(seq), min(time), max(time), max(ingested_at)
        GROUP BY tenant, host_name, origin, batch_first_seq, toStartOfFiveMinutes(time)
    );

-- Also for the rows that are there already, beside what else goes on.
ALTER TABLE events
    MATERIALIZE COLUMN masked_pseudonyms,
    MATERIALIZE COLUMN payload_pseudonyms,
    MATERIALIZE INDEX calls,
    MATERIALIZE INDEX connections,
    MATERIALIZE INDEX pseudonyms,
    MATERIALIZE INDEX tasks,
    MATERIALIZE INDEX names,
    MATERIALIZE INDEX arguments,
    MATERIALIZE PROJECTION by_segment;

-- Calls in windows of five minutes. The window in which a retried insert is known is that of `events`.
CREATE TABLE IF NOT EXISTS calls_5m
(
    tenant LowCardinality(String),
    began_at DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    host_name LowCardinality(String),
    vcs_repository_name LowCardinality(String),
    cicd_pipeline_name LowCardinality(String),
    cicd_pipeline_task_name LowCardinality(String),
    cicd_pipeline_run_id String CODEC(ZSTD(1)),
    cicd_actor LowCardinality(String),
    process_user_id UInt32,
    process_executable_path LowCardinality(String),
    server_name LowCardinality(String),
    mcp_method_name LowCardinality(String),
    gen_ai_tool_name LowCardinality(String),
    mcp_tool_digest LowCardinality(String),
    policy_action LowCardinality(String),
    policy_rule LowCardinality(String),
    policy_digest LowCardinality(String),
    calls SimpleAggregateFunction(sum, UInt64),
    first_time SimpleAggregateFunction(min, DateTime64(6, 'UTC')),
    last_time SimpleAggregateFunction(max, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(began_at)
ORDER BY (
    tenant, server_name, gen_ai_tool_name, mcp_tool_digest, mcp_method_name, policy_action, policy_rule, policy_digest,
    vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name, cicd_actor, host_name, process_user_id,
    process_executable_path, cicd_pipeline_run_id, began_at
)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Held calls: each one's intent and what was said to end it, in one small place.
CREATE TABLE IF NOT EXISTS held
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    seq UInt64,
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    kind LowCardinality(String),
    approval_id String CODEC(ZSTD(1)),
    call_id String CODEC(ZSTD(1)),
    vcs_repository_name LowCardinality(String),
    cicd_pipeline_run_id String CODEC(ZSTD(1)),
    cicd_pipeline_task_name LowCardinality(String),
    cicd_actor LowCardinality(String),
    server_name LowCardinality(String),
    gen_ai_tool_name LowCardinality(String),
    policy_rule LowCardinality(String),
    policy_digest LowCardinality(String),
    decision LowCardinality(String),
    approver LowCardinality(String),
    approver_key LowCardinality(String),
    justification String CODEC(ZSTD(3)),
    ticket String CODEC(ZSTD(1)),
    signed_at Nullable(DateTime64(6, 'UTC'))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (tenant, approval_id, seq)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- What is there already, before the views that fill both from now on.
-- when: SELECT toUInt64(count() = 0) FROM system.tables WHERE database = currentDatabase() AND name = 'calls_5m_filling'
TRUNCATE TABLE calls_5m;

-- when: SELECT toUInt64(count() = 0) FROM system.tables WHERE database = currentDatabase() AND name = 'calls_5m_filling'
INSERT INTO calls_5m
SELECT
    tenant, toStartOfFiveMinutes(events.time) AS began_at, host_name, vcs_repository_name, cicd_pipeline_name,
    cicd_pipeline_task_name, cicd_pipeline_run_id, cicd_actor, process_user_id, process_executable_path, server_name,
    mcp_method_name, gen_ai_tool_name, mcp_tool_digest, policy_action, policy_rule, policy_digest,
    count() AS calls, min(events.time) AS first_time, max(events.time) AS last_time
FROM events
WHERE kind = 'intent'
GROUP BY
    tenant, began_at, host_name, vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name,
    cicd_pipeline_run_id, cicd_actor, process_user_id, process_executable_path, server_name, mcp_method_name,
    gen_ai_tool_name, mcp_tool_digest, policy_action, policy_rule, policy_digest
SETTINGS insert_deduplicate = 0, max_partitions_per_insert_block = 0;

-- when: SELECT toUInt64(count() = 0) FROM system.tables WHERE database = currentDatabase() AND name = 'held_filling'
TRUNCATE TABLE held;

-- when: SELECT toUInt64(count() = 0) FROM system.tables WHERE database = currentDatabase() AND name = 'held_filling'
INSERT INTO held
SELECT
    tenant, host_name, origin, seq, time, kind, approval_id, call_id, vcs_repository_name, cicd_pipeline_run_id,
    cicd_pipeline_task_name, cicd_actor, server_name, gen_ai_tool_name, policy_rule, policy_digest, decision, approver,
    approver_key, justification, ticket, signed_at
FROM events
WHERE approval_id != ''
SETTINGS insert_deduplicate = 0, max_partitions_per_insert_block = 0;

CREATE MATERIALIZED VIEW IF NOT EXISTS calls_5m_filling TO calls_5m AS
SELECT
    tenant, toStartOfFiveMinutes(events.time) AS began_at, host_name, vcs_repository_name, cicd_pipeline_name,
    cicd_pipeline_task_name, cicd_pipeline_run_id, cicd_actor, process_user_id, process_executable_path, server_name,
    mcp_method_name, gen_ai_tool_name, mcp_tool_digest, policy_action, policy_rule, policy_digest,
    count() AS calls, min(events.time) AS first_time, max(events.time) AS last_time
FROM events
WHERE kind = 'intent'
GROUP BY
    tenant, began_at, host_name, vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name,
    cicd_pipeline_run_id, cicd_actor, process_user_id, process_executable_path, server_name, mcp_method_name,
    gen_ai_tool_name, mcp_tool_digest, policy_action, policy_rule, policy_digest;

CREATE MATERIALIZED VIEW IF NOT EXISTS held_filling TO held AS
SELECT
    tenant, host_name, origin, seq, time, kind, approval_id, call_id, vcs_repository_name, cicd_pipeline_run_id,
    cicd_pipeline_task_name, cicd_actor, server_name, gen_ai_tool_name, policy_rule, policy_digest, decision, approver,
    approver_key, justification, ticket, signed_at
FROM events
WHERE approval_id != '';

-- Gaps: from what stands there of each segment; only a segment that lacks rows is read row by row.
CREATE OR REPLACE VIEW gaps AS
WITH stored AS (
    SELECT
        tenant, host_name, origin, batch_first_seq,
        min(events.seq) AS lowest, max(events.seq) AS highest, count() AS events, sum(events.seq) AS total
    FROM events
    GROUP BY tenant, host_name, origin, batch_first_seq
)
SELECT
    tenant, host_name, origin,
    toUInt64(previous + 1) AS first_missing_seq,
    toUInt64(next - 1) AS last_missing_seq,
    toUInt64(next - previous - 1) AS missing
FROM
(
    SELECT
        tenant, host_name, origin,
        toInt64(lowest) AS next,
        lagInFrame(toInt64(highest), 1, toInt64(-1)) OVER (
            PARTITION BY origin ORDER BY lowest, highest ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS previous
    FROM stored
    UNION ALL
    SELECT
        tenant, host_name, origin,
        toInt64(seq) AS next,
        lagInFrame(toInt64(seq), 1, toInt64(seq) - 1) OVER (
            PARTITION BY origin, batch_first_seq ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS previous
    FROM events
    WHERE (origin, batch_first_seq) IN (
        SELECT origin, batch_first_seq FROM stored
        WHERE events != highest - lowest + 1 OR total * 2 != (lowest + highest) * events
    )
)
WHERE next - previous > 1;
