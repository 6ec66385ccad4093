/**
 * The frames of PROTOCOL.md, as far as a client writes and reads them. No I/O, no state.
 *
 * Places, versions and lengths are numbers; one that a number cannot hold exactly is refused.
 * Handles, tokens, stamps and producer numbers may use all 64 bits and are bigints.
 */

export const KIND = {
  HELLO: 0x01, JOIN: 0x02, LEAVE: 0x03, PUBLISH: 0x04, ACK: 0x05, PING: 0x06, FETCH: 0x07,
  SET_STATE: 0x08, SYNC: 0x09, ROSTER_QUERY: 0x0b, PROBED: 0x0c, AUTH: 0x0d,
} as const;

/** Longest member id, in bytes. */
export const MEMBER_MAX = 64;
/** Longest token, in bytes. */
export const TOKEN_MAX = 4096;
/** Longest name of a group and longest key of its state, in bytes. */
export const NAME_MAX = 128;
/** Most entries of a JOIN, LEAVE or ACK. */
export const ENTRIES_MAX = 256;
/** Longest payload that any server takes; WELCOME may say less. */
export const PAYLOAD_MAX = 256 * 1024;
/** Longest frame that a server takes, after the length field; WELCOME may say less. */
export const FRAME_MAX = PAYLOAD_MAX + 1024;
/** Bytes in front of a frame's body. */
export const HEADER = 8;

/** What the server sent is not what PROTOCOL.md allows. */
export class WireError extends Error {}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The bytes of a text, or a copy of bytes: their owner may use the buffer again. */
export function toBytes(value: string | Uint8Array): Uint8Array {
  // Not by slice(), which gives the same bytes if it is a Buffer of Node.
  return typeof value === "string" ? encoder.encode(value) : new Uint8Array(value);
}

/** Bytes as text; those that are not UTF-8 become U+FFFD. */
export function toText(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

// ---- frames of the client ----

/** A frame with room for a body. */
class Out {
  readonly bytes: Uint8Array;
  private readonly view: DataView;

  constructor(kind: number, body: number, flags = 0) {
    this.bytes = new Uint8Array(HEADER + body);
    this.view = new DataView(this.bytes.buffer);
    this.view.setUint32(0, 4 + body, true);
    this.u8(-4, kind).u8(-3, flags);
  }
  u8(at: number, value: number): this {
    this.view.setUint8(HEADER + at, value);
    return this;
  }
  u16(at: number, value: number): this {
    this.view.setUint16(HEADER + at, value, true);
    return this;
  }
  u32(at: number, value: number): this {
    this.view.setUint32(HEADER + at, value, true);
    return this;
  }
  u64(at: number, value: number | bigint): this {
    this.view.setBigUint64(HEADER + at, BigInt(value), true);
    return this;
  }
  put(at: number, bytes: Uint8Array): this {
    this.bytes.set(bytes, HEADER + at);
    return this;
  }
}

export function hello(member: Uint8Array, producer: Uint8Array, min = 1, max = 1, flags = 0): Uint8Array {
  return new Out(KIND.HELLO, 24 + member.length)
    .u16(0, min).u16(2, max).u8(5, member.length).u16(6, flags).put(8, producer).put(24, member).bytes;
}

export interface JoinEntry {
  group: Uint8Array;
  durable: boolean;
  /** Where to start: after the head, after the member's cursor, or at a message. */
  start: "tail" | "cursor" | number | bigint;
  roster: boolean;
}

export function join(request: number, entries: readonly JoinEntry[]): Uint8Array {
  const len = entries.reduce((sum, entry) => sum + 16 + entry.group.length, 8);
  const out = new Out(KIND.JOIN, len).u32(0, request).u16(4, entries.length);
  let at = 8;
  for (const { group, durable, start, roster } of entries) {
    const how = start === "tail" ? 0 : start === "cursor" ? 2 : 1;
    out.u8(at, durable ? 1 : 0).u8(at + 1, how).u8(at + 2, group.length).u8(at + 3, roster ? 1 : 0);
    out.u64(at + 8, typeof start === "string" ? 0 : start).put(at + 16, group);
    at += 16 + group.length;
  }
  return out.bytes;
}

export function leave(request: number, groups: readonly Uint8Array[]): Uint8Array {
  const len = groups.reduce((sum, group) => sum + 1 + group.length, 8);
  const out = new Out(KIND.LEAVE, len).u32(0, request).u16(4, groups.length);
  let at = 8;
  for (const group of groups) {
    out.u8(at, group.length).put(at + 1, group);
    at += 1 + group.length;
  }
  return out.bytes;
}

const LEVELS = { default: 0, durable: 1, memory: 2 } as const;
export type Level = "durable" | "memory";

export function publish(
  request: number, group: Uint8Array, payload: Uint8Array, producerSeq: number | bigint,
  level: keyof typeof LEVELS, receipt: number,
): Uint8Array {
  return new Out(KIND.PUBLISH, 16 + group.length + payload.length)
    .u32(0, request).u8(4, LEVELS[level]).u8(5, group.length).u8(6, receipt).u64(8, producerSeq)
    .put(16, group).put(16 + group.length, payload).bytes;
}

export interface Ack {
  handle: bigint;
  seq: number;
  epoch: number;
}

export function ack(acks: readonly Ack[]): Uint8Array {
  const out = new Out(KIND.ACK, 8 + 24 * acks.length).u16(0, acks.length);
  acks.forEach(({ handle, seq, epoch }, i) => {
    const at = 8 + 24 * i;
    out.u64(at, handle).u64(at + 8, seq).u32(at + 16, epoch);
  });
  return out.bytes;
}

export function ping(token: bigint, answer = true): Uint8Array {
  return new Out(KIND.PING, 8, answer ? 0 : 1).u64(0, token).bytes;
}

export function probed(token: bigint): Uint8Array {
  return new Out(KIND.PROBED, 8).u64(0, token).bytes;
}

export function auth(request: number, token: Uint8Array): Uint8Array {
  return new Out(KIND.AUTH, 8 + token.length).u32(0, request).u16(4, token.length).put(8, token).bytes;
}

export function fetch(
  request: number, group: Uint8Array, from: number | bigint, to: number | bigint, countMax: number,
  bytesMax: number,
): Uint8Array {
  return new Out(KIND.FETCH, 32 + group.length)
    .u32(0, request).u8(4, group.length).u64(8, from).u64(16, to).u32(24, countMax).u32(28, bytesMax)
    .put(32, group).bytes;
}

/** `expected`: "any", "absent", or the version that the key must have. `data` null deletes. */
export type Expected = "any" | "absent" | number;

export function setState(
  request: number, group: Uint8Array, key: Uint8Array, expected: Expected, data: Uint8Array | null,
): Uint8Array {
  const flags = (expected === "any" ? 0 : 1) | (data === null ? 2 : 0);
  const value = data ?? new Uint8Array(0);
  return new Out(KIND.SET_STATE, 16 + group.length + key.length + value.length)
    .u32(0, request).u8(4, group.length).u8(5, key.length).u16(6, flags)
    .u64(8, typeof expected === "number" ? expected : 0)
    .put(16, group).put(16 + group.length, key).put(16 + group.length + key.length, value).bytes;
}

export function sync(request: number, group: Uint8Array, known: number): Uint8Array {
  return new Out(KIND.SYNC, 16 + group.length)
    .u32(0, request).u8(4, group.length).u64(8, known).put(16, group).bytes;
}

export function rosterQuery(
  request: number, group: Uint8Array, known: number, after: number, limit: number,
): Uint8Array {
  return new Out(KIND.ROSTER_QUERY, 24 + group.length)
    .u32(0, request).u8(4, group.length).u64(8, known).u32(16, after).u32(20, limit)
    .put(24, group).bytes;
}

// ---- frames of the server ----

/** Limits and times of a server. Times in ms, lengths in bytes. */
export interface Welcome {
  version: number;
  node: number;
  shard: number;
  heartbeatMs: number;
  payloadMax: number;
  frameMax: number;
  groupsPerMemberMax: number;
  ackEvery: number;
  ackIntervalMs: number;
  ackTimeoutMs: number;
  publishWindow: number;
  heartbeatSlotMs: number;
  /** A group does not forget a producer within this time; 0 if the server does not say. */
  producerTtlMs: number;
}

export interface Deliver {
  handle: bigint;
  seq: number;
  stamp: bigint;
  node: number;
  shard: number;
  sender: Uint8Array;
  payload: Uint8Array;
}

export type GapReason = "retention" | "damaged";
export interface Range {
  from: number;
  to: number;
  reason: GapReason;
}

export interface StateFrameEntry {
  key: Uint8Array;
  version: number;
  stamp: bigint;
  data: Uint8Array | null;
}

export type Presence = "joined" | "left" | "online" | "offline";
export type StateForm = "up_to_date" | "deltas" | "snapshot";
export type RosterForm = "up_to_date" | "changes" | "page" | "counts";

export type ServerFrame =
  | { kind: "WELCOME"; welcome: Welcome }
  | {
      kind: "JOINED"; request: number; epoch: number; handle: bigint; head: number; group: Uint8Array;
      first: number; cursor: number;
    }
  | { kind: "LEFT"; request: number; handle: bigint }
  | { kind: "EPOCH"; epoch: number; handle: bigint; first: number }
  | { kind: "DELIVER"; deliver: Deliver }
  | {
      kind: "PUBLISHED"; request: number; epoch: number; handle: bigint; producerSeq: bigint;
      seq: number; level: Level;
    }
  | { kind: "PONG"; token: bigint }
  | { kind: "ERROR"; request: number; code: number; limit: bigint; field: Uint8Array; text: Uint8Array }
  | { kind: "GAP"; handle: bigint; from: number; to: number; epoch: number; reason: GapReason }
  | { kind: "DRAIN"; graceMs: number; reconnectAfterMs: number }
  | {
      kind: "RECEIPT"; handle: bigint; seq: number; producerSeq: bigint; epoch: number; acked: number;
      members: number; percent: number;
    }
  | {
      kind: "FETCHED"; request: number; epoch: number; handle: bigint; first: number; last: number;
      head: number; gap: Range | null; more: boolean; messages: Deliver[];
    }
  | {
      kind: "STATE"; request: number; form: StateForm; more: boolean; handle: bigint; version: number;
      entries: StateFrameEntry[];
    }
  | {
      kind: "CONFLICT"; request: number; handle: bigint; version: number; stamp: bigint;
      data: Uint8Array | null;
    }
  | {
      kind: "ROSTER"; request: number; form: RosterForm; handle: bigint; version: number; members: number;
      online: number; next: number; entries: { what: Presence; member: Uint8Array }[];
    }
  | { kind: "REDELIVER"; handle: bigint; from: number; epoch: number; attempt: number }
  | { kind: "STATE_SET"; request: number; handle: bigint; version: number; stamp: bigint }
  | { kind: "PROBE"; token: bigint }
  | { kind: "AUTHED"; request: number; validMs: number; renewAfterMs: number }
  | { kind: "UNKNOWN"; number: number };

/** Reads fields of a frame one after another. */
class In {
  private readonly view: DataView;
  private at = HEADER;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  private step(len: number): number {
    const at = this.at;
    if (at + len > this.bytes.length) throw new WireError("a frame ends inside a field");
    this.at += len;
    return at;
  }
  skip(len: number): void {
    this.step(len);
  }
  u8(): number {
    return this.view.getUint8(this.step(1));
  }
  u16(): number {
    return this.view.getUint16(this.step(2), true);
  }
  u32(): number {
    return this.view.getUint32(this.step(4), true);
  }
  big(): bigint {
    return this.view.getBigUint64(this.step(8), true);
  }
  /** A place, version or other 64-bit number that counts things. */
  num(): number {
    const at = this.step(8);
    const value = this.view.getUint32(at, true) + this.view.getUint32(at + 4, true) * 0x1_0000_0000;
    if (value > Number.MAX_SAFE_INTEGER) throw new WireError("a number beyond 2^53");
    return value;
  }
  /** An epoch: never 0. */
  epoch(): number {
    const epoch = this.u32();
    if (epoch === 0) throw new WireError("epoch 0");
    return epoch;
  }
  data(len: number): Uint8Array {
    const at = this.step(len);
    return this.bytes.subarray(at, at + len);
  }
  name(len: number, max: number): Uint8Array {
    if (len < 1 || len > max) throw new WireError(`a name of ${len} bytes`);
    return this.data(len);
  }
  rest(): Uint8Array {
    return this.bytes.subarray(this.at);
  }
}

function one<T>(of: readonly T[], number: number, what: string): T {
  const value = of[number];
  if (value === undefined) throw new WireError(`${what} ${number}`);
  return value;
}

const STATE_FORMS: readonly StateForm[] = ["up_to_date", "deltas", "snapshot"];
const ROSTER_FORMS: readonly RosterForm[] = ["up_to_date", "changes", "page", "counts"];
const PRESENCES: readonly Presence[] = ["joined", "left", "online", "offline"];

function gapReason(number: number): GapReason {
  return number === 2 ? "damaged" : "retention";
}

function deliver(f: In): Deliver {
  const [handle, seq, stamp, node, shard] = [f.big(), f.num(), f.big(), f.u16(), f.u16()];
  const senderLen = f.u8();
  f.skip(3);
  const sender = f.name(senderLen, MEMBER_MAX);
  return { handle, seq, stamp, node, shard, sender, payload: f.rest() };
}

/**
 * Reads one whole frame. What it returns points into `frame`.
 *
 * @throws WireError if a field is missing or out of its range.
 */
export function decode(frame: Uint8Array): ServerFrame {
  const f = new In(frame);
  switch (frame[4]) {
    case 0x81: {
      const [version, node, shard] = [f.u16(), f.u16(), f.u16()];
      f.skip(2);
      const welcome = {
        version, node, shard, heartbeatMs: f.u32(), payloadMax: f.u32(), frameMax: f.u32(),
        groupsPerMemberMax: f.u32(), ackEvery: f.u32(), ackIntervalMs: f.u32(), ackTimeoutMs: f.u32(),
        publishWindow: f.u32(), heartbeatSlotMs: f.u32(), producerTtlMs: f.u32(),
      };
      return { kind: "WELCOME", welcome };
    }
    case 0x82: {
      const [request, epoch, handle, head, len] = [f.u32(), f.epoch(), f.big(), f.num(), f.u8()];
      f.skip(7);
      const group = f.name(len, NAME_MAX);
      return { kind: "JOINED", request, epoch, handle, head, group, first: f.num(), cursor: f.num() };
    }
    case 0x83: {
      const request = f.u32();
      f.skip(4);
      return { kind: "LEFT", request, handle: f.big() };
    }
    case 0x84: {
      const epoch = f.epoch();
      f.skip(4);
      return { kind: "EPOCH", epoch, handle: f.big(), first: f.num() };
    }
    case 0x85:
      return { kind: "DELIVER", deliver: deliver(f) };
    case 0x86: {
      const [request, epoch, handle, producerSeq, seq] = [f.u32(), f.epoch(), f.big(), f.big(), f.num()];
      const level = one<Level>(["durable", "memory"], f.u8() - 1, "level");
      return { kind: "PUBLISHED", request, epoch, handle, producerSeq, seq, level };
    }
    case 0x87:
      return { kind: "PONG", token: f.big() };
    case 0x88: {
      const [request, code, textLen, limit, fieldLen] = [f.u32(), f.u16(), f.u16(), f.big(), f.u8()];
      f.skip(7);
      return { kind: "ERROR", request, code, limit, field: f.data(fieldLen), text: f.data(textLen) };
    }
    case 0x89:
      return {
        kind: "GAP", handle: f.big(), from: f.num(), to: f.num(), epoch: f.epoch(),
        reason: gapReason(f.u32()),
      };
    case 0x8a:
      return { kind: "DRAIN", graceMs: f.u32(), reconnectAfterMs: f.u32() };
    case 0x8b:
      return {
        kind: "RECEIPT", handle: f.big(), seq: f.num(), producerSeq: f.big(), epoch: f.epoch(),
        acked: f.u32(), members: f.u32(), percent: f.u8(),
      };
    case 0x8c: {
      const [request, epoch, handle, first, last] = [f.u32(), f.u32(), f.big(), f.num(), f.num()];
      const [head, from, to, reason, more] = [f.num(), f.num(), f.num(), f.u32(), f.u8() === 1];
      f.skip(3);
      const gap = from === 0 ? null : { from, to, reason: gapReason(reason) };
      const messages: Deliver[] = [];
      const inner = new Input(FRAME_MAX);
      inner.push(f.rest());
      for (let next = inner.next(); next; next = inner.next()) {
        if (next[4] !== 0x85) throw new WireError("a page with another frame than DELIVER");
        messages.push(deliver(new In(next)));
      }
      if (inner.length > 0) throw new WireError("a page ends inside a frame");
      return { kind: "FETCHED", request, epoch, handle, first, last, head, gap, more, messages };
    }
    case 0x8d: {
      const [request, form, more, count] =
        [f.u32(), one(STATE_FORMS, f.u8(), "form of STATE"), f.u8() === 1, f.u16()];
      const [handle, version] = [f.big(), f.num()];
      const entries: StateFrameEntry[] = [];
      for (let i = 0; i < count; i++) {
        const [at, stamp, flags, keyLen] = [f.num(), f.big(), f.u16(), f.u8()];
        f.skip(1);
        const dataLen = f.u32();
        const [key, data] = [f.name(keyLen, NAME_MAX), f.data(dataLen)];
        entries.push({ key, version: at, stamp, data: flags & 2 ? null : data });
      }
      return { kind: "STATE", request, form, more, handle, version, entries };
    }
    case 0x8e: {
      const [request, flags] = [f.u32(), f.u16()];
      f.skip(2);
      const [handle, version, stamp] = [f.big(), f.num(), f.big()];
      return { kind: "CONFLICT", request, handle, version, stamp, data: flags & 2 ? null : f.rest() };
    }
    case 0x8f: {
      const [request, form] = [f.u32(), one(ROSTER_FORMS, f.u8(), "form of ROSTER")];
      f.skip(1);
      const count = f.u16();
      const [handle, version, members, online, next] = [f.big(), f.num(), f.u32(), f.u32(), f.u32()];
      f.skip(4);
      const entries = [];
      for (let i = 0; i < count; i++) {
        const [what, len] = [one(PRESENCES, f.u8() - 1, "change of a roster"), f.u8()];
        f.skip(2);
        entries.push({ what, member: f.name(len, MEMBER_MAX) });
      }
      return { kind: "ROSTER", request, form, handle, version, members, online, next, entries };
    }
    case 0x90:
      return { kind: "REDELIVER", handle: f.big(), from: f.num(), epoch: f.epoch(), attempt: f.u32() };
    case 0x91: {
      const request = f.u32();
      f.skip(4);
      return { kind: "STATE_SET", request, handle: f.big(), version: f.num(), stamp: f.big() };
    }
    case 0x92:
      return { kind: "PROBE", token: f.big() };
    case 0x93:
      return { kind: "AUTHED", request: f.u32(), validMs: f.u32(), renewAfterMs: f.u32() };
    default:
      return { kind: "UNKNOWN", number: frame[4] ?? 0 };
  }
}

/** Received bytes, cut into frames. */
export class Input {
  private bytes = new Uint8Array(0);
  private used = 0;

  /** `frameMax`: the longest frame that is accepted, after the length field. */
  constructor(public frameMax: number) {}

  /** Bytes that are not taken yet. */
  get length(): number {
    return this.bytes.length - this.used;
  }

  clear(): void {
    [this.bytes, this.used] = [new Uint8Array(0), 0];
  }

  push(bytes: Uint8Array): void {
    if (this.length === 0) {
      this.bytes = bytes as Uint8Array<ArrayBuffer>;
    } else {
      const joined = new Uint8Array(this.length + bytes.length);
      joined.set(this.bytes.subarray(this.used));
      joined.set(bytes, this.length);
      this.bytes = joined;
    }
    this.used = 0;
  }

  /**
   * The next whole frame, with its header.
   *
   * @throws WireError if its length is out of range: the place of the next one is not known then.
   */
  next(): Uint8Array | undefined {
    if (this.length < 4) return undefined;
    const at = this.used;
    const view = new DataView(this.bytes.buffer, this.bytes.byteOffset + at, 4);
    const len = view.getUint32(0, true);
    if (len > this.frameMax) throw new WireError(`a frame of ${len} bytes, at most ${this.frameMax}`);
    if (len < 4) throw new WireError(`a frame of ${len} bytes, at least 4`);
    if (this.length < 4 + len) return undefined;
    this.used += 4 + len;
    return this.bytes.subarray(at, this.used);
  }
}
