/** What the application holds of a group that it joined. */

import type { Event, Message } from "./events.js";

type Item = Extract<Event, { type: "message" | "gap" | "epochChanged" }>;

/** What a membership asks of its client. */
export interface Owner {
  leave(): void;
  handled(epoch: number, seq: number): void;
  taken(message: Message): void;
  tell(event: Event): void;
}

/**
 * The messages of a group, each once and in order:
 *
 * ```js
 * for await (const message of client.join("lobby")) console.log(message.text());
 * ```
 *
 * The loop ends when the group was left or the client has ended, and throws if the group could not be
 * joined. Gaps and changes of the epoch are told to listeners when the messages before them are taken.
 */
export class Membership implements AsyncIterableIterator<Message> {
  private readonly items: Item[] = [];
  private current: { epoch: number; seq: number } | undefined;
  private wake: (() => void)[] = [];
  private over = false;
  private error: Error | undefined;
  private settleJoined!: { resolve: () => void; reject: (error: Error) => void };
  /** Fulfilled when the server has taken the member, rejected if it does not. */
  readonly joined: Promise<void>;

  /** @internal */
  constructor(
    readonly group: string,
    private readonly automatic: boolean,
    private readonly owner: Owner,
  ) {
    this.joined = new Promise((resolve, reject) => (this.settleJoined = { resolve, reject }));
    // Who only loops gets the error there.
    this.joined.catch(() => {});
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** The next message. With automatic acknowledgement the one before counts as handled. */
  async next(): Promise<IteratorResult<Message, undefined>> {
    this.settle();
    for (;;) {
      const item = this.items.shift();
      if (!item) {
        if (this.error) throw this.error;
        if (this.over) return { done: true, value: undefined };
        await new Promise<void>((resolve) => this.wake.push(resolve));
        continue;
      }
      if (item.type === "message") {
        const { message } = item;
        if (!this.over) this.owner.taken(message);
        this.current = { epoch: message.epoch, seq: message.seq };
        return { done: false, value: message };
      }
      this.owner.tell(item);
      if (item.type === "gap" && this.automatic) this.owner.handled(item.epoch, item.to);
    }
  }

  /** A loop was left. Its last message does not count as handled; another loop goes on after it. */
  async return(): Promise<IteratorResult<Message, undefined>> {
    this.current = undefined;
    return { done: true, value: undefined };
  }

  private settle(): void {
    const { current } = this;
    this.current = undefined;
    if (current && this.automatic && !this.over) this.owner.handled(current.epoch, current.seq);
  }

  /** Acknowledges a message and all before it, for the option `acks: "explicit"`. */
  ack(message: Message): void {
    this.owner.handled(message.epoch, message.seq);
  }

  /** Leaves the group. A durable member that leaves is forgotten by the server. */
  leave(): void {
    this.owner.leave();
  }

  /** @internal */
  push(item: Item): void {
    this.items.push(item);
    this.wakeAll();
  }

  /** @internal */
  admitted(): void {
    this.settleJoined.resolve();
  }

  /** @internal */
  ended(error?: Error): void {
    // What is left may be taken, but no longer counts as waiting.
    if (!this.over) for (const item of this.items) if (item.type === "message") this.owner.taken(item.message);
    this.over = true;
    this.error = error;
    this.settleJoined.reject(error ?? new Error("the group was left"));
    this.wakeAll();
  }

  private wakeAll(): void {
    for (const wake of this.wake.splice(0)) wake();
  }
}
