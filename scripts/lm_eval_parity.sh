#!/usr/bin/env bash
# Shows that lm-eval finds the same through a server as with transformers: the demo model, the tasks in tests/lm_eval,
# sample by sample. Arguments go to lm_eval_parity.py, say --tolerance 1e-4 or --device cuda.
#
# lm-eval has an environment of its own, build/lm_eval, which the first run makes (it needs a package index).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
environment="${LM_EVAL_VENV:-$root/build/lm_eval}"
if [ ! -e "$environment/installed" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    constraint() { grep -E "^$1==" "$root/constraints.txt"; }
    # The versions with which the server runs, where they make a difference.
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "lm-eval[api]==0.4.13" accelerate \
        "$(constraint torch)" "$(constraint transformers)" "$(constraint tokenizers)" "$(constraint numpy)"
    touch "$environment/installed"
fi
cd "$root"
exec "$environment/bin/python" scripts/lm_eval_parity.py --quire "$venv/bin/quire" "$@"
