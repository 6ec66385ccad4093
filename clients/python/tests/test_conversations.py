"""The client's core speaks the conversations that every client speaks; see tests/conversations/README.md."""

from __future__ import annotations

import json
import unittest
from typing import Any

from fanfare import ClientError, Core, Level, Message, MissingMessages, Options
from tests.frames import CONVERSATIONS, bytes_of, decode, encode
from tests.script import check, plain, resolve


class Play:
    def __init__(self, told: dict[str, Any]) -> None:
        options = {**told}
        self.automatic = options.pop("acks", None) != "explicit"
        if "producer" in options:
            options["producer"] = bytes.fromhex(options["producer"])
        token = options.pop("token", None)
        self.options = Options(**options)
        self.core = Core(self.options)
        if token is not None:
            self.core.set_token(token, renews=False)
        #: What the application's source gives.
        self.token: str | None = None
        self.now: float = 0
        self.names: dict[str, Any] = {}
        self.sent: list[bytes] = []
        #: What the application took last.
        self.given: Any = None

    def event(self) -> Any:
        given, self.given = self.given, None
        if self.automatic and isinstance(given, Message):
            self.core.handled(given.group, given.epoch, given.seq, self.now)
        elif self.automatic and isinstance(given, MissingMessages):
            self.core.handled(given.group, given.epoch, given.last, self.now)
        self.given = self.core.next_event(self.now)
        return self.given

    def show_token(self) -> None:
        """The newest token, as a driver hands it over."""
        if self.token is not None:
            self.core.set_token(self.token, renews=True)

    def frame(self) -> bytes | None:
        if self.core.token_is_due(self.now):
            self.show_token()
        self.core.advance(self.now)
        self.sent += self.core.take_output()
        if self.core.link().kind == "up":
            # Or its driver would come back at once, without end.
            due = self.core.deadline()
            assert due is None or due > self.now, "more is due, but not done"
        return self.sent.pop(0) if self.sent else None

    def command(self, step: dict[str, Any]) -> int | None:
        args = resolve(step, self.names)
        group = args.get("group", "")
        data = None if args.get("data") is None else bytes_of(args["data"])
        match args["do"]:
            case "join":
                roster = args.get("roster", False)
                self.core.join(group, args.get("durable", False), args.get("from"), roster)
            case "leave":
                self.core.leave(group)
            case "publish":
                level = Level(args["level"]) if "level" in args else None
                return self.core.publish(group, bytes_of(args["payload"]), level, args.get("receipt", 0))
            case "ack":
                self.core.handled(group, args["epoch"], args["seq"], self.now)
            case "fetch":
                return self.core.fetch(group, args["from"], args.get("to", 0), args.get("count_max", 0))
            case "set_state":
                return self.core.set_state(group, args["key"], data, args.get("expected", "any"))
            case "sync":
                return self.core.sync(group, args["known"])
            case "roster":
                return self.core.roster(group, args["known"], args["after"], args["limit"])
            case "token":
                self.token = args["token"]
            case "close":
                self.core.close(self.now)
            case other:
                raise AssertionError(other)
        return None

    def due(self, low: int, high: int) -> None:
        """Waits until the client wants to connect."""
        link = self.core.link()
        assert link.kind == "connect", link
        wait = max(0, link.at - self.now)
        assert low <= wait <= high, f"connects after {wait} ms, not {low} to {high}"
        self.now += wait

    def step(self, step: dict[str, Any]) -> None:
        verb, arg = next(iter(step.items()))
        fields = {key: value for key, value in step.items() if key != verb}
        match verb:
            case "do":
                try:
                    id = self.command(step)
                except ClientError as error:
                    assert error.kind == step.get("fails"), error
                    return
                assert "fails" not in step, "it does not fail"
                if "as" in step:
                    self.names[step["as"]] = id
            case "wait":
                self.now += arg
            case "connect":
                self.due(*arg)
                self.show_token()
                self.core.connected(self.now)
            case "refuse":
                self.due(*arg)
                self.core.disconnected(self.now)
            case "server":
                self.core.receive(encode(arg, resolve(fields, self.names)))
            case "bytes":
                self.core.receive(bytes.fromhex(arg))
            case "client":
                frame = self.frame()
                values = {"frame": "nothing"} if frame is None else decode(frame)
                assert values["frame"] == arg, values
                check(values, fields, self.names, arg)
            case "event":
                event = self.event()
                values = {"type": "nothing"} if event is None else plain(event)
                assert values["type"] == arg, values
                check(values, fields, self.names, arg)
            case "break":
                self.core.disconnected(self.now)
            case "closes":
                # Its last words are sent first.
                while self.core.link().kind == "up":
                    assert self.frame() is not None, "the client does not close"
                self.sent = []
                assert self.core.link().kind == "close"
                self.core.disconnected(self.now)
            case "over":
                assert self.core.link().kind == "over"
            case "restart":
                kept = json.loads(json.dumps(self.core.to_resume()))
                self.core = Core(self.options, kept)
                self.now, self.sent, self.given = 0, [], None
            case other:
                raise AssertionError(f"step {other}")


class Conversations(unittest.TestCase):
    def test_every_conversation_is_spoken(self) -> None:
        files = sorted((CONVERSATIONS / "scripted").glob("*.json"))
        self.assertGreater(len(files), 15)
        for file in files:
            table = json.loads(file.read_text())
            play = Play(table["options"])
            for i, step in enumerate(table["steps"]):
                with self.subTest(conversation=file.name, step=i + 1, what=json.dumps(step)):
                    play.step(step)
                    continue
                break


if __name__ == "__main__":
    unittest.main()
