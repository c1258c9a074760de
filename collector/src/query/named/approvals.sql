WITH asked AS (
    SELECT held.origin AS origin, approval_id, any(held.call_id) AS call_id, minIf(held.time, kind = 'intent') AS time,
           anyIf(cicd_pipeline_task_name, kind = 'intent') AS job, anyIf(cicd_pipeline_run_id, kind = 'intent') AS run,
           anyIf(server_name, kind = 'intent') AS server, anyIf(gen_ai_tool_name, kind = 'intent') AS tool,
           anyIf(policy_rule, kind = 'intent') AS rule,
           anyIf(held.decision, kind = 'decision' AND held.decision != 'invalid') AS decision,
           anyIf(held.approver, kind = 'decision' AND held.decision != 'invalid') AS approver,
           anyIf(held.approver_key, kind = 'decision' AND held.decision != 'invalid') AS approver_key,
           anyIf(held.justification, kind = 'decision' AND held.decision != 'invalid') AS justification,
           anyIf(held.ticket, kind = 'decision' AND held.decision != 'invalid') AS ticket,
           anyIf(held.signed_at, kind = 'decision' AND held.decision != 'invalid') AS signed_at
    FROM held
    GROUP BY tenant, held.origin, approval_id
    HAVING time >= {since:DateTime64(6, 'UTC')} AND ({job:String} = '' OR job = {job:String} OR run = {job:String})
    ORDER BY time DESC LIMIT {limit:UInt32}
)
SELECT asked.time AS time, asked.approval_id AS approval_id, asked.job AS job, asked.server AS server, asked.tool AS tool,
       asked.rule AS rule, asked.decision AS decision, asked.approver AS approver, asked.approver_key AS approver_key,
       asked.justification AS justification, asked.ticket AS ticket, asked.signed_at AS signed_at,
       if(ended.result = '', 'open', ended.result) AS result
FROM asked
LEFT JOIN (
    SELECT origin, call_id, any(events.result) AS result
    FROM events
    WHERE kind = 'outcome' AND call_id IN (SELECT call_id FROM asked)
    GROUP BY origin, call_id
) AS ended ON ended.origin = asked.origin AND ended.call_id = asked.call_id
ORDER BY time DESC
