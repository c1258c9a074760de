SELECT time, cicd_pipeline_task_name AS job, host_name AS host, process_executable_path AS executable,
       server_name AS server, gen_ai_tool_name AS tool, policy_action AS action, call_id, payload AS arguments
FROM events
WHERE kind = 'intent' AND hasAllTokens(if(kind = 'intent', payload, ''), {words:String}) AND events.time >= {since:DateTime64(6, 'UTC')} AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
ORDER BY events.time DESC, seq DESC LIMIT {limit:UInt32}
