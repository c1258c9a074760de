SELECT first, if(tool = '', 'server', 'tool') AS what, server, tool, definition, last, n AS calls, arraySlice(by_jobs, 1, 5) AS jobs
FROM
(
    SELECT server_name AS server, gen_ai_tool_name AS tool, mcp_tool_digest AS definition, min(first_time) AS first,
           max(last_time) AS last, sum(calls) AS n, groupUniqArray(cicd_pipeline_task_name) AS by_jobs
    FROM calls_5m
    WHERE gen_ai_tool_name != ''
    GROUP BY server, tool, definition
    UNION ALL
    SELECT server_name, '', '', min(first_time), max(last_time), sum(calls), groupUniqArray(cicd_pipeline_task_name)
    FROM calls_5m
    GROUP BY server_name
)
WHERE first >= {since:DateTime64(6, 'UTC')} AND ({job:String} = '' OR has(by_jobs, {job:String}))
ORDER BY first DESC, what LIMIT {limit:UInt32}
