"""``resilient-imagen generate``: one image, or many from a file."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.request import (
    ASPECT_RATIOS,
    MAX_IMAGES,
    MAX_SEED,
    AspectRatio,
    RequestOptions,
)

__all__ = ["generate"]


class _Resolution(StrEnum):
    SMALL = "1K"
    MEDIUM = "2K"
    LARGE = "4K"


class _Format(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class _Background(StrEnum):
    TRANSPARENT = "transparent"
    OPAQUE = "opaque"


class _Quality(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"
    AUTO = "auto"


def _model_names() -> list[str]:
    from resilient_imagen.models import MODELS

    return [row.name for row in MODELS.values() if row.successor is None]


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, converted if its extension (png, jpg, webp) names another type; "
            "without one it gets that of the picture's type. By default image.png or the like. "
            "With --from: a directory, made if missing.",
        ),
    ] = None,
    aspect: Annotated[
        str, typer.Option(help=f"Width to height: {', '.join(ASPECT_RATIOS)}.")
    ] = "9:16",
    resolution: Annotated[_Resolution, typer.Option(help="Size class.")] = _Resolution.MEDIUM,
    ref: Annotated[
        list[str] | None,
        typer.Option(help="Picture to be guided by, a file or https address; repeat for more."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, max=MAX_IMAGES, help="Number of pictures: fox.png, fox-2.png, fox-3.png."
        ),
    ] = None,
    output_format: Annotated[
        _Format | None, typer.Option("--format", help="Type to deliver, by whichever provider.")
    ] = None,
    background: Annotated[
        _Background | None, typer.Option(help="Background, if the provider supports it.")
    ] = None,
    quality: Annotated[
        _Quality | None, typer.Option(help="Quality level, if the provider supports it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed, if the provider supports it.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Edit the picture of --ref where this picture of the same size is transparent.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model of the first route, for this run: one that this version knows, or that "
            "IMAGE_GEN_ROUTES names.",
            autocompletion=_model_names,
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds for an image, queueing, retries and fallback included."),
    ] = None,
    force_open: Annotated[
        str | None,
        typer.Option(help="Providers to skip, comma-separated: [bold]google[/bold] tries OpenAI."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Make many images: a file with a JSON object per line. Its keys are prompt, id, "
            "aspect_ratio, resolution, references (a list of paths, addresses or data URLs), n, "
            "output_format, background, quality and seed. Run it again to continue after Ctrl-C, "
            "SIGTERM or a crash: finished images are kept.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    emulator: Annotated[
        bool,
        typer.Option("--emulator", help="Use an emulator inside this process: no key, no bill."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as JSON, for programs.")
    ] = False,
) -> None:
    """Make an image from a prompt: by the first provider that can, in the order of the routes.

    Says who served it, how many requests that took, why the first provider was left, the seconds
    and the cost. Exit codes: 0 done, 1 no image, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    from resilient_imagen.cli.client_session import run_traced
    from resilient_imagen.cli.image_spec import ImageSpec, is_file, is_text, shown

    given: dict[str, Any] = {"force_open": force_open}
    vendors = _emulator() if emulator else None
    ratio = cast("AspectRatio", aspect)  # checked by the library, whose error lists all ratios
    order = ImageSpec(
        prompt or "",
        ratio,
        resolution.value,
        tuple(ref or ()),
        model,
        deadline,
        _requested(
            n=n, output_format=output_format, background=background, quality=quality, seed=seed
        ),
        None if mask is None else str(mask),
    )
    if prompts is not None:
        if prompt is not None or ref:
            raise CommandError("with --from, prompts and references stand in the file")
        if mask is not None:
            raise CommandError("--mask belongs to the one picture of --ref, not to --from")
        if output is None:
            raise CommandError("--from needs -o: the directory for the images")
        from resilient_imagen.cli.batch import run_batch

        many = partial(run_batch, prompts, output, order, given, emulator=vendors, as_json=as_json)
        run_traced(many)
        return
    if prompt is None:
        raise CommandError("nothing to draw: give a prompt in quotes, or --from prompts.jsonl")
    for place in order.references:
        if not is_text(place) and not is_file(place):
            raise CommandError(f"--ref {shown(place)}: there is no such file")
    if mask is not None and len(order.references) != 1:
        raise CommandError("--mask needs exactly one --ref: the picture to edit")
    if output is not None:
        _check_name(output, output_format, background)
    from resilient_imagen.cli.generate_command import run_single

    run_traced(partial(run_single, order, output, given, emulator=vendors, as_json=as_json))


def _requested(**options: Any) -> RequestOptions:
    """Return the options that were given, as plain values."""
    given = {name: value for name, value in options.items() if value is not None}
    return cast(
        "RequestOptions", {k: v.value if isinstance(v, StrEnum) else v for k, v in given.items()}
    )


def _check_name(output: Path, output_format: str | None, background: str | None) -> None:
    """Check that a file's extension agrees with the options.

    Raises:
        CommandError: It does not.
    """
    if output_format is not None and _contradicts(output, output_format):
        raise CommandError(f"--format {output_format} contradicts the name {output.name} of -o")
    if background == "transparent" and _contradicts(output, "png", "webp"):
        raise CommandError(
            f"--background transparent contradicts the name {output.name} of -o; use png or webp"
        )


def _contradicts(output: Path, *formats: str) -> bool:
    """Return whether a file's extension asks for a type that is not among ``formats``."""
    from resilient_imagen.images.convert import EXTENSIONS

    named = [mime for mime, suffixes in EXTENSIONS.items() if output.suffix.lower() in suffixes]
    return bool(named) and named[0] not in {f"image/{name}" for name in formats}


def _emulator() -> Any:
    from resilient_imagen.emulator import Emulator

    return Emulator()
