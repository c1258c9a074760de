-- Evidence: what the collector keeps as a witness. A line `-- when:` holds a question; the statement behind it runs
-- where the answer is 1, so that a run that was cut off anywhere can be repeated.

-- Events: the epoch and the leaf of each, and the time at which its segment was sealed. A row that was written before
-- is of no epoch (0); of its segment the collector's time stands for the sealing.
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS epoch UInt32,
    ADD COLUMN IF NOT EXISTS leaf_hash FixedString(32) DEFAULT SHA256(concat(unhex('00'), canonical)) CODEC(NONE),
    ADD COLUMN IF NOT EXISTS parse_error String CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS sealed_at DateTime64(6, 'UTC') DEFAULT ingested_at CODEC(Delta(8), ZSTD(1)),
    ADD COLUMN IF NOT EXISTS agent_identity LowCardinality(String) DEFAULT concat('uid:', toString(agent_uid)),
    ADD INDEX IF NOT EXISTS time_range time TYPE minmax GRANULARITY 1;

-- A table's partitions cannot be altered: a segment is one block only where its sealing decides. So there is a new table,
-- filled from the old one, and both change names in one step. What a copy that was cut off left goes first.
-- when: SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'events' AND partition_key != 'toYYYYMM(sealed_at)'
DROP TABLE IF EXISTS events_resealed SYNC;

-- when: SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'events' AND partition_key != 'toYYYYMM(sealed_at)'
CREATE TABLE IF NOT EXISTS events_resealed AS events
ENGINE = MergeTree
PARTITION BY toYYYYMM(sealed_at)
ORDER BY (tenant, origin, toStartOfHour(time), seq)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- when: SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'events' AND partition_key != 'toYYYYMM(sealed_at)'
INSERT INTO events_resealed SELECT * FROM events
SETTINGS max_partitions_per_insert_block = 0, insert_deduplicate = 0;

-- when: SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'events' AND partition_key != 'toYYYYMM(sealed_at)'
EXCHANGE TABLES events AND events_resealed;

-- Now the old table has the new one's name. What somebody wrote into it while it was copied is not lost.
-- when: SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'events_resealed'
INSERT INTO events SELECT * FROM events_resealed
WHERE ingested_at > now() - INTERVAL 1 DAY AND (origin, seq) NOT IN (
    SELECT origin, seq FROM events
    WHERE origin IN (SELECT origin FROM events_resealed WHERE ingested_at > now() - INTERVAL 1 DAY)
)
SETTINGS max_partitions_per_insert_block = 0, insert_deduplicate = 0;

DROP TABLE IF EXISTS events_resealed SYNC;

-- Batches: one row for each stored segment of a log with a tree, with its leaves. They stay when its events are deleted.
CREATE TABLE IF NOT EXISTS batches
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    epoch UInt32,
    epoch_first_seq UInt64,
    first_seq UInt64 CODEC(Delta(8), ZSTD(1)),
    last_seq UInt64 CODEC(Delta(8), ZSTD(1)),
    events UInt64,
    batch_digest String CODEC(ZSTD(1)),
    tree_size UInt64,
    root FixedString(32) CODEC(NONE),
    frontier Array(FixedString(32)) CODEC(ZSTD(1)),
    leaf_hashes Array(FixedString(32)) CODEC(NONE),
    note String CODEC(ZSTD(1)),
    sealed_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    agent_uid UInt32,
    agent_identity LowCardinality(String),
    ingested_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYear(sealed_at)
ORDER BY (tenant, origin, epoch, first_seq)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Checkpoints: what this collector has cosigned.
CREATE TABLE IF NOT EXISTS checkpoints
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    epoch UInt32,
    first_seq UInt64,
    tree_size UInt64,
    root FixedString(32) CODEC(NONE),
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    note String CODEC(ZSTD(1)),
    idle Bool,
    witnessed_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYear(time)
ORDER BY (tenant, origin, epoch, tree_size, time)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Claims: checkpoints of idle logs as they came, each before it is cosigned: of two that contradict one another at least
-- one collector sees both. What was cosigned is in `checkpoints` for good, so they may go after a while.
CREATE TABLE IF NOT EXISTS claims
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    epoch UInt32,
    first_seq UInt64,
    tree_size UInt64,
    root FixedString(32) CODEC(NONE),
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    note String CODEC(ZSTD(1)),
    claimed_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(claimed_at)
ORDER BY (tenant, origin, epoch, tree_size)
TTL toDateTime(claimed_at) + INTERVAL 7 DAY
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1,
    ttl_only_drop_parts = 1;

-- Identities: which key signs which epoch of which log, and who said so.
CREATE TABLE IF NOT EXISTS identities
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    epoch UInt32,
    first_seq UInt64,
    key String,
    certified_by LowCardinality(String),
    certified_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    rotation String CODEC(ZSTD(1)),
    certificate String CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (tenant, origin, epoch)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Policies: each time that an agent loaded one.
CREATE TABLE IF NOT EXISTS policies
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    seq UInt64,
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    policy_digest LowCardinality(String),
    event_detail Map(String, String),
    ingested_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (tenant, origin, seq)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Tombstones: which events were deleted, by which policy; their leaves stay in `batches`.
CREATE TABLE IF NOT EXISTS tombstones
(
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    origin LowCardinality(String),
    epoch UInt32,
    first_seq UInt64,
    last_seq UInt64,
    events UInt64,
    policy String,
    policy_digest String,
    retired_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    retired_by LowCardinality(String),
    note String CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (tenant, origin, first_seq, retired_at)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Findings: also of the evidence (a fork, a rollback, a wrong signature, a hole), in words.
ALTER TABLE findings
    ADD COLUMN IF NOT EXISTS detail String CODEC(ZSTD(1));
