SELECT * FROM
(
    SELECT events.time AS time, host_name AS host, origin, seq, 'agent' AS told_by,
           round(toInt64OrZero(event_detail['step_us']) / 1000000, 3) AS step_s, event_detail AS detail
    FROM events
    WHERE kind = 'agent' AND event_name = 'clock.step' AND events.time >= {since:DateTime64(6, 'UTC')}
    UNION ALL
    SELECT lo, host_name, origin, batch_first_seq, 'order', -dateDiff('millisecond', lo, previous) / 1000, map()
    FROM
    (
        SELECT host_name, origin, batch_first_seq, lo,
               lagInFrame(hi, 1, lo) OVER (PARTITION BY origin ORDER BY batch_first_seq ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS previous
        FROM
        (
            SELECT host_name, origin, batch_first_seq, min(events.time) AS lo, max(events.time) AS hi
            FROM events
            GROUP BY host_name, origin, batch_first_seq
        )
    )
    WHERE lo < previous - toIntervalSecond(1) AND lo >= {since:DateTime64(6, 'UTC')}
    UNION ALL
    SELECT hi, host_name, origin, batch_first_seq, 'collector', dateDiff('millisecond', taken, hi) / 1000, map()
    FROM
    (
        SELECT host_name, origin, batch_first_seq, max(events.time) AS hi, max(ingested_at) AS taken
        FROM events
        GROUP BY host_name, origin, batch_first_seq
    )
    WHERE hi > taken + toIntervalMinute(1) AND hi >= {since:DateTime64(6, 'UTC')}
)
ORDER BY time DESC, seq DESC LIMIT {limit:UInt32}
