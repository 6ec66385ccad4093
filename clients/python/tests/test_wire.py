"""The codec against the bytes of PROTOCOL.md, read from that page."""

from __future__ import annotations

import dataclasses
import json
import re
import unittest
from collections.abc import Callable
from enum import Enum
from typing import Any

from fanfare import Level, wire
from tests.frames import decode as by_table
from tests.frames import ROOT, encode, examples, split
from tests.in_json import from_json, to_json


def fields_of(lines: list[str]) -> dict[str, Any]:
    """``key = value`` lines; ``0.x`` and so on as a list of entries."""
    fields: dict[str, Any] = {"entries": []}
    for line in lines:
        key, _, value = line.partition(" =")
        index, dot, name = key.partition(".")
        target = fields
        if dot and index.isdigit():
            if int(index) == len(fields["entries"]):
                fields["entries"].append({})
            target, key = fields["entries"][int(index)], name
        target[key] = value.strip()
    return fields


def text(value: str) -> bytes:
    return value[1:-1].encode()


def data(value: str) -> bytes | None:
    return None if value == "deleted" else bytes.fromhex(value)


def _start(value: str) -> wire.Start:
    return int(value[4:]) if value.startswith("seq ") else value  # type: ignore[return-value]


def _join(f: dict[str, Any]) -> bytes:
    entries = [
        wire.JoinEntry(text(e["group"]), e["mode"] == "durable", _start(e["start"]), e["roster"] == "yes")
        for e in f["entries"]
    ]
    return wire.join(int(f["request"]), entries)


def _publish(f: dict[str, Any]) -> bytes:
    level = None if f["level"] == "default" else Level(f["level"])
    return wire.publish(
        int(f["request"]), text(f["group"]), bytes.fromhex(f["payload"]), int(f["producer_seq"]), level,
        int(f["receipt"]),
    )  # fmt: skip


def _set_state(f: dict[str, Any]) -> bytes:
    expected: Any = f["expected"]
    expected = int(expected[8:]) if expected.startswith("version ") else expected
    return wire.set_state(int(f["request"]), text(f["group"]), text(f["key"]), expected, data(f["data"]))


#: How the fields of the page become a frame of the client.
CLIENT: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "HELLO": lambda f: wire.hello(
        text(f["member"]), bytes.fromhex(f["producer"]), int(f["version_min"]), int(f["version_max"]), int(f["flags"])
    ),
    "JOIN": _join,
    "LEAVE": lambda f: wire.leave(int(f["request"]), [text(e["group"]) for e in f["entries"]]),
    "PUBLISH": _publish,
    "ACK": lambda f: wire.ack(
        [wire.Ack(int(e["handle"], 16), int(e["seq"]), int(e["epoch"])) for e in f["entries"]]
    ),
    "PING": lambda f: wire.ping(int(f["token"]), f["answer"] == "yes"),
    "AUTH": lambda f: wire.auth(int(f["request"]), text(f["token"])),
    "PROBED": lambda f: wire.probed(int(f["token"])),
    "FETCH": lambda f: wire.fetch(
        int(f["request"]), text(f["group"]), int(f["from"]), 0 if f["to"] == "head" else int(f["to"]),
        int(f["count_max"]), int(f["bytes_max"]),
    ),
    "SET_STATE": _set_state,
    "SYNC": lambda f: wire.sync(int(f["request"]), text(f["group"]), int(f["known"])),
    "ROSTER_QUERY": lambda f: wire.roster_query(
        int(f["request"]), text(f["group"]), int(f["known"]), int(f["after"]), int(f["limit"])
    ),
}  # fmt: skip


def shown(name: str, value: Any) -> str:
    """A field as the page shows it."""
    if name == "handle":
        return f"{value:016x}"
    if name in ("payload", "data"):
        return "deleted" if value is None else value.hex()
    if name == "gap":
        return "none" if value is None else f"{value[0]} to {value[1]} {value[2].value}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return f'"{value.decode()}"'
    return str(value.value if isinstance(value, Enum) else value)


def server_lines(frame: Any) -> list[str]:
    lines = []
    for field in dataclasses.fields(frame):
        value = getattr(frame, field.name)
        name = field.name
        if isinstance(frame, (wire.Gap, wire.Redeliver)):
            name = {"first": "from", "last": "to"}.get(name, name)
        if not isinstance(value, list):
            lines.append(f"{name} = {shown(name, value)}".strip())
            continue
        for i, entry in enumerate(value):
            if isinstance(entry, tuple):
                pairs = {"what": entry[0], "member": entry[1]}
            else:
                pairs = {one.name: getattr(entry, one.name) for one in dataclasses.fields(entry)}
            if isinstance(entry, wire.Deliver):
                pairs = {key: pairs[key] for key in ("seq", "stamp", "sender", "payload")}
            lines += [f"{i}.{key} = {shown(key, one)}".strip() for key, one in pairs.items()]
    return sorted(lines)


class Wire(unittest.TestCase):
    def test_the_golden_bytes_of_the_page_are_written_and_read(self) -> None:
        seen = set()
        for name, lines, golden in examples("golden"):
            kind = name.partition("-")[0]
            seen.add(kind)
            with self.subTest(name):
                if kind in CLIENT:
                    self.assertEqual(CLIENT[kind](fields_of(lines)).hex(), golden.hex())
                else:
                    self.assertEqual(server_lines(wire.decode(golden)), sorted(line.strip() for line in lines))
        self.assertGreaterEqual(len(seen), 29)

    def test_the_json_of_the_page_becomes_the_golden_bytes(self) -> None:
        in_json = dict(re.findall(r"^```json (\S+)\n(.*?)^```", (ROOT / "PROTOCOL.md").read_text(), re.M | re.S))
        for name, _, golden in examples("golden"):
            body = in_json[name].replace("\n", "")
            if golden[4] >= 0x80:
                self.assertEqual(from_json(body).hex(), golden.hex(), name)
            else:
                self.assertEqual(json.loads(to_json(golden))["type"], json.loads(body)["type"], name)

    def test_the_tables_of_the_conversations_write_and_read_the_golden_bytes(self) -> None:
        for name, _, golden in examples("golden"):
            fields = by_table(golden)
            self.assertEqual(fields["frame"], name.partition("-")[0])
            self.assertEqual(encode(fields["frame"], fields).hex(), golden.hex(), name)

    def test_no_frame_that_is_cut_off_makes_the_decoder_fail_otherwise(self) -> None:
        for name, _, golden in examples("golden"):
            if golden[4] < 0x80:
                continue
            for size in range(8, len(golden)):
                try:
                    wire.decode(golden[:size])
                except wire.WireError:
                    pass
                except Exception as error:  # noqa: BLE001
                    self.fail(f"{name} cut at {size}: {error!r}")

    def test_frames_come_out_of_a_stream_that_is_cut_anywhere(self) -> None:
        stream = b"".join(golden for _, _, golden in examples("golden"))
        for size in (1, 2, 3, 7, 64, len(stream)):
            page = wire.Input(1 << 20)
            frames = []
            for at in range(0, len(stream), size):
                page.push(stream[at : at + size])
                while (frame := page.next()) is not None:
                    frames.append(frame)
            self.assertEqual(frames, split(stream))
            self.assertEqual(len(page), 0)

    def test_every_example_of_the_page_is_looked_at(self) -> None:
        from tests.frames import ROOT

        blocks = re.findall(r"^```golden ", (ROOT / "PROTOCOL.md").read_text(), re.M)
        self.assertEqual(len(examples("golden")), len(blocks))


if __name__ == "__main__":
    unittest.main()
