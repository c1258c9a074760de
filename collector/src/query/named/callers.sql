SELECT vcs_repository_name AS repository, cicd_pipeline_name AS pipeline, cicd_pipeline_task_name AS job,
       cicd_actor AS actor, host_name AS host, process_user_id AS uid, process_executable_path AS executable,
       server_name AS server, sum(calls_5m.calls) AS calls, sumIf(calls_5m.calls, policy_action != 'allow') AS not_allowed,
       min(first_time) AS first, max(last_time) AS last, groupUniqArray(5)(cicd_pipeline_run_id) AS runs
FROM calls_5m
WHERE gen_ai_tool_name = {tool:String} AND began_at >= toStartOfFiveMinutes({since:DateTime64(6, 'UTC')})
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
GROUP BY repository, pipeline, job, actor, host, uid, executable, server
ORDER BY last DESC LIMIT {limit:UInt32}
