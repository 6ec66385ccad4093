// The console page in a real browser: what it shows of a loaded server, by keyboard too, in dark
// and light. Run by run.sh, which has playwright-core and axe-core in the folder that NODE_MODULES_IN
// names; without that name they are looked for in the working directory.
//
//   node tests/browser/console.mjs [FOLDER with fanfare and loadgen] [FOLDER for screenshots]
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const require = createRequire(join(process.env.NODE_MODULES_IN ?? process.cwd(), "x.js"));
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");

const bin = process.argv[2] ?? "target/debug";
const shots = process.argv[3] ?? "target/screenshots";
mkdirSync(shots, { recursive: true });
const port = Number(process.env.PORT ?? 17500);
const url = `http://127.0.0.1:${port + 1}/`;
const work = mkdtempSync(join(tmpdir(), "console-"));
const token = "the-token-of-the-console-test";
writeFileSync(join(work, "token"), token);
chmodSync(join(work, "token"), 0o600);

const children = [];
function run(program, ...args) {
  const child = spawn(join(bin, program), args, { stdio: ["ignore", "ignore", "pipe"] });
  child.said = "";
  child.stderr.on("data", (data) => { child.said += data; });
  children.push(child);
  return child;
}

let browser;
try {
  const server = run("fanfare", "serve", "--listen", `127.0.0.1:${port}`, "--http", `127.0.0.1:${port + 1}`,
    "--http-token-file", join(work, "token"), "--shards", "2", "--data-dir", join(work, "data"),
    "--stall-timeout-ms", "120000", "--set", `websocket_origins=${url.slice(0, -1)}`, "--set", "socket_send_buffer=4096");
  for (let tries = 0; ; tries++) {
    const up = await fetch(`${url}readyz`).then((answer) => answer.ok, () => false);
    if (up) break;
    assert.ok(tries < 100, server.said);
    await new Promise((done) => setTimeout(done, 200));
  }
  run("loadgen", "groups", "--addr", `127.0.0.1:${port}`, "--groups", "12", "--members", "25", "--rate", "200",
    "--duration", "120s", "--stalled", "1", "--payload", "2000");

  // With CONSOLE=src/serve/http/console the files there are tried, without building the server. To
  // Chromium such a page comes from nowhere, and may not reach loopback unless it is told so.
  const files = process.env.CONSOLE;
  const args = ["--no-sandbox", ...(files ? ["--disable-features=LocalNetworkAccessChecks"] : [])];
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });
  const context = await browser.newContext({ viewport: { width: 1280, height: 1700 }, colorScheme: "light" });
  const page = await context.newPage();
  const tried = async (route) => {
    const name = new URL(route.request().url()).pathname.slice(1) || "console.html";
    const answer = await route.fetch();
    await route.fulfill({ response: answer, body: readFileSync(join(files, name)) });
  };
  if (files) await context.route(/\/(console\.(js|css))?$/, tried);
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (said) => { if (said.type() === "error" && !/401/.test(said.text())) errors.push(said.text()); });
  const outside = [];
  page.on("request", (request) => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) outside.push(request.url()); });

  await page.goto(url);
  // The token by keyboard: the dialog has the focus.
  await page.locator("#token[open]").waitFor();
  await page.keyboard.type("wrong-token-wrong-token");
  await page.keyboard.press("Enter");
  await page.waitForTimeout(300);
  await page.locator("#token[open]").waitFor();
  await page.keyboard.type(token);
  await page.keyboard.press("Enter");
  await page.locator("#state.live").waitFor();
  await page.selectOption("#interval", "1000");

  // Figures move, and every plot that has something draws a line and says its value.
  await page.waitForFunction(() => document.querySelectorAll("#plots polyline[points]").length > 20, null, { timeout: 30_000 });
  await page.waitForTimeout(12_000);
  const labels = await page.locator("#plots > figure > svg").evaluateAll((all) => all.map((svg) => svg.getAttribute("aria-label")));
  assert.equal(labels.length, 6);
  for (const label of labels.slice(0, 5)) assert.match(label, /now: .*\d/, label);
  assert.match(labels[0], /deliveries [\d.]+/);
  for (const title of ["Messages", "Deliveries", "Commits", "Wake-ups"]) {
    const value = await page.locator(`#now div:has(dt:text-is("${title}")) dd`).textContent();
    assert.match(value, /\d/, `${title}: ${value}`);
  }
  await page.locator("#slow td:has-text('stalled')").first().waitFor({ timeout: 30_000 });

  // A plot as a table, for those who cannot see it.
  await page.locator("figure").first().locator("summary").click();
  await page.locator("figure table tbody tr").nth(2).waitFor();
  await page.locator("figure").first().locator("summary").click();

  // Groups, one of them, its members; by keyboard.
  await page.locator("#list").focus();
  await page.keyboard.press("Enter");
  await page.locator("#groups tbody tr").nth(11).waitFor();
  await page.locator("#groups tbody tr", { hasNotText: "fanfare/probe" }).first().locator("button").focus();
  await page.keyboard.press("Enter");
  await page.locator("#one table tbody tr").first().waitFor();
  const focused = () => page.evaluate(() => document.activeElement?.textContent);
  await page.waitForTimeout(2_500);
  assert.equal(await focused(), "Show", "the focus stays where it was while figures change");

  // Nothing is disconnected without a yes.
  const rows = () => page.locator("#one table tbody tr").count();
  const before = await rows();
  await page.locator("#one table button").first().focus();
  await page.keyboard.press("Enter");
  await page.locator("#ask[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#ask[open]").waitFor({ state: "detached" });
  assert.equal(await rows(), before);

  // A chat room: two tabs see each other's words, in one order, as text.
  const other = await context.newPage();
  await other.addInitScript((token) => sessionStorage.setItem("fanfare-token", token), token);
  await other.goto(url);
  const enter = async (tab, name) => {
    await tab.bringToFront();
    await tab.waitForFunction(() => document.querySelector("#chat-server").value !== "");
    await tab.fill("#chat-group", "room");
    await tab.fill("#chat-name", name);
    await tab.keyboard.press("Enter");
    await tab.locator("#chat-text:not([disabled])").waitFor().catch(async (error) => {
      throw new Error(await tab.locator("#chat-state").textContent(), { cause: error });
    });
  };
  await enter(other, "ann");
  await enter(page, "<b>bob</b>");
  await page.keyboard.type("hello <img src=x onerror=alert(1)>");
  await page.keyboard.press("Enter");
  await page.locator("#chat-state:has-text('is on disk')").waitFor();
  await other.locator("#chat-log p").waitFor();
  await other.fill("#chat-text", "hello bob");
  await other.locator("#chat-text").press("Enter");
  await page.locator("#chat-log p:nth-child(2)").waitFor();
  const heard = (tab) => tab.locator("#chat-log p").allTextContents();
  const words = ["<b>bob</b>hello <img src=x onerror=alert(1)>number 1", "annhello bobnumber 2"];
  await other.locator("#chat-log p:nth-child(2)").waitFor();
  assert.deepEqual(await heard(page), words);
  assert.deepEqual(await heard(other), words);
  assert.equal(await page.locator("#chat-log img").count(), 0);
  await page.bringToFront();
  await other.close();

  await page.locator("#config-show").click();
  await page.locator("#config td:text-is('payload_max')").waitFor();
  await page.locator("#reload").click();
  await page.locator("#state:has-text('Needs a restart')").waitFor();

  for (const theme of ["light", "dark"]) {
    await page.selectOption("#theme", theme);
    // The page's policy lets no script in; the debugger's is none.
    await page.evaluate(readFileSync(axe, "utf8"));
    const { violations } = await page.evaluate(() => axe.run(document));
    const found = violations.map((v) => `${v.id}: ${v.nodes.length} x ${v.help}, such as ${v.nodes[0].html.slice(0, 160)}`);
    assert.deepEqual(found, [], theme);
    await page.evaluate(() => window.scrollTo(0, 0));
    await page.screenshot({ path: join(shots, `console-${theme}.png`) });
    await page.locator("#chat-title").scrollIntoViewIfNeeded();
    await page.screenshot({ path: join(shots, `chat-${theme}.png`) });
  }
  const narrow = await browser.newPage({ viewport: { width: 390, height: 844 }, colorScheme: "dark" });
  await narrow.addInitScript((token) => sessionStorage.setItem("fanfare-token", token), token);
  if (files) await narrow.context().route(/\/(console\.(js|css))?$/, tried);
  await narrow.goto(url);
  await narrow.locator("#state.live").waitFor();
  // The first stop of the keyboard leads past the header.
  await narrow.keyboard.press("Tab");
  assert.equal(await narrow.evaluate(() => document.activeElement.textContent), "Skip to the figures");
  await narrow.waitForTimeout(4_000);
  const wide = await narrow.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `a narrow page is ${wide} pixels too wide`);
  await narrow.screenshot({ path: join(shots, "console-narrow.png") });

  // A server that goes is said to be gone.
  await page.bringToFront();
  await page.locator("#drain").click();
  await page.locator("#ask-yes").click();
  await page.locator("#state:has-text('No answer')").waitFor({ timeout: 30_000 });
  const wrong = errors.filter((error) => !/Failed to load resource|ERR_/.test(error));
  assert.deepEqual(wrong, []);
  assert.deepEqual(outside, []);
  console.log(`the console works; screenshots are in ${shots}`);
} finally {
  await browser?.close();
  for (const child of children) child.kill("SIGKILL");
  rmSync(work, { recursive: true, force: true });
}
