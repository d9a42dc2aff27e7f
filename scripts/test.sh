#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest: scripts/test.sh tests/config -k plan
# --fast as the first argument leaves out tests that are marked as slow: scripts/test.sh --fast
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$root"
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
exec "$venv/bin/python" -m pytest "$@"
