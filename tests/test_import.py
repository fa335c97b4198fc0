"""Importing the library is fast: heavy dependencies are loaded when needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from cli_kit import environment

import resilient_imagen

HEAVY = (
    "PIL", "aiohttp", "google.genai", "h11", "httpx2", "matplotlib", "openai", "opentelemetry",
    "pybreaker", "pydantic", "pydantic_settings", "redis", "rich", "starlette", "structlog",
    "typer", "uvicorn",
)  # fmt: skip

USES = {
    "the package": "import resilient_imagen",
    "every public function": "from resilient_imagen import call_options, default_client, "
    "edit_image, generate_image, generate_image_with_references, reset_default_client",
    "the synchronous functions": "from resilient_imagen.sync import ImageClient, call_options, "
    "default_client, edit_image, generate_image, generate_image_with_references, "
    "reset_default_client",
    "errors and reasons": "from resilient_imagen import ImageGenerationError, Reason; "
    "ImageGenerationError(reason=Reason.TIMEOUT)",
    "the command's entry point": "from resilient_imagen.cli import main",
}


@pytest.mark.parametrize("use", USES)
def test_nothing_heavy_is_imported(use: str) -> None:
    """In a new interpreter the import loads no large library and starts no loop."""
    code = f"{USES[use]}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    assert printed(code) == "[]"


def test_every_public_name_is_available() -> None:
    """Lazily loaded names are available; an unknown one raises AttributeError."""
    code = (
        "import resilient_imagen as r\n"
        "for name in r.__all__: getattr(r, name)\n"
        "assert dir(r) == sorted(r.__all__)\n"
        "print(hasattr(r, 'no_such_name'))"
    )
    assert printed(code) == "False"


def test_the_live_page_is_loaded_when_it_is_used() -> None:
    """Without its extra, the error names the command that installs it."""
    code = "import resilient_imagen as r; print(r.dashboard.app.__name__)"
    assert printed(code) == "app"
    missing = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'starlette': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "try: from resilient_imagen import dashboard\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert printed(missing).endswith("pip install 'resilient-imagen[dashboard]'")


def test_no_module_imports_its_own_package() -> None:
    """Import-linter does not detect cycles through an ``__init__``."""
    root = Path(resilient_imagen.__file__).parent
    found = []
    for file in root.rglob("*/*.py"):
        package = ".".join((root.name, *file.parent.relative_to(root).parts))
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module == package:
                names = [each.name for each in node.names if not _is_file(file.parent / each.name)]
                found += [f"{file.relative_to(root)}: {name}" for name in names]

    assert found == []


def _is_file(module: Path) -> bool:
    return module.with_suffix(".py").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate", "--help"], ["genrate"], ["status"], ["tune", "missing"], ["cost", "missing"]],
    ids=" ".join,
)
def test_the_first_line_of_a_command_needs_no_sdk(arguments: list[str]) -> None:
    """Help and usage errors appear within a second."""
    code = (
        "import sys\n"
        "from resilient_imagen.cli import main\n"
        f"sys.argv = ['resilient-imagen', *{arguments}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([n for n in ('google.genai', 'openai', 'PIL', 'h11') if n in sys.modules])"
    )
    assert printed(code).endswith("[]")


def test_generate_shows_its_status_before_an_sdk_is_loaded() -> None:
    """The status line is printed first, because both SDKs load slowly."""
    code = (
        "import sys\n"
        "from resilient_imagen.cli import generate_one, main\n"
        "def status():\n"
        "    print([n for n in ('google.genai', 'openai', 'PIL') if n in sys.modules])\n"
        "    sys.exit()\n"
        "generate_one._status = status\n"
        "sys.argv = ['resilient-imagen', 'generate', 'a fox', '--emulator']\n"
        "main()"
    )
    assert printed(code) == "[]"


@pytest.mark.parametrize("shared", [{}, {"IMAGE_GEN_REDIS_URL": "redis://127.0.0.1:1/0"}])
def test_the_first_call_imports_nothing_on_the_loop(shared: dict[str, str]) -> None:
    """The default client's modules were imported in a thread before."""
    code = (
        "import sys\n"
        "from resilient_imagen import api\n"
        "api._load()\n"
        "loaded = set(sys.modules)\n"
        "api.default_client()\n"
        "print(sorted(set(sys.modules) - loaded))"
    )
    keys = {"GEMINI_API_KEY": "g", "OPENAI_API_KEY": "o"}
    assert printed(code, **keys, **shared) == "[]"


def printed(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout.strip()
