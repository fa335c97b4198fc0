"""``generate`` with a prompt: request an image, save it, and print its origin."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from resilient_imagen import ImageGenerationError
from resilient_imagen.cli.client_session import open_client
from resilient_imagen.cli.command_errors import CommandError, keys_to_check, warn
from resilient_imagen.cli.files import check_target, is_device, is_output, write_whole
from resilient_imagen.cli.terminal import Console, echo, echo_json, one_line
from resilient_imagen.images import convert
from resilient_imagen.images.inspect import pixel_size, sniff_mime
from resilient_imagen.images.worker_pool import off_loop
from resilient_imagen.telemetry.events import AttemptStarted, RetryScheduled, RouteFallback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.status import Status

    from resilient_imagen import ImageResult
    from resilient_imagen.cli.image_spec import ImageSpec
    from resilient_imagen.emulator import Emulator
    from resilient_imagen.telemetry.events import Event

__all__ = ["run_single"]

_USUAL: Final = {"strict_references": True}
"""An image without a named reference would be useless but paid for."""


async def run_single(
    spec: ImageSpec,
    output: Path | None,
    given: Mapping[str, Any],
    *,
    emulator: Emulator | None,
    as_json: bool,
) -> None:
    """Request an image, save it and print the result.

    Args:
        spec: The image.
        output: Where to save it; None chooses a free name.
        given: Settings of the command line.
        emulator: Used instead of the vendors.
        as_json: Print the result as JSON.

    Raises:
        ImageGenerationError: There is no image.
        CommandError: It cannot be saved, or there is no key; nothing was sent.
        OSError: Saving it failed.
    """
    _check_names(output, spec.options.get("n") or 1)
    with _status() as status:
        sinks = [_StatusSink(status)]
        session = open_client(given, _USUAL, emulator=emulator, sinks=sinks, model=spec.model)
        async with session as client:
            try:
                result = await spec.place(client)
            except ImageGenerationError as error:
                if as_json:
                    echo_json(_failure(error))
                raise
    paths = _paths(result, output)
    saved = await _save(result, paths)
    err = is_output(paths[0])  # the image itself goes to standard output
    if as_json:
        echo_json(_as_json(saved, paths), err=err)
    else:
        for line in _lines(saved, paths, charged=emulator is None):
            echo(line, err=err)


def _check_names(output: Path | None, images: int) -> None:
    """Check that the images can be written, whichever type a provider delivers.

    Raises:
        CommandError: They cannot.
    """
    check_target("-o", output or Path("image"))
    if output is None or is_device(output):
        return
    if output.suffix and output.suffix.lower() not in convert.WRITABLE:
        raise CommandError(
            f"-o {output.name}: the extension {output.suffix} is not supported; use "
            f"{', '.join(convert.WRITABLE)}, or none"
        )
    suffixes = [output.suffix] if output.suffix else [".jpg", ".png", ".webp"]
    for suffix in suffixes:
        for number in range(1, images + 1):
            path = convert.numbered(output.with_suffix(suffix), number)
            if path.exists() and not path.is_file():
                raise CommandError(f"{path} exists and is not a file")


def _paths(result: ImageResult, output: Path | None) -> list[Path]:
    """Return a path for each image; see the command's help for the names."""
    suffixes = [convert.extension(mime_type) for mime_type in _types(result)]
    if output is None:
        numbers = count(1)
        free: list[Path] = []
        for suffix in suffixes:
            names = (convert.numbered(Path(f"image{suffix}"), number) for number in numbers)
            free.append(next(path for path in names if not path.exists()))
        return free
    if is_device(output):
        return [output] * len(suffixes)
    return [
        convert.numbered(output if output.suffix else Path(f"{output}{suffix}"), number)
        for number, suffix in enumerate(suffixes, start=1)
    ]


def _types(result: ImageResult) -> list[str]:
    return [sniff_mime(data) or result.mime_type for data in result.images]


async def _save(result: ImageResult, paths: list[Path]) -> ImageResult:
    """Write each image in the type of its path's extension, if that can be; return the result."""
    images: list[bytes] = []
    mime_type = result.mime_type
    for path, data, before in zip(paths, result.images, _types(result), strict=True):
        converted, mime_type = await off_loop(convert.as_named, data, before, path)
        usual = convert.EXTENSIONS.get(mime_type, ())
        if path.suffix and usual and path.suffix.lower() not in usual:
            warn(f"{path} contains {mime_type}, unlike its name")
        write_whole(path, converted)
        images.append(converted)
    notes = result.adjustments
    (first, *more), after = images, sniff_mime(images[0]) or result.mime_type
    if after != result.mime_type:
        notes = (*notes, f"converted from {result.mime_type} to {after}, to match its name")
    return replace(
        result, image_bytes=first, mime_type=after, adjustments=notes, more_images=tuple(more)
    )


def _lines(result: ImageResult, paths: list[Path], *, charged: bool) -> Iterator[str]:
    cost = result.usage["cost_usd"]
    price = "unknown" if cost is None else f"${cost:.4f}"
    for path, data, mime_type in zip(paths, result.images, _types(result), strict=True):
        size = pixel_size(data)
        pixels = f"{size[0]} x {size[1]} pixels, " if size else ""
        yield _line("saved", f"{path} ({pixels}{mime_type}, {len(data) / 1000:,.0f} kB)")
    yield _line("provider", result.provider)
    yield _line("model", result.model)
    yield _line("requests", str(result.attempts))
    yield _line("fallback", f"yes: {result.fallback_reason}" if result.fallback_reason else "no")
    yield _line("seconds", f"{result.latency_s:.1f}")
    yield _line("cost", price if charged else f"nothing: emulated (else {price})")
    for note in result.adjustments:
        yield _line("note", note)
    for dropped in result.dropped_references:
        yield _line("note", f"reference {dropped['index'] + 1} not used: {dropped['why']}")


def _line(name: str, value: str) -> str:
    return f"{name:<10}{one_line(value)}"


def _as_json(result: ImageResult, paths: list[Path]) -> dict[str, Any]:
    """Return the result without images; ``paths`` is there if several were requested."""
    images = {"image_base64", "images"}
    fields = {key: value for key, value in result.to_dict().items() if key not in images}
    several = {} if result.n == 1 else {"paths": [str(path) for path in paths]}
    size = {"bytes": len(result.image_bytes), "pixels": pixel_size(result.image_bytes)}
    return {"path": str(paths[0]), **several, **size, **fields}


def _failure(error: ImageGenerationError) -> dict[str, Any]:
    return {
        "error": str(error),
        "reason": str(error.reason),
        "retry_after": error.retry_after,
        "vendor_message": error.vendor_message,
        "check": keys_to_check(error),
        "attempts": [asdict(attempt) for attempt in error.attempts],
    }


@contextmanager
def _status() -> Iterator[Status]:
    """Show a line about the progress on standard error, if that is a terminal."""
    console = Console(stderr=True)
    console.quiet = not console.is_terminal
    with console.status("starting") as status:
        yield status


class _StatusSink:
    """Updates the status line."""

    inline = True

    def __init__(self, status: Status) -> None:
        self._status = status

    def handle(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self._show(f"{event.provider} {event.model} is drawing")
        elif isinstance(event, RetryScheduled):
            self._show(f"{event.provider}: {event.reason}; again in {event.delay_s:.0f} s")
        elif isinstance(event, RouteFallback):
            self._show(f"{event.from_route}: {event.cause}; continuing with {event.to_route}")

    def _show(self, line: str) -> None:
        self._status.update(Text(one_line(line)))  # a string would be read as markup
