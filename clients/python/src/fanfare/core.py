"""The client without I/O and without a clock: bytes and time in, events and bytes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from . import due, wire
from . import events as ev
from .group import Group, How
from .producer import Producer
from .session import ClientError, Options, Query, Session
from .take import take


@dataclass(frozen=True, slots=True)
class Link:
    """What the driver of a :class:`Core` has to do about the connection.

    ``connect`` at ``at``, ``up`` (send and receive), ``close``, or nothing any more (``over``).
    """

    kind: Literal["connect", "up", "close", "over"]
    at: float = 0


class Core:
    """A client without a socket.

    A driver calls :meth:`next_event` until there is none, then :meth:`advance`, and then does what
    :meth:`link` says. Time is monotonic, in ms.
    """

    def __init__(self, options: Options, resume: dict[str, Any] | None = None) -> None:
        """A client that has never been connected, or that goes on where another one of the same member was."""
        self._session = Session(options)
        self._ended = False
        if resume is None:
            return
        self._session.producer = bytes.fromhex(resume["producer"])
        for kept in resume["groups"]:
            group = Group(kept["name"], Producer(kept["unanswered"], kept["unused"]))
            handled = kept["handled"]
            group.resume(kept["handle"], (handled[0], handled[1]) if handled else None)
            self._session.groups[group.name] = group
            if group.handle is not None:
                self._session.handles[group.handle] = group

    def to_resume(self) -> dict[str, Any]:
        """What an application may keep, as JSON, to go on where it was after a restart.

        Publishes that had no answer are not part of it: publish them again, in the same order, before new
        ones. They get the numbers that they had, so that the server keeps one copy.
        """
        groups = []
        for group in self._session.groups.values():
            unanswered, unused = group.producer.numbers()
            groups.append(
                {
                    "name": group.name,
                    "handle": group.handle,
                    "handled": group.kept(),
                    "unanswered": unanswered,
                    "unused": unused,
                }
            )
        return {"producer": self._session.producer.hex(), "groups": groups}

    # ---- for the driver ----

    def link(self) -> Link:
        """What to do about the connection."""
        s = self._session
        if s.conn == "down":
            return Link("connect", s.until)
        if s.conn == "over":
            return Link("over")
        # The last words are still to be sent.
        graceful = s.closing is not None and s.closing.kind in ("closed", "drained", "renewed")
        if self._ended or (s.closing is not None and not (graceful and s.out_bytes > 0)):
            return Link("close")
        return Link("up")

    def set_token(self, token: str, renews: bool) -> None:
        """The newest token.

        With ``renews`` another one may be had later: then it is due when :meth:`token_is_due` says so, and a
        refusal does not end the client.
        """
        self._session.renews_token = renews
        self._session.set_token(token)

    def token_is_due(self, now: float) -> bool:
        """Whether the server wants another token by now. If none comes it is due again a while later."""
        return self._session.token_is_due(now)

    def connected(self, now: float) -> None:
        """A connection was made."""
        if self._session.conn == "down":
            self._ended = False
            self._session.connected(now)

    def disconnected(self, now: float) -> None:
        """The connection is gone, or could not be made. What came before is still given out."""
        if self._session.conn == "down":
            self._session.disconnected(now, ev.Reason("lost"))
        elif self._session.conn != "over":
            self._ended = True

    def receive(self, data: bytes) -> None:
        """Bytes came."""
        self._session.silent_at = None
        self._session.input.push(data)

    def not_reading(self) -> None:
        """The driver does not receive for now: that nothing comes does not mean that the server is silent."""
        self._session.silent_at = None

    @property
    def output_bytes(self) -> int:
        """Bytes that wait to be sent."""
        return self._session.out_bytes

    def take_output(self, most: int | None = None) -> list[bytes]:
        """Whole frames to send, which count as sent: ``most`` bytes of them, or one."""
        frames: list[bytes] = []
        size = 0
        while self._session.out:
            frame = self._session.out[0]
            if frames and most is not None and size + len(frame) > most:
                break
            frames.append(self._session.out.popleft())
            size += len(frame)
        self._session.out_bytes -= size
        return frames

    def advance(self, now: float) -> None:
        """Does what is due at ``now`` and prepares what is to be sent."""
        due.advance(self._session, now)

    def deadline(self) -> float | None:
        """When :meth:`advance` has something to do, at the latest."""
        return due.deadline(self._session)

    def next_event(self, now: float) -> ev.Event | None:
        """The next event, if there is one."""
        s = self._session
        while True:
            if s.events:
                return s.events.popleft()
            if s.closing is None and self._take_frame(now):
                continue
            if not self._ended:
                return None
            self._ended = False
            s.disconnected(now, ev.Reason("lost"))

    def _take_frame(self, now: float) -> bool:
        try:
            frame = self._session.input.next()
            if frame is None:
                return False
            take(self._session, wire.decode(frame), now)
        except wire.WireError as error:
            self._session.close(ev.Reason("protocol", what=str(error)))
        return True

    # ---- for the application ----

    def _check_alive(self) -> None:
        if self._session.conn == "over":
            raise ClientError("over", "the client has ended")

    def join(self, name: str, durable: bool = False, start: wire.Start | None = None, roster: bool = False) -> None:
        """Joins a group and stays in it over reconnects. Answers: JoinedGroup, JoinFailed."""
        self._check_alive()
        group = self._session.group(name)
        group.wanted = How(durable, start or ("cursor" if durable else "tail"), roster)
        self._session.list_move(group)

    def leave(self, name: str) -> None:
        """Leaves a group. Answer: LeftGroup. A durable member that is not connected leaves when it is."""
        self._check_alive()
        group = self._session.groups.get(name)
        if group is None or group.wanted is None:
            raise ClientError("not_joined", "the group was not joined")
        group.wanted = None
        if group.phase == "out" and not (group.leaving and group.leaving.durable):
            group.leaving = None
            group.forget()
            self._session.events.append(ev.LeftGroup(name))
        self._session.list_move(group)

    def publish(
        self, name: str, content: str | wire.Bytes, level: wire.Level | None = None, receipt: int = 0
    ) -> int:
        """Publishes. Answers: PublishedMessage, PublishFailed. Returns the number of the publish.

        Until the answer the message is kept and sent again as often as it takes.
        """
        self._check_alive()
        s = self._session
        payload = wire.to_bytes(content)
        s.check_payload(len(payload))
        if not 0 <= receipt <= 100:
            raise ClientError("range", f"a receipt at {receipt} percent; use 0 to 100")
        if s.publishes >= s.options.publishes_max:
            raise ClientError("full", f"{s.publishes} publishes have no answer; wait for some")
        if s.publishes > 0 and s.publish_bytes + len(payload) > s.options.publish_bytes_max:
            raise ClientError("full", f"publishes without an answer hold {s.publish_bytes} bytes; wait for some")
        group = s.group(name)
        id = s.next_publish
        s.next_publish += 1
        s.publishes += 1
        s.publish_bytes += len(payload)
        group.producer.push(id, payload, level, receipt)
        s.list_send(group)
        return id

    @property
    def unanswered(self) -> int:
        """Publishes that have no answer yet."""
        return self._session.publishes

    def handled(self, name: str, epoch: int, seq: int, now: float) -> None:
        """The application is through with everything of a group up to a message: it is acknowledged in time."""
        group = self._session.groups.get(name)
        if group is None:
            raise ClientError("not_joined", "the group was not joined")
        if group.handled_up_to((epoch, seq)):
            self._session.handled(group, now)

    def _query(self, name: str, kind: wire.Kind, encode: Callable[[int, bytes], bytes]) -> int:
        self._check_alive()
        s = self._session
        if s.queries >= s.options.queries_max:
            raise ClientError("full", f"{s.queries} questions have no answer; wait for some")
        group = s.group(name)
        id = s.next_query
        s.next_query += 1
        s.queries += 1
        number = s.request(Query(group, id, kind))
        s.waiting.append((number, encode(number, group.name_bytes)))
        return id

    def fetch(self, name: str, first: int, last: int = 0, count_max: int = 0) -> int:
        """Reads history, ``last`` 0 to the end. Answers: Page, QueryFailed."""
        return self._query(
            name, wire.Kind.FETCH, lambda number, group: wire.fetch(number, group, first, last, count_max, 0)
        )

    def set_state(self, name: str, key: str, data: bytes | None, expected: wire.Expected = "any") -> int:
        """Sets a key of a group's state, or deletes it (None). Answers: StateWasSet, StateConflict, QueryFailed."""
        key_bytes = key.encode()
        if not 1 <= len(key_bytes) <= wire.NAME_MAX:
            raise ClientError("length", f"a key of {len(key_bytes)} bytes; it has 1 to {wire.NAME_MAX}")
        self._session.check_payload(len(data or b""))
        return self._query(
            name,
            wire.Kind.SET_STATE,
            lambda number, group: wire.set_state(number, group, key_bytes, expected, data),
        )

    def sync(self, name: str, known: int = 0) -> int:
        """Asks for what changed in a group's state since version ``known``. Answers: StatePage, QueryFailed."""
        return self._query(name, wire.Kind.SYNC, lambda number, group: wire.sync(number, group, known))

    def roster(self, name: str, known: int = 0, after: int = 0, limit: int = 100) -> int:
        """Asks for the roster of a group. Answers: RosterPage, QueryFailed."""
        return self._query(
            name, wire.Kind.ROSTER_QUERY, lambda number, group: wire.roster_query(number, group, known, after, limit)
        )

    def fail(self, what: str) -> None:
        """The connection cannot be used, now or later: the client ends."""
        self._session.close(ev.Reason("failed", what=what))

    def close(self, now: float) -> None:
        """Ends the client: what was handled is acknowledged, then the connection closes."""
        s = self._session
        if s.conn == "over":
            return
        due.acknowledge_all(s, now)
        s.close(ev.Reason("closed"))
        if s.conn == "down":
            s.disconnected(now, ev.Reason("closed"))
