SELECT if(tls_client_server_name != '', tls_client_server_name, server_name) AS destination,
       server_port AS port, count() AS connections, sum(bytes_up) AS up, sum(bytes_down) AS down,
       max(flows.time) AS last, groupUniqArray(5)(process_executable_path) AS executables
FROM flows
WHERE flow_treatment = 'opaque' AND flows.time >= {since:DateTime64(6, 'UTC')}
  AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
GROUP BY destination, port
ORDER BY connections DESC LIMIT {limit:UInt32}
