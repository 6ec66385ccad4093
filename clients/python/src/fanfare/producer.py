"""Publishes of one group that have no answer yet, in order, and their numbers.

The server takes the numbers of a producer in a group without holes. So the number of a publish is its
place in this queue: a publish that is refused leaves the queue, and those behind it, which the server
cannot have taken, move up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from .wire import Level

#: Why the server did not take a publish that is to be sent again; a number: it expects that first.
Returned = Literal["held", "indeterminate", "unknown", "foreign"] | int


@dataclass(slots=True)
class Entry:
    id: int
    payload: bytes
    level: Level | None
    receipt: int
    #: It was sent on an earlier connection, or by an earlier process, without an answer.
    doubtful: bool
    #: "done": its number is taken, but a publish before it has no answer yet.
    state: Literal["waiting", "sent", "done"] = "waiting"
    #: The number under which it was sent last.
    sent_as: int = 0


@dataclass(slots=True)
class Settled:
    """What happened to the publishes of a group."""

    #: Numbers and lengths of those that may be in the group or not; they are given up.
    in_doubt: list[tuple[int, int]] = field(default_factory=list)
    #: The producer cannot go on under this id: the server has forgotten it, or it is another's.
    forgotten: bool = False
    #: The server expects what it was given before: it makes no progress.
    stuck: bool = False


class Producer:
    """The queue. Numbers below ``used`` may have been sent by an earlier process."""

    def __init__(self, base: int = 1, used: int = 1) -> None:
        self._base = max(1, base)
        self._used = used
        self._queue: deque[Entry] = deque()
        self._sent = 0
        self._in_flight = 0
        self._came_back: Returned | None = None
        self._stuck = False
        #: When what may be in the group as number 1 was sent first, by this process.
        self._first_sent: float | None = None
        #: Nothing is sent before this time, in ms, or before the next connection.
        self.hold: float | Literal["reconnect"] | None = None

    def numbers(self) -> tuple[int, int]:
        """Number of the oldest publish without an answer, and the next one that was never used."""
        return self._base, max(self._used, self._base + len(self._queue))

    @property
    def is_empty(self) -> bool:
        return not self._queue

    def push(self, id: int, payload: bytes, level: Level | None, receipt: int) -> None:
        doubtful = self._base + len(self._queue) < self._used
        self._queue.append(Entry(id, payload, level, receipt, doubtful))

    def send_next(self, window: int, old: bool, now: float) -> Entry | None:
        """The next publish to send; ``old`` takes only what may have been taken before."""
        if self.hold is not None or self._came_back is not None or self._in_flight >= window:
            return None
        while self._sent < len(self._queue) and self._queue[self._sent].state == "done":
            self._sent += 1
        if self._sent >= len(self._queue):
            return None
        entry = self._queue[self._sent]
        if old and not entry.doubtful:
            return None
        entry.state, entry.sent_as = "sent", self._base + self._sent
        if entry.sent_as == 1 and not entry.doubtful:
            self._first_sent = now
        self._sent += 1
        self._in_flight += 1
        return entry

    def _index(self, id: int) -> int | None:
        for index, entry in enumerate(self._queue):
            if entry.id == id:
                return index if entry.state == "sent" else None
        return None

    def number_of(self, id: int) -> int | None:
        """The number of a publish, if it was sent on this connection and has no answer."""
        index = self._index(id)
        return None if index is None else self._base + index

    def taken(self, id: int) -> int:
        """The server has a publish; its number is used. Returns the length of its payload."""
        index = self._index(id)
        if index is None:
            return 0
        entry = self._queue[index]
        size = len(entry.payload)
        entry.state, entry.payload = "done", b""
        self._in_flight -= 1
        while self._queue and self._queue[0].state == "done":
            self._queue.popleft()
            self._base += 1
            self._sent = max(0, self._sent - 1)
        return size

    def refused(self, id: int) -> tuple[int, bool]:
        """The server will never take a publish; the next one gets its number.

        Not so if an earlier sending had no answer and may have been taken: then the number stays used,
        and if it is not, the server says so to the next publish. Returns the length of its payload, and
        whether it is certain that it was not taken.
        """
        index = self._index(id)
        if index is None:
            return 0, True
        entry = self._queue[index]
        if entry.doubtful:
            return self.taken(id), False
        del self._queue[index]
        self._in_flight -= 1
        self._sent -= 1
        return len(entry.payload), True

    def returned(self, id: int, why: Returned) -> None:
        """The server did not take a publish, which is to be sent again."""
        index = self._index(id)
        if index is None:
            return
        entry = self._queue[index]
        entry.state = "waiting"
        entry.doubtful |= why == "indeterminate"
        # It is what was expected, or cannot be less.
        self._stuck |= why == entry.sent_as or (why == "unknown" and entry.sent_as == 1)
        self._in_flight -= 1
        if self._came_back is None:
            # The first one says why; those behind it come back because it did.
            self._came_back = why

    def settle(self) -> Settled:
        """Once all that was sent has its answer: makes ready to send again what came back."""
        why = self._came_back
        if self._in_flight > 0 or why is None:
            return Settled()
        self._came_back = None
        settled = Settled(stuck=self._stuck)
        if isinstance(why, int):
            # It lost what it had answered. What is in the queue was never taken: there are no holes.
            self._base = min(max(why, 1), self._base)
        elif why == "foreign" or (why == "unknown" and not self._stuck):
            # Number 1 of this id could be a copy after a crash, which reads both from the log.
            settled.in_doubt, settled.forgotten = self._give_up_doubtful(), True
        self._stuck = False
        self._sent = 0
        return settled

    def _give_up_doubtful(self) -> list[tuple[int, int]]:
        given_up = []
        while self._queue and self._queue[0].doubtful:
            entry = self._queue.popleft()
            given_up.append((entry.id, len(entry.payload)))
        return given_up

    def away(self, now: float, safe_ms: float) -> Settled:
        """A new connection. Of a producer that did not publish for long the server may forget all.

        It would say so, but for number 1, which it would take as new: gives up what would be sent again
        as that, later than ``safe_ms`` after it was sent first.
        """
        late = self._first_sent is not None and self._first_sent + safe_ms < now
        if not late or self._base != 1 or not self._queue or not self._queue[0].doubtful:
            return Settled()
        return Settled(self._give_up_doubtful(), forgotten=True)

    def may_renew(self) -> bool:
        """Whether nothing is left of which only this producer id can tell whether it was taken."""
        return self._in_flight == 0 and not any(entry.doubtful for entry in self._queue)

    def renew(self) -> None:
        """Begins again at 1 under a new producer id."""
        self._queue = deque(entry for entry in self._queue if entry.state != "done")
        self._base, self._used, self._sent = 1, 1, 0
        self._came_back, self._stuck = None, False

    def disconnected(self) -> None:
        """The connection is gone: all that has no answer is sent again on the next one."""
        for index in range(self._sent):
            entry = self._queue[index]
            if entry.state == "sent":
                entry.state, entry.doubtful = "waiting", True
        self._sent, self._in_flight, self._came_back, self._stuck = 0, 0, None, False
        if self.hold == "reconnect":
            self.hold = None
