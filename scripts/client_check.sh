#!/usr/bin/env bash
# Runs known client packages against a started server with the demo model; prints a line for each check.
#
#   scripts/client_check.sh [-v]
#
# The packages live in an environment of their own ($CLIENTS_VENV), which the first run installs; openai for Node in
# $CLIENTS_NODE, where there is npm.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/started.sh"
clients="${CLIENTS_VENV:-$root/.venv-clients}"
node_folder="${CLIENTS_NODE:-$root/.venv-clients-node}"
[ -x "$clients/bin/litellm" ] || {
    python3 -m venv "$clients"
    "$clients/bin/pip" install --quiet --disable-pip-version-check openai litellm langchain-openai instructor anthropic
}
start_server demo_model
failed=0
"$clients/bin/python" -m tests.clients "$url" demo_model "$@" || failed=1
if command -v npm >/dev/null; then
    [ -d "$node_folder/node_modules/openai" ] || npm install --silent --prefix "$node_folder" openai
    (cd "$node_folder" && node "$root/tests/clients/openai_node.mjs" "$url" demo_model) || failed=1
fi
exit "$failed"
