// The client's core speaks the conversations that every client speaks; see tests/conversations/README.md.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { ClientError, Core } from "../dist/index.js";
import { bytesOf, conversations, decode, encode } from "./frames.js";
import { check, plain, resolve } from "./script.js";

class Play {
  now = 0;
  names = new Map();
  sent = [];
  /** What the application took last. */
  given;

  constructor(options) {
    const { acks, member, producer, backoff_min_ms, backoff_max_ms, answer_timeout_ms } = options;
    this.automatic = acks !== "explicit";
    this.options = { member };
    if (producer) this.options.producer = bytesOf({ hex: producer });
    if (backoff_min_ms) this.options.backoffMinMs = backoff_min_ms;
    if (backoff_max_ms) this.options.backoffMaxMs = backoff_max_ms;
    if (answer_timeout_ms) this.options.answerTimeoutMs = answer_timeout_ms;
    this.core = new Core(this.options);
    if (options.token) this.core.setToken(options.token, false);
  }

  /** The newest token, as a driver hands it over. */
  showToken() {
    if (this.token) this.core.setToken(this.token, true);
  }

  event() {
    if (this.automatic && this.given?.type === "message") {
      const { group, epoch, seq } = this.given.message;
      this.core.handled(group, epoch, seq, this.now);
    } else if (this.automatic && this.given?.type === "gap") {
      this.core.handled(this.given.group, this.given.epoch, this.given.to, this.now);
    }
    this.given = this.core.nextEvent(this.now);
    return this.given;
  }

  frame() {
    if (this.core.tokenIsDue(this.now)) this.showToken();
    this.core.advance(this.now);
    this.sent.push(...this.core.takeOutput());
    // Or its driver would come back at once, without end.
    if (this.core.link().kind === "up") assert.ok(!(this.core.deadline() <= this.now), "more is due, but not done");
    return this.sent.shift();
  }

  do(step) {
    const { do: what, group, fails, as, ...args } = resolve(step, this.names);
    const data = (value) => (value === null ? null : bytesOf(value));
    const commands = {
      join: () => {
        const durable = args.durable ?? false;
        this.core.join(group, { durable, from: args.from ?? (durable ? "cursor" : "tail"), roster: args.roster ?? false });
      },
      leave: () => this.core.leave(group),
      publish: () => this.core.publish(group, bytesOf(args.payload), args),
      ack: () => this.core.handled(group, args.epoch, args.seq, this.now),
      fetch: () => this.core.fetch(group, args.from, args.to, args.count_max),
      set_state: () => this.core.setState(group, args.key, data(args.data), args.expected ?? "any"),
      sync: () => this.core.sync(group, args.known),
      roster: () => this.core.roster(group, args.known, args.after, args.limit),
      token: () => void (this.token = args.token),
      close: () => this.core.close(this.now),
    };
    if (fails) return assert.throws(commands[what], (error) => error instanceof ClientError && error.kind === fails);
    const id = commands[what]();
    if (as) this.names.set(as, id);
  }

  /** Waits until the client wants to connect. */
  due([low, high]) {
    const link = this.core.link();
    assert.equal(link.kind, "connect");
    const wait = Math.max(0, link.at - this.now);
    assert.ok(low <= wait && wait <= high, `connects after ${wait} ms, not ${low} to ${high}`);
    this.now += wait;
  }

  step(step) {
    const [verb] = Object.keys(step);
    const { [verb]: arg, ...fields } = step;
    switch (verb) {
      case "do": return this.do(step);
      case "wait": return void (this.now += arg);
      case "connect":
        this.due(arg);
        this.showToken();
        return this.core.connected(this.now);
      case "refuse":
        this.due(arg);
        return this.core.disconnected(this.now);
      case "server": return this.core.receive(encode(arg, resolve(fields, this.names)));
      case "bytes": return this.core.receive(bytesOf({ hex: arg }));
      case "client": {
        const frame = this.frame();
        if (arg === "nothing") return assert.equal(frame && decode(frame).frame, undefined);
        assert.ok(frame, `no ${arg}`);
        const { frame: name, ...values } = decode(frame);
        assert.equal(name, arg);
        return check(values, fields, this.names, arg);
      }
      case "event": {
        const event = this.event();
        if (arg === "nothing") return assert.equal(event, undefined);
        assert.ok(event, `no event ${arg}`);
        const { type, ...values } = plain(event);
        assert.equal(type, arg);
        return check(values, fields, this.names, arg);
      }
      case "break": return this.core.disconnected(this.now);
      case "closes":
        // Its last words are sent first.
        while (this.core.link().kind === "up") assert.ok(this.frame(), "the client does not close");
        this.sent = [];
        assert.equal(this.core.link().kind, "close");
        return this.core.disconnected(this.now);
      case "over": return assert.equal(this.core.link().kind, "over");
      case "restart":
        this.core = new Core(this.options, JSON.parse(JSON.stringify(this.core.toResume())));
        [this.now, this.sent, this.given] = [0, [], undefined];
        return;
      default: assert.fail(`step ${verb}`);
    }
  }
}

const folder = new URL("scripted/", conversations);
for (const file of readdirSync(folder).sort()) {
  test(`conversation ${file}`, () => {
    const { options, steps } = JSON.parse(readFileSync(new URL(file, folder), "utf8"));
    const play = new Play(options);
    steps.forEach((step, i) => {
      try {
        play.step(step);
      } catch (error) {
        error.message = `step ${i + 1} ${JSON.stringify(step)}: ${error.message}`;
        throw error;
      }
    });
  });
}
