-- Tokens: one for each host that may enrol, by a keyed hash.
CREATE TABLE IF NOT EXISTS enrol_tokens
(
    token_hash String,
    enrolment String,
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    issued_at DateTime64(6, 'UTC'),
    expires_at DateTime64(6, 'UTC'),
    issued_by LowCardinality(String)
)
ENGINE = MergeTree
ORDER BY token_hash
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Certificates: each that an agent got, for a token (at most one for each) or as a renewal.
CREATE TABLE IF NOT EXISTS agent_certificates
(
    enrolment String,
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    fingerprint String,
    key_fingerprint String,
    token_hash String,
    certificate String CODEC(ZSTD(3)),
    not_before DateTime64(6, 'UTC'),
    expires_at DateTime64(6, 'UTC'),
    issued_at DateTime64(6, 'UTC'),
    INDEX token_hash_bloom token_hash TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = MergeTree
ORDER BY (enrolment, issued_at)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;

-- Revocations: enrolments that were ended.
CREATE TABLE IF NOT EXISTS revocations
(
    enrolment String,
    tenant LowCardinality(String),
    host_name LowCardinality(String),
    revoked_at DateTime64(6, 'UTC'),
    reason String,
    revoked_by LowCardinality(String)
)
ENGINE = MergeTree
ORDER BY (enrolment, revoked_at)
SETTINGS
    non_replicated_deduplication_window = 100000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1;
