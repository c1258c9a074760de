SELECT time, host_name AS host, process_pid AS pid, process_executable_path AS executable,
       cicd_pipeline_task_name AS job, server_name AS server, server_address AS address, mcp_method_name AS method,
       gen_ai_tool_name AS tool, policy_action AS action,
       arrayFilter(why -> why != '', [if(server_proof = 'unproven', 'server_unproven', ''),
           if(process_seen_alive, '', 'caller_not_seen_alive'),
           if(cicd_provider = '' AND cicd_pipeline_task_name = '', 'no_job', '')]) AS why
FROM events
WHERE kind = 'intent' AND events.time >= {since:DateTime64(6, 'UTC')}
  AND (server_proof = 'unproven' OR NOT process_seen_alive OR (cicd_provider = '' AND cicd_pipeline_task_name = ''))
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
ORDER BY events.time DESC, seq DESC LIMIT {limit:UInt32}
