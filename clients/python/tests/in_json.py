"""A WebSocket that speaks fanfare.json.v1 with the server and native frames with the client.

So a client of binary messages has the conversations in JSON too. Written from PROTOCOL.md, by the tables.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from tests.frames import decode, encode, split

_LEVELS = [None, "durable", "memory"]
_REASONS = [None, "retention", "damaged"]
_STATE_FORMS = ["up_to_date", "deltas", "snapshot"]
_ROSTER_FORMS = ["up_to_date", "changes", "page", "counts"]
_PRESENCE = [None, "joined", "left", "online", "offline"]
#: Numbers of 64 bits, which are strings.
_LONG = {"from", "to", "handle", "seq", "producer_seq", "known", "expected"}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Fields as JSON has them."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            try:
                plain[name] = value.decode()
            except UnicodeDecodeError:
                plain[f"{name}_base64"] = base64.b64encode(value).decode()
        else:
            plain[name] = str(value) if name in _LONG else value
    return plain


def _group(entry: dict[str, Any]) -> dict[str, Any]:
    mode = "durable" if entry["mode"] else "live"
    group = {**_plain({"group": entry["group"]}), "mode": mode, "roster": bool(entry["options"] & 1)}
    if entry["start"] == 1:
        return {**group, "from": str(entry["from"])}
    return {**group, "start": "cursor" if entry["start"] == 2 else "tail"}


def to_json(frame: bytes) -> str:
    """The message that stands for a frame of a client."""
    values = decode(frame)
    kind, header_flags = values.pop("frame"), values.pop("header_flags")
    flags, entries = values.pop("flags", 0), values.pop("entries", [])
    match kind:
        case "HELLO":
            del values["encoding"]
            values |= {"flags": flags, "producer": values["producer"].hex()}
        case "JOIN":
            values["groups"] = [_group(entry) for entry in entries]
        case "LEAVE":
            values["groups"] = [_plain(entry) for entry in entries]
        case "PUBLISH":
            if (level := _LEVELS[values.pop("level")]) is not None:
                values["level"] = level
        case "ACK":
            values["acks"] = [_plain(entry) for entry in entries]
        case "PING":
            values |= {"token": str(values["token"]), "quiet": bool(header_flags & 1)}
        case "PROBED":
            values["token"] = str(values["token"])
        case "FETCH" if values["to"] == 0:
            del values["to"]
        case "SET_STATE":
            if flags & 1 == 0:
                del values["expected"]
            if flags & 2:
                values["data"] = None
                values["delete"] = True
    return json.dumps({"type": kind.lower(), **_plain({k: v for k, v in values.items() if v is not None})})


def _native(frame: str, values: dict[str, Any]) -> dict[str, Any]:
    words: dict[str, list[str | None] | list[str]] = {
        "level": _LEVELS,
        "reason": _REASONS,
        "gap_reason": _REASONS,
        "form": _STATE_FORMS if frame == "STATE" else _ROSTER_FORMS,
        "what": _PRESENCE,
    }
    text = {"group", "sender", "payload", "key", "data", "member", "field", "text"}
    native: dict[str, Any] = {}
    for name, value in values.items():
        if name.endswith("_base64"):
            native[name.removesuffix("_base64")] = base64.b64decode(value)
        elif name == "deleted":
            native["flags"] = 2
        elif name == "entries":
            native[name] = [_native(frame, entry) for entry in value]
        elif name in words:
            native[name] = words[name].index(value)
        else:
            native[name] = value if name in text else int(value) if name != "name" else None
    return native


def from_json(text: str | bytes) -> bytes:
    """The frame of a server that a message stands for."""
    values = json.loads(text)
    frame, messages = values.pop("type").upper(), values.pop("messages", None)
    native = _native(frame, values)
    if messages is not None:
        deliver = {"frame": "DELIVER", "handle": native["handle"]}
        native["frames"] = [{**deliver, **_native("DELIVER", message)} for message in messages]
    return encode(frame, native)


class JsonConnection:
    """The parts of a connection that the client uses."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def recv(self) -> bytes:
        return from_json(await self._connection.recv())

    async def send(self, frames: bytes) -> None:
        for frame in split(frames):
            await self._connection.send(to_json(frame))

    async def close(self) -> None:
        await self._connection.close()


_connect = websockets.connect


async def connect(url: str, **options: Any) -> JsonConnection:
    """In the place of ``websockets.connect``."""
    options["subprotocols"] = [websockets.Subprotocol("fanfare.json.v1")]
    return JsonConnection(await _connect(url, **options))
