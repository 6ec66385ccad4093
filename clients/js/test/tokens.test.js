// The client and a real server that takes nobody without a token.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, PublishError } from "../dist/index.js";
import { Server } from "./server.js";

/** A server with keys, and clients that are closed with it. */
async function withKeys(play) {
  const server = await Server.start({ keys: true });
  const clients = [];
  const join = (member, token) => {
    const client = connect(server.url, { member, token, backoffMinMs: 100 });
    clients.push(client);
    return client;
  };
  try {
    await play(server, join);
  } finally {
    for (const client of clients) await client.close();
    await server.close();
  }
}

test("a connection outlives its token if there is a source of others", { timeout: 60_000 }, async () => {
  await withKeys(async (server, join) => {
    const asked = [];
    const connected = [];
    const [ann, bob] = [["ann", "--publish"], ["bob", "--join"]].map(([member, right]) => {
      const client = join(member, () => {
        asked.push(member);
        return server.token(["--for", "6s", right, "room", member]);
      });
      client.on("connected", () => connected.push(member));
      return client;
    });
    const room = bob.join("room");
    await room.joined;
    await ann.publish("room", "with the first token");
    assert.equal((await room.next()).value.text(), "with the first token");
    await new Promise((resolve) => setTimeout(resolve, 6_500));
    await ann.publish("room", "with another one");
    assert.equal((await room.next()).value.text(), "with another one");
    assert.deepEqual(connected.sort(), ["ann", "bob"]);
    for (const member of ["ann", "bob"]) assert.ok(asked.filter((one) => one === member).length >= 2, `${asked}`);
  });
});

test("a token without the right to publish gets Forbidden for it, and nothing else", { timeout: 60_000 }, async () => {
  await withKeys(async (server, join) => {
    const ann = join("ann", await server.token(["--join", "room", "ann"]));
    const room = ann.join("room");
    await room.joined;
    const forbidden = ({ failure: { kind, refusal } }) => kind === "refused" && refusal.name === "Forbidden" && refusal.field === "room";
    await assert.rejects(ann.publish("room", "hi"), (error) => error instanceof PublishError && forbidden(error));
    const bob = join("bob", await server.token(["--publish", "room", "bob"]));
    await bob.publish("room", "hi");
    assert.equal((await room.next()).value.sender, "bob");
  });
});

test("a token of another key ends the client, which says why", { timeout: 60_000 }, async () => {
  await withKeys(async (server, join) => {
    const foreign = await server.token(["--publish", "room", "ann"], server.newKeys("others"));
    const ann = join("ann", foreign);
    await assert.rejects(ann.publish("room", "hi"), (error) => error.failure.kind === "closed");
    const { kind, refusal } = await ann.closed;
    assert.deepEqual([kind, refusal.name, refusal.field], ["server", "TokenRefused", "signature"]);
    assert.notEqual(refusal.text, "");
  });
});
