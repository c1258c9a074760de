SELECT approver, approver_key AS key, countIf(ended = 'approved') AS approved, countIf(ended = 'refused') AS refused,
       countIf(ended = 'approved' AND approver = actor) AS own_runs,
       round(quantile(0.5)(waited_us) / 1000000, 1) AS median_wait_s, round(min(waited_us) / 1000000, 1) AS shortest_wait_s,
       uniq(ticket) AS tickets, groupUniqArray(5)(tool) AS tools, min(ended_at) AS first, max(ended_at) AS last
FROM
(
    SELECT anyIf(decision, kind = 'decision' AND decision != 'invalid') AS ended,
           anyIf(held.approver, kind = 'decision' AND decision != 'invalid') AS approver,
           anyIf(held.approver_key, kind = 'decision' AND decision != 'invalid') AS approver_key,
           anyIf(held.ticket, kind = 'decision' AND decision != 'invalid') AS ticket,
           maxIf(time, kind = 'decision' AND decision != 'invalid') AS ended_at,
           anyIf(gen_ai_tool_name, kind = 'intent') AS tool, anyIf(cicd_actor, kind = 'intent') AS actor,
           dateDiff('microsecond', minIf(time, kind = 'intent'), ended_at) AS waited_us
    FROM held
    GROUP BY tenant, approval_id
)
WHERE approver != '' AND ended_at >= {since:DateTime64(6, 'UTC')}
GROUP BY approver, key
ORDER BY last DESC LIMIT {limit:UInt32}
