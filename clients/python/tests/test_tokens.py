"""The client and a real server that takes nobody without a token."""

from __future__ import annotations

import asyncio
import unittest
from collections import Counter
from collections.abc import Awaitable, Callable

import fanfare
from fanfare import Options, PublishError
from tests.server import Server


def _connect(server: Server, member: str, token: str | Callable[[], Awaitable[str]]) -> fanfare.Client:
    return fanfare.connect(server.url, member, token=token, options=Options(member, backoff_min_ms=100))


class Tokens(unittest.IsolatedAsyncioTestCase):
    async def test_a_connection_outlives_its_token_if_there_is_a_source_of_others(self) -> None:
        asked: Counter[str] = Counter()
        connected: Counter[str] = Counter()

        def start(server: Server, member: str, right: str) -> fanfare.Client:
            async def newest() -> str:
                asked[member] += 1
                return await server.token("--for", "6s", right, "room", member)

            client = _connect(server, member, newest)
            client.on("connected", lambda _: connected.update([member]))
            return client

        async with asyncio.timeout(60), Server(keys=True) as server:
            async with start(server, "ann", "--publish") as ann, start(server, "bob", "--join") as bob:
                room = bob.join("room")
                await room.joined()
                await ann.publish("room", "with the first token")
                self.assertEqual((await anext(room)).text, "with the first token")
                await asyncio.sleep(6.5)
                await ann.publish("room", "with another one")
                self.assertEqual((await anext(room)).text, "with another one")
        self.assertEqual(connected, {"ann": 1, "bob": 1})
        self.assertTrue(asked["ann"] >= 2 and asked["bob"] >= 2, asked)

    async def test_a_token_without_the_right_to_publish_gets_forbidden_for_it_and_nothing_else(self) -> None:
        async with asyncio.timeout(60), Server(keys=True) as server:
            reads = await server.token("--join", "room", "ann")
            writes = await server.token("--publish", "room", "bob")
            async with _connect(server, "ann", reads) as ann, _connect(server, "bob", writes) as bob:
                room = ann.join("room")
                await room.joined()
                with self.assertRaisesRegex(PublishError, "Forbidden") as raised:
                    await ann.publish("room", "hi")
                refusal = raised.exception.failure.refusal
                assert refusal is not None
                self.assertEqual((refusal.name, refusal.field), ("Forbidden", "room"))
                await bob.publish("room", "hi")
                self.assertEqual((await anext(room)).sender, "bob")

    async def test_a_token_of_another_key_ends_the_client_which_says_why(self) -> None:
        async with asyncio.timeout(60), Server(keys=True) as server:
            foreign = await server.token("--publish", "room", "ann", keys=server.new_keys("others"))
            async with _connect(server, "ann", foreign) as ann:
                with self.assertRaises(PublishError) as raised:
                    await ann.publish("room", "hi")
                self.assertEqual(raised.exception.failure.kind, "closed")
                reason = await ann.closed()
        assert reason.refusal is not None
        self.assertEqual((reason.kind, reason.refusal.name, reason.refusal.field), ("server", "TokenRefused", "signature"))
        self.assertNotEqual(reason.refusal.text, "")


if __name__ == "__main__":
    unittest.main()
