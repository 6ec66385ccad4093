"""The examples of README run as they are written there."""

from __future__ import annotations

import asyncio
import re
import sys
import unittest
from pathlib import Path

from tests.server import Server

README = Path(__file__).resolve().parents[1] / "README.md"


class Readme(unittest.IsolatedAsyncioTestCase):
    async def test_the_examples_talk_to_each_other(self) -> None:
        examples = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
        self.assertEqual(len(examples), 2)
        async with asyncio.timeout(60), Server() as server:

            async def start(code: str) -> asyncio.subprocess.Process:
                code = code.replace("ws://127.0.0.1:7400", server.url)
                return await asyncio.create_subprocess_exec(
                    sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
                )

            ann = await start(examples[0])
            assert ann.stdout is not None
            heard = asyncio.ensure_future(ann.stdout.readline())
            try:
                # What is published before ann has joined does not reach her: publish until one does.
                for place in range(1, 20):
                    bob = await start(examples[1])
                    output, _ = await bob.communicate()
                    self.assertEqual((bob.returncode, output.decode()), (0, f"hello has place {place}\n"))
                    if heard.done():
                        break
                self.assertEqual(await asyncio.wait_for(heard, 5), b"bob: hello\n")
            finally:
                ann.kill()
                await ann.wait()


if __name__ == "__main__":
    unittest.main()
