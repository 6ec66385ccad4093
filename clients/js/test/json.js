// A WebSocket that speaks fanfare.json.v1 with the server and native frames with the client, so that a client
// of binary messages has the conversations in JSON too. Written from PROTOCOL.md, by the tables.
import { decode, encode, split } from "./frames.js";

const LEVELS = [undefined, "durable", "memory"];
const REASONS = [undefined, "retention", "damaged"];
const WORDS = {
  level: () => LEVELS,
  reason: () => REASONS,
  gap_reason: () => REASONS,
  form: (frame) => frame === "STATE" ? ["up_to_date", "deltas", "snapshot"] : ["up_to_date", "changes", "page", "counts"],
  what: () => [undefined, "joined", "left", "online", "offline"],
};

/** Fields as JSON has them: numbers of 64 bits and bytes as strings. */
function plain(values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => {
    if (typeof value === "bigint") return [name, String(value)];
    if (!Buffer.isBuffer(value)) return [name, value];
    const text = value.toString();
    return Buffer.from(text).equals(value) ? [name, text] : [`${name}_base64`, value.toString("base64")];
  }));
}

function group({ mode, start, options, from, group }) {
  const begin = start === 1 ? { from: String(from) } : { start: start === 2 ? "cursor" : "tail" };
  return { ...plain({ group }), mode: mode ? "durable" : "live", roster: (options & 1) !== 0, ...begin };
}

const MORE = {
  HELLO: ({ flags, producer }) => ({ flags, encoding: undefined, producer: producer.toString("hex") }),
  JOIN: ({ entries }) => ({ groups: entries.map(group) }),
  LEAVE: ({ entries }) => ({ groups: entries.map(plain) }),
  PUBLISH: ({ level }) => ({ level: LEVELS[level] }),
  ACK: ({ entries }) => ({ acks: entries.map(plain) }),
  PING: ({ header_flags }) => ({ quiet: (header_flags & 1) !== 0 }),
  FETCH: ({ to }) => ({ to: to ? String(to) : undefined }),
  SET_STATE: ({ flags, expected }) => ({
    expected: flags & 1 ? String(expected) : undefined,
    ...(flags & 2 ? { delete: true, data: undefined } : {}),
  }),
};

/** The message that stands for a frame of a client. */
export function toJson(bytes) {
  const values = decode(bytes);
  const { frame, header_flags, flags, entries, ...rest } = values;
  return JSON.stringify({ type: frame.toLowerCase(), ...plain(rest), ...MORE[frame]?.(values) });
}

function native(frame, values) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => {
    if (name.endsWith("_base64")) return [name.slice(0, -"_base64".length), Buffer.from(value, "base64")];
    if (name === "deleted") return ["flags", 2];
    if (name === "more") return [name, Number(value)];
    if (name === "entries") return [name, value.map((entry) => native(frame, entry))];
    return [name, WORDS[name]?.(frame).indexOf(value) ?? value];
  }));
}

/** The frame of a server that a message stands for. */
export function fromJson(text) {
  const { type, messages, ...values } = JSON.parse(text);
  const frame = type.toUpperCase();
  const frames = messages?.map((one) => ({ frame: "DELIVER", handle: values.handle, ...native("DELIVER", one) }));
  return encode(frame, { ...native(frame, values), frames });
}

export class JsonSocket extends WebSocket {
  constructor(url) {
    super(url, ["fanfare.json.v1"]);
  }

  set onmessage(listener) {
    super.onmessage = listener && (({ data }) => listener({ data: fromJson(data) }));
  }

  send(frames) {
    for (const frame of split(Buffer.from(frames))) super.send(toJson(frame));
  }
}
