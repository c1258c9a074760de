-- Findings: what the check of completeness found when statements came in. A later check of the same place replaces.
CREATE TABLE IF NOT EXISTS findings
(
    found_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    seq UInt64,
    job_key String,
    job_name LowCardinality(String),
    connect_verdict LowCardinality(String),
    reason LowCardinality(String),
    kernel UInt64,
    in_flight UInt64,
    recorded UInt64,
    explained UInt64,
    missing Int64
)
ENGINE = ReplacingMergeTree(found_at)
ORDER BY (tenant, origin, seq, job_key, connect_verdict, reason)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Jobs: each one's last statement of what the kernel counted.
CREATE VIEW IF NOT EXISTS jobs AS
SELECT
    tenant, job_key,
    tupleElement(last, 1) AS time,
    tupleElement(last, 2) AS host_name,
    tupleElement(last, 3) AS origin,
    tupleElement(last, 4) AS seq,
    tupleElement(last, 5) AS job_name,
    tupleElement(last, 6) AS job_closed,
    tupleElement(last, 7) AS kernel_connects,
    tupleElement(last, 8) AS lost_connects,
    tupleElement(last, 9) AS connects_in_flight
FROM
(
    SELECT
        tenant, job_key,
        argMax(
            tuple(time, host_name, origin, seq, job_name, job_closed, kernel_connects, lost_connects, connects_in_flight),
            tuple(arraySum(mapValues(kernel_connects)), job_closed, time, seq)
        ) AS last
    FROM events
    WHERE kind = 'completeness'
    GROUP BY tenant, job_key
);

-- Unrecorded: connects that the kernel counted and that, as the agent says, have no record.
CREATE VIEW IF NOT EXISTS unrecorded AS
SELECT time, tenant, host_name, origin, seq, job_key, connect_verdict, gap_reason, gap_count, event_detail
FROM events
WHERE kind = 'gap';
