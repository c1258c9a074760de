SELECT time, call_id, message_direction AS direction, message_label AS label,
       mcp_method_name AS method, jsonrpc_request_id AS id, mcp_session_id AS session, unread_reason AS unread,
       payload
FROM messages
WHERE time >= {since:DateTime64(6, 'UTC')}
ORDER BY time DESC, seq DESC LIMIT {limit:UInt32}
