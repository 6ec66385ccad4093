"""What a client tells the application."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import ClassVar

from .wire import Deliver, GapReason, Level, Presence, RosterForm, StateForm, Welcome
from .wire import Error as ErrorFrame

_NAMES = {
    1: "BadMagic", 2: "VersionUnsupported", 3: "EncodingUnsupported", 4: "OutOfState",
    5: "HandshakeTimeout", 6: "HeartbeatTimeout", 7: "FrameTooLong", 8: "FrameTooShort",
    9: "TooManyConnections", 10: "Stalled", 11: "MemoryBudget", 12: "ShuttingDown", 13: "Replaced",
    14: "AuthRequired", 15: "TokenExpired", 16: "TokenRefused", 17: "TooManyConnectionsOfMember",
    18: "TlsRequired", 20: "Disconnected",
    100: "UnknownFrame", 101: "Malformed", 102: "TooManyGroupsPerMember", 103: "TooManyGroups",
    104: "TooManyMembers", 105: "PayloadTooLong", 106: "NotAMember", 107: "AlreadyAMember",
    108: "StorageFull", 109: "StorageFailed", 110: "Indeterminate", 111: "Unsupported",
    112: "Draining", 113: "UnknownProducer", 114: "ProducerGap", 115: "ProducerSeqTooOld",
    116: "ProducerTaken", 117: "TooManyProducers", 118: "ReceiptsRefused", 119: "StateTooLarge",
    120: "TooManyRequests", 121: "TooManyKeys", 122: "TooManyShares",
    123: "Forbidden", 124: "RateLimited",
}  # fmt: skip


def text_of(data: bytes) -> str:
    """Bytes as text; those that are not UTF-8 become U+FFFD."""
    return data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An ERROR of the server. ``code`` and ``name`` are those of the table in PROTOCOL.md."""

    code: int
    name: str
    limit: int
    field: str
    text: str

    @classmethod
    def of(cls, e: ErrorFrame) -> Refusal:
        name = _NAMES.get(e.code, f"error {e.code}")
        return cls(e.code, name, e.limit, text_of(e.field), text_of(e.text))

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.text else self.name


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a connection ended.

    ``kind`` is one of: ``server`` (with ``refusal``), ``replaced`` (another connection of this member
    took over; the client does not reconnect), ``drained`` (the server stops), ``lost``, ``silent`` (no
    answer for ``ms``), ``protocol`` (the server broke it; see ``what``), ``failed`` (trying again would not
    help, and the client does not; see ``what``), ``closed``, ``renewed`` (the client goes on under a new
    producer id).
    """

    kind: str
    refusal: Refusal | None = None
    ms: int = 0
    what: str = ""


@dataclass(frozen=True, slots=True)
class PublishFailure:
    """Why a publish is over without a place.

    ``kind`` is ``refused`` (it is not in the group; see ``refusal``), ``place_unknown`` (it is in the
    group, but the server does not know its place any more), ``in_doubt`` (nobody can tell), or
    ``closed`` (the client ended before the answer).
    """

    kind: str
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``type`` is its name for :meth:`Client.on`."""

    type: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """The server has taken this client."""

    type: ClassVar[str] = "connected"
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class JoinedGroup(Event):
    """The client is in a group, for the first time or again.

    ``skipped``: messages that do not come since they are acknowledged: by an earlier process, or on
    another connection.
    """

    type: ClassVar[str] = "joined"
    group: str
    handle: int
    epoch: int
    head: int
    first: int
    cursor: int
    again: bool
    skipped: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class JoinFailed(Event):
    """The group could not be joined. The client does not try again by itself."""

    type: ClassVar[str] = "join_failed"
    group: str
    error: Refusal


@dataclass(frozen=True, slots=True)
class LeftGroup(Event):
    """The client is out of a group."""

    type: ClassVar[str] = "left"
    group: str


@dataclass(frozen=True, slots=True)
class Message(Event):
    """A message. Group, epoch and seq name it."""

    type: ClassVar[str] = "message"
    group: str
    epoch: int
    seq: int
    #: When it got its place: Unix time in ms in the upper 48 bits, a counter in the others.
    stamp: int
    #: Member id of the publisher.
    sender_bytes: bytes
    payload: bytes = field(repr=False)

    @classmethod
    def of(cls, group: str, epoch: int, d: Deliver) -> Message:
        return cls(group, epoch, d.seq, d.stamp, d.sender, d.payload)

    @property
    def sender(self) -> str:
        """Member id of the publisher as text."""
        return text_of(self.sender_bytes)

    @property
    def text(self) -> str:
        """The payload as text; bytes that are not UTF-8 become U+FFFD."""
        return text_of(self.payload)

    @property
    def time(self) -> datetime:
        """When it got its place, to the millisecond."""
        return datetime.fromtimestamp((self.stamp >> 16) / 1000, timezone.utc)


@dataclass(frozen=True, slots=True)
class EpochChanged(Event):
    """The server may have lost messages that this client has.

    What it held of epoch ``before`` need not be in the group any more, and ``first`` may be a place
    that was taken before.
    """

    type: ClassVar[str] = "epoch_changed"
    group: str
    before: int
    last: int
    epoch: int
    first: int


@dataclass(frozen=True, slots=True)
class MissingMessages(Event):
    """Messages that will not come: a gap."""

    type: ClassVar[str] = "gap"
    group: str
    first: int
    last: int
    epoch: int
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Redelivery(Event):
    """The server sends again what was not acknowledged. What the application has is dropped."""

    type: ClassVar[str] = "redelivery"
    group: str
    first: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ProducerRenewed(Event):
    """The client goes on under a new producer id; a resume that was kept before is void."""

    type: ClassVar[str] = "producer_renewed"
    producer: bytes


@dataclass(frozen=True, slots=True)
class PublishedMessage(Event):
    """A publish is in the group."""

    type: ClassVar[str] = "published"
    id: int
    group: str
    producer_seq: int
    epoch: int
    seq: int
    level: Level


@dataclass(frozen=True, slots=True)
class PublishFailed(Event):
    """A publish is over without its place being known."""

    type: ClassVar[str] = "publish_failed"
    id: int
    group: str
    error: PublishFailure


@dataclass(frozen=True, slots=True)
class PublishHeld(Event):
    """The server takes no publishes of this group for now; they are kept and sent again."""

    type: ClassVar[str] = "publish_held"
    group: str
    error: Refusal
    retry_in_ms: int | None


@dataclass(frozen=True, slots=True)
class ReceiptOf(Event):
    """The share of members that was asked for has acknowledged a message. It may come twice.

    ``group`` is None if this client has not used it.
    """

    type: ClassVar[str] = "receipt"
    group: str | None
    handle: int
    seq: int
    epoch: int
    producer_seq: int
    acked: int
    members: int
    percent: int


@dataclass(frozen=True, slots=True)
class Page(Event):
    """A page of history. ``next`` says where the next one begins, if there is more."""

    type: ClassVar[str] = "fetched"
    id: int
    group: str
    epoch: int
    messages: list[Message]
    head: int
    gap: tuple[int, int, GapReason] | None
    next: int | None


@dataclass(frozen=True, slots=True)
class StateEntry:
    """A key of a group's state; ``data`` is None if it was deleted."""

    key: str
    version: int
    stamp: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class StatePage(Event):
    """What changed in a group's state, or with form ``SNAPSHOT`` all of it."""

    type: ClassVar[str] = "state"
    id: int
    group: str
    form: StateForm
    version: int
    more: bool
    entries: list[StateEntry]


@dataclass(frozen=True, slots=True)
class StateWasSet(Event):
    """A key was set or deleted."""

    type: ClassVar[str] = "state_set"
    id: int
    group: str
    version: int
    stamp: int


@dataclass(frozen=True, slots=True)
class StateConflict(Event):
    """A key was not as expected and is as it was; ``data`` is None if there is no such key."""

    type: ClassVar[str] = "conflict"
    id: int
    group: str
    version: int
    stamp: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class RosterPage(Event):
    """Who is on a roster, or what changed in it. ``id`` is None for an announcement."""

    type: ClassVar[str] = "roster"
    id: int | None
    group: str
    form: RosterForm
    version: int
    members: int
    online: int
    next: int | None
    entries: list[tuple[Presence, str]]


@dataclass(frozen=True, slots=True)
class QueryFailed(Event):
    """A question got no answer. ``error`` is None if the connection ended first."""

    type: ClassVar[str] = "query_failed"
    id: int
    group: str
    error: Refusal | None


@dataclass(frozen=True, slots=True)
class TokenFailed(Event):
    """The function for the token failed; it is asked again."""

    type: ClassVar[str] = "token_failed"
    error: Exception


@dataclass(frozen=True, slots=True)
class ServerError(Event):
    """The server said no to something that is not a request."""

    type: ClassVar[str] = "server_error"
    error: Refusal


@dataclass(frozen=True, slots=True)
class Draining(Event):
    """The server stops. The client finishes what is under way, and reconnects."""

    type: ClassVar[str] = "draining"
    grace_ms: int
    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class Disconnected(Event):
    """The connection ended. ``retry_in_ms`` is None if the client does not try again."""

    type: ClassVar[str] = "disconnected"
    reason: Reason
    retry_in_ms: int | None
