// The client on a WebSocket, against a server that the test plays.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ClientError, connect, PublishError, RefusedError } from "../dist/index.js";
import { decode, encode, split } from "./frames.js";

const until = async (what, condition) => {
  for (let i = 0; i < 6000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail(what);
};

/** A WebSocket and the server at its other end. */
class Fake {
  static made = [];
  binaryType = "blob";
  bufferedAmount = 0;
  frames = [];
  isClosed = false;
  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    Fake.made.push(this);
  }
  send(message) {
    this.frames.push(...split(Buffer.from(message)).map(decode));
  }
  close() {
    this.isClosed = true;
  }
  // ---- the server ----
  accept(welcome = {}) {
    this.onopen({});
    this.say(["WELCOME", welcome]);
    return this;
  }
  say(...frames) {
    const bytes = Buffer.concat(frames.map(([name, values]) => encode(name, values)));
    this.onmessage({ data: new Uint8Array(bytes).buffer });
  }
  /** The next frame of this kind. */
  async heard(name) {
    await until(`no ${name}`, () => this.frames.some((frame) => frame.frame === name));
    return this.frames.splice(this.frames.findIndex((frame) => frame.frame === name), 1)[0];
  }
  async admit(values) {
    const { request } = await this.heard("JOIN");
    this.say(["JOINED", { request, first: 1, handle: 7, ...values }], ["EPOCH", { epoch: 1, handle: 7, first: 1 }]);
  }
  deliver(...seqs) {
    this.say(...seqs.map((seq) => ["DELIVER", { handle: 7, seq, stamp: seq * 65536, payload: `m${seq}` }]));
  }
}

function start(options = {}) {
  Fake.made = [];
  const client = connect("ws://here", { member: "ann", backoffMinMs: 2, WebSocket: Fake, ...options });
  const [socket] = Fake.made;
  return { client, socket };
}

const again = async (count) => {
  await until("no reconnect", () => Fake.made.length === count);
  return Fake.made[count - 1];
};

test("a loop over a group gets its messages, and asking for the next acknowledges the one before", async () => {
  const { client, socket } = start();
  assert.deepEqual([socket.url, socket.protocols, socket.binaryType], ["ws://here", ["fanfare.binary.v1"], "arraybuffer"]);
  const lobby = client.join("lobby", { durable: true });
  socket.accept({ ack_every: 1 });
  await socket.admit({ group: "lobby" });
  await lobby.joined;
  socket.deliver(1, 2);
  const first = (await lobby.next()).value;
  assert.deepEqual([first.group, first.epoch, first.seq, first.sender, first.text()], ["lobby", 1, 1, "bob", "m1"]);
  assert.equal(first.time.getTime(), 1);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(!socket.frames.some(({ frame }) => frame === "ACK"), "the first one is still worked on");
  assert.equal((await lobby.next()).value.seq, 2);
  assert.equal(Number((await socket.heard("ACK")).entries[0].seq), 1);
  const third = lobby.next();
  assert.equal(Number((await socket.heard("ACK")).entries[0].seq), 2);
  lobby.leave();
  socket.say(["LEFT", { request: (await socket.heard("LEAVE")).request, handle: 7 }]);
  assert.deepEqual(await third, { done: true, value: undefined });
  assert.equal((await client.close()).kind, "closed");
  assert.ok(socket.isClosed);
});

test("explicit acknowledgements are sent when the application says so", async () => {
  const { client, socket } = start({ acks: "explicit" });
  const lobby = client.join("lobby", { durable: true });
  socket.accept({ ack_every: 1 });
  await socket.admit({ group: "lobby" });
  socket.deliver(1, 2, 3);
  const messages = [await lobby.next(), await lobby.next(), await lobby.next()].map(({ value }) => value);
  assert.ok(!socket.frames.some(({ frame }) => frame === "ACK"));
  lobby.ack(messages[1]);
  assert.equal(Number((await socket.heard("ACK")).entries[0].seq), 2);
  await client.close();
});

test("a gap is told when the messages before it are taken", async () => {
  const { client, socket } = start();
  const told = [];
  client.on("gap", ({ from, to }) => told.push([from, to]));
  const lobby = client.join("lobby");
  socket.accept();
  await socket.admit({ group: "lobby" });
  socket.deliver(1);
  socket.say(["GAP", { handle: 7, from: 2, to: 4 }]);
  socket.deliver(5);
  assert.equal((await lobby.next()).value.seq, 1);
  assert.deepEqual(told, []);
  assert.equal((await lobby.next()).value.seq, 5);
  assert.deepEqual(told, [[2, 4]]);
  await client.close();
});

test("a publish is sent again after the connection broke, and its promise gets the place", async () => {
  const { client, socket } = start();
  const published = client.publish("lobby", "hi");
  socket.accept();
  const first = await socket.heard("PUBLISH");
  socket.onclose({});
  const next = (await again(2)).accept();
  const second = await next.heard("PUBLISH");
  assert.deepEqual([second.producer_seq, second.payload], [first.producer_seq, first.payload]);
  assert.equal(client.unanswered, 1);
  next.say(["PUBLISHED", { request: second.request, handle: 7, producer_seq: 1, seq: 9 }]);
  const { seq, level } = await published;
  assert.deepEqual([seq, level, client.unanswered], [9, "durable", 0]);
  await client.close();
});

test("a buffer may be used again after a publish, also when that is sent again", async () => {
  const { client, socket } = start();
  for (const buffer of [new Uint8Array([1, 2]), Buffer.from([1, 2])]) {
    client.publish("lobby", buffer).catch(() => {});
    buffer.fill(9);
  }
  socket.accept();
  const heard = async (peer) => [(await peer.heard("PUBLISH")).payload, (await peer.heard("PUBLISH")).payload];
  assert.deepEqual(await heard(socket), [Buffer.from([1, 2]), Buffer.from([1, 2])]);
  socket.onclose({});
  assert.deepEqual(await heard((await again(2)).accept()), [Buffer.from([1, 2]), Buffer.from([1, 2])]);
  await client.close();
});

test("member and producer ids stay what they were at the start", async () => {
  const [member, producer] = [Buffer.from("ann"), Buffer.alloc(16, 7)];
  const { client, socket } = start({ member, producer });
  member.fill(0);
  producer.fill(0);
  const hello = await socket.accept().heard("HELLO");
  assert.deepEqual([`${hello.member}`, hello.producer], ["ann", Buffer.alloc(16, 7)]);
  await client.close();
});

test("what is refused rejects, and what has no answer at the end too", async () => {
  const { client, socket } = start({ publishesMax: 2 });
  const lobby = client.join("lobby");
  const [one, two] = [client.publish("lobby", "1"), client.publish("lobby", "2")];
  await assert.rejects(client.publish("lobby", "3"), (error) => error instanceof ClientError && error.kind === "full");
  socket.accept();
  socket.say(["ERROR", { request: (await socket.heard("JOIN")).request, code: 104, field: "lobby", text: "no room" }]);
  await assert.rejects(lobby.next(), (error) => error instanceof RefusedError && /TooManyMembers: no room/.test(error.message));
  await assert.rejects(lobby.joined, RefusedError);
  socket.say(["ERROR", { request: (await socket.heard("PUBLISH")).request, code: 103, text: "no" }]);
  await assert.rejects(one, (error) => error instanceof PublishError && error.failure.kind === "refused");
  const sync = client.sync("lobby");
  const over = [assert.rejects(two, PublishError), assert.rejects(sync, RefusedError)];
  await client.close();
  await Promise.all(over);
  await assert.rejects(client.publish("lobby", "4"), (error) => error.kind === "over");
});

test("a replaced client ends its loops and does not come back", async () => {
  const { client, socket } = start();
  const lobby = client.join("lobby", { durable: true });
  socket.accept();
  await socket.admit({ group: "lobby" });
  const next = lobby.next();
  socket.say(["ERROR", { code: 13 }]);
  assert.deepEqual(await next, { done: true, value: undefined });
  assert.deepEqual(await client.closed, { kind: "replaced" });
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(Fake.made.length, 1);
});

test("more than the application takes ends the connection, which comes back for the rest when half is taken", async () => {
  const { client, socket } = start({ waitingBytesMax: 1000 });
  const reasons = [];
  client.on("disconnected", ({ reason }) => reasons.push(reason.kind));
  const lobby = client.join("lobby");
  socket.accept();
  await socket.admit({ group: "lobby" });
  socket.deliver(...Array.from({ length: 20 }, (_, i) => i + 1));
  await until("still connected", () => socket.isClosed);
  assert.deepEqual(reasons, ["overrun"]);
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(Fake.made.length, 1, "nothing was taken yet");
  const got = [];
  for (let i = 0; i < 8; i++) got.push((await lobby.next()).value.seq);
  const next = (await again(2)).accept();
  const join = await next.heard("JOIN");
  assert.equal(Number(join.entries[0].from), 9, "after the last one that it has");
  next.say(["JOINED", { request: join.request, handle: 7, first: 9, group: "lobby" }], ["EPOCH", { epoch: 1, handle: 7, first: 9 }]);
  next.deliver(9, 10);
  got.push((await lobby.next()).value.seq, (await lobby.next()).value.seq);
  assert.deepEqual(got, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  await client.close();
});

test("nothing is sent into a socket that is full, and it goes on when there is room", async () => {
  const { client, socket } = start();
  socket.accept();
  await socket.heard("HELLO");
  socket.bufferedAmount = 2 << 20;
  client.publish("lobby", "hi").catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.deepEqual(socket.frames, []);
  socket.bufferedAmount = 0;
  await socket.heard("PUBLISH");
  await client.close();
});

test("a connect that takes too long is given up", async () => {
  const { client, socket } = start({ answerTimeoutMs: 30 });
  await again(2);
  assert.ok(socket.isClosed);
  await client.close();
});

test("the shared state follows changes, pages and conflicts", async () => {
  const { client, socket } = start();
  socket.accept();
  const state = client.state("lobby");
  const answer = async (...frames) => {
    const { request, known } = await socket.heard("SYNC");
    socket.say(...frames.map((frame) => ["STATE", { request, handle: 7, ...frame }]));
    return Number(known);
  };
  let sync = state.sync();
  await answer(
    { form: 1, more: 1, version: 3, entries: [{ version: 1, key: "void", data: "x" }] },
    { form: 2, more: 1, version: 3, entries: [{ version: 2, key: "topic", data: "cats" }] },
    { form: 2, version: 3, entries: [{ version: 3, key: "mood", data: "good" }] },
  );
  await sync;
  assert.deepEqual([...state.entries()].map(([key]) => key), ["topic", "mood"]);
  const set = state.set("topic", "dogs");
  const { request, expected } = await socket.heard("SET_STATE");
  assert.equal(Number(expected), 2);
  socket.say(["CONFLICT", { request, handle: 7, version: 5, data: "birds" }]);
  const known = await answer({ form: 1, version: 5, entries: [{ version: 4, key: "mood", flags: 2 }, { version: 5, key: "topic", data: "birds" }] });
  assert.deepEqual([known, await set, state.text("topic"), state.get("mood"), state.version], [3, false, "birds", undefined, 5]);
  sync = state.sync();
  await answer({ form: 0, version: 5 });
  await sync;
  assert.equal(state.text("topic"), "birds");
  await client.close();
});

test("a token is sent with each connection, renewed when the server wants it, and asked for again when that fails", async () => {
  const tokens = ["one", "two", new Error("no"), "three"];
  const failures = [];
  const { client } = start({
    token: async () => {
      const token = tokens.shift();
      if (token instanceof Error) throw token;
      return token;
    },
  });
  client.on("tokenFailed", ({ error }) => failures.push(error.message));
  const socket = (await again(1)).accept();
  const auth = await socket.heard("AUTH");
  assert.equal(`${auth.token}`, "one");
  socket.say(["AUTHED", { request: auth.request, valid_ms: 1000, renew_after_ms: 20 }]);
  const renewed = await socket.heard("AUTH");
  assert.equal(`${renewed.token}`, "two");
  socket.say(["AUTHED", { request: renewed.request, valid_ms: 0 }]);
  socket.say(["ERROR", { code: 15 }]);
  const next = (await again(2)).accept();
  assert.equal(`${(await next.heard("AUTH")).token}`, "three");
  assert.deepEqual([failures, tokens], [["no"], []]);
  await client.close();
});

test("a message that is too big on its way ends the client, which says so", { timeout: 5_000 }, async () => {
  const { client, socket } = start();
  const lost = assert.rejects(client.publish("lobby", "hi"), (error) => error.failure.kind === "closed");
  await socket.accept().heard("PUBLISH");
  socket.onclose({ code: 1009, reason: "more than 64 KiB" });
  const { kind, what } = await client.closed;
  assert.equal(kind, "failed");
  assert.match(what, /1009.*more than 64 KiB/);
  await lost;
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(Fake.made.length, 1);
});

for (const [how, token] of [["without a token", undefined], ["with a token", "one"], ["with a source of tokens", async () => "one"]]) {
  test(`a URL that cannot be used is an error at once, ${how}`, () => {
    for (const url of ["here", "http://here", "ws://", "ws://here/#there"]) {
      const wrong = (error) => error instanceof ClientError && error.kind === "range" && error.message.includes(url);
      assert.throws(() => connect(url, { member: "ann", token, WebSocket: Fake }), wrong);
    }
  });

  test(`a WebSocket that cannot be made ends the client, ${how}`, { timeout: 5_000 }, async () => {
    class Forbidden {
      constructor() {
        throw new Error("not from this page");
      }
    }
    const client = connect("ws://here", { member: "ann", token, WebSocket: Forbidden });
    assert.deepEqual(await client.closed, { kind: "failed", what: "Error: not from this page" });
    await assert.rejects(client.publish("lobby", "hi"), (error) => error.kind === "over");
  });
}

test("wrong options are errors at once", () => {
  assert.throws(() => connect("ws://here", { member: "", WebSocket: Fake }), ClientError);
});
