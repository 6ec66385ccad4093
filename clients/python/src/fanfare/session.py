"""All that a client knows about its connection and its groups."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from . import events as ev
from . import wire
from .group import Group

#: When a server may forget a producer, if it does not say; see PROTOCOL.md.
_PRODUCER_TTL_MS = 10 * 60 * 1000
#: A source that still gives the token that is in use is asked again after this time.
_ASK_AGAIN_MS = 1_000
#: Longest frame before WELCOME: an ERROR with its text.
_FIRST_FRAME_MAX = 1024
#: Longest frame that is accepted, whatever WELCOME says.
_SERVER_FRAME_MAX = wire.FRAME_MAX + 64 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """Who a client is, and its bounds. Times in ms, lengths in bytes."""

    #: 1 to 64 bytes.
    member: str | wire.Bytes
    #: 16 bytes under which no other client has published; drawn at random if they are missing.
    producer: wire.Bytes | None = None
    #: Most publishes without an answer, sent or not.
    publishes_max: int = 4096
    #: Most bytes of their payloads.
    publish_bytes_max: int = 8 << 20
    #: Most questions without an answer.
    queries_max: int = 64
    #: Most groups that are joined or published to over the life of the client.
    groups_max: int = 100_000
    #: A connect, a WELCOME and a PONG must come within this time.
    answer_timeout_ms: int = 10_000
    #: First wait before a reconnect. It doubles, and each is spread by up to a half of it.
    backoff_min_ms: int = 1_000
    #: Longest wait before a reconnect.
    backoff_max_ms: int = 30_000
    #: Chance, from 0 to below 1; for tests.
    random: Callable[[], float] = random.random


class ClientError(Exception):
    """Something that was asked for and cannot be done; nothing has changed by it.

    ``kind`` is ``length``, ``range``, ``full`` (wait for answers), ``not_joined`` or ``over`` (the client
    has ended).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class Move:
    """A JOIN or LEAVE without all its answers."""

    what: Literal["join", "leave"]
    groups: list[Group]


@dataclass(slots=True)
class Publish:
    """A PUBLISH without an answer."""

    group: Group
    id: int


@dataclass(slots=True)
class Query:
    """A question without an answer."""

    group: Group
    id: int
    kind: wire.Kind
    sent: bool = False


@dataclass(slots=True)
class Auth:
    """An AUTH without an answer."""


Request = Move | Publish | Query | Auth


class Session:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.member = wire.to_bytes(options.member)
        if not 1 <= len(self.member) <= wire.MEMBER_MAX:
            raise ClientError("length", f"a member id of {len(self.member)} bytes; it has 1 to {wire.MEMBER_MAX}")
        if options.producer is not None and len(options.producer) != 16:
            raise ClientError("length", f"a producer id of {len(options.producer)} bytes; it has 16")
        self.producer = wire.to_bytes(options.producer) if options.producer else os.urandom(16)

        self.conn: Literal["down", "greeting", "open", "over"] = "down"
        #: When to connect, or until when WELCOME must come.
        self.until: float = 0
        self.welcome: wire.Welcome | None = None
        self.input = wire.Input(_FIRST_FRAME_MAX)
        #: Frames to send.
        self.out: deque[bytes] = deque()
        self.out_bytes = 0
        self.events: deque[ev.Event] = deque()

        self.groups: dict[str, Group] = {}
        self.handles: dict[int, Group] = {}
        self.requests: dict[int, Request] = {}
        self._last_request = 0
        #: Questions that wait for a connection, as they are sent.
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.next_publish = 1
        self.next_query = 1
        self.publishes = 0
        self.publish_bytes = 0
        self.queries = 0

        # Dictionaries, because their keys keep their order.
        #: Groups to join or leave.
        self.moves: dict[Group, None] = {}
        #: Groups with publishes to send.
        self.sends: dict[Group, None] = {}
        #: Groups to acknowledge now.
        self.acks: dict[Group, None] = {}
        #: When groups are to be acknowledged at the latest, in that order.
        self.clock: dict[Group, float] = {}
        self._clock_end: float = 0
        #: Which share of the way to the latest moment of the next ACK is left out: 0 to a half.
        self._ack_early: float = 0
        #: Groups whose publishes wait for a time.
        self.holds: dict[Group, None] = {}

        #: What shows the server who this is, and what this connection has sent of it.
        self._token: str | None = None
        self._sent_token: str | None = None
        #: Whether there may be another token later.
        self.renews_token = False
        #: When the next token is due.
        self.renew_at: float | None = None
        #: Groups whose JOIN waits for a time.
        self.late_moves: dict[Group, float] = {}

        self.ping_at: float | None = None
        #: When an ACK was sent last.
        self.acked_at: float | None = None
        #: Something must have come until then.
        self.silent_at: float | None = None
        #: Reconnects in a row that failed.
        self._attempt = 0
        #: The server stops; when to reconnect.
        self.drain: float | None = None
        #: The connection is to be closed.
        self.closing: ev.Reason | None = None
        #: A group has forgotten this producer: a new id is drawn as soon as nothing needs the old one.
        self.renewing = False

    # ---- groups ----

    def group(self, name: str) -> Group:
        """The group with this name, made if need be."""
        if name in self.groups:
            return self.groups[name]
        group = Group(name)
        size = len(group.name_bytes)
        if not 1 <= size <= wire.NAME_MAX:
            raise ClientError("length", f"a group name of {size} bytes; it has 1 to {wire.NAME_MAX}")
        if len(self.groups) >= self.options.groups_max:
            raise ClientError("full", f"the client has used {len(self.groups)} groups; raise groups_max")
        self.groups[name] = group
        return group

    def name_handle(self, group: Group, handle: int) -> None:
        """The server named a group."""
        if self.handles.get(handle) is group:
            return
        if group.handle is not None and self.handles.get(group.handle) is group:
            del self.handles[group.handle]
        self.handles[handle] = group

    def check_payload(self, size: int) -> None:
        most = self.welcome.payload_max if self.welcome else wire.PAYLOAD_MAX
        if size > most:
            raise ClientError("length", f"a payload of {size} bytes; the server takes {most}")

    # ---- lists ----

    def list_move(self, group: Group) -> None:
        if group.has_to_move:
            self.moves[group] = None

    def list_send(self, group: Group) -> None:
        if not group.producer.is_empty:
            self.sends[group] = None

    def handled(self, group: Group, now: float) -> None:
        """Messages of the group were handled: acknowledge by count, or start its clock."""
        if self.welcome is None:
            return
        every, interval = self.welcome.ack_every, self.welcome.ack_interval_ms
        if every > 0 and group.unacked >= self._early(every):
            self.acks[group] = None
        elif group.unacked > 0 and group not in self.clock:
            self._clock_end = max(now + self._early(interval), self._clock_end if self.clock else 0)
            self.clock[group] = self._clock_end

    def _early(self, whole: int) -> int:
        return whole - int(whole * self._ack_early)

    def spread_acks(self) -> None:
        """Draws when the next ACK comes.

        All members of a group get a message in the same moment: if all counted alike, their ACKs would
        come in one burst, in front of the next message.
        """
        self._ack_early = self.options.random() / 2

    # ---- requests ----

    def request(self, request: Request) -> int:
        """Takes a number that is not in use."""
        while True:
            self._last_request = self._last_request % 0xFFFF_FFFF + 1
            if self._last_request not in self.requests:
                self.requests[self._last_request] = request
                return self._last_request

    def send(self, frame: bytes) -> None:
        self.out.append(frame)
        self.out_bytes += len(frame)

    # ---- the connection's life ----

    def connected(self, now: float) -> None:
        """A connection was made."""
        self.renew_if_settled()
        self.conn = "greeting"
        self.until = now + self.options.answer_timeout_ms
        self._clear()
        self.send(wire.hello(self.member, self.producer))
        self._sent_token, self.renew_at = None, None
        self._send_token()
        for group in self.groups.values():
            self.list_move(group)
            self.list_send(group)

    def set_token(self, token: str) -> None:
        """The newest token. It is sent now, if there is a connection that does not have it."""
        size = len(token.encode())
        if not 1 <= size <= wire.TOKEN_MAX:
            raise ClientError("length", f"a token of {size} bytes; it has 1 to {wire.TOKEN_MAX}")
        self._token = token
        if self.conn in ("greeting", "open") and self._send_token():
            self.renew_at = None

    def _send_token(self) -> bool:
        if self._token is None or self._token == self._sent_token:
            return False
        self.send(wire.auth(self.request(Auth()), self._token.encode()))
        self._sent_token = self._token
        return True

    def token_is_due(self, now: float) -> bool:
        if self.renew_at is None or self.renew_at > now:
            return False
        self.renew_at = now + _ASK_AGAIN_MS
        return True

    def authed(self, frame: wire.Authed, now: float) -> None:
        """The server accepted the token."""
        self.requests.pop(frame.request, None)
        renews = frame.valid_ms > 0 and self.renews_token
        self.renew_at = now + frame.renew_after_ms if renews else None

    def _clear(self) -> None:
        self.input.clear()
        self.input.frame_max = _FIRST_FRAME_MAX
        self.out.clear()
        self.out_bytes = 0

    def disconnected(self, now: float, lost: ev.Reason) -> None:
        """The connection is gone, or could not be made."""
        drain = self.drain
        reason = self.closing or (lost if drain is None else ev.Reason("drained"))
        self._clear()
        self.closing, self.drain, self.welcome = None, None, None
        self.ping_at, self.silent_at, self.acked_at, self.renew_at = None, None, None, None
        for groups in (self.moves, self.sends, self.acks, self.holds):
            groups.clear()
        self.clock.clear()
        self.late_moves.clear()
        for group in self.groups.values():
            if group.disconnected():
                self.events.append(ev.LeftGroup(group.name))
            if isinstance(group.producer.hold, (int, float)):
                self.holds[group] = None
        kept: dict[int, Request] = {}
        for number, request in self.requests.items():
            if not isinstance(request, Query):
                continue
            if not request.sent:
                kept[number] = request
                continue
            self.queries -= 1
            self.events.append(ev.QueryFailed(request.id, request.group.name, None))
        self.requests = kept
        retry_in_ms: int | None = None
        if not _is_final(reason, self.renews_token):
            retry_in_ms = self._backoff_ms() if drain is None else max(0, round(drain - now))
        self.conn = "over" if retry_in_ms is None else "down"
        self.until = now + (retry_in_ms or 0)
        self.events.append(ev.Disconnected(reason, retry_in_ms))

    def _backoff_ms(self) -> int:
        """The wait before the next attempt; each is about twice as long as the one before."""
        least = max(1, self.options.backoff_min_ms)
        whole = min(least << min(self._attempt, 20), max(1, self.options.backoff_max_ms))
        self._attempt += 1
        return whole - int(self.options.random() * (whole / 2))

    def hold_ms(self) -> int:
        """The wait before publishes that were held back are tried again."""
        whole = max(2, self.options.backoff_min_ms)
        return whole - int(self.options.random() * (whole / 2))

    def welcomed(self, welcome: wire.Welcome, now: float) -> None:
        """WELCOME came."""
        self.conn = "open"
        self.welcome = welcome
        self.input.frame_max = min(max(welcome.frame_max, _FIRST_FRAME_MAX), _SERVER_FRAME_MAX)
        self.spread_acks()
        self._attempt = 0
        # The other half is for the way.
        safe_ms = (welcome.producer_ttl_ms or _PRODUCER_TTL_MS) / 2
        for group in self.groups.values():
            settled = group.producer.away(now, safe_ms)
            self.give_up(group, settled.in_doubt)
            self.renewing |= settled.forgotten
        if welcome.heartbeat_ms > 0:
            self.ping_at = now + welcome.heartbeat_slot_ms

    def give_up(self, group: Group, in_doubt: list[tuple[int, int]]) -> None:
        """Publishes of which nobody can tell any more whether they are in the group."""
        for id, size in in_doubt:
            self.events.append(ev.PublishFailed(id, group.name, ev.PublishFailure("in_doubt")))
            self.publish_is_over(size)

    def publish_is_over(self, size: int) -> None:
        self.publishes -= 1
        self.publish_bytes -= size

    def renew_if_settled(self) -> bool:
        """Draws a new producer id if one is wanted and nothing needs the old one.

        It holds from the next HELLO on.
        """
        if not self.renewing or not all(group.producer.may_renew() for group in self.groups.values()):
            return False
        self.renewing = False
        self.producer = os.urandom(16)
        for group in self.groups.values():
            group.producer.renew()
        self.events.append(ev.ProducerRenewed(self.producer))
        return True

    def close(self, reason: ev.Reason) -> None:
        """The connection has to end, unless it has to already."""
        if self.closing is None:
            self.closing = reason


def _is_final(reason: ev.Reason, renews_token: bool) -> bool:
    """Whether there is no use in trying again."""
    if reason.refusal is not None:
        if reason.refusal.name in ("AuthRequired", "TokenExpired", "TokenRefused"):
            return not renews_token
        never = ("BadMagic", "VersionUnsupported", "EncodingUnsupported", "TlsRequired")
        return reason.refusal.name in never
    return reason.kind in ("replaced", "failed", "closed")
