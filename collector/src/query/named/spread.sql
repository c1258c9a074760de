WITH touched AS (
    SELECT origin, call_id, events.time AS time, kind, host_name, message_direction,
           has(payload_pseudonyms, {secret:String}) AS in_content
    FROM events
    WHERE has(masked_pseudonyms, {secret:String}) AND events.time >= {since:DateTime64(6, 'UTC')}
)
SELECT call.server_name AS server, call.gen_ai_tool_name AS tool,
       multiIf(NOT touched.in_content, 'of the caller', touched.kind = 'intent', 'to the server',
               touched.kind = 'outcome', 'from the server', touched.kind = 'message', touched.message_direction,
               touched.kind) AS way,
       call.vcs_repository_name AS repository, call.cicd_pipeline_task_name AS job, call.cicd_actor AS actor,
       count() AS times, min(touched.time) AS first, max(touched.time) AS last,
       groupUniqArray(5)(call.cicd_pipeline_run_id) AS runs, groupUniqArray(5)(touched.host_name) AS hosts
FROM touched
LEFT JOIN (
    SELECT origin, call_id, server_name, gen_ai_tool_name, vcs_repository_name, cicd_pipeline_task_name, cicd_actor,
           cicd_pipeline_run_id
    FROM events
    WHERE kind = 'intent' AND call_id IN (SELECT call_id FROM touched WHERE call_id != '')
) AS call ON call.origin = touched.origin AND call.call_id = touched.call_id
GROUP BY server, tool, way, repository, job, actor
ORDER BY first LIMIT {limit:UInt32}
