SELECT time, host_name AS host, job_key, connect_verdict AS verdict, gap_reason AS reason,
       gap_count AS connects, event_detail AS detail
FROM unrecorded
WHERE time >= {since:DateTime64(6, 'UTC')} AND ({job:String} = '' OR job_key = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}
