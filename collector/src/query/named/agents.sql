SELECT host_name AS host, tenant, origin, count() AS events, countIf(kind = 'intent') AS calls,
       max(seq) AS last_seq, max(events.time) AS last_event, max(ingested_at) AS last_heard
FROM events
GROUP BY host, tenant, origin
ORDER BY last_heard DESC LIMIT {limit:UInt32}
