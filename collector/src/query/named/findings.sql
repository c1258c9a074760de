SELECT found_at, host_name AS host, origin, seq, job_key, job_name AS name,
       connect_verdict AS verdict, reason, missing, kernel, recorded, explained, detail
FROM findings FINAL
WHERE found_at >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR job_key = {job:String} OR job_name = {job:String})
ORDER BY found_at DESC, seq DESC LIMIT {limit:UInt32}
