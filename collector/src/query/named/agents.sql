SELECT logs.host AS host, logs.tenant AS tenant, logs.origin AS origin, events, calls, last_seq, last_event, last_heard,
       renamed.claims AS renamed_to
FROM
(
    SELECT host_name AS host, tenant, origin, count() AS events, countIf(kind = 'intent') AS calls,
           max(seq) AS last_seq, max(events.time) AS last_event, max(ingested_at) AS last_heard
    FROM events
    GROUP BY host, tenant, origin
) AS logs
LEFT JOIN
(
    SELECT ended.tenant AS tenant, ended.host AS host, ended.origin AS origin,
           arrayStringConcat(arraySort(groupUniqArray(claim.name)), ', ') AS claims
    FROM
    (
        SELECT event_detail['log'] AS log, event_detail['tenant'] AS old_tenant, event_detail['host'] AS old_host,
               origin AS by_origin, concat(tenant, '/', host_name) AS name
        FROM events
        WHERE kind = 'agent' AND event_name = 'log.renamed'
        GROUP BY ALL
    ) AS claim
    INNER JOIN
    (
        SELECT host_name AS host, tenant, origin, max(events.time) AS last
        FROM events
        GROUP BY host, tenant, origin
    ) AS ended ON ended.origin = claim.log AND ended.tenant = claim.old_tenant AND ended.host = claim.old_host
    INNER JOIN
    (
        SELECT origin, min(events.time) AS first FROM events GROUP BY origin
    ) AS begun ON begun.origin = claim.by_origin
    WHERE begun.first >= ended.last AND claim.by_origin != claim.log
    GROUP BY tenant, host, origin
) AS renamed ON renamed.origin = logs.origin AND renamed.tenant = logs.tenant AND renamed.host = logs.host
ORDER BY last_heard DESC LIMIT {limit:UInt32}
