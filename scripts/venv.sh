# Sourced by the other scripts: sets $root and makes $root/.venv what pyproject.toml and constraints.txt ask for.
#
# Everything is installed at once (server, tests, checks), so that after the first run all scripts work offline. A stamp
# with the hash of both files tells whether anything has to be done; without a change no network is touched.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

_install() {
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed; set PYTHON to one." >&2
        exit 1
    fi
    echo "Installing into $venv; this happens once." >&2
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt")
    # Our own package is built with the pinned setuptools of the environment: a build of its own would need the network.
    "${pip[@]}" setuptools
    "${pip[@]}" --no-build-isolation --editable "$root[gpu,test,dev]"
}

_ensure_venv() {
    local wanted
    wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum)"
    # A virtual environment does not survive a move, so the place belongs to the stamp.
    wanted="$root $wanted"
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
        (
            flock 9 # of two first runs at once the second one waits and finds the work done
            if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
                _install >&2
                echo "$wanted" >"$venv/installed"
            fi
        ) 9>"$root/.venv.lock"
    fi
}

_ensure_venv
