WITH picked AS (
    SELECT time, seq, origin, call_id, cicd_pipeline_task_name, process_pid, process_executable_path, server_name,
           mcp_method_name, gen_ai_tool_name, policy_action, payload
    FROM events
    WHERE kind = 'intent' AND time >= {since:DateTime64(6, 'UTC')}
      AND ({tool:String} = '' OR gen_ai_tool_name = {tool:String})
      AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
    ORDER BY time DESC, seq DESC LIMIT {limit:UInt32}
)
SELECT picked.time AS time, cicd_pipeline_task_name AS job, process_pid AS pid, process_executable_path AS executable,
       server_name AS server, mcp_method_name AS method, gen_ai_tool_name AS tool, policy_action AS action,
       ended.decision AS decision, if(ended.result = '', 'open', ended.result) AS result,
       round(ended.duration_us / 1000, 1) AS ms, payload AS arguments
FROM picked
LEFT JOIN (
    SELECT origin, call_id, anyIf(events.result, kind = 'outcome') AS result,
           anyIf(events.decision, kind = 'decision') AS decision, anyIf(events.duration_us, kind = 'outcome') AS duration_us
    FROM events
    WHERE kind IN ('outcome', 'decision') AND events.decision != 'invalid' AND call_id IN (SELECT call_id FROM picked)
    GROUP BY origin, call_id
) AS ended ON ended.origin = picked.origin AND ended.call_id = picked.call_id
ORDER BY time DESC, picked.seq DESC
