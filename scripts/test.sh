#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest: scripts/test.sh tests/config -k plan
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$root"
exec "$venv/bin/python" -m pytest "$@"
