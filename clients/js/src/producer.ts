/**
 * Publishes of one group that have no answer yet, in order, and their numbers.
 *
 * The server takes the numbers of a producer in a group without holes. So the number of a publish is
 * its place in this queue: a publish that is refused leaves the queue, and those behind it, which
 * the server cannot have taken, move up.
 */

import type { Level } from "./wire.js";

/** How to publish. */
export interface Publishing {
  /** Level to ask for; without one the server's setting holds. */
  level?: Level;
  /** Share of the durable members, in percent, at which a receipt is wanted: 1 to 100. */
  receipt?: number;
}

export interface Entry {
  readonly id: number;
  payload: Uint8Array;
  readonly how: Publishing;
  /** "done": its number is taken, but a publish before it has no answer yet. */
  state: "waiting" | "sent" | "done";
  /** It was sent on an earlier connection, or by an earlier process, without an answer. */
  doubtful: boolean;
  /** The number under which it was sent last. */
  sentAs: number;
}

/** Why the server did not take a publish that is to be sent again; a number: it expects that first. */
export type Returned = "held" | "indeterminate" | "unknown" | "foreign" | number;

/** A publish that is over, and the length of its payload. */
export interface Over {
  id: number;
  len: number;
}

/** What happened to the publishes of a group. */
export interface Settled {
  /** May be in the group or not; they are given up. */
  inDoubt: Over[];
  /** The producer cannot go on under this id: the server has forgotten it, or it is another's. */
  forgotten: boolean;
  /** The server expects what it was given before: it makes no progress. */
  stuck: boolean;
}

const NOTHING: Settled = { inDoubt: [], forgotten: false, stuck: false };

export class Producer {
  private queue: Entry[] = [];
  /** Publishes from the front that were sent on this connection. */
  private sent = 0;
  /** Those of them that have no answer. */
  private inFlight = 0;
  /** One came back: nothing more is sent until all have their answer. */
  private cameBack: Returned | undefined;
  /** One came back although its number was right. */
  private stuck = false;
  /** When what may be in the group as number 1 was sent first, by this process. */
  private firstSent: number | undefined;
  /** Nothing is sent before this time, or before the next connection. */
  hold: number | "reconnect" | undefined;

  /** `base`: number of the first publish. Numbers below `used` may have been sent by an earlier process. */
  constructor(private base = 1, private used = 1) {}

  /** Number of the oldest publish without an answer, and the next one that was never used. */
  numbers(): [unanswered: number, unused: number] {
    return [this.base, Math.max(this.used, this.base + this.queue.length)];
  }

  get isEmpty(): boolean {
    return this.queue.length === 0;
  }

  push(id: number, payload: Uint8Array, how: Publishing): void {
    const doubtful = this.base + this.queue.length < this.used;
    this.queue.push({ id, payload, how, state: "waiting", doubtful, sentAs: 0 });
  }

  /** The next publish to send, with its number in `sentAs`; `old` takes only what may have been taken before. */
  sendNext(window: number, old: boolean, now: number): Entry | undefined {
    if (this.hold !== undefined || this.cameBack !== undefined || this.inFlight >= window) return undefined;
    while (this.queue[this.sent]?.state === "done") this.sent++;
    const entry = this.queue[this.sent];
    if (!entry || (old && !entry.doubtful)) return undefined;
    entry.state = "sent";
    entry.sentAs = this.base + this.sent;
    if (entry.sentAs === 1 && !entry.doubtful) this.firstSent = now;
    this.sent++;
    this.inFlight++;
    return entry;
  }

  /** The number of publish `id`, if it was sent on this connection and has no answer. */
  numberOf(id: number): number | undefined {
    const index = this.index(id);
    return index < 0 ? undefined : this.base + index;
  }

  private index(id: number): number {
    // Mostly it is the oldest one.
    const index = this.queue[0]?.id === id ? 0 : this.queue.findIndex((entry) => entry.id === id);
    return this.queue[index]?.state === "sent" ? index : -1;
  }

  /** The server has publish `id`; its number is used. Returns the length of its payload. */
  taken(id: number): number | undefined {
    const entry = this.queue[this.index(id)];
    if (!entry) return undefined;
    entry.state = "done";
    const len = entry.payload.length;
    entry.payload = new Uint8Array(0);
    this.inFlight--;
    let done = 0;
    while (this.queue[done]?.state === "done") done++;
    this.queue.splice(0, done);
    this.base += done;
    this.sent = Math.max(0, this.sent - done);
    return len;
  }

  /**
   * The server will never take publish `id`; the next one gets its number, unless an earlier sending
   * had no answer and may have been taken: then the number stays used, and if it is not, the server
   * says so to the next publish.
   */
  refused(id: number): { len: number; certain: boolean } | undefined {
    const index = this.index(id);
    const entry = this.queue[index];
    if (!entry) return undefined;
    if (entry.doubtful) return { len: this.taken(id) ?? 0, certain: false };
    this.queue.splice(index, 1);
    this.inFlight--;
    this.sent--;
    return { len: entry.payload.length, certain: true };
  }

  /** The server did not take publish `id`, which is to be sent again. */
  returned(id: number, why: Returned): void {
    const entry = this.queue[this.index(id)];
    if (!entry) return;
    entry.state = "waiting";
    if (why === "indeterminate") entry.doubtful = true;
    // It is what was expected, or cannot be less.
    if (why === entry.sentAs || (why === "unknown" && entry.sentAs === 1)) this.stuck = true;
    this.inFlight--;
    // The first one says why; those behind it come back because it did.
    this.cameBack ??= why;
  }

  /** Once all that was sent has its answer: makes ready to send again what came back. */
  settle(): Settled {
    const why = this.cameBack;
    if (this.inFlight > 0 || why === undefined) return NOTHING;
    this.cameBack = undefined;
    const settled: Settled = { inDoubt: [], forgotten: false, stuck: this.stuck };
    if (typeof why === "number") {
      // It lost what it had answered. What is in the queue was never taken, since there are no holes.
      this.base = Math.min(Math.max(why, 1), this.base);
    } else if (why === "foreign" || (why === "unknown" && !this.stuck)) {
      // Number 1 of this id could be a copy after a crash, which reads both from the log.
      settled.inDoubt = this.giveUpDoubtful();
      settled.forgotten = true;
    }
    this.stuck = false;
    this.sent = 0;
    return settled;
  }

  /** Gives up what may have been taken by a server that cannot tell any more. */
  private giveUpDoubtful(): Over[] {
    let count = 0;
    while (this.queue[count]?.doubtful) count++;
    return this.queue.splice(0, count).map((entry) => ({ id: entry.id, len: entry.payload.length }));
  }

  /**
   * A new connection. Of a producer that did not publish for long the server may forget all. It would
   * say so, but for number 1, which it would take as new: gives up what would be sent again as that,
   * later than `safeMs` after it was sent first.
   */
  away(now: number, safeMs: number): Settled {
    const late = this.firstSent !== undefined && this.firstSent + safeMs < now;
    if (!late || this.base !== 1 || !this.queue[0]?.doubtful) return NOTHING;
    return { inDoubt: this.giveUpDoubtful(), forgotten: true, stuck: false };
  }

  /** Whether nothing is left of which only this producer id can tell whether it was taken. */
  mayRenew(): boolean {
    return this.inFlight === 0 && !this.queue.some((entry) => entry.doubtful);
  }

  /** Begins again at 1 under a new producer id. */
  renew(): void {
    this.queue = this.queue.filter((entry) => entry.state !== "done");
    [this.base, this.used, this.sent] = [1, 1, 0];
    [this.cameBack, this.stuck] = [undefined, false];
  }

  /** The connection is gone: all that has no answer is sent again on the next one. */
  disconnected(): void {
    for (const entry of this.queue.slice(0, this.sent)) {
      if (entry.state === "sent") [entry.state, entry.doubtful] = ["waiting", true];
    }
    [this.sent, this.inFlight, this.cameBack, this.stuck] = [0, 0, undefined, false];
    if (this.hold === "reconnect") this.hold = undefined;
  }
}
