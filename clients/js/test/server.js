// A `fanfare serve` of a test: its binary is named by FANFARE_BIN, else it is the one of a development build.
import { execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createWriteStream, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const TLS = fileURLToPath(new URL("../../../target/clients/tls/", import.meta.url));
const BINARY = process.env.FANFARE_BIN ?? fileURLToPath(new URL("../../../target/debug/fanfare", import.meta.url));

function freePort() {
  return new Promise((resolve, reject) => {
    // Below the ports that the kernel gives to clients, or one could connect to itself while the server is down.
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const probe = net.createServer().once("error", reject).listen(port, "127.0.0.1", () => probe.close(() => resolve(port)));
  }).catch(freePort);
}

export class Server {
  /**
   * With `tls` it has the certificate that tests/conversations/certificates.sh has made. With `keys` it takes
   * nobody without a {@link token}, not even a moment after that is over.
   */
  static async start({ tls = false, keys = false } = {}) {
    if (!existsSync(BINARY)) throw new Error(`there is no server at ${BINARY}; build it, or set FANFARE_BIN`);
    const server = new Server();
    server.tls = tls;
    server.port = await freePort();
    server.dir = mkdtempSync(join(tmpdir(), "fanfare-js-"));
    if (keys) server.keys = server.newKeys("keys");
    await server.run();
    return server;
  }

  get url() {
    return `${this.tls ? "wss" : "ws"}://127.0.0.1:${this.port}`;
  }

  newKeys(name) {
    const file = join(this.dir, name);
    writeFileSync(file, randomBytes(32).toString("hex"));
    return file;
  }

  /** What `fanfare token` prints for these arguments. */
  async token(args, keys = this.keys) {
    const { stdout } = await promisify(execFile)(BINARY, ["token", "--keys", keys, ...args]);
    return stdout.trim();
  }

  async run() {
    const args = ["serve", "--listen", `127.0.0.1:${this.port}`, "--data-dir", join(this.dir, "data"), "--shards", "2"];
    args.push("--segment-bytes", String(8 << 20), "--connections-max", "1000", "--set", "recv_buffers=256");
    if (this.tls) args.push("--set", `tls_cert=${TLS}cert.pem`, "--set", `tls_key=${TLS}key.pem`);
    if (this.keys) args.push("--auth-keys", this.keys, "--set", "auth_leeway_s=0");
    this.child = spawn(BINARY, args, { stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream.pipe(createWriteStream(join(this.dir, "log"), { flags: "a" }));
    }
    this.ended = new Promise((resolve) => this.child.once("exit", resolve));
    // The kernel accepts before the shards run: only an answer says that it is up.
    for (let i = 0; ; i++) {
      if (await this.answers()) return;
      if (i === 400 || this.child.exitCode !== null) throw new Error("the server does not start");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  answers() {
    return new Promise((resolve) => {
      const socket = net.connect(this.port, "127.0.0.1", () => socket.write("what?"));
      socket.once("data", () => resolve(true)).once("error", () => resolve(false)).once("close", () => resolve(false));
      socket.setTimeout(2000, () => socket.destroy());
    });
  }

  async end(signal) {
    this.child.kill(signal);
    await this.ended;
  }

  async close() {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.end("SIGKILL");
    rmSync(this.dir, { recursive: true, force: true });
  }
}
