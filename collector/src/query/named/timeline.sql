WITH own AS (
    SELECT origin, call_id, flow_id, time FROM events
    WHERE cicd_pipeline_run_id = {run:String} AND kind IN ('intent', 'flow')
)
SELECT time, seq, kind AS what, host_name AS host, process_pid AS pid, server_name AS server,
       multiIf(kind = 'intent', trimRight(concat(mcp_method_name, ' ', gen_ai_tool_name)),
               kind = 'message', concat(message_direction, ' ', mcp_method_name),
               kind = 'flow', 'connection', kind = 'decision', 'end of the hold', '') AS about,
       multiIf(kind = 'intent', concat(policy_action, ' by ', policy_rule), kind = 'outcome', result,
               kind = 'decision', trimRight(concat(decision, ' ', approver)),
               kind = 'flow', concat(flow_treatment, ', ', flow_end), message_label) AS came_of_it,
       round(duration_us / 1000, 1) AS ms, call_id, payload
FROM events
WHERE origin IN (SELECT origin FROM own)
  AND time >= (SELECT min(time) FROM own) - toIntervalDay(1)
  AND (cicd_pipeline_run_id = {run:String}
       OR (cicd_pipeline_run_id = ''
           AND (call_id IN (SELECT call_id FROM own WHERE call_id != '')
                OR flow_id IN (SELECT flow_id FROM own WHERE flow_id != ''))))
ORDER BY time, origin, seq LIMIT {limit:UInt32}
