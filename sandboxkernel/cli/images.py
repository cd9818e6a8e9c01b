"""Commands about images."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import msgspec

from sandboxkernel.cli import options, output, views
from sandboxkernel.cli.connection import connect_or_start
from sandboxkernel.errors import DaemonUnavailable
from sandboxkernel.models import Image, Progress
from sandboxkernel.units import format_size

__all__ = ["image_command"]


@click.group("image", epilog=options.example("sandboxkernel image ls"))
def image_command() -> None:
    """Manage images.

    The image `host` is made of this machine's own Python; nothing is downloaded for it.
    """


@image_command.command("ls", epilog=options.example("sandboxkernel image ls --format json"))
@options.format_option()
def list_images(*, form: str) -> None:
    """List images."""
    images = connect_or_start().images()
    if form == "json":
        output.document(images)
    else:
        now = datetime.now(UTC)
        output.table(views.IMAGE_HEADERS, [views.image_row(image, now) for image in images])


@image_command.command("inspect", epilog=options.example("sandboxkernel image inspect host"))
@options.format_option()
@click.argument("ref", metavar="IMAGE")
def inspect_image(*, ref: str, form: str) -> None:
    """Show everything known about an image.

    IMAGE is a name, a digest, or the beginning of a digest.
    """
    _show(connect_or_start().image(ref), form)


@image_command.command("rm", epilog=options.example("sandboxkernel image rm host"))
@click.argument("refs", metavar="IMAGE...", nargs=-1, required=True)
def remove_image(*, refs: tuple[str, ...]) -> None:
    """Remove images; administrators only.

    Refused while a sandbox uses one. `system prune` gives the disk space back.
    """
    client = connect_or_start()
    for ref in refs:
        client.remove_image(ref)
        output.line(ref)


@image_command.command(
    "prepare",
    epilog=options.example("sandboxkernel image prepare", "sandboxkernel image prepare --refresh"),
)
@click.option(
    "--refresh", is_flag=True, help="Build it anew although it looks current; administrators only."
)
@options.format_option()
@click.argument("ref", metavar="[IMAGE]", default="host")
def prepare_image(*, ref: str, refresh: bool, form: str) -> None:
    """Make an image ready to start from.

    IMAGE is `host` by default. The first start does the same; this takes the wait away from it.
    """
    image = None
    try:
        for item in connect_or_start().prepare_image(ref, refresh=refresh):
            if isinstance(item, Progress):
                output.progress(progress_text(item))
            else:
                image = item
    finally:
        output.progress_end()
    if image is None:
        raise DaemonUnavailable("the daemon went away while it prepared the image")
    _show(image, form)


def progress_text(step: Progress) -> str:
    """One line: "copy: 120 of 900 files"."""
    if step.unit == "bytes":
        done, total = format_size(step.done), format_size(step.total or 0)
    else:
        done, total = f"{step.done}", f"{step.total}"
    count = f"{done} of {total}" if step.total is not None else done
    unit = "" if step.unit in ("", "bytes") else f" {step.unit}"
    return f"{step.phase}: {count}{unit}" if step.done or step.total else step.phase


def _show(image: Image, form: str) -> None:
    if form == "json":
        output.document(image)
    else:
        output.table(("MEMBER", "VALUE"), views.flatten(msgspec.to_builtins(image)))
