"""Commands about users and their layers: what they have installed and saved inside."""

from __future__ import annotations

import pwd
import sys
from datetime import UTC, datetime
from typing import Any

import click

from sandboxkernel.cli import options, output, views
from sandboxkernel.cli.connection import connect_or_start
from sandboxkernel.cli.names import find_layer
from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import NotPermitted, RequestError
from sandboxkernel.models import UserLayer
from sandboxkernel.units import format_size

__all__ = ["parse_user", "user_command"]

USER_HEADERS = ("USER", "UID", "LAYERS", "SIZE", "SANDBOXES")
DIFF_LIMIT = 1000

_USER = click.option(
    "-u", "--user", default="me", show_default=True, help="User name or uid; others: admins only."
)
_LINEAGE = click.argument("lineage", metavar="[LINEAGE]", required=False)


@click.group("user", epilog=options.example("sandboxkernel user layer ls"))
def user_command() -> None:
    """Manage users' layers."""


@user_command.command("ls", epilog=options.example("sandboxkernel user ls"))
@options.format_option()
def list_users(*, form: str) -> None:
    """List users that have layers or sandboxes.

    Only yourself, unless you are an administrator.
    """
    client = connect_or_start()
    layers: dict[int, list[UserLayer]] = {}
    for layer in _visible_layers(client):
        layers.setdefault(layer.owner_uid, []).append(layer)
    running: dict[int, int] = {}
    for kernel in client.kernels():
        running[kernel.owner_uid] = running.get(kernel.owner_uid, 0) + (kernel.state != "exited")
    users: list[dict[str, Any]] = [
        {
            "name": user_name(uid),
            "uid": uid,
            "layers": len(layers.get(uid, [])),
            "size_bytes": sum(layer.size_bytes for layer in layers.get(uid, [])),
            "sandboxes": running.get(uid, 0),
        }
        for uid in sorted(layers.keys() | running.keys())
    ]
    if form == "json":
        output.document(users)
        return
    rows = [{**user, "size_bytes": format_size(user["size_bytes"])} for user in users]
    output.table(USER_HEADERS, [[str(cell) for cell in row.values()] for row in rows])


def _visible_layers(client: SandboxClient) -> list[UserLayer]:
    try:
        return client.layers("all")
    except NotPermitted:
        return client.layers("me")


@user_command.group("layer", epilog=options.example("sandboxkernel user layer diff"))
def layer_group() -> None:
    """Manage what users changed inside: one layer a user and image lineage."""


@layer_group.command("ls", epilog=options.example("sandboxkernel user layer ls --user all"))
@click.option(
    "-u", "--user", default="me", show_default=True,
    help="User name, uid or `all`; others: admins only.",
)  # fmt: skip
@options.format_option()
def list_layers(*, user: str, form: str) -> None:
    """List layers."""
    layers = connect_or_start().layers(parse_user(user))
    if form == "json":
        output.document(layers)
        return
    now = datetime.now(UTC)
    output.table(
        views.LAYER_HEADERS,
        [views.layer_row(layer, user_name(layer.owner_uid), now) for layer in layers],
    )


@layer_group.command("diff", epilog=options.example("sandboxkernel user layer diff --limit 50"))
@_USER
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=DIFF_LIMIT, show_default=True,
    help="Changes to show at most.",
)  # fmt: skip
@options.format_option()
@_LINEAGE
def diff_layer(*, lineage: str | None, user: str, limit: int, form: str) -> None:
    """Show what a layer adds (A), changes (C) and deletes (D).

    LINEAGE may be left out where there is one layer only.
    """
    client, owner = connect_or_start(), _one_user(user)
    name = find_layer(lineage, client.layers(owner)).lineage
    diff = client.layer_diff(name, user=owner, limit=limit)
    if form == "json":
        output.document(diff)
        return
    output.table(
        ("CHANGE", "SIZE", "PATH"),
        [(change.change, format_size(change.size_bytes), change.path) for change in diff.changes],
    )
    if diff.truncated:
        output.note(f"note: there are more than {limit} changes; raise --limit to see them")


@layer_group.command("reset", epilog=options.example("sandboxkernel user layer reset --yes"))
@_USER
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_LINEAGE
@click.pass_context
def reset_layer(ctx: click.Context, *, lineage: str | None, user: str, yes: bool) -> None:
    """Delete a layer: everything installed and saved inside, not the work folders.

    Refused while a sandbox uses it. LINEAGE may be left out where there is one layer only.
    """
    client, owner = connect_or_start(), _one_user(user)
    layer = find_layer(lineage, client.layers(owner))
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("this deletes data: say --yes, or answer in a terminal", ctx)
        what = f"{layer.files} files ({format_size(layer.size_bytes)}) of layer {layer.lineage}"
        click.confirm(f"Delete {what}?", abort=True, err=True)
    client.reset_layer(layer.lineage, user=owner)
    output.line(layer.lineage)


def _one_user(text: str) -> str:
    if text == "all":
        raise click.BadParameter("name one user", param_hint="--user")
    return parse_user(text)


def parse_user(text: str) -> str:
    """`me`, `all` or a uid, of these or a user's name."""
    if text in ("me", "all") or (text.isascii() and text.isdecimal()):
        return text
    try:
        return str(pwd.getpwnam(text).pw_uid)
    except (KeyError, ValueError):
        raise RequestError(f"no user {text!r} on this host", field="user") from None


def user_name(uid: int) -> str:
    """The name, or the number of a user who is gone."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
