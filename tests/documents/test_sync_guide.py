"""The guide to the synchronous API: its samples run in the programs for which they are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cli_kit import environment
from ports import free_port
from readme_kit import LIBRARY, executed
from redis_kit import RedisServer
from trace_backends import collector

from resilient_imagen import sync
from resilient_imagen.emulator import BackgroundEmulator, Emulator, faults

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn and forks need POSIX")

THREADS, DJANGO, CELERY = LIBRARY.samples(heading="Threads, Django, Celery")
NOTEBOOK, AWAITING_NOTEBOOK = LIBRARY.samples(heading="Notebooks")
PATIENCE = 120.0
"""Seconds after which a server is taken for dead."""
IPM = 600
"""Images per minute where a test looks at the pace."""


@pytest.fixture
def vendors() -> Iterator[BackgroundEmulator]:
    with BackgroundEmulator(Emulator(picture="tiny")) as emulator:
        yield emulator


def settings(vendors: BackgroundEmulator, **more: str) -> dict[str, str]:
    """Return the environment that directs a process to the emulator."""
    return {
        "GOOGLE_GENAI_API_KEY": "emulated",
        "OPENAI_API_KEY": "emulated",
        "GOOGLE_GEMINI_BASE_URL": vendors.google_url,
        "OPENAI_BASE_URL": vendors.openai_url,
        "IMAGE_GEN_IPM": str(IPM),
        "IMAGE_GEN_MAX_RETRIES": "0",
        **more,
    }


@contextmanager
def program(
    arguments: Sequence[str], folder: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a module of this interpreter, with its output in ``folder/log``; end it with SIGTERM."""
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=environment({"PYTHONPATH": f"{folder}:{environment()['PYTHONPATH']}", **env}),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that its workers end, too, should it hang
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, log.read_text()
        except BaseException:
            sys.stdout.write(log.read_text())
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait for a condition of a running program."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it never did"
        time.sleep(0.05)


# -- threads --------------------------------------------------------------------------------------


def test_the_sample_with_threads(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It generates all scenes with one client, and adds up their costs."""
    for name, value in settings(vendors, IMAGE_GEN_IPM="60000").items():
        monkeypatch.setenv(name, value)
    try:
        images, cost = executed(THREADS)["storyboard"](["one", "two", "three"])
    finally:
        sync.reset_default_client()
    assert [image["provider"] for image in images] == ["google"] * 3
    assert cost == pytest.approx(3 * 0.134)
    assert vendors.google.max_in_flight <= 4


@pytest.mark.slow
def test_sixteen_threads_share_120_images_a_minute(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images take at least half a minute, whichever threads request them."""
    for name, value in settings(vendors, IMAGE_GEN_IPM="120").items():
        monkeypatch.setenv(name, value)
    try:
        executed(THREADS)["storyboard"](["x"] * 64)
    finally:
        sync.reset_default_client()
    times = [request.time for request in vendors.google.requests]
    assert len(times) == 64
    assert max(times) - min(times) >= 63 * 60 / 120 * 0.95


@pytest.mark.slow
def test_a_thousand_calls_leave_no_socket_open(
    vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 threads through the real SDK use at most one connection per slot, and none afterwards."""
    for name, value in settings(vendors, IMAGE_GEN_IPM="600000").items():
        monkeypatch.setenv(name, value)
    sync.generate_image("first, which starts the threads that stay")
    sync.reset_default_client()
    vendors.wait_until(lambda: vendors.open_connections == 0)
    before = open_files()
    with ThreadPoolExecutor(50) as threads:
        made = threads.map(lambda _: sync.generate_image("x", deadline=100), range(1000))
        assert len(list(made)) == 1000
    assert vendors.open_connections <= 4
    sync.reset_default_client()
    vendors.wait_until(lambda: vendors.open_connections == 0)
    assert open_files() == before


def open_files() -> int:
    """Return open files and sockets of this process, without those of the emulator."""
    return len(list(Path("/proc/self/fd").iterdir()))


# -- Django under gunicorn ------------------------------------------------------------------------

SITE = """
import os
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(SECRET_KEY="made up", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
import views

def worker(request):
    images = views.default_client().snapshot()["process"]["images"]
    return views.JsonResponse({str(os.getpid()): images})

urlpatterns = [
    path("scene", views.scene), path("health", views.health), path("worker", worker),
]
application = get_wsgi_application()
if os.environ.get("PRELOADED"):
    views.generate_image("made by the master")  # its loop and client are there when it forks
"""


def at_once(count: int, ask: Callable[[], tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: ask(), range(count)))


class Site:
    """The guide's view under gunicorn."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> tuple[int, bytes]:
        address = f"{self.url}/{path}?{urllib.parse.urlencode(query)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(address, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def is_up(self) -> bool:
        with suppress(OSError):
            return self.get("health")[0] == 200
        return False

    def scenes(self, count: int) -> list[int]:
        """Return the statuses of ``count`` concurrent requests."""
        return [status for status, _ in at_once(count, lambda: self.get("scene", prompt="x"))]


@contextmanager
def served(
    vendors: BackgroundEmulator, folder: Path, *options: str, more_code: str = "", **more: str
) -> Iterator[Site]:
    """Serve the guide's view, with additional code if it is given, until the block ends."""
    pytest.importorskip("django")
    (folder / "views.py").write_text(DJANGO)
    (folder / "site_of_test.py").write_text(SITE + more_code)
    port = free_port()
    arguments = ["gunicorn", "-b", f"127.0.0.1:{port}", *options, "site_of_test:application"]
    site = Site(f"http://127.0.0.1:{port}")
    with program(arguments, folder, settings(vendors, **more)) as process:
        until(site.is_up, process)
        yield site


@pytest.mark.slow
def test_a_django_view_under_gunicorn_with_threads(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """Sixteen threads of a worker share one rate limit, one breaker and one health check."""
    with served(vendors, tmp_path, "-k", "gthread", "--threads", "16") as site:
        status, image = site.get("scene", prompt="a lighthouse")
        assert (status, image[:2]) == (200, b"\xff\xd8")
        vendors.google.forget()
        assert site.scenes(32) == [200] * 32
        times = [request.time for request in vendors.google.requests]
        assert max(times) - min(times) >= 31 * 60 / IPM * 0.9
        status, answer = site.get("scene", prompt="")
        assert (status, json.loads(answer)["error"][:14]) == (422, "prompt must be")
        vendors.google.set(faults.status(503))
        vendors.google.forget()
        assert site.scenes(16) == [200] * 16
        assert len(vendors.google.requests) <= 3 + 4
        vendors.openai.set(faults.status(503))
        assert site.get("scene", prompt="x")[0] == 503
        (google, _) = json.loads(site.get("health")[1])["routes"]
        assert (google["breaker"]["state"], google["breaker"]["openings_in_a_row"]) == ("open", 1)
    vendors.wait_until(lambda: vendors.open_connections == 0)


@pytest.mark.slow
@pytest.mark.parametrize("preloaded", ["", "preloaded"])
def test_a_django_view_under_gunicorn_with_forked_workers(
    vendors: BackgroundEmulator, tmp_path: Path, preloaded: str
) -> None:
    """Each worker has its own loop, also if its master had used the library before."""
    options = ["-w", "2", "--preload"] if preloaded else ["-w", "2"]
    with served(vendors, tmp_path, *options, PRELOADED=preloaded) as site:
        vendors.google.forget()
        assert site.scenes(20) == [200] * 20
        assert len(vendors.google.requests) == 20
        workers: dict[str, int] = {}
        while len(workers) < 2:
            for _, answer in at_once(8, lambda: site.get("worker")):
                workers |= json.loads(answer)
        assert sum(workers.values()) == 20  # and not what their master made
        assert vendors.open_connections <= (3 if preloaded else 2)
    vendors.wait_until(lambda: vendors.open_connections == 0)


@pytest.mark.slow
def test_a_django_view_leaves_one_trace_per_request(
    vendors: BackgroundEmulator, tmp_path: Path
) -> None:
    """The view's span is the parent of the call's span, in the trace of the view's caller."""
    options = ["-k", "gthread", "--threads", "8"]
    with collector() as traces:
        url = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.otlp}
        with served(vendors, tmp_path, *options, more_code=TRACED, **url) as site:
            assert site.scenes(8) == [200] * 8
    spans = [span for _, span in traces.received]
    views = {span.span_id: span for span in spans if span.name == "view"}
    calls = [span for span in spans if span.name == "imagegen.generate"]
    assert len(calls) == len({call.trace_id for call in calls}) == 8
    assert all(views[call.parent_id].trace_id == call.trace_id for call in calls)


TRACED = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(tracers)

def traced(request):
    with trace.get_tracer("site").start_as_current_span("view"):
        return views.scene(request)

urlpatterns[0] = path("scene", traced)
"""


# -- Celery ---------------------------------------------------------------------------------------

USES_CELERY = """
import json, sys
from tasks import app, make_scene

states = set()
results = [make_scene.delay("x") for _ in range(8)]
for result in results:
    result.get(timeout=100, on_message=lambda body: states.add(body["status"]))
print(json.dumps([sorted({result.get()["by"] for result in results}), sorted(states)]))
"""
USES_A_LIMIT = """
from celery.exceptions import SoftTimeLimitExceeded
from tasks import make_scene

try:
    make_scene.apply_async(("x",), soft_time_limit=2).get(timeout=100)
except SoftTimeLimitExceeded:
    print("stopped")
"""


def used(code: str, folder: Path, env: dict[str, str]) -> str:
    """Return the output of a program that sends tasks."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment({"PYTHONPATH": f"{folder}:{environment()['PYTHONPATH']}", **env}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_celery_task(
    vendors: BackgroundEmulator, tmp_path: Path, server: RedisServer, pool: str
) -> None:
    """Two workers run eight tasks.

    The shared state is shown, and a soft time limit ends a request.
    """
    pytest.importorskip("celery")
    (tmp_path / "tasks.py").write_text(CELERY)
    broker = server.url.removesuffix("/0")
    env = {
        **settings(vendors),
        "CELERY_BROKER_URL": f"{broker}/0",
        "CELERY_RESULT_BACKEND": f"{broker}/1",
    }
    options = ["--pool", pool, "-c", "2", "-l", "INFO", "--without-gossip"]
    arguments = ["celery", "-A", "tasks", "worker", *options]
    with program(arguments, tmp_path, env) as process:
        until(lambda: " ready." in (tmp_path / "log").read_text(), process)
        makers, states = json.loads(used(USES_CELERY, tmp_path, env))
        assert makers == ["google"]
        assert "GENERATING" in states
        assert len(vendors.google.requests) == 8
        if pool == "prefork":  # Celery has no soft time limits in threads
            vendors.google.set(faults.hang())
            assert used(USES_A_LIMIT, tmp_path, env) == "stopped"
            vendors.wait_until(lambda: vendors.google.in_flight == 0)
            vendors.google.heal()
            assert json.loads(used(USES_CELERY, tmp_path, env))[0] == ["google"]
    vendors.wait_until(lambda: vendors.open_connections == 0)


# -- notebooks ------------------------------------------------------------------------------------

RUNS_A_NOTEBOOK = """
import asyncio, json, sys
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

cells = [nbformat.v4.new_code_cell(source) for source in json.load(sys.stdin)]
notebook = nbformat.v4.new_notebook(cells=cells)
client = NotebookClient(notebook, timeout=100, kernel_name="python3")
if "interrupt" in sys.argv:
    async def main():
        async with client.async_setup_kernel():
            running = asyncio.ensure_future(client.async_execute_cell(cells[0], 0))
            while not any("sent" in str(output) for output in cells[0].outputs):
                await asyncio.sleep(0.05)
            await client.km.interrupt_kernel()
            try:
                await running
            except CellExecutionError as error:
                print(error.ename)
            await client.async_execute_cell(cells[1], 1)
            print(cells[1].outputs[0]["text"].strip())

    asyncio.run(main())
else:
    client.execute()
    print(json.dumps([list(output.get("data", {})) for output in cells[0].outputs]))
    print(cells[-1].outputs[0]["text"].strip())
"""


def notebook(
    cells: Sequence[str], folder: Path, env: dict[str, str], *arguments: str
) -> Sequence[str]:
    """Return the lines that a program prints which executes these cells."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    done = subprocess.run(
        [sys.executable, "-c", RUNS_A_NOTEBOOK, *arguments],
        cwd=folder,
        env=environment({"IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder), **env}),
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_notebook(vendors: BackgroundEmulator, tmp_path: Path) -> None:
    """Both samples run in a kernel, and an async callback runs meanwhile."""
    callback = """
    async def on_start():
        started.append(1)
    started = []
    result = client.generate("x", on_start=on_start)
    print(result.provider, len(images), started)
    """
    cells = [NOTEBOOK, AWAITING_NOTEBOOK, textwrap.dedent(callback)]
    shown, printed = notebook(cells, tmp_path, settings(vendors))
    assert "image/png" in json.loads(shown)[0]
    assert printed == "google 2 [1]"
    assert len(vendors.google.requests) == 4


@pytest.mark.slow
def test_an_interrupted_cell(vendors: BackgroundEmulator, tmp_path: Path) -> None:
    """An interrupt cancels the call and closes its connection, and the kernel continues."""
    vendors.google.set(faults.hang())
    code = """
    from resilient_imagen.sync import default_client, generate_image
    default_client().warm_up()
    generate_image("x", on_start=lambda: print("sent", flush=True))
    """
    state = """
    import threading
    queue = default_client().snapshot()["routes"][0]["queue"]
    print(queue["in_flight"], queue["waiting"])
    """
    cells = [textwrap.dedent(code), textwrap.dedent(state)]
    assert notebook(cells, tmp_path, settings(vendors), "interrupt") == ["KeyboardInterrupt", "0 0"]
    vendors.wait_until(lambda: vendors.google.in_flight == 0)
