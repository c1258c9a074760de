SELECT host_name AS host, origin, first_missing_seq, last_missing_seq, missing
FROM gaps
ORDER BY origin, first_missing_seq LIMIT {limit:UInt32}
