// The console: asks /api/v1 as any other client does, and draws. Ids and names come from members,
// so they only ever become text.
"use strict";

const KEPT = 300_000; // milliseconds of history in the plots
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// ---- asking -------------------------------------------------------------------------------

let token = sessionStorage.getItem("fanfare-token");

async function ask(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const how = { headers, cache: "no-store" };
  if (body !== undefined) {
    how.method = "POST";
    how.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(`api/v1/${path}`, how);
  if (answer.status === 401) {
    await askForToken();
    return ask(path, body);
  }
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error || answer.statusText);
  return said;
}

let asking = null;
function askForToken() {
  // Several questions may find out at the same time.
  asking ??= new Promise((done) => {
    const dialog = $("token");
    dialog.addEventListener("close", () => {
      token = $("token-text").value.trim();
      $("token-text").value = "";
      sessionStorage.setItem("fanfare-token", token);
      asking = null;
      done();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function confirmed(title, text, yes) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  const dialog = $("ask");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) =>
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

function alarm(text) {
  $("alarm").hidden = !text;
  if ($("alarm").textContent !== text) $("alarm").textContent = text;
}

// ---- numbers ------------------------------------------------------------------------------

function short(n, unit = "") {
  if (n === null || n === undefined || Number.isNaN(n)) return "–";
  const scales = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [by, letter] = scales.find(([by]) => Math.abs(n) >= by) ?? [1, ""];
  const scaled = n / by;
  const digits = scaled >= 100 || (by === 1 && Number.isInteger(n)) ? 0 : scaled >= 10 ? 1 : 2;
  const space = letter || unit ? "\u00a0" : "";
  return `${scaled.toFixed(digits)}${space}${letter}${unit}`;
}

function time(ns) {
  if (ns === null || Number.isNaN(ns)) return "–";
  if (ns >= 1e9) return `${(ns / 1e9).toFixed(2)}\u00a0s`;
  if (ns >= 1e6) return `${(ns / 1e6).toFixed(1)}\u00a0ms`;
  return `${(ns / 1e3).toFixed(0)}\u00a0µs`;
}

// Sum of a distribution over shards: [[bound, count up to it], ...] and the count of all.
function together(shards, name) {
  const parts = shards.map((shard) => shard.distributions[name]);
  const up_to = parts[0].up_to.map(([bound], i) =>
    [bound, parts.reduce((sum, part) => sum + part.up_to[i][1], 0)]);
  return { up_to, count: parts.reduce((sum, part) => sum + part.count, 0) };
}

// A percentile of what came between two answers; within a bucket values are taken to be even.
function percentile(before, now, share) {
  const count = now.count - before.count;
  if (count <= 0) return null;
  const wanted = count * share;
  let [low, below] = [0, 0];
  for (let i = 0; i < now.up_to.length; i++) {
    const [bound, n] = now.up_to[i];
    const up_to = n - before.up_to[i][1];
    if (up_to >= wanted) return low + (bound - low) * ((wanted - below) / Math.max(up_to - below, 1));
    [low, below] = [bound, up_to];
  }
  return low;
}

// ---- plots --------------------------------------------------------------------------------

const PLOTS = [
  { title: "Messages and deliveries per second", show: (v) => short(v, "/s"), series: ["deliveries", "messages"] },
  { title: "Bytes per second", show: (v) => short(v, "B/s"), series: ["to members", "from clients", "to the log"] },
  { title: "Publish: from its place to its publication", show: time, series: ["p50", "p99"] },
  { title: "Commit: time to the disk", show: time, series: ["p50", "p99"] },
  { title: "Turn of a shard", show: time, series: ["p50", "p99"] },
  { title: "Members by how they keep up", show: (v) => short(v), series: ["lagging", "catch-up", "stalled", "served last"] },
];

function element(name, attributes = {}, ...inside) {
  const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
}

for (const plot of PLOTS) {
  plot.points = [];
  plot.svg = element("svg:svg", { viewBox: "0 0 600 180", preserveAspectRatio: "none", role: "img" });
  plot.values = plot.series.map(() => element("b"));
  const legend = plot.series.map((name, i) => element("li", {},
    element("svg:svg", { viewBox: "0 0 30 10", "aria-hidden": "true" },
      element("svg:polyline", { class: `s${i}`, points: "0,5 30,5" })),
    ` ${name} `, plot.values[i]));
  plot.table = element("table");
  plot.details = element("details", {}, element("summary", {}, "As a table"), plot.table);
  plot.top = element("span");
  $("plots").append(element("figure", {}, element("figcaption", {}, plot.title),
    element("div", { class: "faint" }, plot.top), plot.svg,
    element("ul", { class: "legend" }, ...legend), plot.details));
}

function draw(plot, now) {
  plot.points = plot.points.filter(([at]) => at > now - KEPT);
  const all = plot.points.flatMap(([, values]) => values).filter((v) => v !== null);
  const top = nice(Math.max(...all, 0));
  plot.svg.replaceChildren();
  for (const share of [0, 0.5, 1]) {
    plot.svg.append(element("svg:line", { class: "grid", x1: 0, x2: 600, y1: 178 - 174 * share, y2: 178 - 174 * share }));
  }
  plot.top.textContent = `up to ${plot.show(top)}`;
  plot.series.forEach((_, i) => {
    // A time without a value is a gap, not a zero.
    let run = [];
    const end = () => {
      if (run.length === 1) run.push(run[0].replace(/^[\d.]+/, (x) => Number(x) + 1.5));
      if (run.length) plot.svg.append(element("svg:polyline", { class: `s${i}`, points: run.join(" "), "vector-effect": "non-scaling-stroke" }));
      run = [];
    };
    for (const [at, values] of plot.points) {
      if (values[i] === null) { end(); continue; }
      const x = 600 - ((now - at) / KEPT) * 600;
      run.push(`${x.toFixed(1)},${(178 - 174 * (values[i] / top)).toFixed(1)}`);
    }
    end();
  });
  const last = plot.points.at(-1)?.[1] ?? [];
  plot.values.forEach((node, i) => { node.textContent = plot.show(last[i] ?? null); });
  const said = plot.series.map((name, i) => `${name} ${plot.show(last[i] ?? null)}`).join(", ");
  plot.svg.setAttribute("aria-label", `${plot.title}, now: ${said}; scale up to ${plot.show(top)}`);
  if (plot.details.open) {
    const rows = plot.points.slice(-20).reverse().map(([at, values]) =>
      [new Date(at).toLocaleTimeString(), ...values.map((v) => ({ n: plot.show(v) }))]);
    table(plot.table, `${plot.title}, newest first`, ["time", ...plot.series.map((n) => ({ n }))], rows);
  }
}

function nice(top) {
  if (top <= 0) return 1;
  const step = 10 ** Math.floor(Math.log10(top));
  return [1, 2, 5, 10].map((n) => n * step).find((n) => n >= top);
}

// ---- tables -------------------------------------------------------------------------------

// A cell is text, {n: number as text}, {name: a member's or a group's}, or a node. The rows are
// kept where they are, so that focus and a screen reader's place stay.
function table(node, caption, heads, rows) {
  if (!node.tHead) {
    node.append(element("caption"), element("thead", {}, element("tr")), element("tbody"));
  }
  node.caption.textContent = caption;
  const cell = (kind, content) => {
    const attributes = kind === "th" ? { scope: "col" } : {};
    // A button has a name of its own.
    if (content instanceof Node) return element(kind, attributes, content);
    if (content?.n !== undefined) return element(kind, { ...attributes, class: "n" }, content.n);
    if (content?.bad !== undefined) return element(kind, { ...attributes, class: "bad" }, content.bad);
    if (content?.name !== undefined) return element(kind, { ...attributes, class: "name" }, content.name);
    return element(kind, attributes, content);
  };
  node.tHead.rows[0].replaceChildren(...heads.map((head) => cell("th", head)));
  const body = node.tBodies[0];
  rows.forEach((row, i) => {
    const line = body.rows[i] ?? body.insertRow();
    row.forEach((content, j) => {
      const now = cell("td", content);
      const old = line.cells[j];
      if (!old) line.append(now);
      else if (old.textContent !== now.textContent || old.className !== now.className || content?.dataset?.key !== old.firstChild?.dataset?.key) old.replaceWith(now);
    });
    while (line.cells.length > row.length) line.deleteCell(-1);
  });
  while (body.rows.length > rows.length) body.deleteRow(-1);
}

function button(text, key, act) {
  const node = element("button", { type: "button", "data-key": key }, text);
  node.addEventListener("click", () => act().catch((error) => alarm(error.message)));
  return node;
}

function disconnectButton(body, what) {
  const node = button("Disconnect", JSON.stringify(body), async () => {
    if (!await confirmed("Disconnect", `${what} is closed with an ERROR, and may come back. A durable member stays one.`, "Disconnect")) return;
    const { closed } = await ask("disconnect", body);
    $("state").textContent = `${closed} connections closed`;
  });
  node.setAttribute("aria-label", `Disconnect ${what}`);
  return node;
}

// ---- the figures --------------------------------------------------------------------------

let before = null;

function show(status) {
  const at = status.unix_ms;
  const all = status.total;
  $("version").textContent = status.version;
  const problems = [];
  if (status.silent_shards.length) problems.push(`No answer from shards ${status.silent_shards.join(", ")}.`);
  for (const shard of status.shards) {
    if (shard.log_poisoned) problems.push(`The log of shard ${shard.shard} failed: it accepts nothing until the server is started again.`);
    if (shard.log_full) problems.push(`There is no room on disk for shard ${shard.shard}.`);
    if (shard.draining) problems.push(`Shard ${shard.shard} is stopping.`);
  }
  alarm(problems.join(" "));
  const seconds = before ? (at - before.unix_ms) / 1000 : 0;
  // After a restart the counters begin anew.
  const fits = before && seconds > 0 && all.turns >= before.total.turns && status.shards.length === before.shards.length && status.shards.length > 0;
  const rate = (name) => (fits ? (all[name] - before.total[name]) / seconds : null);
  const tiles = [
    ["Messages", short(rate("messages"), "/s")],
    ["Deliveries", short(rate("deliveries"), "/s")],
    ["Connections", short(all.connections)],
    ["Memberships", short(all.members)],
    ["Groups", short(all.groups)],
    ["Served last", short(all.members_tripped)],
    ["Refused", short(rate("refused"), "/s")],
    ["Redelivered", short(rate("redeliveries"), "/s")],
    ["Waiting", short(all.inbox_bytes, "B")],
    ["Tails in memory", short(all.tail_bytes, "B")],
    ["Wake-ups", short(rate("sleeps"), "/s")],
    ["Commits", short(rate("commits"), "/s")],
  ];
  $("now").replaceChildren(...tiles.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  if (fits) {
    const parts = (name, shares) => {
      const [old, now] = [together(before.shards, name), together(status.shards, name)];
      return shares.map((share) => percentile(old, now, share));
    };
    const points = [
      [rate("deliveries"), rate("messages")],
      [rate("write_bytes"), rate("read_bytes"), rate("commit_bytes")],
      parts("publish_ns", [0.5, 0.99]),
      parts("commit_ns", [0.5, 0.99]),
      parts("turn_ns", [0.5, 0.99]),
      [all.members_lagging, all.members_catch_up, all.members_stalled, all.members_tripped],
    ];
    PLOTS.forEach((plot, i) => { plot.points.push([at, points[i]]); draw(plot, at); });
  }
  const slow = status.shards.flatMap((shard) => shard.slowest.map((member) => [
    { name: member.member }, member.state, member.tripped ? { bad: "last" } : "in turn",
    { n: short(member.drain_bytes_per_s, "B/s") }, { n: String(member.lag_messages) },
    { n: String(member.groups) }, { n: String(shard.shard) },
    disconnectButton({ member: member.member }, `Member ${member.member}`),
  ]));
  table($("slow"), slow.length ? `${slow.length} members do not keep up` : "Every member keeps up",
    ["member", "state", "served", { n: "takes" }, { n: "behind" }, { n: "groups" }, { n: "shard" }, "action"], slow);
  const old = (shard, name) => (fits && before.shards.find((s) => s.shard === shard.shard)?.figures[name]) ?? 0;
  const per_s = (shard, name) => ({ n: fits ? short((shard.figures[name] - old(shard, name)) / seconds) : "–" });
  table($("shards"), `${status.shards.length} shards; rates per second`,
    ["shard", { n: "connections" }, { n: "groups" }, { n: "messages" }, { n: "deliveries" }, { n: "writes" }, { n: "turns" }, { n: "wake-ups" }, { n: "commits" }, { n: "log" }, { n: "ring" }],
    status.shards.map((shard) => [
      String(shard.shard), { n: short(shard.figures.connections) }, { n: short(shard.figures.groups) },
      per_s(shard, "messages"), per_s(shard, "deliveries"), per_s(shard, "writes"), per_s(shard, "turns"),
      per_s(shard, "sleeps"), per_s(shard, "commits"), { n: short(shard.log_bytes, "B") },
      { n: shard.ring_slots ? `${shard.ring_batches}/${shard.ring_slots}` : "–" },
    ]));
  before = status;
}

let paused = false;
let timer = null;

async function tick() {
  clearTimeout(timer);
  if (!paused && !document.hidden) {
    try {
      show(await ask("shards"));
      if (!$("state").classList.contains("live")) {
        $("state").classList.add("live");
        $("state").textContent = "Live";
      }
    } catch (error) {
      $("state").classList.remove("live");
      $("state").textContent = `No answer: ${error.message}`;
    }
  }
  if (before && !$("chat-server").value) await findServer().catch(() => {});
  timer = setTimeout(tick, Number($("interval").value));
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("state").classList.remove("live");
  $("state").textContent = paused ? "Paused" : "Connecting";
  if (!paused) tick();
});
$("interval").addEventListener("change", tick);
document.addEventListener("visibilitychange", tick);

// ---- groups -------------------------------------------------------------------------------

let rows = [];
let next = null;

async function listGroups(from) {
  if (!from) rows = [];
  let at = from ?? { shard: 0, from: 0 };
  const wanted = rows.length + 100;
  while (at && rows.length < wanted) {
    const page = await ask(`groups?shard=${at.shard}&from=${at.from}&limit=100`);
    rows.push(...page.groups);
    at = page.next;
  }
  next = at;
  $("more").hidden = !next;
  table($("groups"), `${rows.length} groups${next ? ", and more" : ""}`,
    ["group", "class", "priority", { n: "members" }, { n: "durable" }, { n: "online" }, { n: "last message" }, { n: "kept from" }, { n: "owner" }, "action"],
    rows.map((group) => [
      { name: group.group }, group.class, group.priority, { n: String(group.members) },
      { n: String(group.durable_members) }, { n: String(group.durable_members_online) },
      { n: String(group.published) }, { n: String(group.first_kept) }, { n: String(group.owner) },
      button("Show", group.group, () => showGroup(group.group)),
    ]));
}

async function showGroup(name) {
  const path = `groups/${encodeURIComponent(name)}`;
  const group = await ask(path);
  const members = [];
  let at = { shard: 0, from: 0 };
  while (at && members.length < 200) {
    const page = await ask(`${path}/members?shard=${at.shard}&from=${at.from}&limit=100`);
    members.push(...page.members);
    at = page.next;
  }
  const facts = element("dl", { class: "tiles" }, ...Object.entries(group)
    .filter(([, value]) => typeof value !== "object")
    .map(([key, value]) => element("div", {}, element("dt", {}, key.replaceAll("_", " ")), element("dd", {}, String(value)))));
  const list = element("table");
  table(list, `${members.length} members${at ? ", and more" : ""}`,
    ["member", "by", "state", { n: "handed" }, { n: "behind" }, { n: "acknowledged" }, "durable", { n: "takes" }, { n: "shard" }, "action"],
    members.map((m) => [
      { name: m.member }, m.transport, m.tripped ? { bad: `${m.state}, served last` } : m.state, { n: String(m.sent) }, { n: String(m.lag_messages) },
      { n: m.durable ? String(m.acked) : "–" }, m.durable ? "yes" : "no", { n: short(m.drain_bytes_per_s, "B/s") }, { n: String(m.shard) },
      disconnectButton({ shard: m.shard, slot: m.slot, generation: m.generation }, `This connection of ${m.member}`),
    ]));
  $("one").replaceChildren(element("h3", {}, `Group ${name}`), facts, element("div", { class: "scroll" }, list));
}

const said = (error) => { $("one").replaceChildren(element("p", { class: "bad" }, error.message)); };
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  showGroup($("group").value).catch(said);
});
$("list").addEventListener("click", () => listGroups().catch(said));
$("more").addEventListener("click", () => listGroups(next).catch(said));

// ---- a chat room --------------------------------------------------------------------------

// A member by fanfare.json.v1 (PROTOCOL.md), as plain as one can be: live, from the tail, and gone
// when the connection ends.
const SHOWN_MAX = 200;
let room = null;

function line(...inside) {
  const list = $("chat-log");
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(element("p", {}, ...inside));
  while (list.children.length > SHOWN_MAX) list.firstChild.remove();
  if (follows) list.scrollTop = list.scrollHeight;
}

function inRoom(inside, text) {
  $("chat-text").disabled = $("chat-say").disabled = !inside;
  $("chat-enter").textContent = room ? "Leave" : "Enter";
  $("chat-state").textContent = text;
}

function leave(text) {
  clearInterval(room?.pings);
  const socket = room?.socket;
  room = null;
  socket?.close();
  inRoom(false, text);
}

// A message is sent when the one before has its answer, so that the number of one that was refused is
// free for the next.
function enter(server, group, member, token) {
  let socket;
  try {
    socket = new WebSocket(/^wss?:/.test(server) ? server : `ws://${server}`, "fanfare.json.v1");
  } catch {
    return leave(`${server} is no address of a server, such as ws://127.0.0.1:7400.`);
  }
  const me = { socket, group, next: 1, saying: null, handle: null };
  room = me;
  inRoom(false, `Connecting to ${server}`);
  const send = (frame) => socket.send(JSON.stringify(frame));
  socket.addEventListener("open", () => {
    // Random bytes, since randomUUID is only there on pages of TLS and localhost.
    const producer = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    send({ type: "hello", producer, member });
    if (token) send({ type: "auth", request: 1, token });
    send({ type: "join", request: 2, groups: [group] });
  });
  socket.addEventListener("message", ({ data }) => {
    const frame = JSON.parse(data);
    if (frame.type === "welcome" && frame.heartbeat_ms) {
      me.pings = setInterval(() => send({ type: "ping", quiet: true }), frame.heartbeat_ms * 0.9);
    } else if (frame.type === "joined") {
      me.handle = frame.handle;
      inRoom(true, `In ${group} as ${member}; its last message is number ${frame.head}.`);
      $("chat-text").focus();
    } else if (frame.type === "deliver" && frame.handle === me.handle) {
      const text = frame.payload ?? "(bytes that are no text)";
      line(element("b", {}, frame.sender ?? "?"), text, element("small", {}, `number ${frame.seq}`));
    } else if (frame.type === "published") {
      const ms = performance.now() - me.saying.at;
      [me.saying, me.next] = [null, me.next + 1];
      const where = frame.level === "memory" ? "in memory" : "on disk";
      $("chat-state").textContent = `Number ${frame.seq} is ${where}, ${ms.toFixed(1)} ms after it was sent.`;
    } else if (frame.type === "error") {
      $("chat-state").textContent = `${frame.name ?? frame.code}: ${frame.text}`;
      if (me.saying && frame.request === me.saying.request) {
        $("chat-text").value ||= me.saying.text;
        me.saying = null;
      }
    } else if (frame.type === "drain") {
      $("chat-state").textContent = "The server is stopping.";
    }
  });
  socket.addEventListener("close", ({ code, reason }) => {
    if (room !== me) return;
    const why = me.handle === null && code === 1006
      ? `No connection. The server must be reached at ${server} and have websocket_origins = "${location.origin}".`
      : `The connection ended (${reason || code}).`;
    leave(why);
  });
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  if (room) leave("Not in a room.");
  else enter($("chat-server").value.trim(), $("chat-group").value, $("chat-name").value, $("chat-token").value.trim());
});
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!room || room.saying) return;
  const [request, text] = [room.next + 2, $("chat-text").value];
  room.saying = { request, text, at: performance.now() };
  room.socket.send(JSON.stringify({
    type: "publish", request, group: room.group, producer_seq: room.next, payload: text,
  }));
  $("chat-text").value = "";
});
$("chat-name").value = `visitor-${Math.floor(Math.random() * 10_000)}`;

// Where members connect: this host, at the port of the configuration.
async function findServer() {
  const { keys } = await ask("config");
  const port = String(keys.listen.value).match(/:(\d+)$/)?.[1] ?? "7400";
  const scheme = location.protocol === "https:" || keys.tls_required?.value ? "wss" : "ws";
  $("chat-server").value = `${scheme}://${location.hostname}:${port}`;
}

// ---- the server ---------------------------------------------------------------------------

$("config-show").addEventListener("click", async () => {
  try {
    const { keys } = await ask("config");
    table($("config"), "The configuration in force", ["key", { n: "value" }, "set by", "read again by SIGHUP"],
      Object.entries(keys).map(([key, { value, set_by, live }]) =>
        [key, { n: value === null ? "not set" : String(value) }, set_by, live ? "yes" : "no"]));
  } catch (error) { alarm(error.message); }
});
$("reload").addEventListener("click", async () => {
  try {
    const { changed, needs_restart } = await ask("reload", {});
    const list = (keys) => (keys.length ? keys.join(", ") : "nothing");
    $("state").textContent = `Changed: ${list(changed)}. Needs a restart: ${list(needs_restart)}.`;
  } catch (error) { alarm(error.message); }
});
$("drain").addEventListener("click", async () => {
  const text = "It takes nothing new, finishes what it accepted, tells every member when to come back, and ends.";
  if (!await confirmed("Stop the server", text, "Stop it")) return;
  ask("drain", {}).catch((error) => alarm(error.message));
});

// ---- theme --------------------------------------------------------------------------------

const theme = localStorage.getItem("fanfare-theme") ?? "";
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}
setTheme(theme);
$("theme").value = theme;
$("theme").addEventListener("change", () => {
  localStorage.setItem("fanfare-theme", $("theme").value);
  setTheme($("theme").value);
});

tick();
