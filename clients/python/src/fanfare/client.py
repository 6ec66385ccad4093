"""A client on a WebSocket: moves bytes between a Core and a connection, and events to the application."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl as tls
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.uri import parse_uri

from . import events as ev
from . import wire
from .core import Core
from .due import OUT_ENOUGH
from .membership import Membership, RefusedError
from .session import ClientError, Options
from .state import SharedState, StateChanges

_SUBPROTOCOL = websockets.Subprotocol("fanfare.binary.v1")
#: A message of the server may hold as much as a server sends in one write, which its operator sets.
_MESSAGE_MAX = 64 << 20
#: A message that waits for the application counts this much beside its payload.
MESSAGE_COST = 128
#: A token that could not be had is asked for again after this time.
_TOKEN_AGAIN_MS = 1_000
#: Close code: a message is too big. The same bytes would be sent again, and be too big again.
_TOO_BIG = 1009
#: How long a closing client waits for its last words to be taken.
_LINGER_S = 2.0

#: A token, or what gets the newest one.
Token = str | Callable[[], Awaitable[str]]

_log = logging.getLogger("fanfare")


class PublishError(Exception):
    """A publish that is over without a place. ``failure.kind`` says whether it is in the group."""

    def __init__(self, failure: ev.PublishFailure) -> None:
        super().__init__(str(failure.refusal) if failure.refusal else failure.kind.replace("_", " "))
        self.failure = failure


def connect(
    url: str,
    member: str | wire.Bytes,
    *,
    token: Token | None = None,
    options: Options | None = None,
    resume: dict[str, Any] | None = None,
    acks: Literal["automatic", "explicit"] = "automatic",
    waiting_bytes_max: int = 8 << 20,
    ssl: tls.SSLContext | None = None,
) -> Client:
    """A client of the server at ``url``, such as ``wss://chat.example``, to be used with ``async with``.

    ``options``: its bounds; the member in them counts less than ``member``. ``resume``: go on where another
    client of this member was; see :meth:`Client.to_resume`. ``acks``: when a message counts as handled, so
    that it is acknowledged: ``automatic``, when the loop over the group asks for the next one, or
    ``explicit``, by :meth:`Membership.ack`. ``waiting_bytes_max``: with more bytes of messages that wait for
    the application, the client does not read its connection. ``token``: what shows the server who this is, or a
    function that gets the newest one: it is asked before each connect, and when the server wants another one. If
    it fails, the client tries again later. ``ssl``: how the server of a ``wss://`` URL is known, if not by the
    authorities of this system.

    Raises ClientError if the URL or an option is wrong.
    """
    try:
        parse_uri(url)
    except (websockets.InvalidURI, ValueError) as error:
        raise ClientError("range", f"{url!r} is no URL of a WebSocket; use one such as wss://chat.example") from error
    options = dataclasses.replace(options, member=member) if options else Options(member)
    return Client(url, Core(options, resume), acks == "automatic", waiting_bytes_max, options, token, ssl)


class Client:
    """See :func:`connect`. All of it belongs to one event loop."""

    def __init__(
        self,
        url: str,
        core: Core,
        automatic: bool,
        waiting_bytes_max: int,
        options: Options,
        token: Token | None,
        ssl: tls.SSLContext | None,
    ) -> None:
        self._token = token
        self._ssl = ssl
        self._renewal: asyncio.Task[bool] | None = None
        self._url = url
        self._core = core
        self._automatic = automatic
        self._waiting_bytes_max = waiting_bytes_max
        self._connect_s = max(1, options.answer_timeout_ms) / 1000
        self._socket: ClientConnection | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._waiting_bytes = 0
        self._memberships: dict[str, Membership] = {}
        self._publishes: dict[int, asyncio.Future[ev.PublishedMessage]] = {}
        self._queries: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[int, StateChanges] = {}
        self._listeners: dict[str, list[Callable[[Any], None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._reason: ev.Reason | None = None

    async def __aenter__(self) -> Client:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begins to connect; ``async with`` does this."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    # ---- what the application asks ----

    def join(self, group: str, *, durable: bool = False, start: int | None = None, roster: bool = False) -> Membership:
        """Joins a group and stays in it over reconnects. Loop over what it returns to get the messages.

        ``durable``: a member until it leaves, also while it is away. ``start``: begin with this message, or
        the oldest that is kept after it, instead of the next one. ``roster``: also tell who joins, leaves,
        comes and goes, by ``roster`` events. Read what you join: what is not taken is kept, and with more
        than ``waiting_bytes_max`` of it nothing is read for any group.
        """
        self._core.join(group, durable, None if start is None else max(1, start), roster)
        if group not in self._memberships:
            self._memberships[group] = Membership(group, self)
        self._wake.set()
        return self._memberships[group]

    async def publish(
        self, group: str, payload: str | wire.Bytes, *, level: wire.Level | None = None, receipt: int = 0
    ) -> ev.PublishedMessage:
        """Publishes to a group, which need not be joined. Returns when the message has its place.

        Until then it is sent again as often as it takes, and the server keeps one copy. ``receipt``: with 1
        to 100 a ``receipt`` event comes when that share of the durable members, in percent, has acknowledged
        it. To have many on their way at once, make tasks of it, or use ``asyncio.gather``.

        Raises PublishError, or ClientError if nothing was sent.
        """
        id = self._core.publish(group, payload, level, receipt)
        published: ev.PublishedMessage = await self._wait(self._publishes, id)
        return published

    @property
    def unanswered(self) -> int:
        """Publishes that have no answer yet."""
        return self._core.unanswered

    async def fetch(self, group: str, first: int = 1, last: int = 0, count_max: int = 0) -> ev.Page:
        """Reads a page of history, whether or not the group is joined; ``last`` 0 means to the end."""
        page: ev.Page = await self._wait(self._queries, self._core.fetch(group, first, last, count_max))
        return page

    async def set_state(
        self, group: str, key: str, value: str | wire.Bytes | None, expected: wire.Expected = "any"
    ) -> ev.StateWasSet | ev.StateConflict:
        """Sets a key of a group's state, or deletes it (None), if it is as expected.

        ``expected`` is ``any``, ``absent`` or a version. The answer is a conflict if the key is otherwise.
        """
        data = None if value is None else wire.to_bytes(value)
        id = self._core.set_state(group, key, data, expected)
        answer: ev.StateWasSet | ev.StateConflict = await self._wait(self._queries, id)
        return answer

    async def sync(self, group: str, known: int = 0) -> StateChanges:
        """What changed in a group's state since version ``known``, or all of it."""
        changes: StateChanges = await self._wait(self._queries, self._core.sync(group, known))
        return changes

    def state(self, group: str) -> SharedState:
        """The state of a group as this client knows it."""
        return SharedState(self, group)

    async def roster(self, group: str, known: int = 0, after: int = 0, limit: int = 100) -> ev.RosterPage:
        """Who is on the roster of a group: its durable members. With ``limit`` 0 the counts alone."""
        page: ev.RosterPage = await self._wait(self._queries, self._core.roster(group, known, after, limit))
        return page

    def on(self, type: str, listener: Callable[[Any], None]) -> Callable[[], None]:
        """Calls ``listener`` for each event of this type but messages. Returns a function that ends that."""
        self._listeners.setdefault(type, []).append(listener)
        return lambda: self._listeners[type].remove(listener)

    def to_resume(self) -> dict[str, Any]:
        """What to keep, as JSON, for the argument ``resume``."""
        return self._core.to_resume()

    async def close(self) -> ev.Reason:
        """Acknowledges what was handled and closes the connection.

        Publishes without an answer are given up: wait for them before.
        """
        self._core.close(_now())
        self._wake.set()
        return await self.closed()

    async def closed(self) -> ev.Reason:
        """Waits until the client has ended, and says why."""
        if self._task is not None:
            await asyncio.shield(self._task)
        else:
            self._turn()
        return self._reason or ev.Reason("closed")

    # ---- what a membership asks ----

    def _leave(self, group: str) -> None:
        self._core.leave(group)
        self._wake.set()

    def _handled(self, group: str, epoch: int, seq: int) -> None:
        self._core.handled(group, epoch, seq, _now())
        self._wake.set()

    def _taken(self, message: ev.Message) -> None:
        self._waiting_bytes -= len(message.payload) + MESSAGE_COST
        if self._waiting_bytes <= self._waiting_bytes_max / 2:
            self._room.set()

    # ---- the connection ----

    async def _run(self) -> None:
        """Connects, and connects again, until the client has ended."""
        try:
            while True:
                self._turn()
                link = self._core.link()
                if link.kind == "over":
                    return
                if link.kind == "connect" and link.at > _now():
                    await self._sleep(link.at)
                elif link.kind == "connect":
                    getting = asyncio.ensure_future(self._get_token())
                    if not await self._until_over(getting):
                        continue
                    if getting.result():
                        await self._connect()
                    else:
                        await self._sleep(_now() + _TOKEN_AGAIN_MS)
                else:
                    # A connection that ended before its last bytes were taken.
                    self._core.disconnected(_now())
        finally:
            self._end()

    async def _get_token(self) -> bool:
        """Gets the newest token, if there is one to get. Returns whether the client can go on."""
        if self._token is None:
            return True
        try:
            if isinstance(self._token, str):
                self._core.set_token(self._token, renews=False)
            else:
                self._core.set_token(await self._token(), renews=True)
        except Exception as error:
            # Whatever the application's function may raise.
            self._tell(ev.TokenFailed(error))
            return False
        finally:
            self._wake.set()
        return True

    async def _until_over(self, doing: asyncio.Future[Any]) -> bool:
        """Waits until that is done, and gives it up if the client is over before. Returns whether it is."""
        while not doing.done() and self._core.link().kind != "over":
            waking = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait({doing, waking}, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()
            self._wake.clear()
        if not doing.done():
            doing.cancel()
            return False
        return True

    async def _sleep(self, until: float | None) -> None:
        """Until there is something to do, or that time."""
        delay = None if until is None else max(0.0, until - _now()) / 1000
        try:
            await asyncio.wait_for(self._wake.wait(), delay)
        except TimeoutError:
            pass
        self._wake.clear()

    async def _connect(self) -> None:
        opening = asyncio.ensure_future(
            websockets.connect(
                self._url,
                subprotocols=[_SUBPROTOCOL],
                ssl=self._ssl,
                compression=None,
                max_size=_MESSAGE_MAX,
                # The protocol has its own heartbeats, at moments that the server gives out.
                ping_interval=None,
                open_timeout=self._connect_s,
                close_timeout=_LINGER_S,
            )
        )
        if not await self._until_over(opening):
            return
        try:
            socket = opening.result()
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            _log.debug("cannot connect to %s: %s", self._url, error)
            self._core.disconnected(_now())
            return
        self._core.connected(_now())
        reading = asyncio.create_task(self._read(socket))
        try:
            await self._write(socket)
        finally:
            reading.cancel()
            await socket.close()

    async def _read(self, socket: ClientConnection) -> None:
        try:
            while True:
                # Reading goes on when the application has taken half of what waits for it.
                await self._room.wait()
                message = await socket.recv()
                self._core.receive(wire.to_bytes(message))
                self._turn()
                self._wake.set()
        except (OSError, websockets.WebSocketException) as error:
            self._lost(error)
            self._wake.set()

    def _lost(self, error: Exception) -> None:
        close = error.rcvd or error.sent if isinstance(error, websockets.ConnectionClosed) else None
        if close is not None and close.code == _TOO_BIG:
            self._core.fail(f"a message is too big on its way (close code {close.code}, {close.reason!r})")
        self._core.disconnected(_now())

    async def _write(self, socket: ClientConnection) -> None:
        """Sends and does what is due, until the connection is to be closed or has ended."""
        while True:
            self._turn()
            frames = self._core.take_output(OUT_ENOUGH)
            if frames:
                try:
                    # Waits while the socket is full; meanwhile the other task reads.
                    await socket.send(b"".join(frames))
                except (OSError, websockets.WebSocketException) as error:
                    self._lost(error)
                continue
            # One at a time, however long the application takes: the newest must be the last.
            # Asking whether one is due puts the next time off, so it is asked in any case.
            asked = self._renewal is not None and not self._renewal.done()
            if self._core.token_is_due(_now()) and not asked:
                self._renewal = asyncio.create_task(self._get_token())
            if self._core.link().kind != "up":
                self._core.disconnected(_now())
                return
            await self._sleep(self._core.deadline())

    def _turn(self) -> None:
        """Gives out events and does what is due."""
        now = _now()
        while (event := self._core.next_event(now)) is not None:
            self._take(event)
        if not self._room.is_set():
            self._core.not_reading()
        self._core.advance(now)

    def _end(self) -> None:
        if self._reason is None:
            self._reason = ev.Reason("closed")
        if self._renewal is not None:
            self._renewal.cancel()
        for publish in self._publishes.values():
            if not publish.done():
                publish.set_exception(PublishError(ev.PublishFailure("closed")))
        for query in self._queries.values():
            if not query.done():
                query.set_exception(RefusedError(None))
        for membership in self._memberships.values():
            membership._end(None)
        self._memberships.clear()

    # ---- events ----

    async def _wait(self, waiting: dict[int, asyncio.Future[Any]], id: int) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting[id] = answer
        self._wake.set()
        try:
            return await answer
        finally:
            waiting.pop(id, None)

    def _take(self, event: ev.Event) -> None:
        match event:
            case ev.Message():
                membership = self._memberships.get(event.group)
                if membership is not None:
                    self._waiting_bytes += len(event.payload) + MESSAGE_COST
                    if self._waiting_bytes > self._waiting_bytes_max:
                        self._room.clear()
                    membership._push(event)
                return
            case ev.MissingMessages() | ev.EpochChanged():
                # Told when the messages before it are taken.
                membership = self._memberships.get(event.group)
                if membership is not None:
                    membership._push(event)
                return
            case ev.JoinedGroup():
                if event.group in self._memberships:
                    self._memberships[event.group]._admit()
            case ev.JoinFailed():
                if event.group in self._memberships:
                    self._memberships.pop(event.group)._end(RefusedError(event.error))
            case ev.LeftGroup():
                if event.group in self._memberships:
                    self._memberships.pop(event.group)._end(None)
            case ev.PublishedMessage():
                _settle(self._publishes, event.id, event)
            case ev.PublishFailed():
                _settle(self._publishes, event.id, PublishError(event.error))
            case ev.StatePage():
                self._state_page(event)
            case ev.QueryFailed():
                self._pages.pop(event.id, None)
                _settle(self._queries, event.id, RefusedError(event.error))
            case ev.Page() | ev.StateWasSet() | ev.StateConflict():
                _settle(self._queries, event.id, event)
            case ev.RosterPage(id=int() as id):
                _settle(self._queries, id, event)
            case ev.Disconnected(reason, None):
                self._reason = reason
        self._tell(event)

    def _state_page(self, page: ev.StatePage) -> None:
        changes = self._pages.pop(page.id, None)
        if changes is None or (
            page.form is wire.StateForm.SNAPSHOT and changes.form is not wire.StateForm.SNAPSHOT
        ):
            # A snapshot makes void what came before it.
            changes = StateChanges(page.form, page.version, [])
        changes = StateChanges(page.form, page.version, changes.entries + page.entries)
        if page.more:
            self._pages[page.id] = changes
        else:
            _settle(self._queries, page.id, changes)

    def _tell(self, event: ev.Event) -> None:
        for listener in list(self._listeners.get(event.type, ())):
            try:
                listener(event)
            except Exception:
                # As for any callback: the others and this client go on.
                _log.exception("a listener for %s failed", event.type)


def _settle(waiting: dict[int, asyncio.Future[Any]], id: int, answer: Any) -> None:
    future = waiting.get(id)
    if future is None or future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _now() -> float:
    return time.monotonic() * 1000
