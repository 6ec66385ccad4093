"""A ``fanfare serve`` of a test.

Its binary is named by FANFARE_BIN, else it is the one of a development build.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

from tests.frames import CONVERSATIONS, ROOT

_TLS = ROOT / "target" / "clients" / "tls"
BINARY = Path(os.environ.get("FANFARE_BIN", ROOT / "target" / "debug" / "fanfare"))


def _free_port() -> int:
    while True:
        # Below the ports that the kernel gives to clients, or one could connect to itself while the server is down.
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """To be used with ``async with``.

    With ``tls``, ``ssl`` is how it is known. With ``keys`` it takes nobody without a :meth:`token`, not even a moment
    after that is over.
    """

    def __init__(self, tls: bool = False, keys: bool = False) -> None:
        if not BINARY.exists():
            raise FileNotFoundError(f"there is no server at {BINARY}; build it, or set FANFARE_BIN")
        self._dir = tempfile.TemporaryDirectory(prefix="fanfare-python-")
        self._port = _free_port()
        self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{self._port}"
        self.ssl: ssl.SSLContext | None = None
        self._flags: list[str] = []
        if tls:
            subprocess.run([CONVERSATIONS / "certificates.sh", _TLS], check=True)
            self.ssl = ssl.create_default_context(cafile=_TLS / "ca.pem")
            self._flags = ["--set", f"tls_cert={_TLS}/cert.pem", "--set", f"tls_key={_TLS}/key.pem"]
        if keys:
            self._keys = self.new_keys("keys")
            self._flags += ["--auth-keys", str(self._keys), "--set", "auth_leeway_s=0"]

    def new_keys(self, name: str) -> Path:
        file = Path(self._dir.name) / name
        file.write_text(secrets.token_hex(32))
        return file

    async def token(self, *args: str, keys: Path | None = None) -> str:
        """What ``fanfare token`` prints for these arguments."""
        process = await asyncio.create_subprocess_exec(
            BINARY, "token", "--keys", keys or self._keys, *args, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.decode().strip()

    async def __aenter__(self) -> Server:
        await self.run()
        return self

    async def run(self) -> None:
        with open(Path(self._dir.name) / "log", "ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                BINARY, "serve", "--listen", f"127.0.0.1:{self._port}", "--data-dir", f"{self._dir.name}/data",
                "--shards", "2", "--segment-bytes", str(8 << 20), "--connections-max", "1000", "--set",
                "recv_buffers=256", *self._flags, stdout=log, stderr=log,
            )  # fmt: skip
        # The kernel accepts before the shards run: only an answer says that it is up.
        for _ in range(400):
            if await self._answers():
                return
            if self._process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        raise RuntimeError(f"the server does not start: {(Path(self._dir.name) / 'log').read_text()}")

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"what?")
            answer = await asyncio.wait_for(reader.read(1), 2)
            writer.close()
            return answer != b""
        except (OSError, TimeoutError):
            return False

    async def end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            await self.end(signal.SIGKILL)
        self._dir.cleanup()
