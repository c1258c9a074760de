-- Roles on a ClickHouse server (the embedded store has one user and refuses all of this). Run it as an administrator, once, after
-- `weir-collector migrate`; on a cluster add ON CLUSTER to each statement. Then give each program and person a user of its own.

-- Makes and alters the tables: `weir-collector migrate`. Nobody else needs DDL.
CREATE ROLE IF NOT EXISTS weir_owner;
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP TABLE, DROP VIEW, ALTER, SELECT, INSERT, TRUNCATE ON weir.* TO weir_owner;
GRANT SELECT ON system.tables TO weir_owner;
GRANT SELECT ON system.settings TO weir_owner;

-- Writes records: `weir-collector serve`. It adds rows and reads them back; it never alters or deletes one.
CREATE SETTINGS PROFILE IF NOT EXISTS weir_writer SETTINGS
    async_insert = 0,
    insert_deduplicate = 1,
    insert_quorum = 'auto',
    insert_quorum_parallel = 0,
    select_sequential_consistency = 1,
    distributed_foreground_insert = 1,
    distributed_product_mode = 'local',
    max_memory_usage = 4000000000;
CREATE ROLE IF NOT EXISTS weir_writer SETTINGS PROFILE 'weir_writer';
GRANT SELECT, INSERT ON weir.* TO weir_writer;
GRANT SELECT ON system.settings TO weir_writer;

-- Reads: `weir-collector query`, `completeness`, `export`, and any other tool. ClickHouse makes sure of it. `verify` of a whole store
-- checks everything but tables and views, says so, and exits with 1: see weir_auditor.
CREATE SETTINGS PROFILE IF NOT EXISTS weir_analyst SETTINGS
    readonly = 1,
    distributed_product_mode = 'local',
    max_execution_time = 60,
    max_memory_usage = 4000000000,
    max_result_rows = 10000000;
CREATE ROLE IF NOT EXISTS weir_analyst SETTINGS PROFILE 'weir_analyst';
GRANT SELECT ON weir.* TO weir_analyst;

-- Verifies: `weir-collector verify`. It reads, and makes the tables and views anew in a database of its own beside, to compare
-- with; of the records it can change nothing.
CREATE SETTINGS PROFILE IF NOT EXISTS weir_auditor SETTINGS
    distributed_product_mode = 'local',
    max_memory_usage = 4000000000;
CREATE ROLE IF NOT EXISTS weir_auditor SETTINGS PROFILE 'weir_auditor';
GRANT SELECT ON weir.* TO weir_auditor;
GRANT CREATE DATABASE, DROP DATABASE, CREATE TABLE, CREATE VIEW, DROP TABLE, DROP VIEW, ALTER, SELECT, INSERT, TRUNCATE
    ON weir_verify_*.* TO weir_auditor;
GRANT SELECT ON system.tables TO weir_auditor;
GRANT SELECT ON system.columns TO weir_auditor;
GRANT SELECT ON system.settings TO weir_auditor;

-- Reads without what was said: no arguments and results, no canonical bytes, no command lines.
CREATE ROLE IF NOT EXISTS weir_metadata SETTINGS PROFILE 'weir_analyst';
GRANT SELECT(
    tenant, host_name, origin, epoch, seq, time, kind, call_id, flow_id, job_key, vcs_repository_name, cicd_pipeline_name,
    cicd_pipeline_run_id, cicd_pipeline_task_name, cicd_actor, server_name, server_address, server_port, server_proof,
    mcp_method_name, gen_ai_tool_name, policy_action, policy_rule, policy_digest, decision, approver, result, error_type,
    duration_us, flow_treatment, flow_end, flow_reason, bytes_up, bytes_down, event_name
) ON weir.events TO weir_metadata;

-- Answers holds: `weir-collector approvals`. A row in `decisions` proves nothing without its signature.
CREATE ROLE IF NOT EXISTS weir_approver;
GRANT SELECT ON weir.holds TO weir_approver;
GRANT SELECT ON weir.events TO weir_approver;
GRANT SELECT, INSERT ON weir.decisions TO weir_approver;

-- Lets hosts in and takes them out: `weir-collector enrol-token` and `agents`. Certificates are the collectors' to sign.
CREATE ROLE IF NOT EXISTS weir_fleet;
GRANT SELECT, INSERT ON weir.enrol_tokens TO weir_fleet;
GRANT SELECT, INSERT ON weir.revocations TO weir_fleet;
GRANT SELECT ON weir.agent_certificates TO weir_fleet;

-- Deletes events by policy: `weir-collector retention apply`. Proofs are not its to delete.
CREATE ROLE IF NOT EXISTS weir_retention;
GRANT SELECT ON weir.* TO weir_retention;
GRANT ALTER DELETE ON weir.events TO weir_retention;
GRANT INSERT ON weir.tombstones TO weir_retention;

-- For example:
--   CREATE USER collector IDENTIFIED WITH sha256_password BY '...';
--   GRANT weir_writer TO collector;
--   CREATE USER ada IDENTIFIED WITH sha256_password BY '...';
--   GRANT weir_analyst TO ada;
