SELECT rule, action, policy, sum(n) AS calls, sum(sent) AS approved, sum(kept) AS refused, sum(late) AS expired,
       sum(gone) AS client_gone, min(first) AS first, max(last) AS last,
       arraySlice(arrayDistinct(arrayFlatten(groupArray(some))), 1, 5) AS tools
FROM
(
    SELECT policy_rule AS rule, policy_action AS action, policy_digest AS policy, sum(calls) AS n, 0 AS sent,
           if(policy_action = 'deny', n, 0) AS kept, 0 AS late, 0 AS gone, min(first_time) AS first, max(last_time) AS last,
           groupUniqArray(5)(if(gen_ai_tool_name = '', mcp_method_name, gen_ai_tool_name)) AS some
    FROM calls_5m
    WHERE policy_action != 'allow' AND began_at >= toStartOfFiveMinutes({since:DateTime64(6, 'UTC')}) AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
    GROUP BY policy_rule, policy_action, policy_digest
    UNION ALL
    SELECT rule, 'hold', policy, 0, countIf(ended = 'approved'), countIf(ended = 'refused'), countIf(ended = 'expired'),
           countIf(ended = 'client_gone'), min(asked), max(asked), []
    FROM
    (
        SELECT anyIf(policy_rule, kind = 'intent') AS rule, anyIf(policy_digest, kind = 'intent') AS policy,
               anyIf(decision, kind = 'decision' AND decision != 'invalid') AS ended, minIf(time, kind = 'intent') AS asked,
               anyIf(cicd_pipeline_task_name, kind = 'intent') AS task, anyIf(cicd_pipeline_run_id, kind = 'intent') AS run
        FROM held
        GROUP BY tenant, approval_id
    )
    WHERE asked >= toStartOfFiveMinutes({since:DateTime64(6, 'UTC')}) AND ({job:String} = '' OR task = {job:String} OR run = {job:String})
    GROUP BY rule, policy
)
GROUP BY rule, action, policy
ORDER BY last DESC LIMIT {limit:UInt32}
