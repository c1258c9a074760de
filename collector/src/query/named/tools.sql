SELECT server_name AS server, gen_ai_tool_name AS tool, mcp_tool_digest AS definition, min(first_time) AS first,
       max(last_time) AS last, sum(calls_5m.calls) AS calls, sumIf(calls_5m.calls, policy_action != 'allow') AS not_allowed,
       groupUniqArray(5)(cicd_pipeline_task_name) AS jobs
FROM calls_5m
WHERE gen_ai_tool_name != '' AND began_at >= toStartOfFiveMinutes({since:DateTime64(6, 'UTC')}) AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
GROUP BY server, tool, definition
ORDER BY server, tool, first LIMIT {limit:UInt32}
