"""What a server costs that does nothing, and how soon it answers: start, resident memory, idle CPU, first token.

Starts `scripts/launch.sh` as a user would. The first token's overhead is the time from sending a streamed chat of about
32 prompt tokens until its first token arrives, less the time that the worker spent in that step (from the timeline).
"""

import argparse
import json
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What does os.path.join do? Please say it in one sentence, and then name its arguments."


class Server:
    """A started server: its processes and its URL."""

    def __init__(self, *arguments: str) -> None:
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [str(ROOT / "scripts" / "launch.sh"), "--port", "0", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Quire is ready: "):
                self.url = line.split()[3]
                break
        else:
            raise RuntimeError("The server ended before it was ready.")
        self.seconds_to_ready = time.perf_counter() - start

    def processes(self) -> dict[str, psutil.Process]:
        """All processes by a readable name."""
        root = psutil.Process(self._process.pid)
        named = {"supervisor": root}
        for child in root.children(recursive=True):
            arguments = child.cmdline()
            named[arguments[arguments.index("-m") + 1] if "-m" in arguments else "supervisor"] = child
        return named

    def first_token_seconds(self) -> float:
        """Time to the first event of a streamed chat."""
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2, "stream": True, "temperature": 0}
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        start = time.perf_counter()
        with urllib.request.urlopen(request) as response:
            response.readline()
            seconds = time.perf_counter() - start
            response.read()
        return seconds

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate()
        assert self._process.returncode == 0, self._process.returncode


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
        server = Server()
        starts.append(server.seconds_to_ready)
        server.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        # Without the prefix cache: each chat computes its prompt anew.
        server = Server("--trace", str(trace), "--no-enable-prefix-caching")
        processes = server.processes()
        resident = {name: process.memory_info().rss / 2**20 for name, process in processes.items()}
        before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        time.sleep(arguments.idle_seconds)  # the measured span itself
        idle = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in processes.items()}
        server.first_token_seconds()
        first = [server.first_token_seconds() for _ in range(arguments.chats)]
        server.stop()
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
