SELECT logs.host AS host, logs.tenant AS tenant, logs.origin AS origin, events, calls, last_seq, last_event, last_heard,
       renamed.host AS renamed_to
FROM
(
    SELECT host_name AS host, tenant, origin, count() AS events, countIf(kind = 'intent') AS calls,
           max(seq) AS last_seq, max(events.time) AS last_event, max(ingested_at) AS last_heard
    FROM events
    GROUP BY host, tenant, origin
) AS logs
LEFT JOIN
(
    SELECT event_detail['log'] AS log, any(concat(tenant, '/', host_name)) AS host
    FROM events
    WHERE kind = 'agent' AND event_name = 'log.renamed'
    GROUP BY log
) AS renamed ON renamed.log = logs.origin
ORDER BY last_heard DESC LIMIT {limit:UInt32}
