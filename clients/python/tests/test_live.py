"""The client speaks the conversations with a real server, by its own messages, in JSON, and by TLS.

See tests/conversations/README.md.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import unittest
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import fanfare
from fanfare import Level, Options
from tests import in_json
from tests.frames import CONVERSATIONS, bytes_of
from tests.script import check, plain
from tests.server import Server

TYPES = (
    "connected", "joined", "join_failed", "left", "epoch_changed", "gap", "redelivery", "producer_renewed", "published",
    "publish_failed", "publish_held", "receipt", "fetched", "state", "state_set", "conflict", "roster", "query_failed",
    "server_error", "draining", "disconnected",
)  # fmt: skip


class Actor:
    """A client whose events are kept by their names."""

    def __init__(self, url: str, ssl: ssl.SSLContext | None, member: str) -> None:
        self.events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        options = Options(member, backoff_min_ms=100, backoff_max_ms=500)
        self.client = fanfare.connect(url, member, options=options, ssl=ssl)
        for type in TYPES:
            self.client.on(type, self._keep)
        self.client.start()
        self._memberships: dict[str, fanfare.Membership] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def _keep(self, event: fanfare.Event) -> None:
        self.events[event.type].append(plain(event))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _loop(self, membership: fanfare.Membership) -> None:
        async for message in membership:
            self._keep(message)
        del self._memberships[membership.group]

    def do(self, step: dict[str, Any]) -> None:
        client, group = self.client, step["group"]
        data = None if step.get("data") is None else bytes_of(step["data"])
        match step["do"]:
            case "join":
                membership = client.join(group, durable=step.get("durable", False), start=step.get("from"))
                if group not in self._memberships:
                    self._spawn(self._loop(membership))
                self._memberships[group] = membership
            case "leave":
                self._memberships[group].leave()
            case "publish":
                level = Level(step["level"]) if "level" in step else None
                self._spawn(client.publish(group, step["payload"], level=level, receipt=step.get("receipt", 0)))
            case "fetch":
                self._spawn(client.fetch(group, step["from"], step["to"], step["count_max"]))
            case "set_state":
                self._spawn(client.set_state(group, step["key"], data, step.get("expected", "any")))
            case "sync":
                self._spawn(client.sync(group, step["known"]))
            case "roster":
                self._spawn(client.roster(group, step["known"], step["after"], step["limit"]))
            case other:
                raise AssertionError(other)

    async def event(self, type: str, fields: dict[str, Any], names: dict[str, Any]) -> None:
        for _ in range(6000):
            if self.events[type]:
                return check(self.events[type].pop(0), fields, names, type)
            await asyncio.sleep(0.005)
        raise AssertionError(f"no event {type}; there are {list(self.events)}")


class Live(unittest.IsolatedAsyncioTestCase):
    async def _speak(self, file: Path, tls: bool) -> None:
        actors: dict[str, Actor] = {}
        names: dict[str, Any] = {}
        async with asyncio.timeout(60), Server(tls) as server:
            for i, step in enumerate(json.loads(file.read_text())["steps"]):
                with self.subTest(conversation=file.name, step=i + 1, what=json.dumps(step)):
                    fields = {key: value for key, value in step.items() if key not in ("as", "event")}
                    if "start" in step:
                        actors[step["as"]] = Actor(server.url, server.ssl, step["start"]["member"])
                    elif "event" in step:
                        await actors[step["as"]].event(step["event"], fields, names)
                    elif "no" in step:
                        await asyncio.sleep(0.2)
                        self.assertEqual(actors[step["as"]].events[step["no"]], [])
                    elif step.get("server") == "start":
                        await server.run()
                    elif "server" in step:
                        await server.end(signal.SIGKILL if step["server"] == "kill" else signal.SIGTERM)
                    else:
                        actors[step["as"]].do(step)
                        # As if they were called one after another.
                        await asyncio.sleep(0)
                    continue
                break
            for actor in actors.values():
                await actor.client.close()

    async def _speak_all(self, tls: bool) -> None:
        files = sorted((CONVERSATIONS / "live").glob("*.json"))
        self.assertGreaterEqual(len(files), 5)
        for file in files:
            await self._speak(file, tls)

    async def test_every_live_conversation_is_spoken(self) -> None:
        await self._speak_all(tls=False)

    async def test_by_tls(self) -> None:
        await self._speak_all(tls=True)

    @mock.patch("websockets.connect", in_json.connect)
    async def test_in_json(self) -> None:
        await self._speak_all(tls=False)

    @mock.patch("websockets.connect", in_json.connect)
    async def test_in_json_by_tls(self) -> None:
        await self._speak_all(tls=True)


if __name__ == "__main__":
    unittest.main()
