"""What can be found in the prefix cache and what no longer can, for routers outside: recorded and sent to subscribers.

Nothing is recorded while nobody subscribes. Batches are encoded once for all subscribers and kept for those that lag,
up to a bound; who lags more is told of the gap and asks for a snapshot again.
"""

from collections import deque

import zmq

from engine_core.clients import Client, send_to
from engine_core.ipc.codec import encode
from engine_core.ipc.messages import BlockEvent, BlockEvents, BlocksCleared, BlocksRemoved, BlocksStored

MAX_KEPT_BATCHES = 4096
MAX_KEPT_BYTES = 32 * 2**20
_NEW = -1
"""A cursor before every batch: the first frame of a subscriber tells it that it knows nothing yet."""


class BlockEventRecorder:
    """The cache manager's side: collects the events of one turn of the loop, neighbours in a chain as one."""

    def __init__(self, block_size: int) -> None:
        self.is_recording = False
        self._block_size = block_size
        self._events: list[BlockEvent] = []
        self._stored: list[bytes] = []
        self._parent = b""
        self._group = 0
        """Of the layers, for what is in `_stored` and `_removed`."""
        self._removed: list[bytes] = []

    def stored(self, digests: list[bytes], parent: bytes, group: int) -> None:
        """Blocks in the order of their chain, the first one after `parent`."""
        if not self._stored or self._stored[-1] != parent or self._group != group:
            self._flush()
            self._parent, self._group = parent, group
        self._stored += digests

    def removed(self, digest: bytes, group: int) -> None:
        if self._stored or self._group != group:
            self._flush()
            self._group = group
        self._removed.append(digest)

    def cleared(self) -> None:
        self._flush()
        self._events.append(BlocksCleared())

    def take(self) -> list[BlockEvent]:
        """The events since the last call, in order."""
        self._flush()
        events, self._events = self._events, []
        return events

    def _flush(self) -> None:
        if self._removed:
            self._events.append(BlocksRemoved(digests=b"".join(self._removed), group=self._group))
            self._removed = []
        if self._stored:
            digests = b"".join(self._stored)
            self._events.append(
                BlocksStored(digests=digests, parent=self._parent, num_tokens=self._block_size, group=self._group)
            )
            self._stored = []


class BlockEventFeed:
    """The core's side: numbers the batches and sends each subscriber what its credit allows."""

    def __init__(self, recorder: BlockEventRecorder, epoch: int, replica: int) -> None:
        self._recorder = recorder
        self._epoch = epoch
        self._replica = replica
        self._cursors: dict[Client, int] = {}
        """The next batch for each subscriber."""
        self._frames: deque[bytes] = deque()
        self._num_bytes = 0
        self._first = 0
        """The number of the oldest batch that is kept."""

    @property
    def _next(self) -> int:
        return self._first + len(self._frames)

    def subscribe(self, client: Client) -> None:
        """From its first frame on, for which it needs a credit; what is in the cache by then is a snapshot's
        business."""
        self._cursors[client] = _NEW

    def unsubscribe(self, client: Client) -> None:
        """Also for a client that never subscribed."""
        if self._cursors.pop(client, None) is not None:
            self._keep_what_is_followed()

    def send(self, socket: zmq.Socket) -> list[Client]:
        """Sends what has been recorded. Returns subscribers found to be gone."""
        if not self._cursors:
            return []
        if events := self._recorder.take():
            self._keep(self._encode(self._next, events))
        gone = [client for client in self._cursors if not self._send_to(socket, client)]
        self._keep_what_is_followed()
        return gone

    def _keep_what_is_followed(self) -> None:
        """Whoever has lost events is told of a gap and takes a snapshot: nothing is recorded for such subscribers, of
        whom some left without a word and will never have a credit again."""
        followed = [cursor for cursor in self._cursors.values() if cursor >= self._first]
        self._recorder.is_recording = bool(followed)
        if not followed:
            self._recorder.take()
        self._drop_before(min(followed, default=self._next))

    def _send_to(self, socket: zmq.Socket, client: Client) -> bool:
        while client.credit > 0 and self._cursors[client] < self._next:
            cursor = self._cursors[client]
            if cursor < self._first:
                frame, cursor = self._encode(self._next, [], gap=True), self._next
            else:
                frame, cursor = self._frames[cursor - self._first], cursor + 1
            client.credit -= 1
            self._cursors[client] = cursor
            if not send_to(socket, client.identity, frame):
                return False
        return True

    def _encode(self, sequence: int, events: list[BlockEvent], gap: bool = False) -> bytes:
        return encode(BlockEvents(epoch=self._epoch, replica=self._replica, sequence=sequence, gap=gap, events=events))

    def _keep(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._num_bytes += len(frame)
        while len(self._frames) > MAX_KEPT_BATCHES or self._num_bytes > MAX_KEPT_BYTES:
            self._drop_before(self._first + 1)

    def _drop_before(self, sequence: int) -> None:
        while self._frames and self._first < sequence:
            self._num_bytes -= len(self._frames.popleft())
            self._first += 1
