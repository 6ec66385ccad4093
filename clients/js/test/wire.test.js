// The codec against the bytes of PROTOCOL.md, read from that page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Core } from "../dist/index.js";
import * as wire from "../dist/wire.js";
import { decode as byTable, encode, examples, split } from "./frames.js";
import { fromJson, toJson } from "./json.js";

const bytes = (text) => new TextEncoder().encode(text);
const hex = (value) => Buffer.from(value).toString("hex");
const yes = (value) => (value ? "yes" : "no");

/** `key = value` lines as an object; `0.x` and so on as a list of entries. */
function fieldsOf(lines) {
  const fields = { entries: [] };
  for (const line of lines) {
    const [, key, value] = line.match(/^(\S+) = ?(.*)$/);
    const [, index, name] = key.match(/^(\d+)\.(.*)$/) ?? [];
    const target = index === undefined ? fields : (fields.entries[Number(index)] ??= {});
    target[name ?? key] = value;
  }
  return fields;
}

const unquoted = (value) => bytes(value.slice(1, -1));
const data = (value) => (value === "deleted" ? null : Uint8Array.from(Buffer.from(value, "hex")));

/** How the fields of the page become a frame of the client. */
const CLIENT = {
  HELLO: (f) =>
    wire.hello(unquoted(f.member), data(f.producer), Number(f.version_min), Number(f.version_max), Number(f.flags)),
  JOIN: (f) =>
    wire.join(Number(f.request), f.entries.map((e) => ({
      group: unquoted(e.group), durable: e.mode === "durable", roster: e.roster === "yes",
      start: e.start.startsWith("seq ") ? BigInt(e.start.slice(4)) : e.start,
    }))),
  LEAVE: (f) => wire.leave(Number(f.request), f.entries.map((e) => unquoted(e.group))),
  PUBLISH: (f) =>
    wire.publish(Number(f.request), unquoted(f.group), data(f.payload), BigInt(f.producer_seq), f.level, Number(f.receipt)),
  ACK: (f) =>
    wire.ack(f.entries.map((e) => ({ handle: BigInt("0x" + e.handle), seq: Number(e.seq), epoch: Number(e.epoch) }))),
  PING: (f) => wire.ping(BigInt(f.token), f.answer === "yes"),
  PROBED: (f) => wire.probed(BigInt(f.token)),
  AUTH: (f) => wire.auth(Number(f.request), unquoted(f.token)),
  FETCH: (f) =>
    wire.fetch(Number(f.request), unquoted(f.group), BigInt(f.from), f.to === "head" ? 0 : BigInt(f.to),
      Number(f.count_max), Number(f.bytes_max)),
  SET_STATE: (f) => {
    const expected = f.expected.startsWith("version ") ? Number(f.expected.slice(8)) : f.expected;
    return wire.setState(Number(f.request), unquoted(f.group), unquoted(f.key), expected, data(f.data));
  },
  SYNC: (f) => wire.sync(Number(f.request), unquoted(f.group), Number(f.known)),
  ROSTER_QUERY: (f) =>
    wire.rosterQuery(Number(f.request), unquoted(f.group), Number(f.known), Number(f.after), Number(f.limit)),
};

const handle = (value) => value.toString(16).padStart(16, "0");
const text = (value) => `"${Buffer.from(value)}"`;
const value = (data) => (data === null ? "deleted" : hex(data));

/** How a frame of the server becomes the fields of the page. */
function serverFields(f) {
  const { kind, ...rest } = f;
  switch (kind) {
    case "WELCOME": {
      const w = f.welcome;
      return {
        version: w.version, node: w.node, shard: w.shard, heartbeat_ms: w.heartbeatMs, payload_max: w.payloadMax,
        frame_max: w.frameMax, groups_per_member_max: w.groupsPerMemberMax, ack_every: w.ackEvery,
        ack_interval_ms: w.ackIntervalMs, ack_timeout_ms: w.ackTimeoutMs, publish_window: w.publishWindow,
        heartbeat_slot_ms: w.heartbeatSlotMs, producer_ttl_ms: w.producerTtlMs,
      };
    }
    case "AUTHED": return { request: f.request, valid_ms: f.validMs, renew_after_ms: f.renewAfterMs };
    case "JOINED": return { ...rest, handle: handle(f.handle), group: text(f.group) };
    case "DELIVER": {
      const d = f.deliver;
      return {
        handle: handle(d.handle), seq: d.seq, stamp: d.stamp, node: d.node, shard: d.shard, sender: text(d.sender),
        payload: hex(d.payload),
      };
    }
    case "PUBLISHED": {
      const { request, epoch, producerSeq: producer_seq, seq, level } = f;
      return { request, epoch, handle: handle(f.handle), producer_seq, seq, level };
    }
    case "ERROR": return { request: f.request, code: f.code, limit: f.limit, field: text(f.field), text: text(f.text) };
    case "DRAIN": return { grace_ms: f.graceMs, reconnect_after_ms: f.reconnectAfterMs };
    case "RECEIPT": {
      const { producerSeq: producer_seq, ...others } = rest;
      return { ...others, handle: handle(f.handle), producer_seq };
    }
    case "FETCHED": {
      const { request, epoch, first, last, head, gap, more } = f;
      const fields = { request, epoch, handle: handle(f.handle), first, last, head, more: yes(more) };
      fields.gap = gap ? `${gap.from} to ${gap.to} ${gap.reason}` : "none";
      f.messages.forEach(({ seq, stamp, sender, payload }, i) => {
        const message = { seq, stamp, sender: text(sender), payload: hex(payload) };
        for (const [key, one] of Object.entries(message)) fields[`${i}.${key}`] = one;
      });
      return fields;
    }
    case "STATE": {
      const { request, form, version } = f;
      const fields = { request, form, more: yes(f.more), handle: handle(f.handle), version };
      f.entries.forEach((e, i) => {
        const entry = { version: e.version, stamp: e.stamp, key: text(e.key), data: value(e.data) };
        for (const [key, one] of Object.entries(entry)) fields[`${i}.${key}`] = one;
      });
      return fields;
    }
    case "CONFLICT": return { ...rest, handle: handle(f.handle), data: value(f.data) };
    case "ROSTER": {
      const { entries, ...others } = rest;
      const fields = { ...others, handle: handle(f.handle) };
      entries.forEach(({ what, member }, i) => Object.assign(fields, { [`${i}.what`]: what, [`${i}.member`]: text(member) }));
      return fields;
    }
    default: return "handle" in rest ? { ...rest, handle: handle(f.handle) } : rest;
  }
}

const golden = examples("golden");

test("the golden bytes of the page are written and read", () => {
  const seen = new Set();
  for (const { name, fields, bytes } of golden) {
    const [kind] = name.split("-");
    seen.add(kind);
    if (CLIENT[kind]) {
      assert.equal(hex(CLIENT[kind](fieldsOf(fields))), hex(bytes), name);
    } else {
      const lines = Object.entries(serverFields(wire.decode(bytes))).map(([key, one]) => `${key} = ${one}`.trim());
      assert.deepEqual(lines.sort(), fields.map((line) => line.trim()).sort(), name);
    }
  }
  assert.ok(seen.size >= 29, [...seen].join());
});

test("the tables of the conversations write and read the golden bytes", () => {
  for (const { name, bytes } of golden) {
    const { frame, ...values } = byTable(bytes);
    assert.equal(frame, name.split("-")[0]);
    assert.equal(hex(encode(frame, values)), hex(bytes), name);
  }
});

test("the JSON of the page becomes the golden bytes", () => {
  const inJson = new Map(examples("json").map(({ name, body }) => [name, body.replaceAll("\n", "")]));
  for (const { name, bytes } of golden) {
    if (bytes[4] >= 0x80) assert.equal(hex(fromJson(inJson.get(name))), hex(bytes), name);
    else assert.equal(JSON.parse(toJson(bytes)).type, JSON.parse(inJson.get(name)).type, name);
  }
});

test("no frame that is cut off is taken, and none makes the decoder fail otherwise", () => {
  for (const { name, bytes } of golden) {
    if (bytes[4] < 0x80) continue;
    for (let len = 8; len < bytes.length; len++) {
      try {
        wire.decode(bytes.subarray(0, len));
      } catch (error) {
        assert.ok(error instanceof wire.WireError, `${name} cut at ${len}: ${error}`);
      }
    }
  }
});

test("frames come out of a stream that is cut anywhere", () => {
  const stream = Buffer.concat(golden.map(({ bytes }) => bytes));
  const whole = split(stream).map(hex);
  for (const size of [1, 2, 3, 7, 64, stream.length]) {
    const input = new wire.Input(1 << 20);
    const frames = [];
    for (let at = 0; at < stream.length; at += size) {
      input.push(new Uint8Array(stream.subarray(at, at + size)));
      for (let frame = input.next(); frame; frame = input.next()) frames.push(hex(frame));
    }
    assert.deepEqual(frames, whole);
    assert.equal(input.length, 0);
  }
});

test("a number that a number cannot hold is refused", () => {
  const frame = encode("LEFT", {});
  assert.equal(wire.decode(encode("EPOCH", { epoch: 1, first: Number.MAX_SAFE_INTEGER })).first, Number.MAX_SAFE_INTEGER);
  assert.throws(() => wire.decode(encode("EPOCH", { epoch: 1, first: 2n ** 53n })), wire.WireError);
  assert.equal(wire.decode(frame).handle, 0n);
});

test("the session of the page is spoken byte for byte", () => {
  const [{ body }] = examples("session");
  const core = new Core({ member: "ann", producer: Uint8Array.from({ length: 16 }, (_, i) => 0xa0 + i) });
  core.join("lobby", { durable: true, from: "cursor", roster: false });
  core.connected(0);
  let out = "";
  const events = [];
  const turn = (now) => {
    for (let event = core.nextEvent(now); event; event = core.nextEvent(now)) {
      events.push(event.type);
      if (event.type === "joined") core.publish("lobby", bytes("hi"), { receipt: 100 });
      if (event.type === "message") core.handled("lobby", 1, 1, now);
      if (event.type === "receipt") core.leave("lobby");
    }
    core.advance(now);
    out += core.takeOutput().map(hex).join("");
  };
  turn(0);
  for (const line of body.trim().split("\n")) {
    const [, side, name, digits] = line.match(/^(\S) (\S+)\s+(.*)$/);
    const frame = digits.replaceAll(" ", "");
    // The magic is not sent in WebSocket messages; the PING of the page is at no slot.
    if (["magic", "PING", "PONG"].includes(name)) continue;
    if (side === "S") {
      core.receive(Uint8Array.from(Buffer.from(frame, "hex")));
      turn(0);
    } else {
      if (name === "ACK") turn(1000);
      assert.ok(out.startsWith(frame), `${name}: ${frame}, not ${out}`);
      out = out.slice(frame.length);
    }
  }
  assert.equal(out, "");
  assert.deepEqual(events, ["connected", "joined", "published", "message", "receipt", "left"]);
});
