/** The client without I/O and without a clock: bytes and time in, events and bytes out. */

import { acknowledgeAll, advance, deadline } from "./due.js";
import type { Event } from "./events.js";
import type { How } from "./group.js";
import { Group } from "./group.js";
import type { Publishing } from "./producer.js";
import { Producer } from "./producer.js";
import type { CoreOptions } from "./session.js";
import { ClientError, Session } from "./session.js";
import { take } from "./take.js";
import type { Expected } from "./wire.js";
import { decode, fetch, KIND, NAME_MAX, rosterQuery, setState, sync, toBytes, WireError } from "./wire.js";

/**
 * What an application may keep, as JSON, to go on where it was after a restart. Publishes that had
 * no answer are not part of it: publish them again, in the same order, before new ones. They get the
 * numbers that they had, so that the server keeps one copy.
 */
export interface Resume {
  /** The producer id, in hexadecimal. */
  producer: string;
  groups: {
    name: string;
    /** The server's number of it, in decimal; null if it is not known. */
    handle: string | null;
    /** Last message that was handled; null if the group was not joined. */
    handled: { epoch: number; seq: number } | null;
    /** Number of the first publish without an answer, and the first that was never used. */
    unanswered: number;
    unused: number;
  }[];
}

/** What the driver of a {@link Core} has to do about the connection. */
export type Link = { kind: "connect"; at: number } | { kind: "up" } | { kind: "close" } | { kind: "over" };

/**
 * A client without a socket. A driver calls {@link nextEvent} until there is none, then
 * {@link advance}, and then does what {@link link} says. Time is monotonic, in ms.
 */
export class Core {
  /** @internal */
  readonly session: Session;
  /** The connection is gone; what came on it before is still to be taken. */
  private ended = false;

  /** A client that has never been connected, or that goes on where another one of the same member was. */
  constructor(options: CoreOptions, resume?: Resume) {
    const producer = resume ? fromHex(resume.producer) : options.producer;
    this.session = new Session(producer ? { ...options, producer } : options);
    for (const kept of resume?.groups ?? []) {
      const group = new Group(kept.name, new Producer(Math.max(1, kept.unanswered), kept.unused));
      const handle = kept.handle === null ? undefined : BigInt(kept.handle);
      group.resume(handle, kept.handled);
      this.session.groups.set(kept.name, group);
      if (handle !== undefined) this.session.handles.set(handle, group);
    }
  }

  /** What to keep so that another client can go on from here. */
  toResume(): Resume {
    const groups = [...this.session.groups.values()].map((group) => {
      const [unanswered, unused] = group.producer.numbers();
      const handle = group.handle === undefined ? null : `${group.handle}`;
      return { name: group.name, handle, handled: group.kept(), unanswered, unused };
    });
    return { producer: toHex(this.session.producer), groups };
  }

  // ---- for the driver ----

  /** What to do about the connection. */
  link(): Link {
    const { conn, until, closing, outBytes } = this.session;
    if (conn === "down") return { kind: "connect", at: until };
    if (conn === "over") return { kind: "over" };
    // The last words are still to be sent.
    const graceful = closing && ["closed", "drained", "renewed"].includes(closing.kind);
    if (this.ended || (closing && !(graceful && outBytes > 0))) return { kind: "close" };
    return { kind: "up" };
  }

  /**
   * The newest token. With `renews` another one may be had later: then it is due when {@link tokenIsDue}
   * says so, and a refusal does not end the client.
   */
  setToken(token: string, renews: boolean): void {
    this.session.renewsToken = renews;
    this.session.setToken(token);
  }

  /** Whether the server wants another token by now. If none comes it is due again a while later. */
  tokenIsDue(now: number): boolean {
    return this.session.tokenIsDue(now);
  }

  /** A connection was made. */
  connected(now: number): void {
    if (this.session.conn !== "down") return;
    this.ended = false;
    this.session.connected(now);
  }

  /** The connection is gone, or could not be made. What came before is still given out. */
  disconnected(now: number): void {
    if (this.session.conn === "down") this.session.disconnected(now, { kind: "lost" });
    else if (this.session.conn !== "over") this.ended = true;
  }

  /** Bytes came. They are the client's from now on. */
  receive(bytes: Uint8Array): void {
    this.session.silentAt = undefined;
    this.session.input.push(bytes);
  }

  /** Bytes that wait to be sent. */
  get outputBytes(): number {
    return this.session.outBytes;
  }

  /** Whole frames to send, which count as sent, `max` bytes of them or one. */
  takeOutput(max = Infinity): Uint8Array[] {
    const { out } = this.session;
    let [count, bytes] = [0, 0];
    for (const frame of out) {
      if (count > 0 && bytes + frame.length > max) break;
      count++;
      bytes += frame.length;
    }
    this.session.outBytes -= bytes;
    return out.splice(0, count);
  }

  /** Does what is due at `now` and prepares what is to be sent. */
  advance(now: number): void {
    advance(this.session, now);
  }

  /** When {@link advance} has something to do, at the latest. */
  deadline(): number | undefined {
    return deadline(this.session);
  }

  /** The next event, if there is one. */
  nextEvent(now: number): Event | undefined {
    const s = this.session;
    for (;;) {
      const event = s.events.shift();
      if (event) return event;
      if (!s.closing && this.takeFrame(now)) continue;
      if (!this.ended) return undefined;
      this.ended = false;
      s.disconnected(now, { kind: "lost" });
    }
  }

  private takeFrame(now: number): boolean {
    try {
      const frame = this.session.input.next();
      if (!frame) return false;
      take(this.session, decode(frame), now);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.session.close({ kind: "protocol", what: error.message });
    }
    return true;
  }

  // ---- for the application ----

  private checkAlive(): void {
    if (this.session.conn === "over") throw new ClientError("over", "the client has ended");
  }

  /** Joins a group and stays in it over reconnects. Answers: joined, joinFailed. */
  join(name: string, how: How): void {
    this.checkAlive();
    const group = this.session.group(name);
    group.wanted = how;
    this.session.listMove(group);
  }

  /** Leaves a group. Answer: left. A durable member that is not connected leaves when it is. */
  leave(name: string): void {
    this.checkAlive();
    const group = this.session.groups.get(name);
    if (!group?.wanted) throw new ClientError("not_joined", "the group was not joined");
    group.wanted = undefined;
    if (group.phase === "out" && !group.leaving?.durable) {
      group.leaving = undefined;
      group.forget();
      this.session.events.push({ type: "left", group: name });
    }
    this.session.listMove(group);
  }

  /**
   * Publishes. Answers: published, publishFailed; until then the message is kept and sent again as
   * often as it takes. Returns the number of the publish.
   */
  publish(name: string, content: string | Uint8Array, how: Publishing = {}): number {
    this.checkAlive();
    const s = this.session;
    const payload = toBytes(content);
    s.checkPayload(payload.length);
    const receipt = how.receipt ?? 0;
    if (!Number.isInteger(receipt) || receipt < 0 || receipt > 100) {
      throw new ClientError("range", `a receipt at ${receipt} percent; use 0 to 100`);
    }
    const { publishesMax, publishBytesMax } = s.options;
    if (s.publishes >= publishesMax) {
      throw new ClientError("full", `${publishesMax} publishes have no answer; wait for some`);
    }
    if (s.publishes > 0 && s.publishBytes + payload.length > publishBytesMax) {
      throw new ClientError("full", `publishes without an answer hold ${s.publishBytes} bytes; wait for some`);
    }
    const group = s.group(name);
    const id = s.nextPublish++;
    s.publishes++;
    s.publishBytes += payload.length;
    group.producer.push(id, payload, { ...how });
    s.listSend(group);
    return id;
  }

  /** Publishes that have no answer yet. */
  get unanswered(): number {
    return this.session.publishes;
  }

  /** The application is through with everything of a group up to a message: it is acknowledged in time. */
  handled(name: string, epoch: number, seq: number, now: number): void {
    const group = this.session.groups.get(name);
    if (!group) throw new ClientError("not_joined", "the group was not joined");
    if (group.handledUpTo({ epoch, seq })) this.session.handled(group, now);
  }

  private query(name: string, frame: number, encode: (request: number, group: Uint8Array) => Uint8Array): number {
    this.checkAlive();
    const s = this.session;
    if (s.queries >= s.options.queriesMax) {
      throw new ClientError("full", `${s.queries} questions have no answer; wait for some`);
    }
    const group = s.group(name);
    const id = s.nextQuery++;
    s.queries++;
    const request = s.request({ kind: "query", group, id, frame, sent: false });
    s.waiting.push({ request, bytes: encode(request, group.nameBytes) });
    return id;
  }

  /** Reads history, `to` 0 to the end. Answers: fetched, queryFailed. */
  fetch(name: string, from: number, to = 0, countMax = 0): number {
    return this.query(name, KIND.FETCH, (request, group) => fetch(request, group, from, to, countMax, 0));
  }

  /** Sets a key of a group's state, or deletes it (null). Answers: stateSet, conflict, queryFailed. */
  setState(name: string, key: string, data: Uint8Array | null, expected: Expected): number {
    const bytes = toBytes(key);
    if (bytes.length < 1 || bytes.length > NAME_MAX) {
      throw new ClientError("length", `a key of ${bytes.length} bytes; it has 1 to ${NAME_MAX}`);
    }
    this.session.checkPayload(data?.length ?? 0);
    return this.query(name, KIND.SET_STATE, (request, group) => setState(request, group, bytes, expected, data));
  }

  /** Asks for what changed in a group's state since version `known`. Answers: state, queryFailed. */
  sync(name: string, known: number): number {
    return this.query(name, KIND.SYNC, (request, group) => sync(request, group, known));
  }

  /** Asks for the roster of a group. Answers: roster, queryFailed. */
  roster(name: string, known: number, after: number, limit: number): number {
    return this.query(name, KIND.ROSTER_QUERY, (request, group) => rosterQuery(request, group, known, after, limit));
  }

  /** More came than the application took: the connection is given up, and made again in time. */
  overrun(): void {
    this.session.close({ kind: "overrun" });
  }

  /** The connection cannot be used, now or later: the client ends. */
  fail(what: string): void {
    this.session.close({ kind: "failed", what });
  }

  /** Ends the client: what was handled is acknowledged, then the connection closes. */
  close(now: number): void {
    const s = this.session;
    if (s.conn === "over") return;
    acknowledgeAll(s, now);
    s.close({ kind: "closed" });
    if (s.conn === "down") s.disconnected(now, { kind: "closed" });
  }
}

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (byte) => parseInt(byte, 16));
}
