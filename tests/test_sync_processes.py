"""The synchronous API in separate processes: Ctrl-C, forks and exit."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_kit import environment, python

from resilient_imagen.emulator import BackgroundEmulator, Emulator, faults

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX"),
]


@pytest.fixture
def vendors() -> Iterator[BackgroundEmulator]:
    with BackgroundEmulator(Emulator(picture="tiny")) as emulator:
        yield emulator


def settings(vendors: BackgroundEmulator) -> dict[str, str]:
    """Direct a process to the emulator, and show warnings of open resources."""
    return {
        "GOOGLE_GENAI_API_KEY": "emulated",
        "GOOGLE_GEMINI_BASE_URL": vendors.google_url,
        "IMAGE_GEN_ROUTES": "google:gemini-3-pro-image",
        "IMAGE_GEN_IPM": "60000",
        "PYTHONWARNINGS": "always",
    }


def ran(code: str, tmp_path: Path, vendors: BackgroundEmulator) -> subprocess.CompletedProcess[str]:
    """Run a script until it exits."""
    return python("-c", textwrap.dedent(code), cwd=tmp_path, env=settings(vendors))


@contextmanager
def running(
    code: str, tmp_path: Path, vendors: BackgroundEmulator
) -> Iterator[subprocess.Popen[str]]:
    """Start a script with piped standard streams; kill it in the end."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment(settings(vendors)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


WAITS_FOR_AN_IMAGE = """
    import sys, time
    from resilient_imagen.sync import default_client, generate_image

    default_client().warm_up()
    try:
        generate_image("x", on_start=lambda: print("sent"))
    except KeyboardInterrupt:
        print(time.monotonic())
        sys.stdin.read()
"""


def seconds_to_return(vendors: BackgroundEmulator, tmp_path: Path) -> float:
    """Return the seconds from Ctrl-C to its exception, with the connection closed by then."""
    vendors.google.set(faults.hang())
    with running(WAITS_FOR_AN_IMAGE, tmp_path, vendors) as process:
        assert line(process) == "sent"
        vendors.wait_until(lambda: vendors.google.in_flight == 1)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        returned = float(line(process))
        vendors.wait_until(lambda: vendors.google.open_connections == 0)
        assert process.poll() is None
        _, errors = process.communicate("")
    assert (process.returncode, errors) == (0, "")
    return returned - sent


def test_ctrl_c_cancels_the_call_and_closes_its_connection(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """A real signal raises KeyboardInterrupt in the main thread."""
    seconds_to_return(vendors, tmp_path)


@pytest.mark.slow
def test_ctrl_c_returns_within_a_second(vendors: BackgroundEmulator, tmp_path: Path) -> None:
    """The fastest of five attempts counts, because the machine may be busy."""
    took = min(seconds_to_return(vendors, tmp_path) for _ in range(5))
    sys.stdout.write(f"\nCtrl-C returned after {took * 1000:.1f} ms\n")
    assert took < 1


def test_the_process_exits_without_closing_its_clients(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """Connections are closed at exit, and no warning of anything left open is printed."""
    done = ran(
        """
        import asyncio
        from resilient_imagen import Settings
        from resilient_imagen.sync import ImageClient, generate_image
        from resilient_imagen.testing import FakeProvider

        class Threaded(FakeProvider):
            async def generate(self, request, model):
                await asyncio.to_thread(int)
                return await super().generate(request, model)

        threaded = Threaded("google", latency=0)
        first = ImageClient(Settings(routes="google:pro"), providers=[threaded])
        second = ImageClient()
        first.generate("x")
        second.generate("x")  # it stays referenced: a client collected before exit would warn
        print(generate_image("x")["provider"])
        """,
        tmp_path,
        vendors,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "google\n", "")
    assert [request.delivered for request in vendors.google.requests] == [True, True]


def test_the_process_ends_although_a_provider_cannot_be_closed(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """It ends although daemon threads wait for images and default threads are busy."""
    vendors.google.set(faults.hang())
    done = ran(
        """
        import asyncio, contextlib, threading
        from resilient_imagen import Settings
        from resilient_imagen.sync import ImageClient, generate_image
        from resilient_imagen.testing import FakeProvider

        class Stubborn(FakeProvider):
            async def generate(self, request, model):
                await asyncio.to_thread(int)
                started.set()
                while True:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        pass

        def call(generate, **options):
            with contextlib.suppress(RuntimeError):
                generate("x", **options)

        started = threading.Event()
        made = ImageClient(Settings(routes="google:pro"), providers=[Stubborn("google")])
        threading.Thread(target=call, args=(made.generate,), daemon=True).start()
        started.wait()
        sent = threading.Event()
        options = {"on_start": sent.set}
        threading.Thread(target=call, args=(generate_image,), kwargs=options, daemon=True).start()
        sent.wait()
        """,
        tmp_path,
        vendors,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_started_before_the_first_call(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """Neither the import nor a reset starts a thread."""
    done = ran(
        """
        import threading
        from resilient_imagen import sync
        sync.reset_default_client()
        print(threading.active_count())
        """,
        tmp_path,
        vendors,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


FORKS = """
    import os, sys, threading, warnings
    from resilient_imagen import background_loop, sync
    from resilient_imagen.providers.google import GoogleProvider

    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
    url = os.environ["GOOGLE_GEMINI_BASE_URL"]
    own = sync.ImageClient(providers=[GoogleProvider(api_key="emulated", base_url=url)])
    default = sync.default_client()
    own.generate("parent")
    sync.generate_image("parent")
    assert own.snapshot()["images"] == default.snapshot()["images"] == 1

    started, answers = threading.Event(), []
    def call():
        answers.append(own.generate("x", model="gemini-2.5-flash-image", on_start=started.set))
    other = threading.Thread(target=call, daemon=True)
    other.start()
    started.wait()

    held = threading.Event()
    def hold():
        with background_loop._lock:
            held.set()
            done.wait()
    done = threading.Event()
    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    held.wait()

    parents_loop = background_loop._current.loop
    child = os.fork()
    if child == 0:
        import gc
        touched = []
        parents_loop.call_soon_threadsafe = lambda *_, **__: touched.append(sys._getframe(1))
        gc.collect()
        own.generate("child")
        sync.generate_image("child")
        assert own.snapshot()["images"] == default.snapshot()["images"] == 1
        assert own.snapshot()["process"]["images"] == 2
        grandchild = os.fork()
        if grandchild == 0:
            sync.generate_image("grandchild")
            own.close()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
        own.close()
        sync.reset_default_client()
        gc.collect()
        assert touched == []
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print("forked")
    sys.stdin.readline()
    other.join()
    done.set()
    holder.join()
    own.generate("parent")
    sync.generate_image("parent")
    print(len(answers))
    sys.stdin.read()
"""


def test_a_forked_child_begins_with_its_own_loop_and_clients(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """The parent's connections keep working, also those with a call in flight."""
    vendors.google.set_latency(3, model="gemini-2.5-flash-image")
    with running(FORKS, tmp_path, vendors) as process:
        assert line(process) == "forked", process.communicate("")[1]
        before = vendors.open_connections
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "1", process.communicate("")[1]
        assert vendors.open_connections == before
        _, errors = process.communicate("")
    assert (process.returncode, errors) == (0, "")
