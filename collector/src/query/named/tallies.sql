SELECT began_at, sum(summed) AS calls_5m, sum(stored) AS events, toInt64(calls_5m) - toInt64(events) AS difference
FROM
(
    SELECT began_at, sum(calls) AS summed, 0 AS stored FROM calls_5m GROUP BY began_at
    UNION ALL
    SELECT toStartOfFiveMinutes(events.time) AS began_at, 0, count()
    FROM events WHERE kind = 'intent' GROUP BY began_at
)
WHERE began_at >= toStartOfFiveMinutes({since:DateTime64(6, 'UTC')})
GROUP BY began_at
HAVING difference != 0
ORDER BY began_at DESC LIMIT {limit:UInt32}
