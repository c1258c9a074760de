SELECT logs.host AS host, logs.origin AS origin,
       if(logs.pair.4 = 0, greatest(logs.pair.1, witnessed.last), logs.pair.1) AS silent_from,
       logs.pair.2 AS silent_until, dateDiff('second', silent_from, silent_until) AS seconds,
       logs.pair.3 AS last_seq, nullIf(logs.pair.4, 0) AS next_seq,
       toBool(stops.event_name = 'agent.stopped') AS was_stopped
FROM
(
    SELECT host_name AS host, origin, arraySort(groupArray((lo, hi, lo_seq, hi_seq))) AS heard,
           arrayPushBack(arrayPopFront(heard), (now64(6, 'UTC'), now64(6, 'UTC'), toUInt64(0), toUInt64(0))) AS next,
           arrayJoin(arrayFilter(p -> dateDiff('second', p.1, p.2) >= 300,
                                 arrayMap((a, b) -> (a.2, b.1, a.4, b.3), heard, next))) AS pair
    FROM
    (
        SELECT host_name, origin, toStartOfFiveMinutes(events.time) AS began_at, min(events.time) AS lo,
               max(events.time) AS hi, min(events.seq) AS lo_seq, max(events.seq) AS hi_seq
        FROM events
        GROUP BY host_name, origin, began_at
    )
    GROUP BY host, origin
) AS logs
LEFT JOIN (
    SELECT origin, seq, event_name FROM events WHERE kind = 'agent' AND event_name = 'agent.stopped'
) AS stops ON stops.origin = logs.origin AND stops.seq = logs.pair.3
LEFT JOIN (
    SELECT origin, max(time) AS last FROM checkpoints GROUP BY origin
) AS witnessed ON witnessed.origin = logs.origin
WHERE silent_until >= {since:DateTime64(6, 'UTC')} AND seconds >= 300
ORDER BY silent_until DESC, seconds DESC LIMIT {limit:UInt32}
