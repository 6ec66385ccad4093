/** What frames of the server mean. */

import type { Event, Refusal } from "./events.js";
import { Message, refusal } from "./events.js";
import type { Group } from "./group.js";
import type { Session } from "./session.js";
import type { Deliver, ServerFrame } from "./wire.js";
import { KIND, probed, toText, WireError } from "./wire.js";

type Frame<K extends ServerFrame["kind"]> = Extract<ServerFrame, { kind: K }>;

const HELD = ["StorageFull", "StorageFailed", "Indeterminate", "TooManyProducers", "RateLimited"];
/** Longest wait that a server may ask for, in ms; a longer one is asked for again. */
const WAIT_MAX_MS = 60_000;
/** Number of the right to read history in PROTOCOL.md. */
const HISTORY = 3;

/**
 * Takes a frame that came at `now`; what it means goes to the events.
 *
 * @throws WireError if the server may not send it here.
 */
export function take(s: Session, frame: ServerFrame, now: number): void {
  switch (frame.kind) {
    case "DELIVER":
      return deliver(s, frame.deliver, now);
    case "WELCOME":
      if (s.conn === "open") throw new WireError("a second WELCOME");
      if (frame.welcome.version !== 1) throw new WireError("a version that was not offered");
      s.welcomed(frame.welcome, now);
      s.events.push({ type: "connected", welcome: frame.welcome });
      return;
    case "ERROR":
      return error(s, frame, now);
    case "UNKNOWN":
      return;
    default:
      if (s.conn !== "open") throw new WireError("a frame before WELCOME");
      opened(s, frame, now);
  }
}

function opened(s: Session, frame: Exclude<ServerFrame, Frame<"DELIVER" | "WELCOME" | "ERROR" | "UNKNOWN">>, now: number): void {
  switch (frame.kind) {
    case "PONG":
      return;
    case "PROBE":
      s.send(probed(frame.token));
      return;
    case "DRAIN":
      s.drain = now + frame.reconnectAfterMs;
      s.events.push({ type: "draining", graceMs: frame.graceMs, reconnectAfterMs: frame.reconnectAfterMs });
      return;
    case "AUTHED":
      return s.authed(frame.request, frame.validMs, frame.renewAfterMs, now);
    case "JOINED":
      return joined(s, frame);
    case "LEFT":
      return left(s, frame);
    case "PUBLISHED":
      return published(s, frame, now);
    case "RECEIPT": {
      const { handle, seq, epoch, acked, members, percent } = frame;
      const group = s.handles.get(handle)?.name ?? null;
      const producerSeq = Number(frame.producerSeq);
      s.events.push({ type: "receipt", group, handle, seq, epoch, producerSeq, acked, members, percent });
      return;
    }
    case "EPOCH":
    case "GAP":
    case "REDELIVER": {
      const group = s.handles.get(frame.handle);
      if (group) stream(s, group, frame);
      return;
    }
    default:
      answer(s, frame);
  }
}

/** What says something about the messages of a group. */
function stream(s: Session, group: Group, frame: Frame<"EPOCH" | "GAP" | "REDELIVER">): void {
  const { name } = group;
  if (frame.kind === "EPOCH") {
    const was = group.epochStarts(frame.epoch, frame.first);
    const first = group.place.seq + 1;
    s.listMove(group);
    if (was) {
      const { epoch: before, seq: last } = was;
      s.events.push({ type: "epochChanged", group: name, before, last, epoch: frame.epoch, first });
    }
  } else if (frame.kind === "GAP") {
    const news = group.gap(frame);
    if (news) {
      const { epoch, reason } = frame;
      s.events.push({ type: "gap", group: name, ...news, epoch, reason });
    }
  } else {
    group.redelivers(frame.from, frame.epoch);
    s.events.push({ type: "redelivery", group: name, from: frame.from, attempt: frame.attempt });
  }
}

function deliver(s: Session, d: Deliver, now: number): void {
  const group = s.handles.get(d.handle);
  if (!group) throw new WireError("a DELIVER of a group that was not joined");
  const delivered = group.deliver(d.seq);
  if (delivered === "dropped") return;
  if (delivered === "known") {
    if (group.handledBefore(d.seq)) s.handled(group, now);
    return;
  }
  const { epoch, missing } = delivered;
  if (missing) {
    // The server should have said so.
    s.events.push({ type: "gap", group: group.name, ...missing, epoch, reason: "damaged" });
  }
  s.events.push({ type: "message", message: new Message(group.name, epoch, d) });
}

/** The group of a JOIN or LEAVE that this answers. */
function asked(s: Session, kind: "join" | "leave", request: number, group: Group | undefined): Group {
  const open = s.requests.get(request);
  if (!group || open?.kind !== kind || !open.groups.delete(group)) {
    throw new WireError(`an answer to a ${kind.toUpperCase()} that nobody waits for`);
  }
  if (open.groups.size === 0) s.requests.delete(request);
  return group;
}

function joined(s: Session, frame: Frame<"JOINED">): void {
  const group = asked(s, "join", frame.request, s.groups.get(toText(frame.group)));
  s.nameHandle(group, frame.handle);
  const looking = group.isLookingBack;
  const skipped = group.joined(frame);
  const again = group.joinedBefore;
  group.joinedBefore = true;
  s.listMove(group);
  if (group.wanted && !looking) {
    const { handle, epoch, head, first, cursor } = frame;
    s.events.push({ type: "joined", group: group.name, handle, epoch, head, first, cursor, again, skipped });
  }
}

function left(s: Session, frame: Frame<"LEFT">): void {
  if (frame.request === 0) return expelled(s, frame.handle);
  const group = asked(s, "leave", frame.request, s.handles.get(frame.handle));
  const over = group.left();
  s.listMove(group);
  if (over) s.events.push({ type: "left", group: group.name });
}

/** A new token does not allow the member to be in the group any more. */
function expelled(s: Session, handle: bigint): void {
  const group = s.handles.get(handle);
  if (!group || group.phase === "out") return;
  group.wanted = undefined;
  group.left();
  s.events.push({ type: "left", group: group.name });
}

function published(s: Session, frame: Frame<"PUBLISHED">, now: number): void {
  const request = s.requests.get(frame.request);
  if (request?.kind !== "publish") throw new WireError("a PUBLISHED that nobody waits for");
  s.requests.delete(frame.request);
  const { group, id } = request;
  const producerSeq = Number(frame.producerSeq);
  s.nameHandle(group, frame.handle);
  group.handle ??= frame.handle;
  if (group.producer.numberOf(id) !== producerSeq) {
    throw new WireError("a PUBLISHED with the number of another publish");
  }
  group.heldTold = false;
  s.publishIsOver(group.producer.taken(id) ?? 0);
  const { epoch, seq, level } = frame;
  s.events.push({ type: "published", id, group: group.name, producerSeq, epoch, seq, level });
  settle(s, group, now);
}

/** Sends again what came back, once all publishes of the group have their answers. */
function settle(s: Session, group: Group, now: number): void {
  const settled = group.producer.settle();
  s.giveUp(group, settled.inDoubt);
  s.renewing ||= settled.forgotten;
  if (settled.stuck && group.producer.hold === undefined) {
    group.producer.hold = now + s.holdMs();
    s.holds.add(group);
  }
  s.listSend(group);
}

function error(s: Session, frame: Frame<"ERROR">, now: number): void {
  const why = refusal(frame);
  if (why.code < 100) {
    s.close(why.name === "Replaced" ? { kind: "replaced" } : { kind: "server", refusal: why });
    return;
  }
  const request = s.requests.get(frame.request);
  if (!request) return serverError(s, why);
  switch (request.kind) {
    case "publish":
      s.requests.delete(frame.request);
      return publishError(s, request.group, request.id, why, now);
    case "query":
      return queryFailed(s, frame.request, why);
    case "auth":
      s.requests.delete(frame.request);
      s.events.push({ type: "serverError", error: why });
      return;
    default:
      moveError(s, frame.request, request.groups, why, now);
  }
}

function queryFailed(s: Session, number: number, why: Refusal): void {
  const request = s.requests.get(number);
  if (request?.kind !== "query") return;
  s.requests.delete(number);
  s.queries--;
  s.events.push({ type: "queryFailed", id: request.id, group: request.group.name, error: why });
}

/** An ERROR without a request. */
function serverError(s: Session, why: Refusal): void {
  // It is older than tokens, and takes everybody.
  if (why.name === "UnknownFrame" && why.limit === KIND.AUTH) return;
  s.events.push({ type: "serverError", error: why });
  if (why.name !== "UnknownFrame") return;
  // An old server: what was asked for by this kind of frame has no other answer.
  for (const [number, request] of s.requests) {
    if (request.kind === "query" && request.sent && request.frame === why.limit) queryFailed(s, number, why);
  }
}

/** One group of a JOIN or LEAVE was refused, or all of them. */
function moveError(s: Session, number: number, groups: Set<Group>, why: Refusal, now: number): void {
  const named = [...groups].find((group) => group.name === why.field);
  const refused = named ? [named] : [...groups];
  for (const group of refused) groups.delete(group);
  if (groups.size === 0) s.requests.delete(number);
  for (const group of refused) {
    const { name } = group;
    if (group.phase === "leaving") {
      // It is not in it: what was wanted.
      if (group.left()) s.events.push({ type: "left", group: name });
    } else if (why.name === "RateLimited" && group.wanted) {
      group.phase = "out";
      s.lateMoves.set(group, now + waitMs(why));
      continue;
    } else if (why.name === "Forbidden" && why.limit === HISTORY && group.goesWithoutHistory()) {
      group.phase = "out";
    } else {
      const wanted = group.wanted;
      [group.phase, group.leaving, group.wanted] = ["out", undefined, undefined];
      s.events.push(wanted ? { type: "joinFailed", group: name, error: why } : { type: "left", group: name });
    }
    s.listMove(group);
  }
}

function waitMs(why: Refusal): number {
  return Math.min(Math.max(1, why.limit), WAIT_MAX_MS);
}

function publishError(s: Session, group: Group, id: number, why: Refusal, now: number): void {
  const { producer, name } = group;
  const timed = HELD.includes(why.name);
  if (timed || why.name === "Draining") {
    const retryInMs = why.name === "RateLimited" ? waitMs(why) : timed ? s.holdMs() : null;
    producer.returned(id, why.name === "Indeterminate" ? "indeterminate" : "held");
    producer.hold = retryInMs === null ? "reconnect" : now + retryInMs;
    if (timed) s.holds.add(group);
    if (!group.heldTold) s.events.push({ type: "publishHeld", group: name, error: why, retryInMs });
    group.heldTold = true;
  } else if (why.name === "UnknownProducer") {
    producer.returned(id, "unknown");
  } else if (why.name === "ProducerTaken") {
    producer.returned(id, "foreign");
  } else if (why.name === "ProducerGap") {
    producer.returned(id, why.limit);
  } else if (why.name === "ProducerSeqTooOld") {
    s.publishIsOver(producer.taken(id) ?? 0);
    s.events.push({ type: "publishFailed", id, group: name, error: { kind: "place_unknown" } });
  } else {
    const refused = producer.refused(id);
    s.publishIsOver(refused?.len ?? 0);
    s.events.push({
      type: "publishFailed", id, group: name,
      error: refused?.certain === false ? { kind: "in_doubt" } : { kind: "refused", refusal: why },
    });
  }
  settle(s, group, now);
}

/** Answers to questions: history, state, rosters. */
function answer(s: Session, frame: Frame<"FETCHED" | "STATE" | "STATE_SET" | "CONFLICT" | "ROSTER">): void {
  if (frame.kind === "ROSTER" && frame.request === 0) {
    const group = s.handles.get(frame.handle);
    if (group) s.events.push(roster(null, group.name, frame));
    return;
  }
  const request = s.requests.get(frame.request);
  if (request?.kind !== "query") throw new WireError("an answer that nobody waits for");
  if (!(frame.kind === "STATE" && frame.more)) {
    s.requests.delete(frame.request);
    s.queries--;
  }
  const { id } = request;
  const group = request.group.name;
  switch (frame.kind) {
    case "FETCHED": {
      const { epoch, head, gap } = frame;
      const messages = frame.messages.map((d) => new Message(group, epoch, d));
      const next = frame.more ? Math.max(frame.last, gap?.to ?? 0) + 1 : null;
      s.events.push({ type: "fetched", id, group, epoch, messages, head, gap, next });
      return;
    }
    case "STATE": {
      const { form, version, more } = frame;
      const entries = frame.entries.map((e) => ({
        key: toText(e.key), version: e.version, stamp: e.stamp, data: e.data && e.data.slice(),
      }));
      s.events.push({ type: "state", id, group, form, version, more, entries });
      return;
    }
    case "STATE_SET":
      s.events.push({ type: "stateSet", id, group, version: frame.version, stamp: frame.stamp });
      return;
    case "CONFLICT": {
      const { version, stamp, data } = frame;
      s.events.push({ type: "conflict", id, group, version, stamp, data: data && data.slice() });
      return;
    }
    case "ROSTER":
      s.events.push(roster(id, group, frame));
  }
}

function roster(id: number | null, group: string, frame: Frame<"ROSTER">): Event {
  const { form, version, members, online } = frame;
  const entries = frame.entries.map(({ what, member }) => ({ what, member: toText(member) }));
  return { type: "roster", id, group, form, version, members, online, next: frame.next || null, entries };
}
