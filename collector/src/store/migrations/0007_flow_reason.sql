-- Why a connection was treated or ended as it was: what is wrong with a certificate, why one was not read.
ALTER TABLE events
    ADD COLUMN IF NOT EXISTS flow_reason LowCardinality(String) AFTER flow_end;

CREATE OR REPLACE VIEW flows AS
SELECT
    time, tenant, host_name, origin, seq, flow_id,
    cicd_provider, vcs_repository_name, cicd_pipeline_name, cicd_pipeline_run_id, cicd_pipeline_task_name, cicd_actor,
    process_pid, process_start_ticks, process_user_id, process_comm, process_executable_path, process_command_line,
    process_linux_cgroup, process_seen_alive, process_ancestor_pids, process_ancestor_executable_paths,
    process_linux_network_namespace, container_id, job_key,
    server_name, server_address, server_port, server_proof, tls_client_server_name,
    flow_treatment, flow_end, flow_reason, bytes_up, bytes_down, duration_us,
    connect_verdict, connect_reason, connect_protocol, client_address, client_port
FROM events
WHERE kind = 'flow';
