/** The state of a group, kept in step with the server. */

import type { Client } from "./client.js";
import type { StateEntry, StateForm } from "./events.js";
import { toText } from "./wire.js";

/** What changed in a group's state. */
export interface StateChanges {
  /** "snapshot": `entries` is all there is, what was known is void. */
  form: StateForm;
  /** Version of the state with these changes. */
  version: number;
  entries: StateEntry[];
}

/**
 * The state of a group as this client knows it. Changes of others come with {@link sync}: the server
 * does not announce them, so publish a message after a change, and call it when one comes.
 */
export class SharedState {
  private readonly keys = new Map<string, StateEntry>();
  /** Version of what is known; 0 before the first {@link sync}. */
  version = 0;

  /** @internal */
  constructor(private readonly client: Client, readonly group: string) {}

  /** Gets what changed since the last time. */
  async sync(): Promise<StateChanges> {
    const changes = await this.client.sync(this.group, this.version);
    if (changes.form === "snapshot") this.keys.clear();
    for (const entry of changes.entries) {
      if (entry.data) this.keys.set(entry.key, entry);
      else this.keys.delete(entry.key);
    }
    if (changes.form !== "up_to_date") this.version = changes.version;
    return changes;
  }

  get(key: string): Uint8Array | undefined {
    return this.keys.get(key)?.data ?? undefined;
  }

  /** The value as text. */
  text(key: string): string | undefined {
    const value = this.get(key);
    return value && toText(value);
  }

  entries(): IterableIterator<[string, StateEntry]> {
    return this.keys.entries();
  }

  /**
   * Sets a key, or deletes it (null), if nobody else has changed it since {@link sync}. Returns whether
   * it was set; either way what the server has is known here then.
   */
  async set(key: string, value: string | Uint8Array | null): Promise<boolean> {
    const expected = this.keys.get(key)?.version ?? "absent";
    const answer = await this.client.setState(this.group, key, value, expected);
    await this.sync();
    return answer.type === "stateSet";
  }
}
