"""What the frontend's tests share: a tiny tokenizer, and a real frontend process before a stub core."""

import contextlib
import json
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.stub_config import frontend_config, serve_config
from benchmarks.stub_core import Reply, StubCore
from engine_core.config.engine_config import ServeConfig
from engine_core.ipc.heartbeat import Heartbeats
from engine_core.ipc.messages import AddRequest
from frontend.launcher import start_frontend
from frontend.preparation.pool import PreparationPool
from frontend.preparation.preparer import Preparer
from frontend.supervisor.listeners import open_listeners, url_of

MODEL = "tiny/model"
END = "<|end|>"
MAX_MODEL_LEN = 512
VOCAB_SIZE = 1024
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln: 你好，世界！ 🦊🐕 naïve café",
    "Once upon a time there was a small engine that could.",
]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' and message.content == 'refuse me' -%}{{ raise_exception('No.') }}{%- endif -%}
<|{{ message.role }}|>{{ message.content }}
{%- for call in message.tool_calls or [] %}[{{ call.function.name }}({{ call.function.arguments | tojson }})]
{%- endfor -%}
{{ eos_token }}
{%- endfor -%}
{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- if mood %}({{ mood }}){% endif -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE, so small that characters beyond ASCII span several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END, "<|user|>", "<|assistant|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES[:1] + SENTENCES[2:], trainer)
    tokenizer.add_special_tokens([AddedToken("<|system|>", special=True)])
    return tokenizer


def write_model_folder(folder: Path) -> Tokenizer:
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": END}, "chat_template": CHAT_TEMPLATE})
    )
    return tokenizer


def preparation_pool(folder: Path, **changes: Any) -> PreparationPool:
    """For a model folder that is written here, without a frontend around it."""
    write_model_folder(folder)
    config = frontend_config(folder, **changes)
    config_file = write_config(folder, serve_config(folder, config))
    return PreparationPool(Preparer.load(config), config_file)


def write_config(folder: Path, config: ServeConfig) -> str:
    path = folder / "config.json"
    path.write_bytes(msgspec.json.encode(config))
    return str(path)


class FrontendProcess:
    """A frontend as the supervisor starts it."""

    def __init__(self, run_dir: Path, config: ServeConfig) -> None:
        config_file = write_config(run_dir, config)
        self._listener = open_listeners("127.0.0.1", 0, 1)[0]
        self.heartbeats = Heartbeats.create(2)
        self.child = start_frontend(config_file, 0, self._listener.fileno(), self.heartbeats, index=1)
        self.url = url_of("127.0.0.1", self._listener.getsockname()[1])

    def wait_ready(self) -> None:
        while not self.child.is_ready:
            readable, _, _ = select.select([self.child.link], [], [], 30)
            assert readable, "The frontend was not ready in time."
            self.child.receive()
            assert self.child.is_link_open, self.child.failed

    def wait_exit(self) -> int | None:
        assert self.child.wait(30), "The frontend did not exit in time."
        return self.child.exit_code

    def stop(self) -> None:
        """Ends it as the supervisor's death would."""
        if self.child.is_link_open:
            self.child.link.close()
        self.wait_exit()
        self._listener.close()


class Setup:
    """A stub core, a frontend and an HTTP client."""

    def __init__(self, core: StubCore, frontend: FrontendProcess, tokenizer: Tokenizer) -> None:
        self.core = core
        self.frontend = frontend
        self.tokenizer = tokenizer
        self.url = frontend.url
        self.http = httpx.Client(base_url=frontend.url, timeout=30)

    def forget(self) -> None:
        """Drops what the core has received so far."""
        self.core.forget()

    def say(self, text: str, **options: Any) -> None:
        """Every request from now on is answered with this text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        self.say_ids(ids, **options)

    def say_ids(self, ids: list[int], **options: Any) -> None:
        def script(add: AddRequest) -> Reply:
            most = add.sampling.max_tokens
            reply = ids if most is None or options.get("endless") else ids[:most]
            if len(reply) < len(ids):
                return Reply(token_ids=reply, reason="length")
            return Reply(token_ids=reply, **{"reason": "stop", **options})

        self.core.script = script

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def chat(self, content: str = "Hello", **fields: Any) -> httpx.Response:
        return self.post(
            "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        )

    def complete(self, prompt: Any = "Hello", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": MODEL, "prompt": prompt, **fields})


@contextlib.contextmanager
def running_setup(folder: Path, **frontend_changes: Any) -> Iterator[Setup]:
    """Everything started, and ended again."""
    tokenizer = write_model_folder(folder)
    names = {"served_model_names": (MODEL, "alias"), "max_model_len": MAX_MODEL_LEN}
    config = serve_config(folder, frontend_config(folder, **{**names, **frontend_changes}))
    core = StubCore(
        config.core_endpoint(),
        lambda add: Reply(token_ids=[5]),
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        utilities={
            "metrics": lambda arguments: "# TYPE quire_steps counter\nquire_steps 3\n",
            "status": lambda arguments: {"progress": 3, "pending": 0},
            "abort_requests": lambda arguments: core.abort_requests(**arguments),
        },
    )
    core.start()
    frontend = FrontendProcess(folder, config)
    try:
        frontend.wait_ready()
        setup = Setup(core, frontend, tokenizer)
        with setup.http:
            yield setup
    finally:
        frontend.stop()
        core.stop()


def events_of(response: httpx.Response) -> list[Any]:
    """The data of an event stream; the last is the string [DONE]."""
    events: list[Any] = []
    for block in response.text.split("\n\n"):
        if not block:
            continue
        assert block.startswith("data: "), block
        data = block[len("data: ") :]
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


def deltas_of(events: list[Any], index: int = 0) -> list[Any]:
    """The choices of that index in the chunks of a stream."""
    return [choice for event in events[:-1] for choice in event.get("choices", []) if choice["index"] == index]
