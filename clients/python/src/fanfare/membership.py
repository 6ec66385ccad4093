"""What the application holds of a group that it joined."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from . import events as ev

if TYPE_CHECKING:
    from .client import Client


class RefusedError(Exception):
    """The server said no, or the connection ended before its answer (``refusal`` None)."""

    def __init__(self, refusal: ev.Refusal | None) -> None:
        super().__init__(str(refusal) if refusal else "the connection ended before the answer")
        self.refusal = refusal


class Membership:
    """The messages of a group, each once and in order: ``async for message in client.join("lobby")``.

    The loop ends when the group was left or the client has ended, and raises RefusedError if the group
    could not be joined. Gaps and changes of the epoch are told to listeners when the messages before them
    are taken.
    """

    def __init__(self, group: str, client: Client) -> None:
        self.group = group
        self._client = client
        self._items: deque[ev.Message | ev.MissingMessages | ev.EpochChanged] = deque()
        self._current: ev.Message | None = None
        self._news = asyncio.Event()
        #: The server has taken the member, or it is over before that.
        self._settled = asyncio.Event()
        self._admitted = False
        self._over = False
        self._error: Exception | None = None

    def __aiter__(self) -> Membership:
        # Another loop goes on after the last message of the one before, which was not handled.
        self._current = None
        return self

    async def __anext__(self) -> ev.Message:
        """The next message. With automatic acknowledgement the one before counts as handled."""
        current, self._current = self._current, None
        if current is not None and self._client._automatic and not self._over:
            self.ack(current)
        while True:
            if not self._items:
                if self._error is not None:
                    raise self._error
                if self._over:
                    raise StopAsyncIteration
                self._news.clear()
                await self._news.wait()
                continue
            item = self._items.popleft()
            if isinstance(item, ev.Message):
                if not self._over:
                    self._client._taken(item)
                self._current = item
                return item
            self._client._tell(item)
            if isinstance(item, ev.MissingMessages) and self._client._automatic and not self._over:
                self._client._handled(self.group, item.epoch, item.last)

    async def joined(self) -> None:
        """Waits until the server has taken the member. Raises RefusedError if it does not."""
        await self._settled.wait()
        if not self._admitted:
            raise self._error or RefusedError(None)

    def ack(self, message: ev.Message) -> None:
        """Acknowledges a message and all before it, for ``acks="explicit"``."""
        self._client._handled(self.group, message.epoch, message.seq)

    def leave(self) -> None:
        """Leaves the group. A durable member that leaves is forgotten by the server."""
        self._client._leave(self.group)

    def _push(self, item: ev.Message | ev.MissingMessages | ev.EpochChanged) -> None:
        self._items.append(item)
        self._news.set()

    def _admit(self) -> None:
        self._admitted = True
        self._settled.set()

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            # What is left may be taken, but no longer counts as waiting.
            for item in self._items:
                if isinstance(item, ev.Message):
                    self._client._taken(item)
        self._over = True
        self._error = error
        self._settled.set()
        self._news.set()
