//! The questions that have names: what an analyst asks first. Each is plain SQL over the views, so it is also an
//! example to start from.

/// The most rows of a named question, if nothing else is said.
pub const DEFAULT_LIMIT: u32 = 50;

/// A question with a name.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    pub name: &'static str,
    pub about: &'static str,
    /// Has the parameters `{since:DateTime64(6, 'UTC')}`, `{job:String}` and `{limit:UInt32}`, or fewer.
    pub sql: &'static str,
}

impl Named {
    /// Whether it can be asked of one job.
    pub fn takes_job(&self) -> bool {
        self.sql.contains("{job:")
    }

    /// Whether it can be asked from some time on.
    pub fn takes_since(&self) -> bool {
        self.sql.contains("{since:")
    }
}

/// Finds a question by its name.
pub fn named(name: &str) -> Option<&'static Named> {
    NAMED.iter().find(|one| one.name == name)
}

/// A job is named as its CI names it, or by its run's id.
pub const NAMED: [Named; 11] = [
    Named {
        name: "calls",
        about: "each MCP call: who made it, to what, what was decided, how it ended (newest first)",
        sql: "SELECT time, cicd_pipeline_task_name AS job, process_pid AS pid,
       process_executable_path AS executable, server_name AS server, mcp_method_name AS method,
       gen_ai_tool_name AS tool, policy_action AS action, decision, result,
       round(duration_us / 1000, 1) AS ms, arguments
FROM calls
WHERE time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "denied",
        about: "calls that did not go upstream: refused by a rule or a human, or not decided in time",
        sql: "SELECT time, cicd_pipeline_task_name AS job, process_executable_path AS executable,
       server_name AS server, mcp_method_name AS method, gen_ai_tool_name AS tool, policy_rule AS rule,
       result, approver, justification, arguments
FROM calls
WHERE (policy_action = 'deny' OR result IN ('refused', 'expired'))
  AND time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "approvals",
        about: "held calls: who decided, when and why",
        sql: "SELECT time, approval_id, cicd_pipeline_task_name AS job, server_name AS server,
       gen_ai_tool_name AS tool, policy_rule AS rule, decision, approver, approver_key, justification,
       ticket, signed_at, result
FROM calls
WHERE approval_id != '' AND time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "messages",
        about: "what was said besides calls: progress, the server's own requests and their answers, exchanges that are no MCP",
        sql: "SELECT time, call_id, message_direction AS direction, message_label AS label,
       mcp_method_name AS method, jsonrpc_request_id AS id, mcp_session_id AS session, unread_reason AS unread,
       payload
FROM messages
WHERE time >= {since:DateTime64(6, 'UTC')}
ORDER BY time DESC, seq DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "tools",
        about: "each tool as it was called: how often, under which definition, and since when (a changed one is a new row)",
        sql: "SELECT server_name AS server, gen_ai_tool_name AS tool, mcp_tool_digest AS definition,
       min(calls.time) AS first, max(calls.time) AS last, count() AS calls,
       countIf(result NOT IN ('ok', 'open')) AS failed, groupUniqArray(5)(cicd_pipeline_task_name) AS jobs
FROM calls
WHERE gen_ai_tool_name != '' AND calls.time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
GROUP BY server, tool, definition
ORDER BY server, tool, first LIMIT {limit:UInt32}",
    },
    Named {
        name: "opaque",
        about: "where connections went whose content Weir did not read, and how much",
        sql: "SELECT if(tls_client_server_name != '', tls_client_server_name, server_name) AS destination,
       server_port AS port, count() AS connections, sum(bytes_up) AS up, sum(bytes_down) AS down,
       max(flows.time) AS last, groupUniqArray(5)(process_executable_path) AS executables
FROM flows
WHERE flow_treatment = 'opaque' AND flows.time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
GROUP BY destination, port
ORDER BY connections DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "agents",
        about: "each agent's log: how far it has come, and when it was last heard of",
        sql: "SELECT host_name AS host, tenant, origin, count() AS events, countIf(kind = 'intent') AS calls,
       max(seq) AS last_seq, max(events.time) AS last_event, max(ingested_at) AS last_heard
FROM events
GROUP BY host, tenant, origin
ORDER BY last_heard DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "jobs",
        about: "what the kernel last counted of each job's connects (`weir-collector completeness` checks it)",
        sql: "SELECT time, job_key, job_name AS name, host_name AS host, job_closed AS closed,
       arraySum(mapValues(kernel_connects)) AS connects, kernel_connects AS by_verdict,
       connects_in_flight AS in_flight
FROM jobs
WHERE time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR job_key = {job:String} OR job_name = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "unrecorded",
        about: "connects that were counted and have no record, as the agents themselves say, and why",
        sql: "SELECT time, host_name AS host, job_key, connect_verdict AS verdict, gap_reason AS reason,
       gap_count AS connects, event_detail AS detail
FROM unrecorded
WHERE time >= {since:DateTime64(6, 'UTC')} AND ({job:String} = '' OR job_key = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "findings",
        about: "where what the kernel counted and what was recorded differed when the collector checked",
        sql: "SELECT found_at, host_name AS host, origin, seq, job_key, job_name AS name,
       connect_verdict AS verdict, reason, missing, kernel, recorded, explained
FROM findings FINAL
WHERE found_at >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR job_key = {job:String} OR job_name = {job:String})
ORDER BY found_at DESC, seq DESC LIMIT {limit:UInt32}",
    },
    Named {
        name: "gaps",
        about: "events that are missing from a log: none should be",
        sql: "SELECT host_name AS host, origin, first_missing_seq, last_missing_seq, missing
FROM gaps
ORDER BY origin, first_missing_seq LIMIT {limit:UInt32}",
    },
];
