WITH kept AS (
    SELECT origin, call_id, decision, approver, justification
    FROM held
    WHERE kind = 'decision' AND decision IN ('refused', 'expired') AND time >= {since:DateTime64(6, 'UTC')}
    ORDER BY time DESC, seq DESC LIMIT {limit:UInt32}
)
SELECT * FROM
(
    SELECT time, cicd_pipeline_task_name AS job, process_executable_path AS executable, server_name AS server,
           mcp_method_name AS method, gen_ai_tool_name AS tool, policy_rule AS rule, 'refused' AS result,
           '' AS approver, '' AS justification, payload AS arguments
    FROM events
    WHERE kind = 'intent' AND policy_action = 'deny' AND time >= {since:DateTime64(6, 'UTC')}
      AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
    ORDER BY time DESC, seq DESC LIMIT {limit:UInt32}
    UNION ALL
    SELECT call.time, cicd_pipeline_task_name, process_executable_path, server_name, mcp_method_name, gen_ai_tool_name,
           policy_rule, kept.decision, kept.approver, kept.justification, payload
    FROM
    (
        SELECT time, origin, call_id, cicd_pipeline_task_name, process_executable_path, server_name, mcp_method_name,
               gen_ai_tool_name, policy_rule, payload
        FROM events
        WHERE kind = 'intent' AND call_id IN (SELECT call_id FROM kept) AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
    ) AS call
    INNER JOIN kept ON kept.origin = call.origin AND kept.call_id = call.call_id
)
ORDER BY time DESC LIMIT {limit:UInt32}
