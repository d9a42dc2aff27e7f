#!/usr/bin/env bash
# Serves the demo model on http://127.0.0.1:8000. Arguments go to `quire serve`, a model among them included.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec "$venv/bin/quire" serve --default-model "$root/demo_model" "$@"
