/** What a client does by the clock, and the frames that it sends. */

import type { Group } from "./group.js";
import type { Session } from "./session.js";
import * as wire from "./wire.js";

/** With more than this waiting to be sent no publishes are added. */
export const OUT_ENOUGH = 256 * 1024;
/** Publishes of one group before the next group has its turn. */
const SENDS_PER_TURN = 64;

/** Does what is due at `now` and encodes what can be sent. */
export function advance(s: Session, now: number): void {
  if (s.conn === "greeting" && now >= s.until) {
    s.close({ kind: "silent", ms: s.options.answerTimeoutMs });
  }
  if (s.conn !== "open") return;
  heartbeat(s, now);
  moveLate(s, now);
  if (s.closing) return;
  joinAndLeave(s);
  for (const { request, bytes } of s.waiting.splice(0)) {
    const query = s.requests.get(request);
    if (query?.kind === "query") {
      query.sent = true;
      s.send(bytes);
    }
  }
  for (const [group, at] of s.clock) {
    if (at > now) break;
    s.clock.delete(group);
    if (group.unacked > 0) s.acks.add(group);
  }
  acknowledge(s, now);
  if (s.drain === undefined) {
    release(s, now);
    if (s.renewIfSettled()) {
      acknowledgeAll(s, now);
      s.close({ kind: "renewed" });
      return;
    }
    publish(s, now);
  } else if (s.requests.size === 0) {
    acknowledgeAll(s, now);
    s.close({ kind: "drained" });
  }
}

/** Joins groups again that had to wait. */
function moveLate(s: Session, now: number): void {
  for (const [group, at] of s.lateMoves) {
    if (at > now) continue;
    s.lateMoves.delete(group);
    s.listMove(group);
  }
}

function heartbeat(s: Session, now: number): void {
  if (s.silentAt !== undefined && s.silentAt <= now) {
    s.close({ kind: "silent", ms: s.options.answerTimeoutMs });
  }
  if (s.pingAt === undefined || !s.welcome || s.pingAt > now) return;
  // The slots stay where the server laid them, also when this comes late.
  const every = Math.max(1, s.welcome.heartbeatMs);
  const slot = s.pingAt;
  s.pingAt += (Math.floor((now - slot) / every) + 1) * every;
  // The server has just heard of it.
  if (s.ackedAt !== undefined && slot - s.ackedAt < every / 2) return;
  s.send(wire.ping(BigInt(Math.floor(now))));
  s.silentAt ??= now + s.options.answerTimeoutMs;
}

/** Joins and leaves groups, many in one frame. */
function joinAndLeave(s: Session): void {
  const room = Math.min(s.welcome?.frameMax ?? 0, wire.FRAME_MAX) - 2 * wire.HEADER;
  while (s.moves.size > 0) {
    const [joins, leaves]: [Group[], Group[]] = [[], []];
    let bytes = 0;
    for (const group of s.moves) {
      const len = 16 + group.nameBytes.length;
      const full = Math.max(joins.length, leaves.length) >= wire.ENTRIES_MAX || bytes + len > room;
      if (full && bytes > 0) break;
      bytes += len;
      s.moves.delete(group);
      if (!group.hasToMove) continue;
      if (group.phase === "out") {
        group.phase = "joining";
        group.leaving = group.wanted ?? group.leaving;
        joins.push(group);
      } else {
        group.phase = "leaving";
        leaves.push(group);
      }
    }
    if (joins.length > 0) {
      const request = s.request({ kind: "join", groups: new Set(joins) });
      const entries = joins.map((group) => group.joinEntry()).filter((entry) => entry !== undefined);
      s.send(wire.join(request, entries));
    }
    if (leaves.length > 0) {
      const request = s.request({ kind: "leave", groups: new Set(leaves) });
      s.send(wire.leave(request, leaves.map((group) => group.nameBytes)));
    }
  }
}

function acknowledge(s: Session, now: number): void {
  if (s.acks.size === 0) return;
  s.ackedAt = now;
  s.spreadAcks();
  const acks = [...s.acks].map((group) => group.ack()).filter((ack) => ack !== undefined);
  s.acks.clear();
  for (let i = 0; i < acks.length; i += wire.ENTRIES_MAX) {
    s.send(wire.ack(acks.slice(i, i + wire.ENTRIES_MAX)));
  }
}

/** Acknowledges all that was handled, now. */
export function acknowledgeAll(s: Session, now: number): void {
  if (s.conn !== "open") return;
  for (const group of s.groups.values()) if (group.unacked > 0) s.acks.add(group);
  acknowledge(s, now);
}

/** Lets groups publish again whose time has come. */
function release(s: Session, now: number): void {
  for (const group of s.holds) {
    const { hold } = group.producer;
    if (typeof hold === "number") {
      if (hold > now) continue;
      group.producer.hold = undefined;
    }
    s.holds.delete(group);
    s.listSend(group);
  }
}

function publish(s: Session, now: number): void {
  const window = Math.max(1, s.welcome?.publishWindow ?? 1);
  while (s.outBytes < OUT_ENOUGH) {
    const [group] = s.sends;
    if (!group) return;
    s.sends.delete(group);
    for (let n = 0; ; n++) {
      if (n === SENDS_PER_TURN || s.outBytes >= OUT_ENOUGH) {
        // The others first.
        s.sends.add(group);
        break;
      }
      const entry = group.producer.sendNext(window, s.renewing, now);
      if (!entry) break;
      const { id, how, payload, sentAs } = entry;
      const request = s.request({ kind: "publish", group, id });
      const level = how.level ?? "default";
      s.send(wire.publish(request, group.nameBytes, payload, sentAs, level, how.receipt ?? 0));
    }
  }
}

/** When something is due next. */
export function deadline(s: Session): number | undefined {
  // Only its last words are left, which wait for room and not for a time.
  if (s.closing) return undefined;
  const times: (number | undefined)[] = [s.pingAt, s.silentAt, s.renewAt, ...s.lateMoves.values()];
  if (s.conn === "down" || s.conn === "greeting") times.push(s.until);
  const [first] = s.clock.values();
  times.push(first);
  // Where they are not released, the time of one that is over would be due without end.
  if (s.conn === "open" && s.drain === undefined) {
    for (const group of s.holds) if (typeof group.producer.hold === "number") times.push(group.producer.hold);
  }
  return times.reduce((a, b) => (a === undefined || (b !== undefined && b < a) ? b : a), undefined);
}
