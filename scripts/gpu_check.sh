#!/usr/bin/env bash
# On a host with a GPU: the native kernel tests, the comparisons of models and the benchmarks in one go, and one table.
#
#     scripts/gpu_check.sh [--out DIR] [--repeats N] [--stages "NAME ..."] [--no-venv] [--dry]
#
# Each stage has a time limit and writes to DIR/STAGE.log (and .json where it has figures); one that fails stops no other
# and makes the exit code 1. --no-venv uses $PYTHON (python3) as it is, with whatever packages it has, and no network.
# --dry runs everything tiny on the CPU, to see that the commands work.
set -euo pipefail

stages="kernel-tests compare kernels rows offline-llama8b offline-qwen06b serving startup"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="" repeats=3 use_venv=1 dry=0
while [ $# -gt 0 ]; do
    case "$1" in
    --out) out="$2" && shift ;;
    --repeats) repeats="$2" && shift ;;
    --stages) stages="$2" && shift ;;
    --no-venv) use_venv=0 ;;
    --dry) dry=1 ;;
    *) echo "gpu_check: there is no option $1 (see the head of this file)" >&2 && exit 2 ;;
    esac
    shift
done
if [ "$use_venv" = 1 ]; then
    source "$here/venv.sh"
    python="$venv/bin/python"
else
    root="$(dirname "$here")"
    python="${PYTHON:-python3}"
fi
out="${out:-$root/build/gpu_check}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
rm -f "$out"/*.json
: >"$out/stages.tsv"
running=""
trap '[ -z "$running" ] || kill "$running"; exit 130' INT TERM

# stage NAME SECONDS COMMAND...: runs it where it was asked for and notes result and time.
stage() {
    local name="$1" limit="$2" result=ok code=0 start=$SECONDS
    shift 2
    [[ " $stages " == *" $name "* || " $stages " == *" ${name%%-*} "* ]] || return 0
    echo "$name ..." >&2
    timeout --kill-after=20 "$limit" "$@" >"$out/$name.log" 2>&1 &
    running=$!
    wait "$running" || code=$?
    running=""
    if [ "$code" = 124 ]; then result="over $limit s"; elif [ "$code" != 0 ]; then result="failed ($code)"; fi
    printf '%s\t%s\t%s\n' "$name" "$result" "$((SECONDS - start))" >>"$out/stages.tsv"
}

bench() {
    local name="$1" limit="$2" module="$3"
    shift 3
    stage "$name" "$limit" "$python" -m "benchmarks.$module" --json "$out/$name.json" "$@"
}

works="decode1 decode64 prefill prefix tput nano"
if [ "$dry" = 1 ]; then
    export CUDA_VISIBLE_DEVICES=""
    tiny="max_num_batched_tokens=2048 kv_cache_memory_bytes=64M"
    stage kernel-tests 60 "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_reference_random.py
    stage compare 60 "$python" -m pytest -q -p no:cacheprovider tests/gpu_workers/test_publisher.py
    bench kernels 60 benchmark_kernels --dry --rows rms_norm decode_attention linear
    bench offline-llama8b 60 bench_offline --shape tiny-llama8b --device cpu --works $works --scale 64 --repeats 1 \
        --trace --set $tiny
    bench offline-qwen06b 60 bench_offline --shape tiny-qwen06b --device cpu --works decode1 --scale 64 --repeats 1 \
        --set $tiny
    bench serving 60 bench_serving --shape tiny-qwen06b --device cpu --requests 8 --input-tokens 16 --output-tokens 4 \
        --set $tiny
    bench startup 60 bench_startup --shape tiny-llama8b --device cpu --starts 1 --ways serve --set $tiny
else
    stage kernel-tests 1200 "$python" -m pytest -q tests/kernels
    stage compare 1200 "$python" -m pytest -q -rP tests/gpu_workers tests/e2e/test_greedy_parity.py
    bench kernels 900 benchmark_kernels
    for shape in llama8b qwen06b mistral7b gemma2-9b gemma3-1b; do
        bench "rows-$shape" 300 bench_step_rows --shape "$shape"
    done
    bench offline-llama8b 1200 bench_offline --shape llama8b --device cuda --works $works --repeats "$repeats" --trace
    bench offline-qwen06b 900 bench_offline --shape qwen06b --device cuda --works $works --repeats "$repeats" --trace
    bench serving 600 bench_serving --shape qwen06b --device cuda
    bench startup 900 bench_startup --shape llama8b --device cuda --starts "$repeats"
fi
"$python" -m benchmarks.gpu_report "$out"
