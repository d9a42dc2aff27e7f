"""What the handlers of one frontend process share. Nothing that a second process would need to know."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from engine_core.config.engine_config import FrontendConfig
from engine_core.ipc.messages import ERROR_ENGINE_DEAD, ERROR_SHUTTING_DOWN
from frontend.client import EngineClient
from frontend.errors import ApiError, unavailable
from frontend.input_processor import InputProcessor, Limits
from frontend.preparation.pool import PreparationPool
from frontend.responses.store import ResponseStore
from frontend.shares import Shares
from frontend.sse import KeepAlive
from frontend.text.tokenizer_files import load_tokenizer_config

logger = logging.getLogger(__name__)

STALL_SECONDS = 60.0
"""Without a step for so long while it has work, an engine is not ready for more."""


class FrontendState:
    """Made before the server starts; `input_processor` exists once the engine core has introduced itself."""

    def __init__(
        self, config: FrontendConfig, client: EngineClient, preparation: PreparationPool, responses: ResponseStore
    ) -> None:
        self.config = config
        self.client = client
        self.created = int(time.time())
        self.draining = False
        self.shares = Shares(config)
        self.keep_alive = KeepAlive()
        self.responses = responses
        self.num_open = 0
        """Handlers that prepare, generate or follow a response right now."""
        self.preparation = preparation
        self.tokenizer = preparation.preparer.tokenizer
        self._input_processor: InputProcessor | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._core_progress = -1
        self._core_progress_since = 0.0

    @property
    def input_processor(self) -> InputProcessor:
        if self._input_processor is None:
            info = self.client.info
            if info is None:
                raise unavailable("The engine is not ready.", ERROR_ENGINE_DEAD)
            limits = Limits(
                max_model_len=min(self.config.max_model_len, info.max_model_len),
                max_logprobs=self.config.max_logprobs,
                vocab_size=info.vocab_size,
                eos_token_ids=self.config.eos_token_ids,
            )
            self._input_processor = InputProcessor(self.preparation, limits, self.config.default_sampling)
        return self._input_processor

    @property
    def tokenizer_info(self) -> dict[str, Any]:
        """What a client needs that renders and tokenizes itself: tokenizer_config.json, with the special tokens as
        texts and the chat template that is really used."""
        info = {**load_tokenizer_config(self.config.model_path), **self.tokenizer.special_tokens}
        template = self.preparation.preparer.chat_template.sources.get("default")
        return info if template is None else {**info, "chat_template": template}

    def model_name(self, asked: str | None) -> str:
        """The name to answer with. Raises a 404 for a model that is not served here."""
        names = self.config.served_model_names
        if asked is None:
            return names[0]
        if asked not in names:
            served = ", ".join(repr(name) for name in names)
            message = f"The model {asked[:256]!r} does not exist; served here: {served}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return asked

    @asynccontextmanager
    async def generating(self) -> AsyncIterator[None]:
        """Counts a handler that generates. Raises a 503 when nothing new is taken."""
        refusal = self.not_ready()
        if refusal is not None:
            raise refusal
        with self.counted():
            yield

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts a handler: a server that shuts down waits for it."""
        self._count_open(1)
        try:
            yield
        finally:
            self._count_open(-1)

    def start_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that goes on after its request was answered; it counts like a handler."""
        self._count_open(1)
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._end_background)

    def _end_background(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        self._count_open(-1)
        if not task.cancelled() and task.exception() is not None:
            logger.error("Work in the background failed.", exc_info=task.exception())

    def _count_open(self, change: int) -> None:
        self.num_open += change
        if self.num_open == 0:
            self._idle.set()
        else:
            self._idle.clear()

    def not_ready(self) -> ApiError | None:
        """Why new requests are refused, or None."""
        if self.draining:
            return unavailable("The server is shutting down and takes no new requests.", ERROR_SHUTTING_DOWN)
        if not self.client.connected:
            return unavailable("The engine is not running.", ERROR_ENGINE_DEAD)
        return None

    @property
    def progress(self) -> int:
        """Moves with every token and every request that was finished."""
        return self.client.num_delivered_tokens + self.client.num_finished_requests

    def note_progress(self, progress: int, pending: int) -> float:
        """For how many seconds the core has had work and made no step, as far as it was looked at."""
        now = time.monotonic()
        if progress != self._core_progress or pending == 0:
            self._core_progress, self._core_progress_since = progress, now
        return now - self._core_progress_since

    async def wait_idle(self) -> None:
        """Until no handler generates any more."""
        await self._idle.wait()
