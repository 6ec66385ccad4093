"""A client of Fanfare, group broadcast for group chat and live rooms."""

from .client import Client, PublishError, connect
from .core import Core, Link
from .events import (
    Connected,
    Disconnected,
    Draining,
    EpochChanged,
    Event,
    JoinedGroup,
    JoinFailed,
    LeftGroup,
    Message,
    MissingMessages,
    Page,
    ProducerRenewed,
    PublishedMessage,
    PublishFailed,
    PublishFailure,
    PublishHeld,
    QueryFailed,
    Reason,
    ReceiptOf,
    Redelivery,
    Refusal,
    RosterPage,
    ServerError,
    StateConflict,
    StateEntry,
    StatePage,
    StateWasSet,
    TokenFailed,
)
from .membership import Membership, RefusedError
from .session import ClientError, Options
from .state import SharedState, StateChanges
from .wire import Expected, GapReason, Level, Presence, RosterForm, StateForm, Welcome

__all__ = [
    "Client", "ClientError", "Connected", "Core", "Disconnected", "Draining", "EpochChanged", "Event", "Expected",
    "GapReason", "JoinFailed", "JoinedGroup", "LeftGroup", "Level", "Link", "Membership", "Message",
    "MissingMessages", "Options", "Page", "Presence", "ProducerRenewed", "PublishError", "PublishFailed",
    "PublishFailure", "PublishHeld", "PublishedMessage", "QueryFailed", "Reason", "ReceiptOf", "Redelivery",
    "Refusal", "RefusedError", "RosterForm", "RosterPage", "ServerError", "SharedState", "StateChanges",
    "StateConflict", "StateEntry", "StateForm", "StatePage", "StateWasSet", "TokenFailed", "Welcome", "connect",
]  # fmt: skip
