#!/bin/sh
# The pipeline job of the demo: two steps, each an MCP client that calls the server by its URL.
# usage: job.sh NODE PYTHON URL NONCE
folder=$(dirname "$0")
"$1" "$folder/client.mjs" "$3" --nonce "$4-typescript"
"$2" "$folder/client.py" "$3" --nonce "$4-python"
