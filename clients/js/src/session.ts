/** All that a client knows about its connection and its groups. */

import type { Event, Reason } from "./events.js";
import { Group } from "./group.js";
import type { Over } from "./producer.js";
import type { Welcome } from "./wire.js";
import { auth, FRAME_MAX, hello, Input, MEMBER_MAX, NAME_MAX, PAYLOAD_MAX, toBytes, TOKEN_MAX } from "./wire.js";

/** When a server may forget a producer, if it does not say; see PROTOCOL.md. */
const PRODUCER_TTL_MS = 10 * 60 * 1000;
/** A source that still gives the token that is in use is asked again after this time. */
const ASK_AGAIN_MS = 1_000;
/** Longest frame before WELCOME: an ERROR with its text. */
const FIRST_FRAME_MAX = 1024;
/** Longest frame that is accepted, whatever WELCOME says. */
const SERVER_FRAME_MAX = FRAME_MAX + 64 * 1024;

/** The bounds and waits of a client. All have defaults. Times in ms, lengths in bytes. */
export interface CoreOptions {
  /** Who the client is: 1 to 64 bytes. */
  member: string | Uint8Array;
  /** 16 bytes under which no other client has published; drawn at random if it is missing. */
  producer?: Uint8Array;
  /** Most publishes without an answer, sent or not. Default 4096. */
  publishesMax?: number;
  /** Most bytes of their payloads. Default 8 MiB. */
  publishBytesMax?: number;
  /** Most questions without an answer. Default 64. */
  queriesMax?: number;
  /** Most groups that are joined or published to over the life of the client. Default 100,000. */
  groupsMax?: number;
  /** A connect, a WELCOME and a PONG must come within this time. Default 10,000. */
  answerTimeoutMs?: number;
  /** First wait before a reconnect. It doubles, and each is spread by up to a half. Default 1,000. */
  backoffMinMs?: number;
  /** Longest wait before a reconnect. Default 30,000. */
  backoffMaxMs?: number;
  /** Chance, from 0 to below 1. Default Math.random; for tests. */
  random?: () => number;
}

/** Something that was asked for and cannot be done; nothing has changed by it. */
export class ClientError extends Error {
  constructor(
    readonly kind: "length" | "full" | "not_joined" | "over" | "range",
    message: string,
  ) {
    super(message);
    this.name = "ClientError";
  }
}

/** A request without an answer. */
export type Request =
  | { kind: "join" | "leave"; groups: Set<Group> }
  | { kind: "publish"; group: Group; id: number }
  | { kind: "auth" }
  /** `frame`: the kind of the frame that asks. */
  | { kind: "query"; group: Group; id: number; frame: number; sent: boolean };

export class Session {
  readonly member: Uint8Array;
  producer: Uint8Array;
  readonly options: Required<Omit<CoreOptions, "member" | "producer">>;

  conn: "down" | "greeting" | "open" | "over" = "down";
  /** When to connect, or until when WELCOME must come. */
  until = 0;
  welcome: Welcome | undefined;
  readonly input = new Input(FIRST_FRAME_MAX);
  /** Frames to send. */
  out: Uint8Array[] = [];
  outBytes = 0;
  events: Event[] = [];

  readonly groups = new Map<string, Group>();
  readonly handles = new Map<bigint, Group>();
  readonly requests = new Map<number, Request>();
  private lastRequest = 0;
  /** Questions that wait for a connection. */
  waiting: { request: number; bytes: Uint8Array }[] = [];
  nextPublish = 1;
  nextQuery = 1;
  publishes = 0;
  publishBytes = 0;
  queries = 0;

  /** Groups to join or leave. */
  readonly moves = new Set<Group>();
  /** Groups with publishes to send. */
  readonly sends = new Set<Group>();
  /** Groups to acknowledge now. */
  readonly acks = new Set<Group>();
  /** When groups are to be acknowledged at the latest, in that order. */
  readonly clock = new Map<Group, number>();
  private clockEnd = 0;
  /** Which share of the way to the latest moment of the next ACK is left out: 0 to a half. */
  private ackEarly = 0;
  /** Groups whose publishes wait for a time. */
  readonly holds = new Set<Group>();

  /** What shows the server who this is, and what this connection has sent of it. */
  private token: string | undefined;
  private sentToken: string | undefined;
  /** Whether there may be another token later. */
  renewsToken = false;
  /** When the next token is due. */
  renewAt: number | undefined;
  /** Groups whose JOIN waits for a time. */
  readonly lateMoves = new Map<Group, number>();

  pingAt: number | undefined;
  /** When an ACK was sent last. */
  ackedAt: number | undefined;
  /** Something must have come until then. */
  silentAt: number | undefined;
  /** Reconnects in a row that failed. */
  private attempt = 0;
  /** The server stops; when to reconnect. */
  drain: number | undefined;
  /** The connection is to be closed. */
  closing: Reason | undefined;
  /** A group has forgotten this producer: a new id is drawn as soon as nothing needs the old one. */
  renewing = false;

  constructor(options: CoreOptions) {
    this.member = toBytes(options.member);
    if (this.member.length < 1 || this.member.length > MEMBER_MAX) {
      throw new ClientError("length", `a member id of ${this.member.length} bytes; it has 1 to ${MEMBER_MAX}`);
    }
    this.options = {
      publishesMax: options.publishesMax ?? 4096,
      publishBytesMax: options.publishBytesMax ?? 8 << 20,
      queriesMax: options.queriesMax ?? 64,
      groupsMax: options.groupsMax ?? 100_000,
      answerTimeoutMs: options.answerTimeoutMs ?? 10_000,
      backoffMinMs: options.backoffMinMs ?? 1_000,
      backoffMaxMs: options.backoffMaxMs ?? 30_000,
      random: options.random ?? Math.random,
    };
    if (options.producer && options.producer.length !== 16) {
      throw new ClientError("length", `a producer id of ${options.producer.length} bytes; it has 16`);
    }
    this.producer = options.producer ? toBytes(options.producer) : newProducer();
  }

  // ---- groups ----

  /** The group with this name, made if need be. */
  group(name: string): Group {
    const known = this.groups.get(name);
    if (known) return known;
    const group = new Group(name);
    const len = group.nameBytes.length;
    if (len < 1 || len > NAME_MAX) {
      throw new ClientError("length", `a group name of ${len} bytes; it has 1 to ${NAME_MAX}`);
    }
    if (this.groups.size >= this.options.groupsMax) {
      throw new ClientError("full", `the client has used ${this.groups.size} groups; raise groupsMax`);
    }
    this.groups.set(name, group);
    return group;
  }

  /** The server named a group. */
  nameHandle(group: Group, handle: bigint): void {
    if (this.handles.get(handle) === group) return;
    if (group.handle !== undefined && this.handles.get(group.handle) === group) {
      this.handles.delete(group.handle);
    }
    this.handles.set(handle, group);
  }

  checkPayload(len: number): void {
    const max = this.welcome?.payloadMax ?? PAYLOAD_MAX;
    if (len > max) throw new ClientError("length", `a payload of ${len} bytes; the server takes ${max}`);
  }

  // ---- lists ----

  listMove(group: Group): void {
    if (group.hasToMove) this.moves.add(group);
  }

  listSend(group: Group): void {
    if (!group.producer.isEmpty) this.sends.add(group);
  }

  /** Messages of the group were handled: acknowledge by count, or start its clock. */
  handled(group: Group, now: number): void {
    if (!this.welcome) return;
    const { ackEvery, ackIntervalMs } = this.welcome;
    const early = (whole: number) => whole - Math.floor(whole * this.ackEarly);
    if (ackEvery > 0 && group.unacked >= early(ackEvery)) {
      this.acks.add(group);
    } else if (group.unacked > 0 && !this.clock.has(group)) {
      this.clockEnd = Math.max(now + early(ackIntervalMs), this.clock.size > 0 ? this.clockEnd : 0);
      this.clock.set(group, this.clockEnd);
    }
  }

  /**
   * Draws when the next ACK comes. All members of a group get a message in the same moment: if all
   * counted alike, their ACKs would come in one burst, in front of the next message.
   */
  spreadAcks(): void {
    this.ackEarly = this.options.random() / 2;
  }

  // ---- requests ----

  /** Takes a number that is not in use. */
  request(request: Request): number {
    do {
      this.lastRequest = this.lastRequest === 0xffff_ffff ? 1 : this.lastRequest + 1;
    } while (this.requests.has(this.lastRequest));
    this.requests.set(this.lastRequest, request);
    return this.lastRequest;
  }

  send(frame: Uint8Array): void {
    this.out.push(frame);
    this.outBytes += frame.length;
  }

  // ---- the connection's life ----

  /** A connection was made. */
  connected(now: number): void {
    this.renewIfSettled();
    this.conn = "greeting";
    this.until = now + this.options.answerTimeoutMs;
    this.clear();
    this.send(hello(this.member, this.producer));
    [this.sentToken, this.renewAt] = [undefined, undefined];
    this.sendToken();
    for (const group of this.groups.values()) {
      this.listMove(group);
      this.listSend(group);
    }
  }

  /** The newest token. It is sent now, if there is a connection that does not have it. */
  setToken(token: string): void {
    const { length } = toBytes(token);
    if (length < 1 || length > TOKEN_MAX) {
      throw new ClientError("length", `a token of ${length} bytes; it has 1 to ${TOKEN_MAX}`);
    }
    this.token = token;
    if (this.conn !== "open" && this.conn !== "greeting") return;
    if (this.sendToken()) this.renewAt = undefined;
  }

  tokenIsDue(now: number): boolean {
    if (this.renewAt === undefined || this.renewAt > now) return false;
    this.renewAt = now + ASK_AGAIN_MS;
    return true;
  }

  private sendToken(): boolean {
    if (this.token === undefined || this.token === this.sentToken) return false;
    this.send(auth(this.request({ kind: "auth" }), toBytes(this.token)));
    this.sentToken = this.token;
    return true;
  }

  /** The server accepted the token. */
  authed(request: number, validMs: number, renewAfterMs: number, now: number): void {
    this.requests.delete(request);
    this.renewAt = validMs > 0 && this.renewsToken ? now + renewAfterMs : undefined;
  }

  private clear(): void {
    this.input.clear();
    this.input.frameMax = FIRST_FRAME_MAX;
    [this.out, this.outBytes] = [[], 0];
  }

  /** The connection is gone, or could not be made. */
  disconnected(now: number, lost: Reason): void {
    const reason = this.closing ?? (this.drain === undefined ? lost : { kind: "drained" as const });
    const drain = this.drain;
    this.clear();
    [this.closing, this.drain, this.welcome] = [undefined, undefined, undefined];
    [this.pingAt, this.silentAt, this.ackedAt, this.renewAt] = [undefined, undefined, undefined, undefined];
    for (const list of [this.moves, this.sends, this.acks, this.clock, this.holds, this.lateMoves]) list.clear();
    for (const group of this.groups.values()) {
      if (group.disconnected()) this.events.push({ type: "left", group: group.name });
      if (typeof group.producer.hold === "number") this.holds.add(group);
    }
    for (const [number, request] of this.requests) {
      if (request.kind === "query" && !request.sent) continue;
      this.requests.delete(number);
      if (request.kind === "query") {
        this.queries--;
        this.events.push({ type: "queryFailed", id: request.id, group: request.group.name, error: null });
      }
    }
    let retryInMs: number | null = null;
    if (!isFinal(reason, this.renewsToken)) retryInMs = drain === undefined ? this.backoffMs() : Math.max(0, drain - now);
    this.conn = retryInMs === null ? "over" : "down";
    this.until = now + (retryInMs ?? 0);
    this.events.push({ type: "disconnected", reason, retryInMs });
  }

  /** The wait before the next attempt; each is about twice as long as the one before. */
  private backoffMs(): number {
    const least = Math.max(1, this.options.backoffMinMs);
    const whole = Math.min(least * 2 ** Math.min(this.attempt, 20), Math.max(1, this.options.backoffMaxMs));
    this.attempt++;
    return whole - Math.floor(this.options.random() * (whole / 2));
  }

  /** The wait before publishes that were held back are tried again. */
  holdMs(): number {
    const whole = Math.max(2, this.options.backoffMinMs);
    return whole - Math.floor(this.options.random() * (whole / 2));
  }

  /** WELCOME came. */
  welcomed(welcome: Welcome, now: number): void {
    this.conn = "open";
    this.welcome = welcome;
    this.input.frameMax = Math.min(Math.max(welcome.frameMax, FIRST_FRAME_MAX), SERVER_FRAME_MAX);
    this.spreadAcks();
    this.attempt = 0;
    // The other half is for the way.
    const safeMs = (welcome.producerTtlMs || PRODUCER_TTL_MS) / 2;
    for (const group of this.groups.values()) {
      const settled = group.producer.away(now, safeMs);
      this.giveUp(group, settled.inDoubt);
      this.renewing ||= settled.forgotten;
    }
    if (welcome.heartbeatMs > 0) this.pingAt = now + welcome.heartbeatSlotMs;
  }

  /** Publishes of which nobody can tell any more whether they are in the group. */
  giveUp(group: Group, inDoubt: readonly Over[]): void {
    for (const { id, len } of inDoubt) {
      this.events.push({ type: "publishFailed", id, group: group.name, error: { kind: "in_doubt" } });
      this.publishIsOver(len);
    }
  }

  publishIsOver(len: number): void {
    this.publishes--;
    this.publishBytes -= len;
  }

  /**
   * Draws a new producer id if one is wanted and nothing needs the old one. It holds from the next
   * HELLO on.
   */
  renewIfSettled(): boolean {
    if (!this.renewing) return false;
    for (const group of this.groups.values()) if (!group.producer.mayRenew()) return false;
    this.renewing = false;
    this.producer = newProducer();
    for (const group of this.groups.values()) group.producer.renew();
    this.events.push({ type: "producerRenewed", producer: this.producer });
    return true;
  }

  /** The connection has to end, unless it has to already. */
  close(reason: Reason): void {
    this.closing ??= reason;
  }
}

function newProducer(): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(16));
}

/** Whether there is no use in trying again. */
function isFinal(reason: Reason, renewsToken: boolean): boolean {
  if (reason.kind === "server") {
    const { name } = reason.refusal;
    if (["AuthRequired", "TokenExpired", "TokenRefused"].includes(name)) return !renewsToken;
    const never = ["BadMagic", "VersionUnsupported", "EncodingUnsupported", "TlsRequired"];
    return never.includes(name);
  }
  return ["replaced", "failed", "closed"].includes(reason.kind);
}
