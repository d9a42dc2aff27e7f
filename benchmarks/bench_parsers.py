"""What the parsers cost per token: each format's parser fed one token's text at a time, beside what comes before it.

python -m benchmarks.bench_parsers
"""

import argparse
import json
import time

from frontend.parsers.chat_parser import ParserMaker, ParserPlan
from frontend.parsers.registry import HARMONY, REASONING_FORMATS, TOOL_FORMATS

TEXT = "The garbage collector frees objects that are no longer reachable, and returns the number of them."
WORDS = TEXT.split()
TOOLS = {"look": {"type": "object", "properties": {"text": {"type": "string"}}}}
BUDGET_MICROSECONDS = 1e6 / 8000


def tokens_of_a_call(num_words: int) -> list[str]:
    """A call in the form of Hermes whose one argument is long: the costliest text to hold back."""
    text = " ".join(WORDS * (num_words // len(WORDS)))
    body = json.dumps({"name": "look", "arguments": {"text": text}})
    return ["<tool_call>", "\n", *(piece + " " for piece in body.split(" ")), "\n", "</tool_call>"]


def microseconds_per_token(maker: ParserMaker, tokens: list[str], repeats: int) -> float:
    """The best of several runs."""
    best = float("inf")
    for _ in range(repeats):
        parser = maker.make()
        start = time.perf_counter()
        for token in tokens:
            parser.feed(token)
        parser.finish()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000, help="of each output")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    prose = [" " + word for word in WORDS * (arguments.tokens // len(WORDS))]

    def measure(title: str, plan: ParserPlan, tokens: list[str]) -> None:
        cost = microseconds_per_token(ParserMaker(plan, "", TOOLS), tokens, arguments.repeats)
        print(f"{title:40s} {cost:6.2f} us a token, {100 * cost / BUDGET_MICROSECONDS:4.1f} % of 8,000 tokens/s")

    for name in TOOL_FORMATS:
        measure(f"{name}: prose", ParserPlan(name, HARMONY if name == HARMONY else None), prose)
    for name in REASONING_FORMATS:
        if name != HARMONY:
            measure(f"{name}: prose after reasoning", ParserPlan(None, name), prose)
    measure("hermes after qwen3: prose", ParserPlan("hermes", "qwen3"), prose)
    measure("hermes: one long call", ParserPlan("hermes"), tokens_of_a_call(arguments.tokens))


if __name__ == "__main__":
    main()
