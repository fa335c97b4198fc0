"""The command ``generate`` for one image: request it, save it, report it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from resilient_imagen import ImageGenerationError
from resilient_imagen.cli import image_files, output_files
from resilient_imagen.cli.client_session import open_client
from resilient_imagen.cli.command_errors import warn
from resilient_imagen.cli.error_hints import keys_to_check
from resilient_imagen.cli.terminal import Console, echo, echo_json, one_line
from resilient_imagen.images.inspect import pixel_size, sniff_mime
from resilient_imagen.telemetry.events import AttemptStarted, RetryScheduled, RouteFallback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.status import Status

    from resilient_imagen import ImageResult
    from resilient_imagen.cli.image_spec import ImageSpec
    from resilient_imagen.emulator import Emulator
    from resilient_imagen.telemetry.events import Event

__all__ = ["run_single"]

_USUAL: Final = {"strict_references": True}
"""References are strict here: an image without a named file would be paid for in vain."""


async def run_single(
    order: ImageSpec,
    output: Path | None,
    given: Mapping[str, Any],
    *,
    emulator: Emulator | None,
    as_json: bool,
) -> None:
    """Make the image, save it and say how it came about.

    Args:
        order: What to make.
        output: Where to save it; None picks a name that is free.
        given: Settings of the command line.
        emulator: Used instead of the vendors.
        as_json: Print for programs.

    Raises:
        ImageGenerationError: There is no image.
        CommandError: It could not be saved there, or there is no key; nothing was sent.
        OSError: It could not be saved after all.
    """
    if output is None:  # its names are chosen later, among those that are free
        output_files.check_target(Path("image"))
    else:
        output_files.check_target(output, order.options.get("n") or 1)
    with _status() as status:
        sinks = [_StatusSink(status)]
        session = open_client(given, _USUAL, emulator=emulator, sinks=sinks, model=order.model)
        async with session as client:
            try:
                result = await order.place(client)
            except ImageGenerationError as error:
                if as_json:
                    echo_json(_failure(error))
                raise
    path = _path(result, output)
    saved, paths = await _save(result, path, may_replace=output is not None)
    err = output_files.is_output(path)
    if as_json:
        echo_json(_outcome(saved, paths), err=err)
    else:
        _tell(saved, paths, partial(echo, err=err), charged=emulator is None)


def _path(result: ImageResult, output: Path | None) -> Path:
    suffix = image_files.extension(result.mime_type)
    if output is None:
        return image_files.free_name(Path("image"), suffix)
    if output.suffix or output_files.is_device(output):
        return output
    return output.with_name(output.name + suffix)


async def _save(
    result: ImageResult, path: Path, *, may_replace: bool
) -> tuple[ImageResult, list[Path]]:
    """Write each image; return the result as it was saved, and the paths.

    Images get the type that the file's name asks for, if that can be. Further images get numbered
    names, or all go to a device one after the other.
    """
    device = output_files.is_device(path)
    if not device:
        result = await image_files.as_named(result, path)
        if image_files.misnamed(path, result.mime_type):
            warn(f"{path} holds {result.mime_type}, whatever its name says")
    paths: list[Path] = []
    for number, data in enumerate(result.images, start=1):
        target = path if device else image_files.numbered(path, number)
        if number > 1 and not device:
            suffix = target.suffix if may_replace and target.suffix else _suffix_of(data, result)
            target = target.with_suffix(suffix)
            if not may_replace:
                target = image_files.free_name(path.with_suffix(""), suffix)
        output_files.write_whole(target, data)
        paths.append(target)
    return result, paths


def _suffix_of(data: bytes, result: ImageResult) -> str:
    return image_files.extension(sniff_mime(data) or result.mime_type)


def _tell(
    result: ImageResult, paths: list[Path], say: Callable[[str], None], *, charged: bool
) -> None:
    cost = result.usage["cost_usd"]
    price = "unknown" if cost is None else f"${cost:.4f}"
    for path, data in zip(paths, result.images, strict=True):
        size = pixel_size(data)
        pixels = f"{size[0]} x {size[1]} pixels, " if size else ""
        mime_type = sniff_mime(data) or result.mime_type
        say(f"{'saved':<10}{one_line(f'{path} ({pixels}{mime_type}, {len(data) / 1000:,.0f} kB)')}")
    rows = {
        "provider": result.provider,
        "model": result.model,
        "requests": str(result.attempts),
        "fallback": f"yes: {result.fallback_reason}" if result.fallback_reason else "no",
        "seconds": f"{result.latency_s:.1f}",
        "cost": price if charged else f"nothing: emulated (else {price})",
    }
    for name, value in rows.items():
        say(f"{name:<10}{one_line(value)}")
    for note in result.adjustments:
        say(f"{'note':<10}{one_line(note)}")
    for dropped in result.dropped_references:
        say(f"{'note':<10}reference {dropped['index'] + 1} not used: {one_line(dropped['why'])}")


def _outcome(result: ImageResult, paths: list[Path]) -> dict[str, Any]:
    """Return the result without images; ``paths`` has every file if several were requested."""
    fields = {
        key: value
        for key, value in result.to_dict().items()
        if key not in {"image_base64", "images"}
    }
    size = pixel_size(result.image_bytes)
    files = {} if result.n == 1 else {"paths": [str(path) for path in paths]}
    return {
        "path": str(paths[0]),
        **files,
        "bytes": len(result.image_bytes),
        "pixels": size,
        **fields,
    }


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
    """A line on standard error that says what is going on; nothing where nobody looks."""
    console = Console(stderr=True)
    console.quiet = not console.is_terminal
    with console.status("starting") as status:
        yield status


class _StatusSink:
    """Keeps the status line true."""

    inline = True

    def __init__(self, status: Status) -> None:
        self._status = status

    def handle(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self._show(f"{event.provider} {event.model} is drawing")
        elif isinstance(event, RetryScheduled):
            self._show(f"{event.provider}: {event.reason}; again in {event.delay_s:.0f} s")
        elif isinstance(event, RouteFallback):
            self._show(f"{event.from_route}: {event.cause}; going on to {event.to_route}")

    def _show(self, line: str) -> None:
        self._status.update(Text(one_line(line)))  # a string would be read as markup
