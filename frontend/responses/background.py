"""A response that runs on without the client that asked for it: its events go to a log, its end to the store.

Where there are other frontends it also keeps its progress in the store from time to time, so that they can follow it.
"""

import asyncio
import logging
import time

from frontend.errors import ApiError
from frontend.event_streaming import events_of
from frontend.generation import Generation
from frontend.protocol.responses import Response
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.answer import fail_response
from frontend.responses.log import ResponseLog
from frontend.responses.output import OutputWriter
from frontend.responses.stored import load_response, save_progress, save_response
from frontend.responses.stream import ResponseStream
from frontend.state import FrontendState

PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0
_PAUSE_PER_WORK = 20.0

logger = logging.getLogger(__name__)


async def pause_after(seconds: float) -> None:
    """Between two rounds of what takes longer the longer a response is. `seconds`: what the last one took."""
    await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, max(PAUSE_SECONDS, _PAUSE_PER_WORK * seconds)))


class BackgroundResponse:
    """Begin it once. It closes its generation, and its log is in the state for as long as it runs."""

    def __init__(
        self,
        stored: StoredResponse,
        writer: OutputWriter,
        generation: Generation,
        state: FrontendState,
        *,
        is_followed: bool,
    ) -> None:
        """`is_followed`: whether somebody wants its events while they come, through whichever frontend."""
        self.log = ResponseLog()
        self._stored = stored
        self._writer = writer
        self._generation = generation
        self._state = state
        self._shares_progress = is_followed and state.config.num_frontends > 1
        self._sharing: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()
        state.response_logs[stored.response.id] = self.log

    async def begin(self) -> None:
        """Stores its beginning; then it runs by itself. A caller that is cancelled meanwhile, because its client
        has hung up, changes nothing: what is stored as begun comes to an end."""
        self._state.start_background(self._run())
        refusal = await asyncio.shield(self._begun)
        if refusal is not None:
            raise refusal

    async def _run(self) -> None:
        try:
            refusal = await self._store_beginning()
            self._begun.set_result(refusal)
            if refusal is None:
                await self._generate()
        finally:
            self._begun.cancel()  # where nothing of it came to pass
            self._stop_sharing()
            self._generation.close()
            self.log.end()
            del self._state.response_logs[self._stored.response.id]

    async def _store_beginning(self) -> ApiError | None:
        """Returns why it could not be stored."""
        try:
            await save_response(self._state.client, self._stored, is_final=False)
        except ApiError as error:
            return error
        return None

    async def _generate(self) -> None:
        """To the end. What fails is stored as well, unless a cancel has ended it before."""
        response = self._stored.response
        form = ResponseStream(response, self._writer, self._generation, self._keep)
        if self._shares_progress:
            self._sharing = asyncio.create_task(self._share_progress())
        try:
            async for event in events_of(None, self._generation, form):
                self.log.append(event)
        except ApiError as error:
            fail_response(response, error)
            self.log.append(form.ended(await self._keep(response)))

    async def _keep(self, response: Response) -> Response:
        """Stores the end. Returns the response as it has ended: a cancel may have been faster."""
        self._stop_sharing()
        client, stored = self._state.client, self._stored
        progress = self._writer.progress(is_last=True)
        try:
            is_kept = await save_response(client, stored, is_final=True, progress=progress)
        except ApiError as error:
            await self._keep_failure(error)
            return response
        if is_kept:
            return response
        try:
            await save_progress(client, response.id, progress)
            return (await load_response(client, response.id, stored.owner)).response
        except ApiError as error:
            if error.status != 404:  # it was deleted while it ran
                logger.warning("How the response %s ended could not be read: %s", response.id, error.message)
            return response

    async def _keep_failure(self, error: ApiError) -> None:
        """What cannot be stored has failed, so that nobody waits for it."""
        response = self._stored.response
        fail_response(response, error)
        response.output, self._stored.deltas = [], []
        try:
            await save_response(self._state.client, self._stored, is_final=True)
        except ApiError as second:
            logger.warning("The response %s could not be stored: %s", response.id, second.message)

    async def _share_progress(self) -> None:
        num_shared = 0
        try:
            while await self.log.wait_beyond(num_shared):
                started = time.monotonic()
                num_shared = len(self.log)
                await save_progress(self._state.client, self._stored.response.id, self._writer.progress())
                await pause_after(time.monotonic() - started)
        except ApiError as error:
            logger.warning("The response %s cannot be followed: %s", self._stored.response.id, error.message)

    def _stop_sharing(self) -> None:
        if self._sharing is not None:
            self._sharing.cancel()
