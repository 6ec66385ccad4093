"""The frames of tests/conversations/frames.json, written and read by its tables alone.

The client's own codec is not used on the server's side of a conversation.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CONVERSATIONS = ROOT / "tests" / "conversations"

_TABLES: dict[str, Any] = json.loads((CONVERSATIONS / "frames.json").read_text())
del _TABLES["about"]
_NAMES = {table["kind"]: name for name, table in _TABLES.items()}
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "count": 2, "len8": 1, "len16": 2, "len32": 4}


def bytes_of(value: Any) -> bytes:
    """A value of a conversation as bytes: text, {"hex": ...}, {"zeros": n} or bytes."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"]) if "hex" in value else bytes(value["zeros"])
    return (value or "").encode()


def _encode_fields(fields: list[list[Any]], values: dict[str, Any], entry: list[list[Any]]) -> bytes:
    defaults = {field[0]: field[2] for field in fields if len(field) > 2}
    out = b""
    for name, how, *_ in fields:
        how, _, arg = how.partition(":")
        value = values.get(name, defaults.get(name))
        if how == "pad":
            out += bytes(int(arg))
        elif how == "raw":
            out += bytes_of(value).ljust(int(arg), b"\0")
        elif how.startswith("len"):
            out += len(bytes_of(values.get(arg, defaults.get(arg)))).to_bytes(_SIZES[how], "little")
        elif how == "count":
            out += len(values.get("entries", [])).to_bytes(2, "little")
        elif how in ("data", "rest"):
            out += bytes_of(value)
        elif how == "entries":
            out += b"".join(_encode_fields(entry, one, []) for one in value or [])
        elif how == "frames":
            out += b"".join(encode(one["frame"], one) for one in value or [])
        else:
            out += (value or 0).to_bytes(_SIZES[how], "little")
    return out


def encode(name: str, values: dict[str, Any]) -> bytes:
    """A frame with these fields; those that are missing have their default."""
    table = _TABLES[name]
    body = _encode_fields(table["fields"], values, table.get("entry", []))
    header = bytes([table["kind"], values.get("header_flags", 0), 0, 0])
    return (4 + len(body)).to_bytes(4, "little") + header + body


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int | None = None) -> bytes:
        size = len(self.data) if size is None else size
        if size > len(self.data):
            raise ValueError("ends early")
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def _decode_fields(fields: list[list[Any]], reader: _Reader, entry: list[list[Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    lens: dict[str, int] = {}
    count = 0
    for name, how, *_ in fields:
        how, _, arg = how.partition(":")
        if how == "pad":
            reader.take(int(arg))
        elif how == "raw":
            values[name] = reader.take(int(arg))
        elif how.startswith("len"):
            lens[arg] = reader.number(_SIZES[how])
        elif how == "count":
            count = reader.number(2)
        elif how == "data":
            values[name] = reader.take(lens[name])
        elif how == "rest":
            values[name] = reader.take()
        elif how == "entries":
            values[name] = [_decode_fields(entry, reader, []) for _ in range(count)]
        elif how == "frames":
            values[name] = [decode(frame) for frame in split(reader.take())]
        else:
            values[name] = reader.number(_SIZES[how])
    return values


def decode(frame: bytes) -> dict[str, Any]:
    """The fields of a whole frame; ``frame`` is its name."""
    name = _NAMES[frame[4]]
    table = _TABLES[name]
    values = _decode_fields(table["fields"], _Reader(frame[8:]), table.get("entry", []))
    return {"frame": name, "header_flags": frame[5], **values}


def split(data: bytes) -> list[bytes]:
    """Cuts bytes into whole frames."""
    frames = []
    while data:
        size = 4 + int.from_bytes(data[:4], "little")
        frames.append(data[:size])
        data = data[size:]
    return frames


def examples(word: str) -> list[tuple[str, list[str], bytes]]:
    """The blocks of PROTOCOL.md that begin with this word: name, lines of fields, bytes."""
    text = (ROOT / "PROTOCOL.md").read_text()
    found = []
    for name, body in re.findall(rf"^```{word} (\S+)\n(.*?)^```", text, re.M | re.S):
        fields, _, rest = body.partition("\n\n")
        digits = "".join(line.partition(";")[0] for line in rest.splitlines())
        found.append((name, fields.splitlines(), bytes.fromhex(digits.replace(" ", ""))))
    return found
