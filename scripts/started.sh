# Sourced by checks from outside: $root, and `start_server MODEL [FLAG...]`, which sets $url and ends with the script.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
quire="${QUIRE:-$root/.venv/bin/quire}"

start_server() {
    local log
    log="$(mktemp)"
    "$quire" serve "$@" --port 0 >"$log" &
    server=$!
    trap 'kill "$server" 2>/dev/null; wait "$server" || true; rm -f "'"$log"'"' EXIT
    until url="$(sed -n 's|^Quire is ready: \(http://[^ ]*\)/v1 .*|\1|p' "$log")" && [ -n "$url" ]; do
        kill -0 "$server" 2>/dev/null || { echo "The server did not start." >&2; exit 1; }
        sleep 0.2
    done
}
