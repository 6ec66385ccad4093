/**
 * One group of a client: where the application is in it, where the server's stream is, and what is
 * to be acknowledged.
 *
 * The two places differ after a reconnect and in a redelivery: then the server sends what the
 * application has, and it is dropped here.
 */

import { Producer } from "./producer.js";
import type { Ack, JoinEntry, ServerFrame } from "./wire.js";
import { toBytes, WireError } from "./wire.js";

type Frame<K extends ServerFrame["kind"]> = Extract<ServerFrame, { kind: K }>;

/** How far back a live member looks first for the place where a new epoch began; each further step is this much longer. */
const REWIND = 64;

/** How to be in a group. */
export interface How {
  /** A member until it leaves, also while it is away. */
  durable: boolean;
  /** Where to start when the client has no place of its own in the group. */
  from: "tail" | "cursor" | number;
  /** Also say who joins, leaves, comes and goes. */
  roster: boolean;
}

/** A message by epoch and place; in this order. */
export interface Place {
  readonly epoch: number;
  readonly seq: number;
}

const START: Place = { epoch: 0, seq: 0 };

function above(a: Place, b: Place): boolean {
  return a.epoch > b.epoch || (a.epoch === b.epoch && a.seq > b.seq);
}

function lower(a: Place, b: Place): Place {
  return above(a, b) ? b : a;
}

/** What a DELIVER is: new, with what is missing before it, or of no use. */
export type Delivered = "known" | "dropped" | { epoch: number; missing: { from: number; to: number } | null };

export class Group {
  readonly nameBytes: Uint8Array;
  handle: bigint | undefined;
  /** How the application wants to be in it. */
  wanted: How | undefined;
  /** Where the server is with this client. */
  phase: "out" | "joining" | "in" | "leaving" = "out";
  /** How the server knows the member, when the application has left since. */
  leaving: How | undefined;
  joinedBefore = false;
  /** It may not read history, so it comes back to what is live. */
  private noHistory = false;
  /** The member has to leave and join again to look for the start of an epoch. */
  rejoin = false;
  /** Messages handled, or sent again although they were, since the last ACK. */
  unacked = 0;
  /** Its publishes are held, and the application was told. */
  heldTold = false;

  /** Last message that the application has; epoch 0 if that is not known yet. */
  place = START;
  /** Whether `place` means anything. */
  private placed = false;
  /** The place in a life of the group that is over. */
  private former: Place | undefined;
  /** Epoch of the messages that the server sends; 0 before the first EPOCH. */
  private stream = 0;
  /** Next message that it sends. */
  private next = 1;
  /**
   * It sent messages again on this connection. When that ends, it goes on after what it had sent
   * before, which may leave out some that the application has.
   */
  private again = false;
  /** Looking for the start of an epoch: where from, and how far back the next look goes. */
  private rewind: { from: number; by: number } | undefined;
  /** The stream of that look has not shown its first epoch. */
  private probing = false;
  private handled = START;
  private acked = START;

  constructor(readonly name: string, readonly producer = new Producer()) {
    this.nameBytes = toBytes(name);
  }

  /** A former process of this client kept its place. */
  resume(handle: bigint | undefined, place: Place | null): void {
    this.handle = handle;
    if (place) [this.place, this.handled, this.placed] = [place, place, true];
  }

  /** The last message that was handled, to go on from later. */
  kept(): Place | null {
    return this.placed ? this.handled : null;
  }

  /**
   * A JOIN behind the live messages was refused: it comes back to those alone, if that is not what the
   * application asked for. What it missed is a gap.
   */
  goesWithoutHistory(): boolean {
    const live = !(this.wanted ?? this.leaving)?.durable;
    if (!live || !this.placed || this.noHistory) return false;
    return (this.noHistory = true);
  }

  /** The entry of a JOIN for it, if it is to be joined, be it only to leave. */
  joinEntry(): JoinEntry | undefined {
    const how = this.wanted ?? this.leaving;
    if (!how) return undefined;
    let start: JoinEntry["start"] = how.from;
    if (!how.durable) {
      if (this.noHistory && this.placed) start = "tail";
      else if (this.rewind) start = this.rewind.from;
      else if (this.placed) start = this.place.seq + 1;
      else if (start === "cursor") start = "tail";
    } else if (this.placed) {
      start = "cursor";
    }
    return { group: this.nameBytes, durable: how.durable, start, roster: how.roster };
  }

  /**
   * The server says that the member is in the group. Returns messages that do not come since they
   * were acknowledged, although this client has no note of them.
   */
  joined(j: Frame<"JOINED">): { from: number; to: number } | null {
    const live = !(this.wanted ?? this.leaving)?.durable;
    const other = this.handle !== undefined && this.handle !== j.handle;
    this.phase = "in";
    this.handle = j.handle;
    [this.stream, this.next, this.again, this.acked] = [0, j.first, false, START];
    const { epoch, seq } = this.place;
    if (!this.placed) {
      // Above the head there is nothing of an older epoch.
      this.place = { epoch: j.first > j.head ? j.epoch : 0, seq: Math.max(0, j.first - 1) };
      this.handled = this.place;
      this.placed = true;
    } else if (this.rewind && !other) {
      this.probing = true;
    } else if (other || j.epoch < epoch) {
      // Not the data directory that it was: nothing of it is known here.
      this.former = this.place;
      [this.place, this.handled, this.rewind] = [START, START, undefined];
      if (live && j.first > 1) this.lookBack(1, Infinity);
    } else if (live && epoch > 0 && j.epoch > epoch && seq > 0) {
      this.lookBack(Math.min(seq, j.head) + 1, REWIND);
    } else if (!live && j.epoch === epoch && j.first > seq + 1) {
      // It had acknowledged more than it kept for itself, or another connection did.
      this.place = { epoch, seq: j.first - 1 };
      this.handled = this.place;
      return { from: seq + 1, to: j.first - 1 };
    }
    return null;
  }

  /** Leaves and joins again `by` messages before `from`. */
  private lookBack(from: number, by: number): void {
    this.rewind = { from: Math.max(1, from - by), by: by * REWIND };
    this.probing = false;
    this.rejoin = true;
  }

  /** Whether it joins again only to find the start of an epoch. */
  get isLookingBack(): boolean {
    return this.rewind !== undefined;
  }

  /** Whether what comes now is of no use. */
  private get drops(): boolean {
    return this.rejoin || !this.wanted || this.phase === "leaving";
  }

  /** An epoch begins in the stream. Returns the place before it if the application must know. */
  epochStarts(epoch: number, first: number): Place | undefined {
    this.stream = epoch;
    this.leaveOutKnown(first);
    if (this.drops) return undefined;
    if (this.probing) {
      this.probing = false;
      const rewind = this.rewind;
      this.rewind = undefined;
      if (rewind && epoch > this.place.epoch && rewind.from > 1 && this.next === rewind.from) {
        this.lookBack(rewind.from, rewind.by);
        return undefined;
      }
    }
    if (epoch <= this.place.epoch) return undefined;
    const was = this.former ?? this.place;
    this.former = undefined;
    this.place = { epoch, seq: Math.max(0, this.next - 1) };
    return was.epoch > 0 ? was : undefined;
  }

  /** Messages are missing. Returns those that the application does not have. */
  gap(gap: Frame<"GAP">): { from: number; to: number } | undefined {
    const { from, to, epoch } = gap;
    if (to < from || to < this.next - 1) throw new WireError("a GAP behind the messages");
    this.next = to + 1;
    const news = to > this.place.seq || (epoch > this.place.epoch && this.place.epoch > 0);
    if (this.drops || !news) return undefined;
    const first = Math.min(Math.max(from, this.place.seq + 1), to);
    this.place = { epoch: this.place.epoch, seq: Math.max(this.place.seq, to) };
    return { from: first, to };
  }

  /** A message came. */
  deliver(seq: number): Delivered {
    if (this.phase !== "in" && this.phase !== "leaving") {
      throw new WireError("a DELIVER of a group that is not joined");
    }
    if (this.stream === 0) throw new WireError("a DELIVER before EPOCH");
    this.leaveOutKnown(seq);
    if (seq !== this.next) throw new WireError("a DELIVER out of order");
    this.next = seq + 1;
    if (this.drops) return "dropped";
    const place = { epoch: this.stream, seq };
    if (!above(place, this.place)) return "known";
    const expected = this.place.seq + 1;
    this.place = place;
    return { epoch: place.epoch, missing: seq > expected ? { from: expected, to: seq - 1 } : null };
  }

  /** The end of a redelivery leaves out what the application has. */
  private leaveOutKnown(first: number): void {
    if (this.again && first > this.next && first <= this.place.seq + 1) this.next = first;
  }

  /** The server begins again at `from`. */
  redelivers(from: number, epoch: number): void {
    this.next = from;
    this.again = true;
    if (epoch <= this.place.epoch) this.stream = epoch;
    // If the last ACK was lost it is sent again.
    this.acked = START;
  }

  /** The application is through with everything up to `upto`. Returns whether that is news. */
  handledUpTo(upto: Place): boolean {
    const to = lower(upto, this.place);
    if (!above(to, this.handled)) return false;
    this.unacked += to.epoch === this.handled.epoch ? to.seq - this.handled.seq : 1;
    this.handled = to;
    return true;
  }

  /** A message came again. Returns whether the application had handled it. */
  handledBefore(seq: number): boolean {
    if (this.stream === 0 || above({ epoch: this.stream, seq }, this.handled)) return false;
    this.unacked++;
    return true;
  }

  /** What to acknowledge now: what was handled, as far as this connection has sent it. */
  ack(): Ack | undefined {
    this.unacked = 0;
    if (this.phase !== "in" || this.rejoin || this.handle === undefined) return undefined;
    const place = lower(this.handled, { epoch: this.stream, seq: this.next - 1 });
    if (!above(place, this.acked) || place.epoch === 0 || place.seq === 0) return undefined;
    this.acked = place;
    return { handle: this.handle, seq: place.seq, epoch: place.epoch };
  }

  /** The server says that the member is out. Returns whether that is the end of it. */
  left(): boolean {
    [this.phase, this.stream] = ["out", 0];
    const rejoin = this.rejoin;
    this.rejoin = false;
    if (rejoin && this.wanted) return false;
    this.leaving = undefined;
    this.forget();
    return !this.wanted;
  }

  /** Forgets the place, so that the next join begins as the application says. */
  forget(): void {
    [this.place, this.handled, this.placed] = [START, START, false];
    [this.rewind, this.probing, this.rejoin, this.joinedBefore] = [undefined, false, false, false];
  }

  /** The connection is gone. Returns whether a live member is out by that, as it wanted. */
  disconnected(): boolean {
    const wasIn = this.phase !== "out";
    [this.phase, this.stream, this.unacked] = ["out", 0, 0];
    [this.probing, this.rejoin] = [false, false];
    this.producer.disconnected();
    if (!this.wanted && this.leaving && !this.leaving.durable) {
      this.leaving = undefined;
      this.forget();
      return wasIn;
    }
    return false;
  }

  /** Whether it has to be joined or left now. */
  get hasToMove(): boolean {
    if (this.phase === "out") return this.wanted !== undefined || this.leaving !== undefined;
    return this.phase === "in" && (this.wanted === undefined || this.rejoin);
  }
}
