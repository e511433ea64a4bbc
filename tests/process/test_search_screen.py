"""The search screen on a terminal of its own, as somebody types."""

import asyncio
import os
import pty
import re
import select
import subprocess
import sys
import time

from harness.cluster import UpProcess

from kvshard import Client

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """A program on a terminal."""

    def __init__(self, *argv: str) -> None:
        self.descriptor, inner = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        command = [sys.executable, "-m", "kvshard.cli", *argv]
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        self.seen = ""

    def type(self, keys: str) -> None:
        self.seen = ""
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        """Until that stands in what was drawn since the last key."""
        ends = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < ends, f"{text!r} was not shown, but {self.seen[-2_000:]!r}"
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.seen += _CODES.sub("", os.read(self.descriptor, 65_536).decode(errors="replace"))

    def close(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.descriptor)


async def _fill(address: str) -> None:
    async with Client(address, timeout=20.0) as kv:
        docs = kv.collection("typed")
        await docs.create(schema={"title": "text"})
        await docs.put_many({"asyncio": {"title": "asynchronous gathering"}, "json": {"title": "a serialisation format"}})
        await docs.search("*", refresh=True)


def test_hits_change_while_typing(shared_cluster: UpProcess) -> None:
    asyncio.run(_fill(shared_cluster.address))
    terminal = Terminal("search", "typed", "-i", "--router", shared_cluster.address)
    try:
        terminal.wait_for("2 hits")
        terminal.type("gath")
        terminal.wait_for("1 hit in")
        terminal.wait_for("asynchronous gathering")
        terminal.type("\x15serial")
        terminal.wait_for("a serialisation format")
        terminal.type("\r")
        terminal.wait_for('"title"')
        terminal.type("\x1b")
        terminal.wait_for("esc leave")
        terminal.type('\x15"unbalanced')
        terminal.wait_for("quot")
        terminal.type("\x03")
    finally:
        code = terminal.close()
    assert code == 0


def test_it_needs_a_terminal(shared_cluster: UpProcess) -> None:
    command = [sys.executable, "-m", "kvshard.cli", "search", "typed", "-i", "--router", shared_cluster.address]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr
