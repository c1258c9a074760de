SELECT time, job_key, job_name AS name, host_name AS host, job_closed AS closed,
       arraySum(mapValues(kernel_connects)) AS connects, kernel_connects AS by_verdict,
       connects_in_flight AS in_flight
FROM jobs
WHERE time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR job_key = {job:String} OR job_name = {job:String})
ORDER BY time DESC LIMIT {limit:UInt32}
