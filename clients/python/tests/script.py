"""What the two kinds of conversations share: values that are expected, and events as tables have them."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

import fanfare
from tests.frames import bytes_of

#: Fields that have other names here than in the tables, since ``from`` cannot be one.
_RENAMED = {"gap": {"first": "from", "last": "to"}, "redelivery": {"first": "from"}}


def plain(event: fanfare.Event) -> dict[str, Any]:
    """An event of the client in the words of the tables."""
    fields = {field.name: _plain(getattr(event, field.name)) for field in dataclasses.fields(event)}
    for ours, theirs in _RENAMED.get(event.type, {}).items():
        fields[theirs] = fields.pop(ours)
    if fields.get("skipped"):
        fields["skipped"] = dict(zip(("from", "to"), fields["skipped"], strict=True))
    if isinstance(event, fanfare.Page) and fields["gap"]:
        fields["gap"] = dict(zip(("from", "to", "reason"), fields["gap"], strict=True))
    if isinstance(event, fanfare.RosterPage):
        fields["entries"] = [{"what": what, "member": member} for what, member in fields["entries"]]
    if isinstance(event, fanfare.Message):
        fields["sender"] = event.sender_bytes
    return {"type": event.type, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, fanfare.Message):
        return plain(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _comparable(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def check(actual: Any, expected: Any, names: dict[str, Any], path: str) -> None:
    """Checks a value against what a table says of it; names of the table get their values."""
    if isinstance(expected, str) and expected.startswith("$"):
        expected = names[expected[1:]]
    if isinstance(expected, list):
        assert actual is not None and len(actual) == len(expected), f"{path}: {actual}"
        for i, (one, wanted) in enumerate(zip(actual, expected, strict=True)):
            check(one, wanted, names, f"{path}.{i}")
    elif isinstance(expected, dict):
        if "as" in expected:
            names[expected["as"]] = actual
        elif "between" in expected:
            low, high = expected["between"]
            assert low <= actual <= high, f"{path}: {actual} is not in {low} to {high}"
        elif "not" in expected:
            assert _comparable(actual) != _comparable(names[expected["not"][1:]]), path
        elif "hex" in expected or "zeros" in expected:
            assert actual == bytes_of(expected), f"{path}: {actual!r}"
        else:
            assert actual is not None, path
            for key, wanted in expected.items():
                check(actual[key], wanted, names, f"{path}.{key}")
    else:
        assert _comparable(actual) == _comparable(expected), f"{path}: {actual!r}, not {expected!r}"


def resolve(value: Any, names: dict[str, Any]) -> Any:
    """Puts the values of names into what a server sends or a client is asked."""
    if isinstance(value, str) and value.startswith("$"):
        return names[value[1:]]
    if isinstance(value, list):
        return [resolve(one, names) for one in value]
    if isinstance(value, dict):
        return {key: resolve(one, names) for key, one in value.items()}
    return value
