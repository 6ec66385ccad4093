"""The frames of PROTOCOL.md, as far as a client writes and reads them. No I/O, no state."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal, TypeVar

#: Longest member id, in bytes.
MEMBER_MAX = 64
#: Longest token, in bytes.
TOKEN_MAX = 4096
#: Longest name of a group and longest key of its state, in bytes.
NAME_MAX = 128
#: Most entries of a JOIN, LEAVE or ACK.
ENTRIES_MAX = 256
#: Longest payload that any server takes; WELCOME may say less.
PAYLOAD_MAX = 256 * 1024
#: Longest frame that a server takes, after the length field; WELCOME may say less.
FRAME_MAX = PAYLOAD_MAX + 1024
#: Bytes in front of a frame's body.
HEADER = 8

Bytes = bytes | bytearray | memoryview
Expected = Literal["any", "absent"] | int
Start = Literal["tail", "cursor"] | int


class WireError(Exception):
    """What the server sent is not what PROTOCOL.md allows."""


class Level(Enum):
    """How safe a message is before its publisher has the answer."""

    DURABLE = "durable"
    MEMORY = "memory"


def to_bytes(value: str | Bytes) -> bytes:
    """The bytes of a text, or a copy of bytes that can change: their owner may use the buffer again."""
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else bytes(memoryview(value))


class Kind(IntEnum):
    """Frames of the client."""

    HELLO = 0x01
    JOIN = 0x02
    LEAVE = 0x03
    PUBLISH = 0x04
    ACK = 0x05
    PING = 0x06
    FETCH = 0x07
    SET_STATE = 0x08
    SYNC = 0x09
    ROSTER_QUERY = 0x0B
    PROBED = 0x0C
    AUTH = 0x0D


# ---- frames of the client ----


def _frame(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("<IBBH", 4 + len(body), kind, flags, 0) + body


def hello(member: bytes, producer: bytes, low: int = 1, high: int = 1, flags: int = 0) -> bytes:
    fixed = struct.pack("<HHBBH16s", low, high, 0, len(member), flags, producer)
    return _frame(Kind.HELLO, fixed + member)


@dataclass(frozen=True, slots=True)
class JoinEntry:
    group: bytes
    durable: bool
    start: Start
    roster: bool


def join(request: int, entries: Sequence[JoinEntry]) -> bytes:
    body = [struct.pack("<IHH", request, len(entries), 0)]
    for entry in entries:
        start = entry.start
        how, seq = (1, start) if isinstance(start, int) else (0 if start == "tail" else 2, 0)
        name_len = len(entry.group)
        body.append(struct.pack("<BBBBIQ", entry.durable, how, name_len, entry.roster, 0, seq))
        body.append(entry.group)
    return _frame(Kind.JOIN, b"".join(body))


def leave(request: int, groups: Sequence[bytes]) -> bytes:
    names = b"".join(bytes([len(group)]) + group for group in groups)
    return _frame(Kind.LEAVE, struct.pack("<IHH", request, len(groups), 0) + names)


def publish(
    request: int, group: bytes, payload: bytes, producer_seq: int, level: Level | None, receipt: int
) -> bytes:
    number = 0 if level is None else 1 if level is Level.DURABLE else 2
    fixed = struct.pack("<IBBBBQ", request, number, len(group), receipt, 0, producer_seq)
    return _frame(Kind.PUBLISH, fixed + group + payload)


@dataclass(frozen=True, slots=True)
class Ack:
    handle: int
    seq: int
    epoch: int


def ack(acks: Sequence[Ack]) -> bytes:
    entries = b"".join(struct.pack("<QQII", a.handle, a.seq, a.epoch, 0) for a in acks)
    return _frame(Kind.ACK, struct.pack("<HHI", len(acks), 0, 0) + entries)


def ping(token: int, answer: bool = True) -> bytes:
    return _frame(Kind.PING, struct.pack("<Q", token), 0 if answer else 1)


def probed(token: int) -> bytes:
    return _frame(Kind.PROBED, struct.pack("<Q", token))


def auth(request: int, token: bytes) -> bytes:
    return _frame(Kind.AUTH, struct.pack("<IHH", request, len(token), 0) + token)


def fetch(request: int, group: bytes, first: int, last: int, count_max: int, bytes_max: int) -> bytes:
    fixed = struct.pack("<IB3xQQII", request, len(group), first, last, count_max, bytes_max)
    return _frame(Kind.FETCH, fixed + group)


def set_state(request: int, group: bytes, key: bytes, expected: Expected, data: bytes | None) -> bytes:
    flags = (0 if expected == "any" else 1) | (2 if data is None else 0)
    version = expected if isinstance(expected, int) else 0
    fixed = struct.pack("<IBBHQ", request, len(group), len(key), flags, version)
    return _frame(Kind.SET_STATE, fixed + group + key + (data or b""))


def sync(request: int, group: bytes, known: int) -> bytes:
    return _frame(Kind.SYNC, struct.pack("<IB3xQ", request, len(group), known) + group)


def roster_query(request: int, group: bytes, known: int, after: int, limit: int) -> bytes:
    fixed = struct.pack("<IB3xQII", request, len(group), known, after, limit)
    return _frame(Kind.ROSTER_QUERY, fixed + group)


# ---- frames of the server ----


class GapReason(Enum):
    """Why messages will not come."""

    RETENTION = "retention"
    DAMAGED = "damaged"


class StateForm(Enum):
    """What the entries of a state are."""

    UP_TO_DATE = "up_to_date"
    DELTAS = "deltas"
    SNAPSHOT = "snapshot"


class RosterForm(Enum):
    """What the entries of a roster are."""

    UP_TO_DATE = "up_to_date"
    CHANGES = "changes"
    PAGE = "page"
    COUNTS = "counts"


class Presence(Enum):
    """What a roster says of a member."""

    JOINED = "joined"
    LEFT = "left"
    ONLINE = "online"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Welcome:
    """Limits and times of a server. Times in ms, lengths in bytes."""

    version: int
    node: int
    shard: int
    heartbeat_ms: int
    payload_max: int
    frame_max: int
    groups_per_member_max: int
    ack_every: int
    ack_interval_ms: int
    ack_timeout_ms: int
    publish_window: int
    heartbeat_slot_ms: int
    #: A group does not forget a producer within this time; 0 if the server does not say.
    producer_ttl_ms: int


@dataclass(frozen=True, slots=True)
class Joined:
    request: int
    epoch: int
    handle: int
    head: int
    group: bytes
    first: int
    cursor: int


@dataclass(frozen=True, slots=True)
class Left:
    request: int
    handle: int


@dataclass(frozen=True, slots=True)
class EpochStart:
    epoch: int
    handle: int
    first: int


@dataclass(frozen=True, slots=True)
class Deliver:
    handle: int
    seq: int
    stamp: int
    node: int
    shard: int
    sender: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Published:
    request: int
    epoch: int
    handle: int
    producer_seq: int
    seq: int
    level: Level


@dataclass(frozen=True, slots=True)
class Pong:
    token: int


@dataclass(frozen=True, slots=True)
class Error:
    request: int
    code: int
    limit: int
    field: bytes
    text: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    handle: int
    first: int
    last: int
    epoch: int
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Drain:
    grace_ms: int
    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    handle: int
    seq: int
    producer_seq: int
    epoch: int
    acked: int
    members: int
    percent: int


@dataclass(frozen=True, slots=True)
class Fetched:
    request: int
    epoch: int
    handle: int
    first: int
    last: int
    head: int
    gap: tuple[int, int, GapReason] | None
    more: bool
    messages: list[Deliver]


@dataclass(frozen=True, slots=True)
class StateItem:
    version: int
    stamp: int
    key: bytes
    data: bytes | None


@dataclass(frozen=True, slots=True)
class State:
    request: int
    form: StateForm
    more: bool
    handle: int
    version: int
    entries: list[StateItem]


@dataclass(frozen=True, slots=True)
class Conflict:
    request: int
    handle: int
    version: int
    stamp: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Roster:
    request: int
    form: RosterForm
    handle: int
    version: int
    members: int
    online: int
    next: int
    entries: list[tuple[Presence, bytes]]


@dataclass(frozen=True, slots=True)
class Redeliver:
    handle: int
    first: int
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class StateSet:
    request: int
    handle: int
    version: int
    stamp: int


@dataclass(frozen=True, slots=True)
class Probe:
    token: int


@dataclass(frozen=True, slots=True)
class Authed:
    request: int
    valid_ms: int
    renew_after_ms: int


@dataclass(frozen=True, slots=True)
class Unknown:
    kind: int


ServerFrame = (
    Welcome | Joined | Left | EpochStart | Deliver | Published | Pong | Error | Gap | Drain | Receipt
    | Fetched | State | Conflict | Roster | Redeliver | StateSet | Probe | Authed | Unknown
)


class _In:
    """Reads fields of a frame one after another."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def _step(self, size: int) -> int:
        at = self._at
        if at + size > len(self._body):
            raise WireError("a frame ends inside a field")
        self._at += size
        return at

    def num(self, size: int) -> int:
        at = self._step(size)
        return int.from_bytes(self._body[at : at + size], "little")

    def skip(self, size: int) -> None:
        self._step(size)

    def epoch(self) -> int:
        """An epoch: never 0."""
        epoch = self.num(4)
        if epoch == 0:
            raise WireError("epoch 0")
        return epoch

    def data(self, size: int) -> bytes:
        at = self._step(size)
        return self._body[at : at + size]

    def name(self, size: int, most: int) -> bytes:
        if not 1 <= size <= most:
            raise WireError(f"a name of {size} bytes")
        return self.data(size)

    def rest(self) -> bytes:
        return self._body[self._at :]


_T = TypeVar("_T")


def _one(of: Sequence[_T], number: int, what: str) -> _T:
    if not 0 <= number < len(of):
        raise WireError(f"{what} {number}")
    return of[number]


def _gap_reason(number: int) -> GapReason:
    return GapReason.DAMAGED if number == 2 else GapReason.RETENTION


def _deliver(f: _In) -> Deliver:
    handle, seq, stamp, node, shard, sender_len = (f.num(8), f.num(8), f.num(8), f.num(2), f.num(2), f.num(1))
    f.skip(3)
    sender = f.name(sender_len, MEMBER_MAX)
    return Deliver(handle, seq, stamp, node, shard, sender, f.rest())


def _fetched(f: _In) -> Fetched:
    request, epoch, handle, first, last, head = (f.num(4), f.num(4), f.num(8), f.num(8), f.num(8), f.num(8))
    gap_from, gap_to, reason, more = f.num(8), f.num(8), f.num(4), f.num(1) == 1
    f.skip(3)
    gap = None if gap_from == 0 else (gap_from, gap_to, _gap_reason(reason))
    messages = []
    page = Input(FRAME_MAX)
    page.push(f.rest())
    while (frame := page.next()) is not None:
        if frame[4] != 0x85:
            raise WireError("a page with another frame than DELIVER")
        messages.append(_deliver(_In(frame[HEADER:])))
    if len(page) > 0:
        raise WireError("a page ends inside a frame")
    return Fetched(request, epoch, handle, first, last, head, gap, more, messages)


def _state(f: _In) -> State:
    request, form = f.num(4), _one(list(StateForm), f.num(1), "form of STATE")
    more, count, handle, version = f.num(1) == 1, f.num(2), f.num(8), f.num(8)
    entries = []
    for _ in range(count):
        at, stamp, flags, key_len = f.num(8), f.num(8), f.num(2), f.num(1)
        f.skip(1)
        data_len = f.num(4)
        key, data = f.name(key_len, NAME_MAX), f.data(data_len)
        entries.append(StateItem(at, stamp, key, None if flags & 2 else data))
    return State(request, form, more, handle, version, entries)


def _roster(f: _In) -> Roster:
    request, form = f.num(4), _one(list(RosterForm), f.num(1), "form of ROSTER")
    f.skip(1)
    count, handle, version, members, online, following = (
        f.num(2), f.num(8), f.num(8), f.num(4), f.num(4), f.num(4),
    )  # fmt: skip
    f.skip(4)
    entries = []
    for _ in range(count):
        what, member_len = _one(list(Presence), f.num(1) - 1, "change of a roster"), f.num(1)
        f.skip(2)
        entries.append((what, f.name(member_len, MEMBER_MAX)))
    return Roster(request, form, handle, version, members, online, following, entries)


def decode(frame: bytes) -> ServerFrame:
    """Reads one whole frame.

    Raises WireError if a field is missing or out of its range.
    """
    f = _In(frame[HEADER:])
    match frame[4]:
        case 0x81:
            version, node, shard = f.num(2), f.num(2), f.num(2)
            f.skip(2)
            return Welcome(version, node, shard, *(f.num(4) for _ in range(10)))
        case 0x82:
            request, epoch, handle, head, name_len = f.num(4), f.epoch(), f.num(8), f.num(8), f.num(1)
            f.skip(7)
            group = f.name(name_len, NAME_MAX)
            return Joined(request, epoch, handle, head, group, f.num(8), f.num(8))
        case 0x83:
            request = f.num(4)
            f.skip(4)
            return Left(request, f.num(8))
        case 0x84:
            epoch = f.epoch()
            f.skip(4)
            return EpochStart(epoch, f.num(8), f.num(8))
        case 0x85:
            return _deliver(f)
        case 0x86:
            request, epoch, handle, number, seq = f.num(4), f.epoch(), f.num(8), f.num(8), f.num(8)
            return Published(request, epoch, handle, number, seq, _one(list(Level), f.num(1) - 1, "level"))
        case 0x87:
            return Pong(f.num(8))
        case 0x88:
            request, code, text_len, limit, field_len = f.num(4), f.num(2), f.num(2), f.num(8), f.num(1)
            f.skip(7)
            return Error(request, code, limit, f.data(field_len), f.data(text_len))
        case 0x89:
            return Gap(f.num(8), f.num(8), f.num(8), f.epoch(), _gap_reason(f.num(4)))
        case 0x8A:
            return Drain(f.num(4), f.num(4))
        case 0x8B:
            return Receipt(f.num(8), f.num(8), f.num(8), f.epoch(), f.num(4), f.num(4), f.num(1))
        case 0x8C:
            return _fetched(f)
        case 0x8D:
            return _state(f)
        case 0x8E:
            request, flags = f.num(4), f.num(2)
            f.skip(2)
            handle, version, stamp = f.num(8), f.num(8), f.num(8)
            return Conflict(request, handle, version, stamp, None if flags & 2 else f.rest())
        case 0x8F:
            return _roster(f)
        case 0x90:
            return Redeliver(f.num(8), f.num(8), f.epoch(), f.num(4))
        case 0x91:
            request = f.num(4)
            f.skip(4)
            return StateSet(request, f.num(8), f.num(8), f.num(8))
        case 0x92:
            return Probe(f.num(8))
        case 0x93:
            return Authed(f.num(4), f.num(4), f.num(4))
        case kind:
            return Unknown(kind)


class Input:
    """Received bytes, cut into frames.

    ``frame_max`` is the longest frame that is accepted, after the length field.
    """

    def __init__(self, frame_max: int) -> None:
        self.frame_max = frame_max
        self._bytes = b""
        self._used = 0

    def __len__(self) -> int:
        return len(self._bytes) - self._used

    def clear(self) -> None:
        self._bytes, self._used = b"", 0

    def push(self, data: bytes) -> None:
        self._bytes, self._used = self._bytes[self._used :] + data, 0

    def next(self) -> bytes | None:
        """The next whole frame, with its header.

        Raises WireError if its length is out of range: the place of the next one is not known then.
        """
        if len(self) < 4:
            return None
        at = self._used
        size = int.from_bytes(self._bytes[at : at + 4], "little")
        if size > self.frame_max:
            raise WireError(f"a frame of {size} bytes, at most {self.frame_max}")
        if size < 4:
            raise WireError(f"a frame of {size} bytes, at least 4")
        if len(self) < 4 + size:
            return None
        self._used += 4 + size
        return self._bytes[at : self._used]
