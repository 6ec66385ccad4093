// The frames of tests/conversations/frames.json, written and read by its tables alone: the client's own
// codec is not used on the server's side of a conversation.
import { readFileSync } from "node:fs";

const conversations = new URL("../../../tests/conversations/", import.meta.url);
const { about: _, ...tables } = JSON.parse(readFileSync(new URL("frames.json", conversations), "utf8"));
const names = new Map(Object.entries(tables).map(([name, { kind }]) => [kind, name]));
const SIZES = { u8: 1, u16: 2, u32: 4, u64: 8, count: 2, len8: 1, len16: 2, len32: 4 };

/** A value of a conversation as bytes: text, {"hex": ...}, {"zeros": n} or bytes. */
export function bytesOf(value) {
  if (value instanceof Uint8Array) return Buffer.from(value);
  if (value?.hex !== undefined) return Buffer.from(value.hex, "hex");
  if (value?.zeros !== undefined) return Buffer.alloc(value.zeros);
  return Buffer.from(value ?? "");
}

function number(size, value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes.subarray(0, size);
}

function encodeFields(fields, values, entry) {
  const value = (name) => values[name] ?? fields.find((field) => field[0] === name)?.[2];
  return Buffer.concat(fields.map(([name, type]) => {
    const [how, arg] = type.split(":");
    switch (how) {
      case "pad": return Buffer.alloc(Number(arg));
      case "raw": return Buffer.concat([bytesOf(value(name)), Buffer.alloc(Number(arg))]).subarray(0, Number(arg));
      case "len8": case "len16": case "len32": return number(SIZES[how], bytesOf(value(arg)).length);
      case "count": return number(2, (values.entries ?? []).length);
      case "data": case "rest": return bytesOf(value(name));
      case "entries": return Buffer.concat((values.entries ?? []).map((one) => encodeFields(entry, one)));
      case "frames": return Buffer.concat((values.frames ?? []).map((one) => encode(one.frame, one)));
      default: return number(SIZES[how], value(name) ?? 0);
    }
  }));
}

export function encode(name, values) {
  const { kind, fields, entry } = tables[name];
  const body = encodeFields(fields, values, entry);
  return Buffer.concat([number(4, 4 + body.length), number(1, kind), number(1, values.header_flags ?? 0), number(2, 0), body]);
}

function decodeFields(fields, read, entry) {
  const values = {};
  const lens = {};
  let count = 0;
  for (const [name, type] of fields) {
    const [how, arg] = type.split(":");
    if (how === "pad") read(Number(arg));
    else if (how === "raw") values[name] = read(Number(arg));
    else if (how.startsWith("len")) lens[arg] = read(SIZES[how]).readUIntLE(0, SIZES[how]);
    else if (how === "count") count = read(2).readUInt16LE();
    else if (how === "data") values[name] = read(lens[name]);
    else if (how === "rest") values[name] = read();
    else if (how === "entries") values[name] = Array.from({ length: count }, () => decodeFields(entry, read));
    else if (how === "frames") values[name] = split(read()).map(decode);
    else if (how === "u64") values[name] = read(8).readBigUInt64LE();
    else values[name] = read(SIZES[how]).readUIntLE(0, SIZES[how]);
  }
  return values;
}

/** Cuts bytes into whole frames. */
export function split(bytes) {
  const frames = [];
  for (let at = 0; at < bytes.length; at += 4 + bytes.readUInt32LE(at)) {
    frames.push(bytes.subarray(at, at + 4 + bytes.readUInt32LE(at)));
  }
  return frames;
}

export function decode(frame) {
  const bytes = Buffer.from(frame);
  const name = names.get(bytes[4]);
  if (!name) throw new Error(`a frame of kind ${bytes[4]}`);
  let at = 8;
  const read = (len = bytes.length - at) => {
    if (at + len > bytes.length) throw new Error(`${name} ends early`);
    return bytes.subarray(at, (at += len));
  };
  const values = decodeFields(tables[name].fields, read, tables[name].entry);
  return { frame: name, header_flags: bytes[5], ...values };
}

/** The blocks of PROTOCOL.md that begin with this word: [name, lines of fields, bytes]. */
export function examples(word) {
  const text = readFileSync(new URL("../../../PROTOCOL.md", import.meta.url), "utf8");
  return [...text.matchAll(new RegExp("^```" + word + "(?: (\\S+))?\\n([\\s\\S]*?)^```", "gm"))].map(([, name, body]) => {
    const lines = body.split("\n");
    const end = lines.indexOf("");
    const hex = lines.slice(end).map((line) => line.replace(/;.*/, "").replaceAll(" ", "")).join("");
    return { name, body, fields: lines.slice(0, end), bytes: Buffer.from(hex, "hex") };
  });
}

export { conversations };
