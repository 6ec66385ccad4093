"""What a client does by the clock, and the frames that it sends."""

from __future__ import annotations

from . import wire
from .events import Reason
from .group import Group
from .session import Move, Publish, Query, Session

#: With more than this waiting to be sent no publishes are added.
OUT_ENOUGH = 256 * 1024
#: Publishes of one group before the next group has its turn.
_SENDS_PER_TURN = 64


def advance(s: Session, now: float) -> None:
    """Does what is due at ``now`` and encodes what can be sent."""
    if s.conn == "greeting" and now >= s.until:
        s.close(Reason("silent", ms=s.options.answer_timeout_ms))
    if s.conn != "open" or s.welcome is None:
        return
    _heartbeat(s, s.welcome, now)
    _move_late(s, now)
    if s.closing is not None:
        return
    _join_and_leave(s, s.welcome)
    while s.waiting:
        number, frame = s.waiting.popleft()
        query = s.requests.get(number)
        if isinstance(query, Query):
            query.sent = True
            s.send(frame)
    for group, at in list(s.clock.items()):
        if at > now:
            break
        del s.clock[group]
        if group.unacked > 0:
            s.acks[group] = None
    _acknowledge(s, now)
    if s.drain is None:
        _release(s, now)
        if s.renew_if_settled():
            acknowledge_all(s, now)
            s.close(Reason("renewed"))
            return
        _publish(s, s.welcome, now)
    elif not s.requests:
        acknowledge_all(s, now)
        s.close(Reason("drained"))


def _move_late(s: Session, now: float) -> None:
    """Joins groups again that had to wait."""
    for group, at in list(s.late_moves.items()):
        if at <= now:
            del s.late_moves[group]
            s.list_move(group)


def _heartbeat(s: Session, welcome: wire.Welcome, now: float) -> None:
    if s.silent_at is not None and s.silent_at <= now:
        s.close(Reason("silent", ms=s.options.answer_timeout_ms))
    if s.ping_at is None or s.ping_at > now:
        return
    # The slots stay where the server laid them, also when this comes late.
    every = max(1, welcome.heartbeat_ms)
    slot = s.ping_at
    s.ping_at += (int((now - slot) / every) + 1) * every
    if s.acked_at is not None and slot - s.acked_at < every / 2:
        # The server has just heard of it.
        return
    s.send(wire.ping(int(now)))
    if s.silent_at is None:
        s.silent_at = now + s.options.answer_timeout_ms


def _join_and_leave(s: Session, welcome: wire.Welcome) -> None:
    """Joins and leaves groups, many in one frame."""
    room = min(welcome.frame_max, wire.FRAME_MAX) - 2 * wire.HEADER
    while s.moves:
        joins: list[Group] = []
        leaves: list[Group] = []
        size = 0
        for group in list(s.moves):
            entry_size = 16 + len(group.name_bytes)
            full = max(len(joins), len(leaves)) >= wire.ENTRIES_MAX or size + entry_size > room
            if full and size > 0:
                break
            size += entry_size
            del s.moves[group]
            if not group.has_to_move:
                continue
            if group.phase == "out":
                group.phase = "joining"
                group.leaving = group.wanted or group.leaving
                joins.append(group)
            else:
                group.phase = "leaving"
                leaves.append(group)
        if joins:
            number = s.request(Move("join", list(joins)))
            entries = [entry for group in joins if (entry := group.join_entry()) is not None]
            s.send(wire.join(number, entries))
        if leaves:
            number = s.request(Move("leave", list(leaves)))
            s.send(wire.leave(number, [group.name_bytes for group in leaves]))


def _acknowledge(s: Session, now: float) -> None:
    if not s.acks:
        return
    s.acked_at = now
    s.spread_acks()
    acks = [ack for group in s.acks if (ack := group.ack()) is not None]
    s.acks.clear()
    for i in range(0, len(acks), wire.ENTRIES_MAX):
        s.send(wire.ack(acks[i : i + wire.ENTRIES_MAX]))


def acknowledge_all(s: Session, now: float) -> None:
    """Acknowledges all that was handled, now."""
    if s.conn != "open":
        return
    for group in s.groups.values():
        if group.unacked > 0:
            s.acks[group] = None
    _acknowledge(s, now)


def _release(s: Session, now: float) -> None:
    """Lets groups publish again whose time has come."""
    for group in list(s.holds):
        hold = group.producer.hold
        if isinstance(hold, (int, float)):
            if hold > now:
                continue
            group.producer.hold = None
        del s.holds[group]
        s.list_send(group)


def _publish(s: Session, welcome: wire.Welcome, now: float) -> None:
    window = max(1, welcome.publish_window)
    while s.sends and s.out_bytes < OUT_ENOUGH:
        group = next(iter(s.sends))
        del s.sends[group]
        for _ in range(_SENDS_PER_TURN):
            if s.out_bytes >= OUT_ENOUGH:
                s.sends[group] = None
                break
            entry = group.producer.send_next(window, s.renewing, now)
            if entry is None:
                break
            number = s.request(Publish(group, entry.id))
            s.send(
                wire.publish(number, group.name_bytes, entry.payload, entry.sent_as, entry.level, entry.receipt)
            )
        else:
            # The others first.
            s.sends[group] = None


def deadline(s: Session) -> float | None:
    """When something is due next."""
    if s.closing is not None:
        # Only its last words are left, which wait for room and not for a time.
        return None
    times = [s.ping_at, s.silent_at, s.renew_at, *s.late_moves.values(), next(iter(s.clock.values()), None)]
    if s.conn in ("down", "greeting"):
        times.append(s.until)
    if s.conn == "open" and s.drain is None:
        # Where they are not released, the time of one that is over would be due without end.
        times += [hold for group in s.holds if isinstance(hold := group.producer.hold, (int, float))]
    return min((at for at in times if at is not None), default=None)
