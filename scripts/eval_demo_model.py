"""Judges the demo model: asks a server, or transformers, the same questions and prints the table.

    python scripts/eval_demo_model.py --base-url http://127.0.0.1:8000/v1
    python scripts/eval_demo_model.py --backend transformers

The acceptance length of the draft is counted by the second form only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo_model.questions import MAX_ANSWER_TOKENS, Question, Reply, all_questions, judge, table
from demo_model.render import messages_for_api
from tqdm import tqdm

from demo_model import card

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_CALL_TOKENS = 160


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("server", "transformers"), default="server")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--served-model-name", default="", help="default: the first that the server lists")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at the server at once")
    parser.add_argument("--model", type=Path, default=REPOSITORY / "demo_model", help="folder of model and questions")
    parser.add_argument("--device", default="cpu", help="for --backend transformers")
    parser.add_argument("--batch-size", type=int, default=32, help="for --backend transformers")
    parser.add_argument("--quick", action="store_true", help="about a tenth of the questions")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong or first answers")
    parser.add_argument("--write", action="store_true", help="put the figures into the model folder")
    return parser.parse_args()


def token_limit(question: Question) -> int:
    return MAX_ANSWER_TOKENS if question.kind == "function" else MAX_CALL_TOKENS


class Server:
    """Asks an OpenAI-compatible server."""

    def __init__(self, base_url: str, model: str) -> None:
        self.url = urllib.parse.urlsplit(base_url)
        self.model = model or self._request("GET", "/models")["data"][0]["id"]

    def _request(self, method: str, path: str, body: dict | None = None) -> dict:
        connection_type = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = connection_type(self.url.netloc, timeout=300)
        try:
            payload = json.dumps(body) if body is not None else None
            connection.request(method, self.url.path + path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path} answered {response.status}: {text[:500]}")
        return json.loads(text)

    def ask(self, question: Question) -> Reply:
        body = {
            "model": self.model,
            "messages": messages_for_api(question.dialogue),
            "temperature": 0,
            "max_tokens": token_limit(question),
        }
        if question.dialogue.tools:
            body["tools"] = question.dialogue.tools
        choice = self._request("POST", "/chat/completions", body)["choices"][0]
        text, ended = choice["message"].get("content") or "", choice["finish_reason"] != "length"
        # What is malformed the server gives back as text.
        calls, well_formed = [], "<tool_call>" not in text
        for call in choice["message"].get("tool_calls") or []:
            try:
                calls.append((call["function"]["name"], json.loads(call["function"]["arguments"])))
            except json.JSONDecodeError:
                well_formed = False
        return Reply(text, ended, tuple(calls), well_formed)


def ask_server(arguments: argparse.Namespace, questions: Sequence[Question]) -> list[Reply]:
    server = Server(arguments.base_url, arguments.served_model_name)
    with ThreadPoolExecutor(arguments.concurrency) as pool:
        return list(tqdm(pool.map(server.ask, questions), total=len(questions), desc="ask"))


def main() -> None:
    arguments = parse_arguments()
    questions = all_questions(arguments.model, arguments.quick)
    measured: dict[str, object] = {}
    if arguments.backend == "server":
        replies = ask_server(arguments, questions)
    else:
        from demo_model.offline import ask_transformers

        replies, measured = ask_transformers(
            arguments.model, questions, [token_limit(q) for q in questions], arguments.device, arguments.batch_size
        )
    figures = judge(questions, replies)
    print(table(figures))
    for name, value in measured.items():
        print(f"{name}: {value}")
    shown = [(q, r) for q, r in zip(questions, replies, strict=True) if min(judge([q], [r]).values()) < 1]
    for question, reply in shown[: arguments.show]:
        print(repr(question.dialogue.messages[0]["content"]), "wanted", question.summary or question.calls)
        print("   ", repr(reply.text))
    if arguments.write:
        card.update_figures(arguments.model, {"judged": figures, **measured})


if __name__ == "__main__":
    main()
