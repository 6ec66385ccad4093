"""One group of a client: where the application is in it, where the server's stream is, and what is to
be acknowledged.

The two places differ after a reconnect and in a redelivery: then the server sends what the application
has, and it is dropped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import wire
from .producer import Producer

#: How far back a live member looks first for the place where a new epoch began; each further step is
#: this much longer.
_REWIND = 64

#: A message by epoch and place; in this order.
Place = tuple[int, int]
_START: Place = (0, 0)


@dataclass(frozen=True, slots=True)
class How:
    """How to be in a group."""

    #: A member until it leaves, also while it is away.
    durable: bool
    #: Where to start when the client has no place of its own in the group.
    start: wire.Start
    #: Also say who joins, leaves, comes and goes.
    roster: bool


@dataclass(frozen=True, slots=True)
class New:
    """A message that the application does not have, and what is missing before it."""

    epoch: int
    missing: tuple[int, int] | None


class Group:
    def __init__(self, name: str, producer: Producer | None = None) -> None:
        self.name = name
        self.name_bytes = name.encode()
        self.producer = producer or Producer()
        self.handle: int | None = None
        #: How the application wants to be in it.
        self.wanted: How | None = None
        #: Where the server is with this client.
        self.phase: Literal["out", "joining", "in", "leaving"] = "out"
        #: How the server knows the member, when the application has left since.
        self.leaving: How | None = None
        self.joined_before = False
        #: It may not read history, so it comes back to what is live.
        self._no_history = False
        #: The member has to leave and join again to look for the start of an epoch.
        self.rejoin = False
        #: Messages handled, or sent again although they were, since the last ACK.
        self.unacked = 0
        #: Its publishes are held, and the application was told.
        self.held_told = False

        #: Last message that the application has; epoch 0 if that is not known yet.
        self.place = _START
        self._placed = False
        #: The place in a life of the group that is over.
        self._former: Place | None = None
        #: Epoch of the messages that the server sends; 0 before the first EPOCH.
        self._stream = 0
        #: Next message that it sends.
        self._next = 1
        #: It sent messages again on this connection. When that ends, it goes on after what it had sent
        #: before, which may leave out some that the application has.
        self._again = False
        #: Looking for the start of an epoch: where from, and how far back the next look goes.
        self._rewind: tuple[int, int] | None = None
        #: The stream of that look has not shown its first epoch.
        self._probing = False
        self._handled = _START
        self._acked = _START

    def resume(self, handle: int | None, place: Place | None) -> None:
        """A former process of this client kept its place."""
        self.handle = handle
        if place is not None:
            self.place, self._handled, self._placed = place, place, True

    def kept(self) -> Place | None:
        """The last message that was handled, to go on from later."""
        return self._handled if self._placed else None

    def goes_without_history(self) -> bool:
        """A JOIN behind the live messages was refused: it comes back to those alone.

        Not if that is what the application asked for. What it missed is a gap.
        """
        how = self.wanted or self.leaving
        if (how is not None and how.durable) or not self._placed or self._no_history:
            return False
        self._no_history = True
        return True

    def join_entry(self) -> wire.JoinEntry | None:
        """The entry of a JOIN for it, if it is to be joined, be it only to leave."""
        how = self.wanted or self.leaving
        if how is None:
            return None
        start = how.start
        if not how.durable:
            if self._no_history and self._placed:
                start = "tail"
            elif self._rewind is not None:
                start = self._rewind[0]
            elif self._placed:
                start = self.place[1] + 1
            elif start == "cursor":
                start = "tail"
        elif self._placed:
            start = "cursor"
        return wire.JoinEntry(self.name_bytes, how.durable, start, how.roster)

    def joined(self, j: wire.Joined) -> tuple[int, int] | None:
        """The server says that the member is in the group.

        Returns messages that do not come since they were acknowledged, although this client has no note
        of them.
        """
        how = self.wanted or self.leaving
        live = how is None or not how.durable
        other = self.handle is not None and self.handle != j.handle
        self.phase = "in"
        self.handle = j.handle
        self._stream, self._next, self._again, self._acked = 0, j.first, False, _START
        epoch, seq = self.place
        if not self._placed:
            # Above the head there is nothing of an older epoch.
            self.place = (j.epoch if j.first > j.head else 0, max(0, j.first - 1))
            self._handled, self._placed = self.place, True
        elif self._rewind is not None and not other:
            self._probing = True
        elif other or j.epoch < epoch:
            # Not the data directory that it was: nothing of it is known here.
            self._former = self.place
            self.place, self._handled, self._rewind = _START, _START, None
            if live and j.first > 1:
                self._look_back(1, 1)
        elif live and epoch > 0 and j.epoch > epoch and seq > 0:
            self._look_back(min(seq, j.head) + 1, _REWIND)
        elif not live and j.epoch == epoch and j.first > seq + 1:
            # It had acknowledged more than it kept for itself, or another connection did.
            self.place = (epoch, j.first - 1)
            self._handled = self.place
            return seq + 1, j.first - 1
        return None

    def _look_back(self, start: int, by: int) -> None:
        """Leaves and joins again ``by`` messages before ``start``."""
        self._rewind = (max(1, start - by), by * _REWIND)
        self._probing = False
        self.rejoin = True

    @property
    def is_looking_back(self) -> bool:
        """Whether it joins again only to find the start of an epoch."""
        return self._rewind is not None

    @property
    def _drops(self) -> bool:
        """Whether what comes now is of no use."""
        return self.rejoin or self.wanted is None or self.phase == "leaving"

    def epoch_starts(self, epoch: int, first: int) -> Place | None:
        """An epoch begins in the stream. Returns the place before it if the application must know."""
        self._stream = epoch
        self._leave_out_known(first)
        if self._drops:
            return None
        if self._probing:
            self._probing = False
            rewind, self._rewind = self._rewind, None
            if rewind and epoch > self.place[0] and rewind[0] > 1 and self._next == rewind[0]:
                self._look_back(*rewind)
                return None
        if epoch <= self.place[0]:
            return None
        was = self._former or self.place
        self._former = None
        self.place = (epoch, max(0, self._next - 1))
        return was if was[0] > 0 else None

    def gap(self, gap: wire.Gap) -> tuple[int, int] | None:
        """Messages are missing. Returns those that the application does not have."""
        if gap.last < gap.first or gap.last < self._next - 1:
            raise wire.WireError("a GAP behind the messages")
        self._next = gap.last + 1
        epoch, seq = self.place
        if self._drops or not (gap.last > seq or (gap.epoch > epoch and epoch > 0)):
            return None
        self.place = (epoch, max(seq, gap.last))
        return min(max(gap.first, seq + 1), gap.last), gap.last

    def deliver(self, seq: int) -> New | Literal["known", "dropped"]:
        """A message came."""
        if self.phase not in ("in", "leaving"):
            raise wire.WireError("a DELIVER of a group that is not joined")
        if self._stream == 0:
            raise wire.WireError("a DELIVER before EPOCH")
        self._leave_out_known(seq)
        if seq != self._next:
            raise wire.WireError("a DELIVER out of order")
        self._next = seq + 1
        if self._drops:
            return "dropped"
        if (self._stream, seq) <= self.place:
            return "known"
        expected = self.place[1] + 1
        self.place = (self._stream, seq)
        return New(self._stream, (expected, seq - 1) if seq > expected else None)

    def _leave_out_known(self, first: int) -> None:
        """The end of a redelivery leaves out what the application has."""
        if self._again and self._next < first <= self.place[1] + 1:
            self._next = first

    def redelivers(self, first: int, epoch: int) -> None:
        """The server begins again at ``first``."""
        self._next = first
        self._again = True
        if epoch <= self.place[0]:
            self._stream = epoch
        # If the last ACK was lost it is sent again.
        self._acked = _START

    def handled_up_to(self, place: Place) -> bool:
        """The application is through with everything up to ``place``. Returns whether that is news."""
        place = min(place, self.place)
        if place <= self._handled:
            return False
        self.unacked += place[1] - self._handled[1] if place[0] == self._handled[0] else 1
        self._handled = place
        return True

    def handled_before(self, seq: int) -> bool:
        """A message came again. Returns whether the application had handled it."""
        handled = 0 < self._stream and (self._stream, seq) <= self._handled
        self.unacked += handled
        return handled

    def ack(self) -> wire.Ack | None:
        """What to acknowledge now: what was handled, as far as this connection has sent it."""
        self.unacked = 0
        if self.phase != "in" or self.rejoin or self.handle is None:
            return None
        place = min(self._handled, (self._stream, self._next - 1))
        if place <= self._acked or 0 in place:
            return None
        self._acked = place
        return wire.Ack(self.handle, place[1], place[0])

    def left(self) -> bool:
        """The server says that the member is out. Returns whether that is the end of it."""
        self.phase, self._stream = "out", 0
        rejoin, self.rejoin = self.rejoin, False
        if rejoin and self.wanted is not None:
            return False
        self.leaving = None
        self.forget()
        return self.wanted is None

    def forget(self) -> None:
        """Forgets the place, so that the next join begins as the application says."""
        self.place, self._handled, self._placed = _START, _START, False
        self._rewind, self._probing, self.rejoin = None, False, False
        self.joined_before = False

    def disconnected(self) -> bool:
        """The connection is gone. Returns whether a live member is out by that, as it wanted."""
        was_in = self.phase != "out"
        self.phase, self._stream, self.unacked = "out", 0, 0
        self._probing, self.rejoin = False, False
        self.producer.disconnected()
        if self.wanted is None and self.leaving is not None and not self.leaving.durable:
            self.leaving = None
            self.forget()
            return was_in
        return False

    @property
    def has_to_move(self) -> bool:
        """Whether it has to be joined or left now."""
        if self.phase == "out":
            return self.wanted is not None or self.leaving is not None
        return self.phase == "in" and (self.wanted is None or self.rejoin)
