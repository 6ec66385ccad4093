/** What a client tells the application. */

import type {
  Deliver, GapReason, Level, Presence, Range, RosterForm, StateForm, Welcome,
} from "./wire.js";
import { toText } from "./wire.js";

export type { Expected, GapReason, Level, Presence, Range, RosterForm, StateForm, Welcome } from "./wire.js";

/** A message of a group. Group, epoch and seq name it. */
export class Message {
  /** Name of the group. */
  readonly group: string;
  /** Epoch of the message. */
  readonly epoch: number;
  /** Place in the group: 1, 2, 3 ... */
  readonly seq: number;
  /** When it got that place: Unix time in ms in the upper 48 bits, a counter in the others. */
  readonly stamp: bigint;
  /** Member id of the publisher. */
  readonly senderBytes: Uint8Array;
  /** What was published. */
  readonly payload: Uint8Array;

  /** @internal */
  constructor(group: string, epoch: number, d: Deliver) {
    this.group = group;
    this.epoch = epoch;
    this.seq = d.seq;
    this.stamp = d.stamp;
    // Copies: what came in one read would otherwise live as long as each of its messages.
    this.senderBytes = d.sender.slice();
    this.payload = d.payload.slice();
  }

  /** Member id of the publisher as text. */
  get sender(): string {
    return toText(this.senderBytes);
  }

  /** The payload as text; bytes that are not UTF-8 become U+FFFD. */
  text(): string {
    return toText(this.payload);
  }

  /** When it got its place, to the millisecond. */
  get time(): Date {
    return new Date(Number(this.stamp >> 16n));
  }
}

/** An ERROR of the server. */
export interface Refusal {
  /** Its number; see the table of errors in PROTOCOL.md. */
  code: number;
  /** Its name there, or "error N" for a number that this client does not know. */
  name: string;
  /** The limit concerned, or 0. */
  limit: number;
  /** Name of the field or group concerned. */
  field: string;
  /** The server's words, for a person to read. */
  text: string;
}

/** Why a connection ended. */
export type Reason =
  | { kind: "server"; refusal: Refusal }
  /** Another connection of this member took over. The client does not reconnect. */
  | { kind: "replaced" }
  /** The server stops. */
  | { kind: "drained" }
  /** It could not be made, or ended without a word. */
  | { kind: "lost" }
  /** No answer came in time. */
  | { kind: "silent"; ms: number }
  /** The server sent what the protocol does not allow. */
  | { kind: "protocol"; what: string }
  /** More came than the application took; the client comes back when it has taken it. */
  | { kind: "overrun" }
  /** It could not be used, and trying again would not help. The client does not. */
  | { kind: "failed"; what: string }
  /** The application closed it. */
  | { kind: "closed" }
  /** The client goes on under a new producer id. */
  | { kind: "renewed" };

/** Why a publish is over without a place. */
export type PublishFailure =
  /** It is not in the group. */
  | { kind: "refused"; refusal: Refusal }
  /** It is in the group, but the server does not know its place any more. */
  | { kind: "place_unknown" }
  /** It may be in the group or not; nobody can tell any more. */
  | { kind: "in_doubt" };

/** A publish is in the group. */
export interface Published {
  /** Number of the publish in this client. */
  id: number;
  group: string;
  producerSeq: number;
  epoch: number;
  seq: number;
  level: Level;
}

/** A page of history. */
export interface Page {
  id: number;
  group: string;
  /** Epoch of all messages of the page. */
  epoch: number;
  messages: Message[];
  /** Last message of the group. */
  head: number;
  /** Messages before the page that are gone. */
  gap: Range | null;
  /** Where the next page begins, if there is more of what was asked for. */
  next: number | null;
}

/** A key of a group's state. */
export interface StateEntry {
  key: string;
  version: number;
  stamp: bigint;
  /** Its value; null if it was deleted. */
  data: Uint8Array | null;
}

/** What changed in a group's state, or all of it. */
export interface StatePage {
  id: number;
  group: string;
  /** "up_to_date": nothing changed. "deltas": changes. "snapshot": everything; what was known is void. */
  form: StateForm;
  version: number;
  more: boolean;
  entries: StateEntry[];
}

/** Who is on a roster, or what changed in it. */
export interface RosterPage {
  /** null for an announcement. */
  id: number | null;
  group: string;
  form: RosterForm;
  version: number;
  members: number;
  online: number;
  next: number | null;
  entries: { what: Presence; member: string }[];
}

/** Every event by its name. */
export interface Events {
  /** The server has taken this client. */
  connected: { welcome: Welcome };
  /**
   * The client is in a group, for the first time or again. `skipped`: messages that do not come
   * since they are acknowledged: by an earlier process, or on another connection.
   */
  joined: {
    group: string; handle: bigint; epoch: number; head: number; first: number; cursor: number;
    again: boolean; skipped: { from: number; to: number } | null;
  };
  joinFailed: { group: string; error: Refusal };
  left: { group: string };
  message: { message: Message };
  /**
   * The server may have lost messages that this client has: what it held of epoch `before` need
   * not be in the group any more, and `first` may be a place that was taken before.
   */
  epochChanged: { group: string; before: number; last: number; epoch: number; first: number };
  /** Messages that will not come. */
  gap: { group: string; from: number; to: number; epoch: number; reason: GapReason };
  /** The server sends again what was not acknowledged. What the application has is dropped. */
  redelivery: { group: string; from: number; attempt: number };
  /** The client goes on under a new producer id; a resume that was kept before is void. */
  producerRenewed: { producer: Uint8Array };
  published: Published;
  publishFailed: { id: number; group: string; error: PublishFailure };
  /** The server takes no publishes of this group for now; they are kept and sent again. */
  publishHeld: { group: string; error: Refusal; retryInMs: number | null };
  /**
   * The share of members that was asked for has acknowledged a message. May come twice. `group` is
   * null if this client has not used it.
   */
  receipt: {
    group: string | null; handle: bigint; seq: number; epoch: number; producerSeq: number; acked: number;
    members: number; percent: number;
  };
  fetched: Page;
  state: StatePage;
  stateSet: { id: number; group: string; version: number; stamp: bigint };
  /** A key was not as expected and is as it was; `data` null: there is no such key. */
  conflict: { id: number; group: string; version: number; stamp: bigint; data: Uint8Array | null };
  roster: RosterPage;
  /** `error` null: the connection ended first. A SET_STATE may have been done then. */
  queryFailed: { id: number; group: string; error: Refusal | null };
  /** The function for the token failed; it is asked again. */
  tokenFailed: { error: unknown };
  /** The server said no to something that is not a request. */
  serverError: { error: Refusal };
  /** The server stops. The client finishes what is under way, and reconnects. */
  draining: { graceMs: number; reconnectAfterMs: number };
  /** `retryInMs` null: the client does not try again. */
  disconnected: { reason: Reason; retryInMs: number | null };
}

/** Something that happened; `type` is its name. */
export type Event = { [K in keyof Events]: { type: K } & Events[K] }[keyof Events];

const NAMES: Record<number, string> = {
  1: "BadMagic", 2: "VersionUnsupported", 3: "EncodingUnsupported", 4: "OutOfState",
  5: "HandshakeTimeout", 6: "HeartbeatTimeout", 7: "FrameTooLong", 8: "FrameTooShort",
  9: "TooManyConnections", 10: "Stalled", 11: "MemoryBudget", 12: "ShuttingDown", 13: "Replaced",
  14: "AuthRequired", 15: "TokenExpired", 16: "TokenRefused", 17: "TooManyConnectionsOfMember",
  18: "TlsRequired", 20: "Disconnected",
  100: "UnknownFrame", 101: "Malformed", 102: "TooManyGroupsPerMember", 103: "TooManyGroups",
  104: "TooManyMembers", 105: "PayloadTooLong", 106: "NotAMember", 107: "AlreadyAMember",
  108: "StorageFull", 109: "StorageFailed", 110: "Indeterminate", 111: "Unsupported", 112: "Draining",
  113: "UnknownProducer", 114: "ProducerGap", 115: "ProducerSeqTooOld", 116: "ProducerTaken",
  117: "TooManyProducers", 118: "ReceiptsRefused", 119: "StateTooLarge", 120: "TooManyRequests",
  121: "TooManyKeys", 122: "TooManyShares", 123: "Forbidden", 124: "RateLimited",
};

export function refusal(e: { code: number; limit: bigint; field: Uint8Array; text: Uint8Array }): Refusal {
  return {
    code: e.code,
    name: NAMES[e.code] ?? `error ${e.code}`,
    limit: Number(e.limit),
    field: toText(e.field),
    text: toText(e.text),
  };
}
