"""The state of a group, kept in step with the server."""

from __future__ import annotations

from collections.abc import ItemsView
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .events import StateEntry, StateWasSet
from .wire import Bytes, Expected, StateForm

if TYPE_CHECKING:
    from .client import Client


@dataclass(frozen=True, slots=True)
class StateChanges:
    """What changed in a group's state; with form ``SNAPSHOT`` all there is, and what was known is void."""

    form: StateForm
    version: int
    entries: list[StateEntry]


class SharedState:
    """The state of a group as this client knows it.

    Changes of others come with :meth:`sync`: the server does not announce them, so publish a message after a
    change, and call it when one comes.
    """

    def __init__(self, client: Client, group: str) -> None:
        self._client = client
        self.group = group
        #: Version of what is known; 0 before the first sync.
        self.version = 0
        self._keys: dict[str, StateEntry] = {}

    async def sync(self) -> StateChanges:
        """Gets what changed since the last time."""
        changes = await self._client.sync(self.group, self.version)
        if changes.form is StateForm.SNAPSHOT:
            self._keys.clear()
        for entry in changes.entries:
            if entry.data is None:
                self._keys.pop(entry.key, None)
            else:
                self._keys[entry.key] = entry
        if changes.form is not StateForm.UP_TO_DATE:
            self.version = changes.version
        return changes

    def get(self, key: str) -> bytes | None:
        entry = self._keys.get(key)
        return None if entry is None else entry.data

    def items(self) -> ItemsView[str, StateEntry]:
        return self._keys.items()

    async def set(self, key: str, value: str | Bytes | None) -> bool:
        """Sets a key, or deletes it (None), if nobody else has changed it since :meth:`sync`.

        Returns whether it was set; either way what the server has is known here then.
        """
        known = self._keys.get(key)
        expected: Expected = "absent" if known is None else known.version
        answer = await self._client.set_state(self.group, key, value, expected)
        await self.sync()
        return isinstance(answer, StateWasSet)
