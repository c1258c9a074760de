WITH bursts AS (
    SELECT vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name, burst.1 AS began_at, burst.2 AS calls,
           burst.3 AS usual, burst.4 AS spread, burst.5 AS history, (calls - usual) / greatest(spread, 1) AS deviations
    FROM
    (
        SELECT vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name,
               arraySort(groupArray((began_at, toFloat64(n)))) AS windows,
               arrayCumSum(w -> w.2, windows) AS sums, arrayCumSum(w -> w.2 * w.2, windows) AS squares,
               arrayMap((w, s, q, i) -> (w.1, toUInt64(w.2), (s - w.2) / (i - 1),
                        sqrt(greatest((q - w.2 * w.2) / (i - 1) - pow((s - w.2) / (i - 1), 2), 0)), i - 1),
                        windows, sums, squares, arrayEnumerate(windows)) AS told
        FROM
        (
            SELECT vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name, began_at, sum(calls) AS n
            FROM calls_5m
            WHERE began_at + toIntervalDay(7) >= {since:DateTime64(6, 'UTC')}
              AND ({job:String} = '' OR cicd_pipeline_task_name = {job:String} OR cicd_pipeline_run_id = {job:String})
            GROUP BY vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name, began_at
        )
        GROUP BY vcs_repository_name, cicd_pipeline_name, cicd_pipeline_task_name
    )
    ARRAY JOIN arrayFilter(w -> w.5 >= 12 AND w.2 >= 10 AND w.2 > w.3 + 4 * greatest(w.4, 1)
                                AND w.1 >= {since:DateTime64(6, 'UTC')}, told) AS burst
    ORDER BY deviations DESC, began_at DESC LIMIT {limit:UInt32}
)
SELECT bursts.began_at AS began_at, bursts.vcs_repository_name AS repository, bursts.cicd_pipeline_name AS pipeline,
       bursts.cicd_pipeline_task_name AS job, any(bursts.calls) AS calls, round(any(bursts.usual), 1) AS usual,
       round(any(bursts.spread), 1) AS spread, round(any(bursts.deviations), 1) AS deviations,
       any(bursts.history) AS history, groupUniqArray(5)(calls_5m.gen_ai_tool_name) AS tools,
       groupUniqArray(5)(calls_5m.cicd_pipeline_run_id) AS runs
FROM calls_5m
INNER JOIN bursts ON bursts.began_at = calls_5m.began_at AND bursts.vcs_repository_name = calls_5m.vcs_repository_name
    AND bursts.cicd_pipeline_name = calls_5m.cicd_pipeline_name
    AND bursts.cicd_pipeline_task_name = calls_5m.cicd_pipeline_task_name
GROUP BY began_at, repository, pipeline, job
ORDER BY deviations DESC, began_at DESC
