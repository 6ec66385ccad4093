"""What frames of the server mean."""

from __future__ import annotations

from typing import Literal

from . import events as ev
from . import wire
from .events import text_of
from .group import Group
from .session import Auth, Move, Publish, Query, Session

_HELD = ("StorageFull", "StorageFailed", "Indeterminate", "TooManyProducers", "RateLimited")
#: Longest wait that a server may ask for, in ms; a longer one is asked for again.
_WAIT_MAX_MS = 60_000
#: Number of the right to read history in PROTOCOL.md.
_HISTORY = 3


def take(s: Session, frame: wire.ServerFrame, now: float) -> None:
    """Takes a frame that came at ``now``; what it means goes to the events.

    Raises WireError if the server may not send it here.
    """
    match frame:
        case wire.Deliver():
            _deliver(s, frame, now)
        case wire.Welcome():
            if s.conn == "open":
                raise wire.WireError("a second WELCOME")
            if frame.version != 1:
                raise wire.WireError("a version that was not offered")
            s.welcomed(frame, now)
            s.events.append(ev.Connected(frame))
        case wire.Error():
            _error(s, frame, now)
        case wire.Unknown():
            pass
        case _ if s.conn != "open":
            raise wire.WireError("a frame before WELCOME")
        case wire.Pong():
            pass
        case wire.Probe():
            s.send(wire.probed(frame.token))
        case wire.Drain():
            s.drain = now + frame.reconnect_after_ms
            s.events.append(ev.Draining(frame.grace_ms, frame.reconnect_after_ms))
        case wire.Authed():
            s.authed(frame, now)
        case wire.Joined():
            _joined(s, frame)
        case wire.Left():
            _left(s, frame)
        case wire.Published():
            _published(s, frame, now)
        case wire.Receipt():
            group = s.handles.get(frame.handle)
            s.events.append(
                ev.ReceiptOf(
                    group.name if group else None, frame.handle, frame.seq, frame.epoch,
                    frame.producer_seq, frame.acked, frame.members, frame.percent,
                )  # fmt: skip
            )
        case wire.EpochStart() | wire.Gap() | wire.Redeliver():
            group = s.handles.get(frame.handle)
            if group is not None:
                _stream(s, group, frame)
        case _:
            _answer(s, frame)


def _stream(s: Session, group: Group, frame: wire.EpochStart | wire.Gap | wire.Redeliver) -> None:
    """What says something about the messages of a group."""
    match frame:
        case wire.EpochStart():
            was = group.epoch_starts(frame.epoch, frame.first)
            s.list_move(group)
            if was is not None:
                s.events.append(ev.EpochChanged(group.name, *was, frame.epoch, group.place[1] + 1))
        case wire.Gap():
            news = group.gap(frame)
            if news is not None:
                s.events.append(ev.MissingMessages(group.name, *news, frame.epoch, frame.reason))
        case wire.Redeliver():
            group.redelivers(frame.first, frame.epoch)
            s.events.append(ev.Redelivery(group.name, frame.first, frame.attempt))


def _deliver(s: Session, d: wire.Deliver, now: float) -> None:
    group = s.handles.get(d.handle)
    if group is None:
        raise wire.WireError("a DELIVER of a group that was not joined")
    delivered = group.deliver(d.seq)
    if delivered == "dropped":
        return
    if delivered == "known":
        if group.handled_before(d.seq):
            s.handled(group, now)
        return
    if delivered.missing is not None:
        # The server should have said so.
        gap = ev.MissingMessages(group.name, *delivered.missing, delivered.epoch, wire.GapReason.DAMAGED)
        s.events.append(gap)
    s.events.append(ev.Message.of(group.name, delivered.epoch, d))


def _asked(s: Session, what: Literal["join", "leave"], number: int, group: Group | None) -> Group:
    """The group of a JOIN or LEAVE that this answers."""
    move = s.requests.get(number)
    if group is None or not isinstance(move, Move) or move.what != what or group not in move.groups:
        raise wire.WireError(f"an answer to a {what.upper()} that nobody waits for")
    move.groups.remove(group)
    if not move.groups:
        del s.requests[number]
    return group


def _joined(s: Session, frame: wire.Joined) -> None:
    group = _asked(s, "join", frame.request, s.groups.get(text_of(frame.group)))
    s.name_handle(group, frame.handle)
    looking = group.is_looking_back
    skipped = group.joined(frame)
    again, group.joined_before = group.joined_before, True
    s.list_move(group)
    if group.wanted is not None and not looking:
        s.events.append(
            ev.JoinedGroup(
                group.name, frame.handle, frame.epoch, frame.head, frame.first, frame.cursor, again, skipped
            )
        )


def _left(s: Session, frame: wire.Left) -> None:
    if frame.request == 0:
        _expelled(s, frame.handle)
        return
    group = _asked(s, "leave", frame.request, s.handles.get(frame.handle))
    over = group.left()
    s.list_move(group)
    if over:
        s.events.append(ev.LeftGroup(group.name))


def _expelled(s: Session, handle: int) -> None:
    """A new token does not allow the member to be in the group any more."""
    group = s.handles.get(handle)
    if group is None or group.phase == "out":
        return
    group.wanted = None
    group.left()
    s.events.append(ev.LeftGroup(group.name))


def _published(s: Session, frame: wire.Published, now: float) -> None:
    request = s.requests.get(frame.request)
    if not isinstance(request, Publish):
        raise wire.WireError("a PUBLISHED that nobody waits for")
    del s.requests[frame.request]
    group, id = request.group, request.id
    s.name_handle(group, frame.handle)
    if group.handle is None:
        group.handle = frame.handle
    if group.producer.number_of(id) != frame.producer_seq:
        raise wire.WireError("a PUBLISHED with the number of another publish")
    group.held_told = False
    s.publish_is_over(group.producer.taken(id))
    s.events.append(
        ev.PublishedMessage(id, group.name, frame.producer_seq, frame.epoch, frame.seq, frame.level)
    )
    _settle(s, group, now)


def _settle(s: Session, group: Group, now: float) -> None:
    """Sends again what came back, once all publishes of the group have their answers."""
    settled = group.producer.settle()
    s.give_up(group, settled.in_doubt)
    s.renewing |= settled.forgotten
    if settled.stuck and group.producer.hold is None:
        group.producer.hold = now + s.hold_ms()
        s.holds[group] = None
    s.list_send(group)


def _error(s: Session, frame: wire.Error, now: float) -> None:
    why = ev.Refusal.of(frame)
    if why.code < 100:
        s.close(ev.Reason("replaced") if why.name == "Replaced" else ev.Reason("server", refusal=why))
        return
    match s.requests.get(frame.request):
        case None:
            _server_error(s, why)
        case Publish(group, id):
            del s.requests[frame.request]
            _publish_error(s, group, id, why, now)
        case Query():
            _query_failed(s, frame.request, why)
        case Auth():
            del s.requests[frame.request]
            s.events.append(ev.ServerError(why))
        case Move(_, groups):
            _move_error(s, frame.request, groups, why, now)


def _query_failed(s: Session, number: int, why: ev.Refusal) -> None:
    request = s.requests.pop(number, None)
    if isinstance(request, Query):
        s.queries -= 1
        s.events.append(ev.QueryFailed(request.id, request.group.name, why))


def _server_error(s: Session, why: ev.Refusal) -> None:
    """An ERROR without a request."""
    if why.name == "UnknownFrame" and why.limit == wire.Kind.AUTH:
        # It is older than tokens, and takes everybody.
        return
    s.events.append(ev.ServerError(why))
    if why.name != "UnknownFrame":
        return
    # An old server: what was asked for by this kind of frame has no other answer.
    for number, request in list(s.requests.items()):
        if isinstance(request, Query) and request.sent and request.kind == why.limit:
            _query_failed(s, number, why)


def _move_error(s: Session, number: int, groups: list[Group], why: ev.Refusal, now: float) -> None:
    """One group of a JOIN or LEAVE was refused, or all of them."""
    refused = [group for group in groups if group.name == why.field] or list(groups)
    for group in refused:
        groups.remove(group)
    if not groups:
        del s.requests[number]
    for group in refused:
        if group.phase == "leaving":
            # It is not in it: what was wanted.
            if group.left():
                s.events.append(ev.LeftGroup(group.name))
        elif why.name == "RateLimited" and group.wanted is not None:
            group.phase = "out"
            s.late_moves[group] = now + _wait_ms(why)
            continue
        elif why.name == "Forbidden" and why.limit == _HISTORY and group.goes_without_history():
            group.phase = "out"
        else:
            wanted = group.wanted is not None
            group.phase, group.leaving, group.wanted = "out", None, None
            s.events.append(ev.JoinFailed(group.name, why) if wanted else ev.LeftGroup(group.name))
        s.list_move(group)


def _wait_ms(why: ev.Refusal) -> int:
    return min(max(1, why.limit), _WAIT_MAX_MS)


def _publish_error(s: Session, group: Group, id: int, why: ev.Refusal, now: float) -> None:
    producer = group.producer
    timed = why.name in _HELD
    if timed or why.name == "Draining":
        retry_in_ms = _wait_ms(why) if why.name == "RateLimited" else s.hold_ms() if timed else None
        producer.returned(id, "indeterminate" if why.name == "Indeterminate" else "held")
        producer.hold = "reconnect" if retry_in_ms is None else now + retry_in_ms
        if timed:
            s.holds[group] = None
        if not group.held_told:
            s.events.append(ev.PublishHeld(group.name, why, retry_in_ms))
        group.held_told = True
    elif why.name == "UnknownProducer":
        producer.returned(id, "unknown")
    elif why.name == "ProducerTaken":
        producer.returned(id, "foreign")
    elif why.name == "ProducerGap":
        producer.returned(id, why.limit)
    elif why.name == "ProducerSeqTooOld":
        s.publish_is_over(producer.taken(id))
        s.events.append(ev.PublishFailed(id, group.name, ev.PublishFailure("place_unknown")))
    else:
        size, certain = producer.refused(id)
        s.publish_is_over(size)
        failure = ev.PublishFailure("refused", why) if certain else ev.PublishFailure("in_doubt")
        s.events.append(ev.PublishFailed(id, group.name, failure))
    _settle(s, group, now)


def _answer(s: Session, frame: wire.ServerFrame) -> None:
    """Answers to questions: history, state, rosters."""
    if not isinstance(frame, (wire.Fetched, wire.State, wire.StateSet, wire.Conflict, wire.Roster)):
        return
    if isinstance(frame, wire.Roster) and frame.request == 0:
        known = s.handles.get(frame.handle)
        if known is not None:
            s.events.append(_roster(None, known.name, frame))
        return
    request = s.requests.get(frame.request)
    if not isinstance(request, Query):
        raise wire.WireError("an answer that nobody waits for")
    if not (isinstance(frame, wire.State) and frame.more):
        del s.requests[frame.request]
        s.queries -= 1
    id, group = request.id, request.group.name
    match frame:
        case wire.Fetched():
            messages = [ev.Message.of(group, frame.epoch, d) for d in frame.messages]
            following = max(frame.last, frame.gap[1] if frame.gap else 0) + 1 if frame.more else None
            s.events.append(ev.Page(id, group, frame.epoch, messages, frame.head, frame.gap, following))
        case wire.State():
            entries = [ev.StateEntry(text_of(e.key), e.version, e.stamp, e.data) for e in frame.entries]
            s.events.append(ev.StatePage(id, group, frame.form, frame.version, frame.more, entries))
        case wire.StateSet():
            s.events.append(ev.StateWasSet(id, group, frame.version, frame.stamp))
        case wire.Conflict():
            s.events.append(ev.StateConflict(id, group, frame.version, frame.stamp, frame.data))
        case wire.Roster():
            s.events.append(_roster(id, group, frame))


def _roster(id: int | None, group: str, frame: wire.Roster) -> ev.RosterPage:
    entries = [(what, text_of(member)) for what, member in frame.entries]
    return ev.RosterPage(
        id, group, frame.form, frame.version, frame.members, frame.online, frame.next or None, entries
    )
