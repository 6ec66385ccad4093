"""The client on a WebSocket, against a server that the test plays."""

from __future__ import annotations

import asyncio
import re
import unittest
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

from websockets.asyncio.server import ServerConnection, serve

import fanfare
from fanfare import ClientError, Options, PublishError, RefusedError
from tests.frames import decode, encode, split


#: Longest wait for something that must come soon, on a machine that has other work.
SOON_S = 30


class Peer:
    """The server's end of a connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []

    async def heard(self, name: str) -> dict[str, Any]:
        """The next frame of this kind."""
        async with asyncio.timeout(SOON_S):
            while True:
                for frame in self.frames:
                    if frame["frame"] == name:
                        self.frames.remove(frame)
                        return frame
                data = await self.socket.recv()
                assert isinstance(data, bytes)
                self.frames += [decode(frame) for frame in split(data)]

    async def say(self, *frames: tuple[str, dict[str, Any]]) -> None:
        await self.socket.send(b"".join(encode(name, values) for name, values in frames))

    async def welcome(self, **values: int) -> None:
        await self.heard("HELLO")
        await self.say(("WELCOME", values))

    async def admit(self, **values: Any) -> dict[str, Any]:
        join = await self.heard("JOIN")
        joined = {"request": join["request"], "handle": 7, "group": "lobby", "first": 1, **values}
        await self.say(("JOINED", joined), ("EPOCH", {"epoch": 1, "handle": 7, "first": joined["first"]}))
        return join

    async def deliver(self, *seqs: int, payload: str = "hi") -> None:
        await self.say(*(("DELIVER", {"handle": 7, "seq": seq, "stamp": seq << 16, "payload": payload}) for seq in seqs))


Part = Callable[[Peer], Awaitable[None]]
Play = Callable[[fanfare.Client], Awaitable[None]]


async def play(parts: list[Part], user: Play, **arguments: Any) -> None:
    """Runs a user against a server that plays one part for each connection."""
    waiting = list(parts)
    failures: list[BaseException] = []

    async def handle(socket: ServerConnection) -> None:
        assert socket.subprotocol == "fanfare.binary.v1"
        if not waiting:
            return
        try:
            await waiting.pop(0)(Peer(socket))
        except BaseException as error:
            failures.append(error)
            raise

    async with serve(handle, "127.0.0.1", 0, subprotocols=["fanfare.binary.v1"]) as server:  # type: ignore[list-item]
        port = next(iter(server.sockets)).getsockname()[1]
        options = arguments.pop("options", Options("ann", backoff_min_ms=2))
        async with asyncio.timeout(SOON_S):
            async with fanfare.connect(f"ws://127.0.0.1:{port}", "ann", options=options, **arguments) as client:
                await user(client)
    assert not failures, failures
    assert not waiting, "not all parts were played"


class Tests(unittest.IsolatedAsyncioTestCase):
    async def test_a_loop_gets_messages_and_asking_for_the_next_acknowledges_the_one_before(self) -> None:
        handled = 0

        async def server(peer: Peer) -> None:
            await peer.welcome(ack_every=1)
            await peer.admit()
            await peer.deliver(1, 2)
            for seq in (1, 2):
                self.assertEqual((await peer.heard("ACK"))["entries"][0]["seq"], seq)
                self.assertEqual(handled, seq)
            leave = await peer.heard("LEAVE")
            await peer.say(("LEFT", {"request": leave["request"], "handle": 7}))
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            lobby = client.join("lobby", durable=True)
            await lobby.joined()
            nonlocal handled
            seen = []
            async for message in lobby:
                await asyncio.sleep(0.05)
                handled = message.seq
                seen.append((message.group, message.epoch, message.seq, message.sender, message.text))
                if len(seen) == 2:
                    asyncio.get_running_loop().call_later(0.1, lobby.leave)
            self.assertEqual(seen, [("lobby", 1, 1, "bob", "hi"), ("lobby", 1, 2, "bob", "hi")])

        await play([server], user)

    async def test_a_gap_is_told_when_the_messages_before_it_are_taken(self) -> None:
        async def server(peer: Peer) -> None:
            await peer.welcome()
            await peer.admit()
            await peer.deliver(1)
            await peer.say(("GAP", {"handle": 7, "from": 2, "to": 4}))
            await peer.deliver(5)
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            told: list[tuple[int, int]] = []
            client.on("gap", lambda gap: told.append((gap.first, gap.last)))
            lobby = client.join("lobby")
            self.assertEqual((await anext(lobby)).seq, 1)
            await asyncio.sleep(0.05)
            self.assertEqual(told, [])
            self.assertEqual((await anext(lobby)).seq, 5)
            self.assertEqual(told, [(2, 4)])

        await play([server], user)

    async def test_a_publish_is_sent_again_after_the_connection_broke(self) -> None:
        async def first(peer: Peer) -> None:
            await peer.welcome()
            self.assertEqual((await peer.heard("PUBLISH"))["producer_seq"], 1)
            peer.socket.transport.abort()

        async def second(peer: Peer) -> None:
            await peer.welcome()
            publish = await peer.heard("PUBLISH")
            self.assertEqual((publish["producer_seq"], publish["payload"]), (1, b"hi"))
            published = {"request": publish["request"], "handle": 7, "producer_seq": 1, "seq": 9}
            await peer.say(("PUBLISHED", published))
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            published = await client.publish("lobby", "hi")
            self.assertEqual((published.seq, published.level, client.unanswered), (9, fanfare.Level.DURABLE, 0))

        await play([first, second], user)

    async def test_a_buffer_may_be_used_again_after_a_publish_also_when_that_is_sent_again(self) -> None:
        async def first(peer: Peer) -> None:
            await peer.welcome()
            self.assertEqual([(await peer.heard("PUBLISH"))["payload"] for _ in "12"], [b"one", b"two"])
            peer.socket.transport.abort()

        async def second(peer: Peer) -> None:
            await peer.welcome()
            self.assertEqual([(await peer.heard("PUBLISH"))["payload"] for _ in "12"], [b"one", b"two"])
            seen.set()
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            buffer = bytearray(b"one")
            publishes = [asyncio.ensure_future(client.publish("lobby", buffer))]
            await asyncio.sleep(0)
            buffer[:] = b"two"
            publishes.append(asyncio.ensure_future(client.publish("lobby", memoryview(buffer))))
            await asyncio.sleep(0)
            buffer[:] = b"not"
            await seen.wait()
            await client.close()
            await asyncio.gather(*publishes, return_exceptions=True)

        seen = asyncio.Event()
        await play([first, second], user)

    async def test_member_and_producer_ids_stay_what_they_were_at_the_start(self) -> None:
        member, producer = bytearray(b"ann"), bytearray(b"p" * 16)
        core = fanfare.Core(Options(member, producer))
        member[:], producer[:] = b"bob", b"q" * 16
        core.connected(0)
        hello = decode(core.take_output()[0])
        self.assertEqual((hello["member"], hello["producer"]), (b"ann", b"p" * 16))

    async def test_what_is_refused_raises_and_what_has_no_answer_at_the_end_too(self) -> None:
        async def server(peer: Peer) -> None:
            await peer.welcome()
            join = await peer.heard("JOIN")
            await peer.say(("ERROR", {"request": join["request"], "code": 104, "field": "lobby", "text": "full"}))
            publish = await peer.heard("PUBLISH")
            await peer.say(("ERROR", {"request": publish["request"], "code": 103}))
            await peer.heard("SYNC")
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            lobby = client.join("lobby")
            with self.assertRaisesRegex(RefusedError, "TooManyMembers: full"):
                await anext(lobby)
            with self.assertRaises(PublishError) as raised:
                await client.publish("lobby", "1")
            self.assertEqual(raised.exception.failure.kind, "refused")
            sync = asyncio.ensure_future(client.sync("lobby"))
            await asyncio.sleep(0.05)
            await client.close()
            with self.assertRaises(RefusedError):
                await sync
            with self.assertRaises(ClientError):
                await client.publish("lobby", "2")

        await play([server], user)

    async def test_a_replaced_client_ends_its_loops_and_does_not_come_back(self) -> None:
        async def server(peer: Peer) -> None:
            await peer.welcome()
            await peer.admit()
            await peer.say(("ERROR", {"code": 13}))
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            self.assertEqual([message async for message in client.join("lobby", durable=True)], [])
            self.assertEqual((await client.closed()).kind, "replaced")

        await play([server], user)

    async def test_more_than_the_application_takes_stays_with_the_server(self) -> None:
        sent = 0

        async def server(peer: Peer) -> None:
            nonlocal sent
            await peer.welcome()
            await peer.admit()
            for seq in range(1, 2001):
                await peer.deliver(seq, payload="x" * 50_000)
                sent = seq
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            lobby = client.join("lobby")
            await lobby.joined()
            await asyncio.sleep(1)
            # Its own bound, a few messages of its library, and what the sockets hold.
            self.assertLess(sent, 400)
            for seq in range(1, 2001):
                self.assertEqual((await anext(lobby)).seq, seq)

        await play([server], user, waiting_bytes_max=200_000)

    async def test_the_shared_state_follows_changes_pages_and_conflicts(self) -> None:
        async def server(peer: Peer) -> None:
            async def answer(*frames: dict[str, Any]) -> int:
                sync = await peer.heard("SYNC")
                await peer.say(*(("STATE", {"request": sync["request"], "handle": 7, **frame}) for frame in frames))
                return int(sync["known"])

            await peer.welcome()
            await answer(
                {"form": 1, "more": 1, "version": 3, "entries": [{"version": 1, "key": "void", "data": "x"}]},
                {"form": 2, "more": 1, "version": 3, "entries": [{"version": 2, "key": "topic", "data": "cats"}]},
                {"form": 2, "version": 3, "entries": [{"version": 3, "key": "mood", "data": "good"}]},
            )
            setting = await peer.heard("SET_STATE")
            self.assertEqual(setting["expected"], 2)
            await peer.say(("CONFLICT", {"request": setting["request"], "handle": 7, "version": 5, "data": "birds"}))
            changes = [{"version": 4, "key": "mood", "flags": 2}, {"version": 5, "key": "topic", "data": "birds"}]
            self.assertEqual(await answer({"form": 1, "version": 5, "entries": changes}), 3)
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            state = client.state("lobby")
            await state.sync()
            self.assertEqual([key for key, _ in state.items()], ["topic", "mood"])
            self.assertFalse(await state.set("topic", "dogs"))
            self.assertEqual((state.get("topic"), state.get("mood"), state.version), (b"birds", None, 5))

        await play([server], user)

    async def test_a_token_is_sent_renewed_and_asked_for_again_when_that_fails(self) -> None:
        tokens: list[str | Exception] = ["one", "two", ValueError("no"), "three"]
        failures: list[str] = []

        async def newest() -> str:
            token = tokens.pop(0)
            if isinstance(token, Exception):
                raise token
            return token

        async def first(peer: Peer) -> None:
            await peer.welcome()
            for token, renew_after_ms in ((b"one", 20), (b"two", 50_000)):
                auth = await peer.heard("AUTH")
                self.assertEqual(auth["token"], token)
                authed = {"request": auth["request"], "valid_ms": 60_000, "renew_after_ms": renew_after_ms}
                await peer.say(("AUTHED", authed))
            await peer.say(("ERROR", {"code": 15}))
            await peer.socket.wait_closed()

        async def second(peer: Peer) -> None:
            await peer.welcome()
            self.assertEqual((await peer.heard("AUTH"))["token"], b"three")
            seen.set()
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            client.on("token_failed", lambda event: failures.append(str(event.error)))
            await seen.wait()

        seen = asyncio.Event()
        await play([first, second], user, token=newest)
        self.assertEqual((failures, tokens), (["no"], []))

    async def test_a_slow_source_of_tokens_is_asked_one_question_at_a_time_and_waited_for(self) -> None:
        asked: list[str] = []
        turns = 0
        advance = fanfare.Core.advance

        def counted(core: fanfare.Core, now: float) -> None:
            nonlocal turns
            turns += 1
            advance(core, now)
        slow = asyncio.Event()

        async def newest() -> str:
            asked.append(f"token {len(asked) + 1}")
            token = asked[-1]
            if len(asked) > 1:
                await slow.wait()
            return token

        async def server(peer: Peer) -> None:
            await peer.welcome()
            auth = await peer.heard("AUTH")
            authed = {"request": auth["request"], "valid_ms": 60_000, "renew_after_ms": 1}
            await peer.say(("AUTHED", authed))
            # It is due again each second as long as none has come.
            await asyncio.sleep(2.5)
            self.assertEqual(asked, ["token 1", "token 2"])
            slow.set()
            self.assertEqual((await peer.heard("AUTH"))["token"], b"token 2")
            seen.set()
            await peer.socket.wait_closed()

        async def user(client: fanfare.Client) -> None:
            await seen.wait()

        seen = asyncio.Event()
        with mock.patch.object(fanfare.Core, "advance", counted):
            await play([server], user, token=newest)
        self.assertLess(turns, 100)

    async def test_a_client_that_waits_for_its_token_can_be_closed(self) -> None:
        async def never() -> str:
            asked.set()
            await asyncio.Event().wait()
            return ""

        asked = asyncio.Event()
        async with asyncio.timeout(SOON_S):
            async with fanfare.connect("ws://127.0.0.1:1", "ann", token=never) as client:
                await asked.wait()
            self.assertEqual((await client.closed()).kind, "closed")

    async def test_who_waits_to_have_joined_hears_that_the_client_ended(self) -> None:
        async with asyncio.timeout(SOON_S):
            async with fanfare.connect("ws://127.0.0.1:1", "ann") as client:
                lobby = client.join("lobby")
            with self.assertRaises(RefusedError):
                await lobby.joined()
            # Who only loops gets the end.
            self.assertEqual([message async for message in lobby], [])

    async def test_a_message_that_is_too_big_on_its_way_ends_the_client_which_says_so(self) -> None:
        async def server(peer: Peer) -> None:
            await peer.welcome()
            await peer.heard("PUBLISH")
            await peer.socket.close(1009, "more than 64 KiB")

        async def user(client: fanfare.Client) -> None:
            with self.assertRaises(PublishError) as raised:
                await client.publish("lobby", "hi")
            self.assertEqual(raised.exception.failure.kind, "closed")
            reason = await client.closed()
            self.assertEqual(reason.kind, "failed")
            self.assertRegex(reason.what, "1009.*more than 64 KiB")

        await play([server], user)

    async def test_a_url_that_cannot_be_used_is_an_error_at_once(self) -> None:
        for url in ("here", "http://here", "ws://", "ws://here/#there", "ws://here:99999", "ws://[here"):
            with self.subTest(url=url), self.assertRaisesRegex(ClientError, re.escape(url)) as raised:
                fanfare.connect(url, "ann")
            self.assertEqual(raised.exception.kind, "range")

    async def test_wrong_options_are_errors_at_once(self) -> None:
        with self.assertRaises(ClientError):
            fanfare.connect("ws://127.0.0.1:1", "")

    async def test_a_client_that_cannot_connect_can_be_closed(self) -> None:
        reasons: list[str] = []
        async with asyncio.timeout(SOON_S):
            async with fanfare.connect("ws://127.0.0.1:1", "ann", options=Options("ann", backoff_min_ms=2)) as client:
                client.on("disconnected", lambda event: reasons.append(event.reason.kind))
                while len(reasons) < 3:
                    await asyncio.sleep(0.005)
        self.assertEqual(set(reasons), {"lost", "closed"})


if __name__ == "__main__":
    unittest.main()
