// The examples of README run as they are written there, and its figures are true.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { Server } from "./server.js";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const dist = new URL("../dist/", import.meta.url);

test("the examples talk to each other", { timeout: 60_000 }, async () => {
  const examples = [...readme.matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code);
  assert.equal(examples.length, 2);
  assert.ok(examples[0].trim().split("\n").filter(Boolean).length <= 5, "five lines");
  const server = await Server.start();
  const run = (name, code) => {
    const file = new URL(`readme-${name}.mjs`, dist);
    writeFileSync(file, code.replace("ws://127.0.0.1:7400", server.url));
    const child = spawn(process.execPath, ["--experimental-websocket", "--no-warnings", fileURLToPath(file)]);
    child.output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (child.output += data));
    child.ended = new Promise((resolve) => child.once("exit", resolve));
    return child;
  };
  const ann = run("join", examples[0]);
  try {
    // What is published before ann has joined does not reach her: publish until one does.
    for (let place = 1; !ann.output.includes("bob: hello"); place++) {
      assert.ok(place < 20, `ann got nothing: ${ann.output}`);
      const bob = run("publish", examples[1]);
      assert.equal(await bob.ended, 0, bob.output);
      assert.equal(bob.output, `hello has place ${place}\n`);
    }
    assert.match(ann.output, /^(bob: hello\n)+$/);
  } finally {
    ann.kill();
    await server.close();
  }
});

test("the size is as stated", () => {
  const [, kB, zipped] = readme.match(/^(\d+) kB of JavaScript.*?; (\d+) kB with gzip/m);
  const files = readdirSync(dist).filter((file) => file.endsWith(".js"));
  const code = Buffer.concat(files.sort().map((file) => readFileSync(new URL(file, dist))));
  const measured = [code.length, gzipSync(code).length].map((bytes) => Math.round(bytes / 1000));
  assert.deepEqual(measured, [Number(kB), Number(zipped)]);
});
