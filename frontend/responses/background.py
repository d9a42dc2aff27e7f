"""A response that runs on without the client that asked for it: its events and its end go to the store."""

import asyncio
import logging

from frontend.errors import ApiError
from frontend.event_streaming import events_of
from frontend.generation import Generation
from frontend.protocol.response_events import WHOLE_EVENTS
from frontend.protocol.responses import Response
from frontend.protocol.stored_responses import StoredResponse
from frontend.responses.answer import fail_response
from frontend.responses.output import OutputWriter
from frontend.responses.stream import ResponseStream
from frontend.state import FrontendState

RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class BackgroundResponse:
    """Begin it once. It closes its generation."""

    def __init__(
        self, stored: StoredResponse, writer: OutputWriter, generation: Generation, state: FrontendState
    ) -> None:
        self._stored = stored
        self._writer = writer
        self._generation = generation
        self._state = state
        self._num_events = 0
        self._begun: asyncio.Future[ApiError | None] = asyncio.get_running_loop().create_future()

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
            self._generation.close()

    async def _store_beginning(self) -> ApiError | None:
        """Returns why it could not be stored."""
        try:
            await self._state.responses.begin(self._stored)
        except ApiError as error:
            return error
        return None

    async def _generate(self) -> None:
        """To the end. What fails is stored as well, unless a cancel has ended it before."""
        response = self._stored.response
        form = ResponseStream(response, self._writer, self._generation, self._keep)
        failure: ApiError | None = ApiError(500, "The server failed while it answered.", code="internal_error")
        try:
            # An event is stored before the next one is made: tokens that come meanwhile become one event.
            async for event in events_of(None, self._generation, form):
                self._num_events = event.sequence_number + 1
                if not isinstance(event, WHOLE_EVENTS):
                    await self._state.responses.add_event(response.id, event)
            failure = None
        except ApiError as error:
            failure = error
        finally:
            if failure is not None:
                fail_response(response, failure)
                await self._keep(response)

    async def _keep(self, response: Response) -> Response:
        """Stores the end. What cannot be stored has failed. Returns the response as it has ended."""
        try:
            return await self._finish()
        except ApiError as error:
            fail_response(response, error)
            response.output, self._stored.deltas = [], []
            logger.warning("The response %s cannot be stored: %s", response.id, error.message)
        while True:  # others wait for it as long as this process lives
            try:
                return await self._finish()
            except ApiError:
                await asyncio.sleep(RETRY_SECONDS)

    async def _finish(self) -> Response:
        return (await self._state.responses.finish(self._stored, self._num_events)).response
