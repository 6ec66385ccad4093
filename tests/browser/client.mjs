// The JavaScript client in a real browser: a page joins, another one publishes, by ws and by wss; a page of
// another origin is not let in. Run by run.sh, which has made what it needs.
//
//   node tests/browser/client.mjs [FOLDER with fanfare] [FOLDER with certificates]
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash, X509Certificate } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const require = createRequire(join(process.env.NODE_MODULES_IN ?? process.cwd(), "x.js"));
const { chromium } = require("playwright-core");

const bin = process.argv[2] ?? "target/debug";
const tls = process.argv[3] ?? "target/clients/tls";
const port = Number(process.env.PORT ?? 17500);
const work = mkdtempSync(join(tmpdir(), "browser-"));

// The page, and the client as it was built.
const dist = new URL("../../clients/js/dist/", import.meta.url);
const pages = createServer(({ url }, answer) => {
  const name = url.match(/^\/dist\/(\w+\.js)$/)?.[1];
  answer.setHeader("content-type", name ? "text/javascript" : "text/html");
  answer.end(name ? readFileSync(new URL(name, dist)) : "<!doctype html><title>a page</title>");
});
await new Promise((listening) => pages.listen(port + 1, "127.0.0.1", listening));
const origin = `http://127.0.0.1:${port + 1}`;

const server = spawn(join(bin, "fanfare"), ["serve", "--listen", `127.0.0.1:${port}`, "--shards", "2",
  "--data-dir", join(work, "data"), "--segment-bytes", String(8 << 20), "--set", `websocket_origins=${origin}`,
  "--set", `tls_cert=${join(tls, "cert.pem")}`, "--set", `tls_key=${join(tls, "key.pem")}`],
{ stdio: ["ignore", "ignore", "pipe"] });
let said = "";
server.stderr.on("data", (data) => { said += data; });

/** The kernel accepts before the shards run: only an answer says that it is up. */
function answers() {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1", () => socket.write("what?"));
    socket.once("data", () => { resolve(true); socket.destroy(); });
    socket.once("error", () => resolve(false)).once("close", () => resolve(false));
  });
}

let browser;
try {
  for (let tries = 0; !(await answers()); tries++) {
    assert.ok(tries < 200 && server.exitCode === null, said);
    await new Promise((done) => setTimeout(done, 100));
  }
  // This one key is trusted, and no other.
  const key = new X509Certificate(readFileSync(join(tls, "cert.pem"))).publicKey.export({ type: "spki", format: "der" });
  const trusted = createHash("sha256").update(key).digest("base64");
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", `--ignore-certificate-errors-spki-list=${trusted}`],
  });
  const open = async (at) => {
    const page = await browser.newPage();
    await page.goto(at);
    return page;
  };

  const words = ["hello", "größe", "🎺".repeat(5_000)];
  for (const url of [`ws://127.0.0.1:${port}`, `wss://127.0.0.1:${port}`]) {
    const group = `lobby of ${new URL(url).protocol}`;
    const [ann, bob] = [await open(origin), await open(origin)];
    const heard = ann.evaluate(async ({ url, group, count }) => {
      const { connect } = await import("/dist/index.js");
      const client = connect(url, { member: "ann" });
      const lobby = client.join(group);
      await lobby.joined;
      document.title = "joined";
      const heard = [];
      for await (const message of lobby) {
        heard.push([message.seq, message.sender, message.text()]);
        if (heard.length === count) break;
      }
      await client.close();
      return heard;
    }, { url, group, count: words.length });
    await ann.waitForFunction(() => document.title === "joined");
    const places = await bob.evaluate(async ({ url, group, words }) => {
      const { connect } = await import("/dist/index.js");
      const client = connect(url, { member: "bob" });
      const published = await Promise.all(words.map((word) => client.publish(group, word)));
      await client.close();
      return published.map(({ seq }) => seq);
    }, { url, group, words });
    assert.deepEqual(places, [1, 2, 3]);
    assert.deepEqual(await heard, words.map((word, i) => [i + 1, "bob", word]));
    console.log(`by ${url.split(":")[0]} a page joins, another one publishes, the first one hears it`);
    await ann.close();
    await bob.close();
  }

  const stranger = await open(origin.replace("127.0.0.1", "localhost"));
  const event = await stranger.evaluate((url) => new Promise((done) => {
    const socket = new WebSocket(url, "fanfare.json.v1");
    for (const type of ["open", "error"]) socket.addEventListener(type, () => done(type));
  }), `ws://127.0.0.1:${port}`);
  assert.equal(event, "error");
  console.log("a page of another origin is not let in");
} finally {
  await browser?.close();
  server.kill("SIGKILL");
  pages.close();
  rmSync(work, { recursive: true, force: true });
}
