"""`completion`: what a shell needs to complete our words; and what it asks of us then."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from sandboxkernel.cli import options, output

__all__ = ["complete_sandboxes", "completion_command"]

PROGRAM, VARIABLE = "sandboxkernel", "_SANDBOXKERNEL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog=options.example(
        'eval "$(sandboxkernel completion bash)"',
        "sandboxkernel completion fish > ~/.config/fish/completions/sandboxkernel.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script of a shell.

    Commands, options, and ids and names of sandboxes that run.
    """
    found = get_completion_class(shell)
    assert found is not None
    for line in found(ctx.find_root().command, {}, PROGRAM, VARIABLE).source().splitlines():
        output.line(line)


def complete_sandboxes(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Ids and names of the caller's sandboxes; none where no daemon answers."""
    from sandboxkernel.cli.connection import connect_or_none

    del param
    try:
        with ctx:
            client = connect_or_none()
            kernels = list(client.kernels()) if client is not None else []
    except Exception:  # a shell waits for words, and has no place for an error
        return []
    found = []
    for kernel in kernels:
        for word, about in ((kernel.id, kernel.kernel_id), (kernel.kernel_id, kernel.profile)):
            if word.startswith(incomplete):
                found.append(CompletionItem(word, help=about))
    return found
