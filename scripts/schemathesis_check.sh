#!/usr/bin/env bash
# Asks a started server whatever its own description allows and what it forbids: no 5xx, and every answer as described.
#
#   scripts/schemathesis_check.sh [MAX_EXAMPLES]     about 2,000 cases in all by default
#
# schemathesis lives in an environment of its own ($SCHEMATHESIS_VENV), which the first run installs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/started.sh"
tools="${SCHEMATHESIS_VENV:-$root/.venv-schemathesis}"
[ -x "$tools/bin/schemathesis" ] || {
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check schemathesis
}
# Most requests say nothing of the answer's length: in a short context none of them takes minutes.
start_server demo_model --max-model-len 256
"$tools/bin/schemathesis" run "$url/openapi.json" --phases fuzzing --mode all --max-examples "${1:-240}" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --seed 1 --continue-on-failure --suppress-health-check all --workers 2 --request-timeout 120 --generation-database none --no-color
