-- Accounts: whence a process comes, what the kernel decided about each connect, and what it counted of each job.
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS process_ancestor_pids Array(UInt32) AFTER process_seen_alive,
    ADD COLUMN IF NOT EXISTS process_ancestor_start_ticks Array(Nullable(UInt64)) AFTER process_ancestor_pids,
    ADD COLUMN IF NOT EXISTS process_ancestor_executable_paths Array(LowCardinality(String))
        AFTER process_ancestor_start_ticks,
    ADD COLUMN IF NOT EXISTS process_linux_network_namespace UInt32 AFTER process_ancestor_executable_paths,
    ADD COLUMN IF NOT EXISTS container_id String CODEC(ZSTD(1)) AFTER process_linux_network_namespace,
    ADD COLUMN IF NOT EXISTS job_key String CODEC(ZSTD(1)) AFTER container_id,
    ADD COLUMN IF NOT EXISTS connect_verdict LowCardinality(String) AFTER bytes_down,
    ADD COLUMN IF NOT EXISTS connect_reason LowCardinality(String) AFTER connect_verdict,
    ADD COLUMN IF NOT EXISTS connect_protocol UInt8 AFTER connect_reason,
    ADD COLUMN IF NOT EXISTS connect_boot_ns UInt64 AFTER connect_protocol,
    ADD COLUMN IF NOT EXISTS client_address LowCardinality(String) AFTER connect_boot_ns,
    ADD COLUMN IF NOT EXISTS client_port UInt16 AFTER client_address,
    ADD COLUMN IF NOT EXISTS job_name LowCardinality(String) AFTER client_port,
    ADD COLUMN IF NOT EXISTS job_closed Bool AFTER job_name,
    ADD COLUMN IF NOT EXISTS kernel_connects Map(String, UInt64) AFTER job_closed,
    ADD COLUMN IF NOT EXISTS lost_connects Map(String, UInt64) AFTER kernel_connects,
    ADD COLUMN IF NOT EXISTS connects_in_flight UInt64 AFTER lost_connects,
    ADD COLUMN IF NOT EXISTS table_counts Map(String, UInt64) AFTER connects_in_flight,
    ADD COLUMN IF NOT EXISTS gap_reason LowCardinality(String) AFTER table_counts,
    ADD COLUMN IF NOT EXISTS gap_count UInt64 AFTER gap_reason,
    ADD INDEX IF NOT EXISTS job_keys job_key TYPE bloom_filter(0.01) GRANULARITY 1;

-- Flows: with the job, the container, and what the kernel decided.
CREATE OR REPLACE VIEW flows AS
SELECT
    time, tenant, host_name, origin, seq, flow_id,
    cicd_provider, vcs_repository_name, cicd_pipeline_name, cicd_pipeline_run_id, cicd_pipeline_task_name, cicd_actor,
    process_pid, process_start_ticks, process_user_id, process_comm, process_executable_path, process_command_line,
    process_linux_cgroup, process_seen_alive, process_ancestor_pids, process_ancestor_executable_paths,
    process_linux_network_namespace, container_id, job_key,
    server_name, server_address, server_port, server_proof, tls_client_server_name,
    flow_treatment, flow_end, bytes_up, bytes_down, duration_us,
    connect_verdict, connect_reason, connect_protocol, client_address, client_port
FROM events
WHERE kind = 'flow';
