/** A client on a WebSocket: moves bytes between a {@link Core} and a connection, and events to the application. */

import { Core } from "./core.js";
import type { Resume } from "./core.js";
import { OUT_ENOUGH } from "./due.js";
import type { Event, Events, Page, Published, PublishFailure, Reason, Refusal, RosterPage } from "./events.js";
import { Membership } from "./membership.js";
import type { Publishing } from "./producer.js";
import type { CoreOptions } from "./session.js";
import { ClientError } from "./session.js";
import { SharedState } from "./state.js";
import type { StateChanges } from "./state.js";
import type { Expected } from "./wire.js";
import { toBytes } from "./wire.js";

const SUBPROTOCOL = "fanfare.binary.v1";
/** With more than this unsent in the socket nothing is added. */
const BUFFERED_ENOUGH = 1 << 20;
/** A token that could not be had is asked for again after this time. */
const TOKEN_AGAIN_MS = 1_000;
/** Close code: a message is too big. The same bytes would be sent again, and be too big again. */
const TOO_BIG = 1009;
/** How soon it is looked again whether the socket has sent: it does not say so by itself. */
const BUFFERED_LOOK_MS = 20;
/** A message that waits for the application counts this much beside its payload. */
const MESSAGE_COST = 128;

/** The parts of a WebSocket that are used, as browsers and Node have them. */
export interface WebSocketLike {
  binaryType: string;
  readonly bufferedAmount: number;
  onopen: ((event: never) => unknown) | null;
  onmessage: ((event: never) => unknown) | null;
  onclose: ((event: never) => unknown) | null;
  onerror: ((event: never) => unknown) | null;
  send(data: Uint8Array): void;
  close(code?: number): void;
}

export interface ClientOptions extends CoreOptions {
  /**
   * What shows the server who this is, or a function that gets the newest one: it is asked before each
   * connect, and when the server wants another one. If it fails, the client tries again later.
   */
  token?: string | (() => string | Promise<string>);
  /** Go on where another client of this member was. */
  resume?: Resume;
  /**
   * When a message counts as handled, so that it is acknowledged: "automatic", when the loop over
   * the group asks for the next one, or "explicit", by {@link Membership.ack}.
   */
  acks?: "automatic" | "explicit";
  /**
   * Most bytes of messages that wait for the application. With more the client leaves, and comes
   * back for the rest when half of it is taken. Default 8 MiB.
   */
  waitingBytesMax?: number;
  /** The constructor to use, where there is none of that name (Node before 22). */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
}

export interface JoinOptions {
  /** A member until it leaves, also while it is away: it goes on after what it acknowledged. */
  durable?: boolean;
  /** Start with this message, or the oldest that is kept after it; otherwise with the next one. */
  from?: number;
  /** Also tell who joins, leaves, comes and goes, by "roster" events. */
  roster?: boolean;
}

/** A publish that is over without a place. */
export class PublishError extends Error {
  constructor(
    /** `closed`: the client ended before the answer. */
    readonly failure: PublishFailure | { kind: "closed" },
  ) {
    super(failure.kind === "refused" ? describe(failure.refusal) : `publish: ${failure.kind.replace("_", " ")}`);
    this.name = "PublishError";
  }
}

/** The server said no, or the connection ended before its answer (`refusal` null). */
export class RefusedError extends Error {
  constructor(readonly refusal: Refusal | null) {
    super(refusal ? describe(refusal) : "the connection ended before the answer");
    this.name = "RefusedError";
  }
}

function describe(refusal: Refusal): string {
  return refusal.text ? `${refusal.name}: ${refusal.text}` : refusal.name;
}

interface Waiting {
  resolve(value: never): void;
  reject(error: Error): void;
}

/**
 * Connects to a server, now and whenever the connection breaks, until {@link Client.close}.
 *
 * @param url Where the server is, such as `wss://chat.example`.
 * @throws ClientError if the URL or an option is wrong, or there is no WebSocket.
 */
export function connect(url: string, options: ClientOptions): Client {
  return new Client(url, options);
}

export class Client {
  private readonly core: Core;
  private readonly socketClass: NonNullable<ClientOptions["WebSocket"]>;
  private readonly waitingBytesMax: number;
  private readonly automatic: boolean;
  private readonly connectMs: number;
  private socket: WebSocketLike | undefined;
  private isOpen = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private scheduled = false;
  private readonly memberships = new Map<string, Membership>();
  private readonly publishes = new Map<number, Waiting>();
  private readonly queries = new Map<number, Waiting>();
  private readonly pages = new Map<number, StateChanges>();
  private readonly listeners = new Map<string, Set<(event: never) => void>>();
  private waitingBytes = 0;
  private openUntil = 0;
  private readonly token: ClientOptions["token"];
  /** Not asked for before this time; undefined while it is. */
  private tokenAt: number | undefined;
  /** There is a token for the next connect, or none is needed. */
  private hasToken = false;
  private ended!: (reason: Reason) => void;
  /** Settles with the reason once the client has ended. */
  readonly closed: Promise<Reason>;

  constructor(private readonly url: string, options: ClientOptions) {
    const socketClass = options.WebSocket ?? (globalThis.WebSocket as unknown as ClientOptions["WebSocket"]);
    if (!socketClass) throw new ClientError("range", "there is no WebSocket here; give one in the options");
    // With a token a WebSocket is made later, when nobody would see that it throws.
    if (!isUsable(url)) throw new ClientError("range", `${url} is no URL of a WebSocket; use one such as wss://chat.example`);
    this.socketClass = socketClass;
    this.core = new Core(options, options.resume);
    this.automatic = (options.acks ?? "automatic") === "automatic";
    this.waitingBytesMax = options.waitingBytesMax ?? 8 << 20;
    this.connectMs = options.answerTimeoutMs ?? 10_000;
    this.closed = new Promise((resolve) => (this.ended = resolve));
    this.token = options.token;
    this.tokenAt = now();
    this.turn();
  }

  /**
   * Joins a group and stays in it over reconnects. Loop over what it returns to get the messages,
   * and do so: what is not taken is kept, up to `waitingBytesMax`.
   */
  join(group: string, options: JoinOptions = {}): Membership {
    const { durable = false, roster = false } = options;
    const from = options.from === undefined ? (durable ? "cursor" : "tail") : Math.max(1, options.from);
    this.core.join(group, { durable, from, roster });
    let membership = this.memberships.get(group);
    if (!membership) {
      membership = new Membership(group, this.automatic, {
        leave: () => (this.core.leave(group), this.schedule()),
        handled: (epoch, seq) => (this.core.handled(group, epoch, seq, now()), this.schedule()),
        taken: (message) => this.taken(message.payload.length + MESSAGE_COST),
        tell: (event) => this.tell(event),
      });
      this.memberships.set(group, membership);
    }
    this.schedule();
    return membership;
  }

  /**
   * Publishes to a group, which need not be joined. The promise is fulfilled when the message has its
   * place; until then it is sent again as often as it takes, and the server keeps one copy. It is
   * rejected with a {@link PublishError}, or with a {@link ClientError} if nothing was sent.
   */
  async publish(group: string, payload: string | Uint8Array, how: Publishing = {}): Promise<Published> {
    return this.wait(this.publishes, this.core.publish(group, payload, how));
  }

  /** Publishes that have no answer yet. */
  get unanswered(): number {
    return this.core.unanswered;
  }

  /**
   * Reads a page of history, whether or not the group is joined: messages `from` to `to`, or to the
   * end. `next` of the answer says where the next page begins.
   */
  fetch(group: string, from: number, options: { to?: number; countMax?: number } = {}): Promise<Page> {
    return this.wait(this.queries, this.core.fetch(group, from, options.to, options.countMax));
  }

  /**
   * Sets a key of a group's state, or deletes it (null), if it is as expected: "any", "absent", or a
   * version. The answer is a conflict if it is not.
   */
  setState(
    group: string, key: string, value: string | Uint8Array | null, expected: Expected = "any",
  ): Promise<({ type: "stateSet" } & Events["stateSet"]) | ({ type: "conflict" } & Events["conflict"])> {
    const data = value === null ? null : toBytes(value);
    return this.wait(this.queries, this.core.setState(group, key, data, expected));
  }

  /** What changed in a group's state since version `known`, or all of it. */
  sync(group: string, known = 0): Promise<StateChanges> {
    return this.wait(this.queries, this.core.sync(group, known));
  }

  /** The state of a group as this client knows it. */
  state(group: string): SharedState {
    return new SharedState(this, group);
  }

  /** Who is on the roster of a group: its durable members. With `limit` 0 the counts alone. */
  roster(group: string, options: { known?: number; after?: number; limit?: number } = {}): Promise<RosterPage> {
    const { known = 0, after = 0, limit = 100 } = options;
    return this.wait(this.queries, this.core.roster(group, known, after, limit));
  }

  /** Calls `listener` for each event of this name. Returns a function that ends that. */
  on<K extends keyof Omit<Events, "message">>(type: K, listener: (event: Events[K]) => void): () => void {
    const listeners = this.listeners.get(type) ?? new Set();
    this.listeners.set(type, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /** What to keep for the option `resume`. */
  toResume(): Resume {
    return this.core.toResume();
  }

  /**
   * Acknowledges what was handled and closes the connection. Publishes without an answer are given up:
   * wait for them before.
   */
  close(): Promise<Reason> {
    this.core.close(now());
    this.schedule();
    return this.closed;
  }

  // ---- the connection ----

  private open(): void {
    let socket: WebSocketLike;
    try {
      socket = new this.socketClass(this.url, [SUBPROTOCOL]);
    } catch (error) {
      // Such as that a page may not connect there.
      this.core.fail(`${error}`);
      this.core.disconnected(now());
      return this.turn();
    }
    this.socket = socket;
    this.openUntil = now() + this.connectMs;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.isOpen = true;
      this.core.connected(now());
      this.turn();
    };
    socket.onmessage = ({ data }: { data: unknown }) => {
      // Text is not spoken here; the frames' own checks refuse it.
      this.core.receive(typeof data === "string" ? toBytes(data) : new Uint8Array(data as ArrayBuffer));
      this.turn();
    };
    socket.onclose = ({ code, reason }: { code?: number; reason?: string }) => {
      if (code === TOO_BIG) this.core.fail(`a message is too big on its way (close code ${code}, "${reason}")`);
      this.lost();
    };
    // Node 20 tells of a connection that was refused by this alone, and of no close.
    socket.onerror = () => {
      if (this.socket === socket && !this.isOpen) this.lost();
    };
    this.schedule();
  }

  private lost(): void {
    this.drop();
    this.core.disconnected(now());
    this.turn();
  }

  private drop(): void {
    const { socket } = this;
    [this.socket, this.isOpen] = [undefined, false];
    if (!socket) return;
    [socket.onopen, socket.onmessage, socket.onclose] = [null, null, null];
    // Sends what it holds first.
    socket.close(1000);
  }

  /** Has {@link turn} called soon, once for all that is done until then. */
  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    queueMicrotask(() => this.turn());
  }

  /** Gives out events, does what is due, sends, and sees to the connection. */
  private turn(): void {
    this.scheduled = false;
    clearTimeout(this.timer);
    for (;;) {
      const at = now();
      for (let event = this.core.nextEvent(at); event; event = this.core.nextEvent(at)) this.take(event);
      this.core.advance(at);
      this.send();
      const link = this.core.link();
      if (link.kind === "over") return this.end();
      if (link.kind === "close") {
        this.drop();
        this.core.disconnected(at);
      } else if (link.kind === "connect" && this.socket) {
        if (at < this.openUntil) return this.wake(this.openUntil);
        this.drop();
        this.core.disconnected(at);
      } else if (link.kind === "connect") {
        if (this.isFull(this.waitingBytesMax / 2)) return;
        if (at < link.at) return this.wake(link.at);
        if (this.token !== undefined && !this.hasToken) return this.getToken(at, this.token);
        this.hasToken = false;
        return this.open();
      } else {
        if (this.token !== undefined && this.core.tokenIsDue(at)) this.getToken(at, this.token);
        const due = this.core.deadline();
        if (this.core.outputBytes > 0) this.wake(at + BUFFERED_LOOK_MS);
        else if (due !== undefined) this.wake(due);
        return;
      }
    }
  }

  /** Asks for the newest token; {@link turn} goes on when it is there. */
  private getToken(at: number, token: NonNullable<ClientOptions["token"]>): void {
    if (this.tokenAt === undefined) return;
    if (at < this.tokenAt) return this.wake(this.tokenAt);
    this.tokenAt = undefined;
    const renews = typeof token === "function";
    const got = (async () => this.core.setToken(renews ? await token() : token, renews))();
    got.then(
      () => [this.tokenAt, this.hasToken] = [now(), this.core.link().kind === "connect"],
      (error: unknown) => {
        this.tokenAt = now() + TOKEN_AGAIN_MS;
        this.tell({ type: "tokenFailed", error });
      },
    ).finally(() => this.schedule());
  }

  private wake(at: number): void {
    // Browsers take no more than 31 bits.
    this.timer = setTimeout(() => this.turn(), Math.min(Math.max(0, at - now()), 0x7fff_ffff));
  }

  private send(): void {
    const { socket } = this;
    while (this.isOpen && socket && this.core.outputBytes > 0 && socket.bufferedAmount < BUFFERED_ENOUGH) {
      const frames = this.core.takeOutput(OUT_ENOUGH);
      const message = new Uint8Array(frames.reduce((sum, frame) => sum + frame.length, 0));
      let at = 0;
      for (const frame of frames) {
        message.set(frame, at);
        at += frame.length;
      }
      socket.send(message);
      // Publishes may have waited for the room.
      this.core.advance(now());
    }
  }

  private end(): void {
    this.drop();
    for (const { reject } of this.publishes.values()) reject(new PublishError({ kind: "closed" }));
    for (const { reject } of this.queries.values()) reject(new RefusedError(null));
    for (const membership of this.memberships.values()) membership.ended();
    for (const map of [this.publishes, this.queries, this.pages, this.memberships]) map.clear();
  }

  // ---- events ----

  private wait<T>(map: Map<number, Waiting>, id: number): Promise<T> {
    this.schedule();
    return new Promise<T>((resolve, reject) => map.set(id, { resolve: resolve as (value: never) => void, reject }));
  }

  private settle(map: Map<number, Waiting>, id: number, value: unknown): void {
    const waiting = map.get(id);
    map.delete(id);
    if (value instanceof Error) waiting?.reject(value);
    else waiting?.resolve(value as never);
  }

  private isFull(max: number): boolean {
    return this.waitingBytes > max;
  }

  private taken(bytes: number): void {
    const wasFull = this.isFull(this.waitingBytesMax / 2);
    this.waitingBytes -= bytes;
    if (wasFull && !this.isFull(this.waitingBytesMax / 2)) this.schedule();
  }

  private take(event: Event): void {
    switch (event.type) {
      case "message": {
        const { message } = event;
        const membership = this.memberships.get(message.group);
        if (!membership) return;
        this.waitingBytes += message.payload.length + MESSAGE_COST;
        if (this.isFull(this.waitingBytesMax)) this.core.overrun();
        return membership.push(event);
      }
      case "gap":
      case "epochChanged":
        // Told when the messages before it are taken.
        return this.memberships.get(event.group)?.push(event);
      case "joined":
        this.memberships.get(event.group)?.admitted();
        break;
      case "joinFailed":
      case "left":
        this.memberships.get(event.group)?.ended(event.type === "left" ? undefined : new RefusedError(event.error));
        this.memberships.delete(event.group);
        break;
      case "published":
        this.settle(this.publishes, event.id, event);
        break;
      case "publishFailed":
        this.settle(this.publishes, event.id, new PublishError(event.error));
        break;
      case "state": {
        const before = this.pages.get(event.id);
        // A snapshot makes void what came before it.
        const entries = event.form === "snapshot" && before?.form !== "snapshot" ? [] : (before?.entries ?? []);
        const { form, version } = event;
        const changes = { form, version, entries: [...entries, ...event.entries] };
        if (event.more) this.pages.set(event.id, changes);
        else {
          this.pages.delete(event.id);
          this.settle(this.queries, event.id, changes);
        }
        break;
      }
      case "queryFailed":
        this.pages.delete(event.id);
        this.settle(this.queries, event.id, new RefusedError(event.error));
        break;
      case "fetched":
      case "stateSet":
      case "conflict":
        this.settle(this.queries, event.id, event);
        break;
      case "roster":
        if (event.id !== null) this.settle(this.queries, event.id, event);
        break;
      case "disconnected":
        if (event.retryInMs === null) this.ended(event.reason);
        break;
    }
    this.tell(event);
  }

  private tell(event: Event): void {
    for (const listener of this.listeners.get(event.type) ?? []) {
      try {
        listener(event as never);
      } catch (error) {
        // As for any listener: the others and this client go on.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}

/** Whether a WebSocket takes this URL. */
function isUsable(url: string): boolean {
  try {
    const { protocol, hash } = new URL(url);
    return ["ws:", "wss:"].includes(protocol) && hash === "";
  } catch {
    return false;
  }
}

function now(): number {
  return performance.now();
}
