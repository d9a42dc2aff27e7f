"""What a server costs that does nothing, and how soon it answers: start, resident memory, idle CPU, first token.

Starts `scripts/launch.sh` as a user would. The first token's overhead is the time from sending a streamed chat of about
32 prompt tokens until its first token arrives, less the time that the worker spent in that step (from the timeline).
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.started import Started

QUESTION = "What does os.path.join do? Please say it in one sentence, and then name its arguments."


def launch(*arguments: str) -> Started:
    return Started([str(ROOT / "scripts" / "launch.sh"), "--port", "0", *arguments])


def first_token_seconds(url: str) -> float:
    """Time to the first event of a streamed chat."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2, "stream": True, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        response.readline()
        seconds = time.perf_counter() - start
        response.read()
    return seconds


def prefill_seconds(trace: Path) -> list[float]:
    """What the worker took for each step that computed a prompt."""
    events = json.loads(trace.read_text())["traceEvents"]
    return [e["dur"] / 1e6 for e in events if e["name"] == "run" and e["args"]["num_tokens"] > 8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    starts = []
    for _ in range(arguments.starts):
        with launch() as server:
            starts.append(server.seconds_to_ready)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        # Without the prefix cache: each chat computes its prompt anew.
        with launch("--trace", str(trace), "--no-enable-prefix-caching") as server:
            processes = server.processes()
            resident = server.resident_mib()
            before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
            time.sleep(arguments.idle_seconds)  # the measured span itself
            idle = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in processes.items()}
            first_token_seconds(server.url)
            first = [first_token_seconds(server.url) for _ in range(arguments.chats)]
        forward = prefill_seconds(trace)[1:]
    print(f"| ready after, s (launch.sh, median of {len(starts)}) | {statistics.median(starts):.1f} |\n|---|---|")
    for name, mib in resident.items():
        print(f"| resident when idle, {name}, MiB | {mib:.0f} |")
    share = sum(idle.values()) / arguments.idle_seconds
    print(f"| idle CPU of all processes over {arguments.idle_seconds:.0f} s, share of one core | {share:.2%} |")
    print(f"| first token of a chat, ms (median of {len(first)}) | {statistics.median(first) * 1e3:.1f} |")
    print(f"| its step in the worker, ms | {statistics.median(forward) * 1e3:.1f} |")
    overhead = statistics.median(first) - statistics.median(forward)
    print(f"| all else before the first token, ms | {overhead * 1e3:.1f} |")


if __name__ == "__main__":
    main()
