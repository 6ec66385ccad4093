// What the two kinds of conversations share: values that are expected, and events as tables have them.
import assert from "node:assert/strict";
import { bytesOf } from "./frames.js";

const snake = (name) => name.replace(/[A-Z]/g, (letter) => "_" + letter.toLowerCase());

/** An event of the client in the words of the tables. */
export function plain(event) {
  const { message, ...rest } = event.message ? { ...event, ...event.message } : event;
  return snakeAll(rest);
}

function snakeAll(value) {
  if (Array.isArray(value)) return value.map(snakeAll);
  if (value === null || typeof value !== "object" || value instanceof Uint8Array) return value;
  const pairs = Object.entries(value).map(([key, one]) => [snake(key), key === "type" ? snake(one) : snakeAll(one)]);
  const plainOne = Object.fromEntries(pairs);
  if (plainOne.sender_bytes) plainOne.sender = plainOne.sender_bytes;
  return plainOne;
}

/** Checks a value against what a table says of it; names of the table get their values. */
export function check(actual, expected, names, path) {
  if (typeof expected === "string" && expected.startsWith("$")) {
    assert.ok(names.has(expected.slice(1)), `${path}: ${expected} has no value`);
    return same(actual, names.get(expected.slice(1)), path);
  }
  if (Array.isArray(expected)) {
    assert.equal(actual?.length, expected.length, `${path}: length`);
    return expected.forEach((one, i) => check(actual[i], one, names, `${path}.${i}`));
  }
  if (expected !== null && typeof expected === "object") {
    if (expected.as) return void names.set(expected.as, actual);
    if (expected.between) {
      const [low, high] = expected.between;
      return assert.ok(low <= actual && actual <= high, `${path}: ${actual} is not in ${low} to ${high}`);
    }
    if (expected.not) return assert.notDeepEqual(comparable(actual), comparable(names.get(expected.not.slice(1))), path);
    if (expected.hex !== undefined || expected.zeros !== undefined) return same(actual, bytesOf(expected), path);
    assert.ok(actual !== null && typeof actual === "object", `${path}: ${actual}`);
    for (const [key, one] of Object.entries(expected)) check(actual[key], one, names, `${path}.${key}`);
    return;
  }
  same(actual, expected, path);
}

function comparable(value) {
  if (value instanceof Uint8Array) return bytesOf(value).toString("latin1");
  if (typeof value === "string") return bytesOf(value).toString("latin1");
  return typeof value === "bigint" ? Number(value) : value;
}

function same(actual, expected, path) {
  assert.deepEqual(comparable(actual), comparable(expected), path);
}

/** Puts the values of names into what a server sends or a client is asked. */
export function resolve(value, names) {
  if (typeof value === "string" && value.startsWith("$")) return names.get(value.slice(1));
  if (Array.isArray(value)) return value.map((one) => resolve(one, names));
  if (value !== null && typeof value === "object" && !(value instanceof Uint8Array)) {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolve(one, names)]));
  }
  return value;
}
