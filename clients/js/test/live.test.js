// The client speaks the conversations with a real server, by its own messages, in JSON, and by TLS; see
// tests/conversations/README.md.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { connect } from "../dist/index.js";
import { bytesOf, conversations } from "./frames.js";
import { JsonSocket } from "./json.js";
import { check, plain } from "./script.js";
import { Server } from "./server.js";

const TYPES = [
  "connected", "joined", "joinFailed", "left", "epochChanged", "gap", "redelivery", "producerRenewed", "published",
  "publishFailed", "publishHeld", "receipt", "fetched", "state", "stateSet", "conflict", "roster", "queryFailed",
  "serverError", "draining", "disconnected",
];

/** A client whose events are kept by their names. */
class Actor {
  events = new Map();
  memberships = new Map();

  constructor(url, { member }, WebSocket) {
    this.client = connect(url, { member, backoffMinMs: 100, backoffMaxMs: 500, WebSocket });
    for (const type of TYPES) this.client.on(type, (event) => this.keep(plain({ ...event, type })));
  }

  keep(event) {
    const kept = this.events.get(event.type) ?? [];
    kept.push(event);
    this.events.set(event.type, kept);
  }

  async loop(membership) {
    for await (const message of membership) this.keep(plain({ type: "message", message }));
    this.memberships.delete(membership.group);
  }

  do({ do: what, group, ...args }) {
    const { client } = this;
    const data = (value) => (value === null ? null : bytesOf(value));
    const expected = args.expected ?? "any";
    switch (what) {
      case "join": {
        const membership = client.join(group, args);
        if (!this.memberships.has(group)) this.loop(membership);
        return this.memberships.set(group, membership);
      }
      case "leave": return this.memberships.get(group).leave();
      case "publish": return client.publish(group, bytesOf(args.payload), args).catch(() => {});
      case "fetch": return client.fetch(group, args.from, { to: args.to, countMax: args.count_max });
      case "set_state": return client.setState(group, args.key, data(args.data), expected);
      case "sync": return client.sync(group, args.known);
      case "roster": return client.roster(group, args);
      default: assert.fail(what);
    }
  }

  async event(type, expected, names) {
    for (let i = 0; !this.events.get(type)?.length; i++) {
      assert.ok(i < 6000, `no event ${type}; there are ${[...this.events.keys()]}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    check(this.events.get(type).shift(), expected, names, type);
  }
}

const ways = [
  { by: "binary messages" },
  { by: "JSON", WebSocket: JsonSocket },
  { by: "binary messages and TLS", tls: true },
  { by: "JSON and TLS", WebSocket: JsonSocket, tls: true },
];
const folder = new URL("live/", conversations);
const files = readdirSync(folder).sort();
for (const { by, WebSocket, tls, file } of ways.flatMap((way) => files.map((file) => ({ ...way, file })))) {
  test(`live conversation ${file} by ${by}`, { timeout: 60_000 }, async () => {
    const server = await Server.start({ tls });
    const actors = new Map();
    const names = new Map();
    try {
      const { steps } = JSON.parse(readFileSync(new URL(file, folder), "utf8"));
      for (const [i, step] of steps.entries()) {
        const { as, event, no, start, server: what, ...fields } = step;
        try {
          if (what === "start") await server.run();
          else if (what) await server.end(what === "kill" ? "SIGKILL" : "SIGTERM");
          else if (start) actors.set(as, new Actor(server.url, start, WebSocket));
          else if (event) await actors.get(as).event(event, fields, names);
          else if (no) {
            await new Promise((resolve) => setTimeout(resolve, 200));
            assert.deepEqual(actors.get(as).events.get(no) ?? [], []);
          } else actors.get(as).do(fields);
        } catch (error) {
          error.message = `step ${i + 1} ${JSON.stringify(step)}: ${error.message}`;
          throw error;
        }
      }
    } finally {
      for (const { client } of actors.values()) await client.close();
      await server.close();
    }
  });
}
