"""``resilient-imagen generate``: one image, or many from a file."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.request import (
    ASPECT_RATIOS,
    MAX_IMAGES,
    MAX_SEED,
    AspectRatio,
    Background,
    OutputFormat,
    Quality,
    RequestOptions,
    Resolution,
)

if TYPE_CHECKING:
    from resilient_imagen.cli.image_spec import ImageSpec

__all__ = ["generate"]


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
            help="File to write. The image is converted if the extension (png, jpg, jpeg or webp) "
            "names another type; a name without one gets that of the image's type. By default "
            "image.png or similar. With --from: a directory, created if missing.",
        ),
    ] = None,
    aspect: Annotated[
        str, typer.Option(help=f"Width to height: {', '.join(ASPECT_RATIOS)}.")
    ] = "9:16",
    resolution: Annotated[Resolution, typer.Option(help="Size class.")] = "2K",
    ref: Annotated[
        list[str] | None,
        typer.Option(help="Reference image: a file or https address; repeat for more."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, max=MAX_IMAGES, help="Number of images: fox.png, fox-2.png, fox-3.png."
        ),
    ] = None,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="Type of the image, from any provider."),
    ] = None,
    background: Annotated[
        Background | None, typer.Option(help="Background, if the provider supports it.")
    ] = None,
    quality: Annotated[
        Quality | None, typer.Option(help="Quality level, if the provider supports it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed, if the provider supports it.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Edit the image of --ref where this image of the same size is transparent.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model of the first route, for this run: one that this version knows or that "
            "IMAGE_GEN_ROUTES names.",
            autocompletion=_model_names,
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds per image, including queueing, retries and fallback."),
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
            "output_format, output_compression, background, quality and seed. Run it again to "
            "continue after Ctrl-C, SIGTERM or a crash: finished images are kept.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    emulator: Annotated[
        bool,
        typer.Option("--emulator", help="Use an emulator inside this process: no key, no bill."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make an image from a prompt, with the first provider of the routes that can serve it.

    Prints the provider, the number of requests, the reason of a fallback, the seconds and the cost.
    Exit codes: 0 done, 1 no image, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    from resilient_imagen.cli.client_session import run_traced
    from resilient_imagen.cli.image_spec import ImageSpec

    options = RequestOptions(
        n=n, output_format=output_format, background=background, quality=quality, seed=seed
    )
    spec = ImageSpec(
        prompt or "",
        cast("AspectRatio", aspect),  # checked by the library, whose error lists all ratios
        resolution,
        tuple(ref or ()),
        model,
        deadline,
        cast("RequestOptions", {key: value for key, value in options.items() if value is not None}),
        None if mask is None else str(mask),
    )
    if prompts is not None:
        if prompt is not None or ref:
            raise CommandError("with --from, the file contains prompts and references")
        if mask is not None:
            raise CommandError("--mask edits the image of --ref and cannot be used with --from")
        if output is None:
            raise CommandError("--from needs -o: the directory for the images")
        if find_spec("fcntl") is None:
            raise CommandError("--from needs the file locks of Linux or macOS, for its directory")
        from resilient_imagen.cli.batch import run_batch

        run: Any = partial(run_batch, prompts, output, spec)
    elif prompt is None:
        raise CommandError("nothing to draw: give a prompt in quotes, or --from prompts.jsonl")
    else:
        _check_single(spec, output)
        from resilient_imagen.cli.generate_one import run_single

        run = partial(run_single, spec, output)
    vendors = None
    if emulator:
        from resilient_imagen.emulator import Emulator

        vendors = Emulator()
    run_traced(partial(run, {"force_open": force_open}, emulator=vendors, as_json=as_json))


def _check_single(spec: ImageSpec, output: Path | None) -> None:
    """Check what does not hold for prompt files.

    Raises:
        CommandError: Something is missing, or options contradict each other.
    """
    from resilient_imagen.cli.image_spec import missing_file

    if (missing := missing_file(spec.references)) is not None:
        raise CommandError(f"--ref {missing}: there is no such file")
    if spec.mask is not None and len(spec.references) != 1:
        raise CommandError("--mask needs exactly one --ref: the image to edit")
    wanted = spec.options.get("output_format")
    if output is not None and wanted and _contradicts(output, wanted):
        raise CommandError(f"--format {wanted} contradicts the name {output.name} of -o")
    transparent = spec.options.get("background") == "transparent"
    if output is not None and transparent and _contradicts(output, "png", "webp"):
        raise CommandError(
            f"--background transparent contradicts the name {output.name} of -o; use png or webp"
        )


def _contradicts(output: Path, *formats: str) -> bool:
    """Return whether a file's extension names a type that is not among ``formats``."""
    from resilient_imagen.images.convert import EXTENSIONS

    named = [mime for mime, suffixes in EXTENSIONS.items() if output.suffix.lower() in suffixes]
    return bool(named) and named[0] not in {f"image/{name}" for name in formats}
