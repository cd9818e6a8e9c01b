"""Write the man pages: `make man`. They are made of the commands' own help, so they cannot differ.

Source of the format: groff_man(7).
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from sandboxkernel import __version__
from sandboxkernel.cli import cli
from sandboxkernel.daemon.app import SandboxKernelDaemon
from sandboxruntime.bundles import command as runtime_command

HEADER = '.TH {name} {section} "" "sandboxkernel {version}" "sandboxkernel manual"\n'
EXIT_STATUS = """\
.SH EXIT STATUS
0 done, 1 failed, 2 wrong usage, 125 no daemon, 130 interrupted. `run` and `exec` end with the
program's own code, 126 and 127 when it cannot be started.
"""
FILES = """\
.SH FILES
.TP
.I /etc/jupyter/sandboxkernel_config.py
The daemon's configuration, root's; see
.BR sandboxkernel_config.py (5).
.TP
.I /run/sandboxkernel/api.sock
The daemon's socket.
.TP
.I /var/lib/sandboxkernel
Images and user layers.
"""


def main() -> None:
    """Write every page below --output, in man1, man5 and man8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/man"))
    options = parser.parse_args()
    for name, section, text in pages():
        folder = options.output / f"man{section}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{section}").write_text(text)


def pages() -> Iterator[tuple[str, int, str]]:
    """Name, section and text of every page."""
    root = click.Context(cli, info_name="sandboxkernel")
    yield "sandboxkernel", 1, _command_page(cli, root)
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        yield f"sandboxkernel-{name}", 1, _command_page(command, context)
    yield "sandboxkerneld", 8, _daemon_page()
    yield "sandboxkernel_config.py", 5, _config_page()
    yield "sandboxruntime", 8, _runtime_page()


def _text(text: str) -> str:
    """Running text as roff: nothing in it is a request or an escape."""
    lines = []
    for raw in text.strip().splitlines():
        line = raw.replace("\\", "\\e").replace("-", "\\-").strip()
        lines.append(f"\\&{line}" if line.startswith((".", "'")) else line)
    return "\n".join(lines) + "\n"


def _bold(text: str) -> str:
    return f".B {_text(text)}"


def _paragraphs(text: str) -> str:
    parts = re.split(r"\n\s*\n", inspect.cleandoc(text.replace("\b\n", "\n")))
    return ".PP\n".join(_text(part) for part in parts if part.strip())


def _header(name: str, section: int, summary: str) -> str:
    head = HEADER.format(name=name.upper(), section=section, version=__version__)
    return f"{head}.SH NAME\n{_text(name).rstrip()} \\- {_text(summary.rstrip('.'))}"


def _command_page(command: click.Command, context: click.Context) -> str:
    path = context.command_path
    page = _header(path.replace(" ", "-"), 1, command.get_short_help_str(200))
    page += ".SH SYNOPSIS\n" + "".join(_synopses(command, context))
    page += f".SH DESCRIPTION\n{_paragraphs(command.help or '')}"
    page += _options(command, context)
    if isinstance(command, click.Group):
        page += f".SH COMMANDS\n{''.join(_commands(command, context))}"
    page += _examples(command)
    if context.parent is None:
        page += EXIT_STATUS + FILES
    return page + _see_also(context)


def _synopses(command: click.Command, context: click.Context) -> Iterator[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"{_bold(context.command_path)}{_text(pieces)}"


def _options(command: click.Command, context: click.Context, title: str = ".SH OPTIONS") -> str:
    records = [p.get_help_record(context) for p in command.get_params(context)]
    found = [record for record in records if record]
    if not found:
        return ""
    return f"{title}\n" + "".join(_entry(name, text) for name, text in found)


def _entry(term: str, text: str) -> str:
    return f".TP\n{_bold(term)}{_text(text)}"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if context.parent is None:  # a page of its own
            yield f".TP\n.BR sandboxkernel\\-{_text(name).strip()} (1)\n"
            yield _text(command.get_short_help_str(200))
            continue
        below = click.Context(command, info_name=name, parent=context)
        yield ".SS " + _text(below.command_path)
        yield from _synopses(command, below)
        yield ".PP\n" + _paragraphs(command.help or "")
        yield _options(command, below, title=".PP")
        yield _examples(command, title=".PP")
        if isinstance(command, click.Group):
            yield from _commands(command, below)


def _examples(command: click.Command, title: str = ".SH EXAMPLES") -> str:
    lines = [line.strip() for line in (command.epilog or "").splitlines()]
    if "Example:" not in lines:
        return ""
    lines = lines[lines.index("Example:") + 1 :]
    return f"{title}\n.nf\n{_text(chr(10).join(lines))}.fi\n"


def _see_also(context: click.Context) -> str:
    names = [("sandboxkernel", 1), ("sandboxkerneld", 8)]
    own = context.command_path.replace(" ", "-")
    return ".SH SEE ALSO\n" + _references((n, s) for n, s in names if n != own)


def _references(names: Iterable[tuple[str, int]]) -> str:
    listed = [f".BR {name} ({section})" for name, section in names]
    return " ,\n".join(listed) + "\n"


def _traits() -> Iterator[tuple[str, Any]]:
    traits = SandboxKernelDaemon.class_own_traits(config=True)
    for name in sorted(traits):
        yield name, traits[name]


def _daemon_page() -> str:
    page = _header("sandboxkerneld", 8, "the daemon that runs Jupyter kernels in sandboxes")
    page += f".SH SYNOPSIS\n{_bold('sandboxkerneld')}{_text('[OPTIONS]')}"
    page += ".SH DESCRIPTION\n" + _text(
        "Holds images, profiles, grants and sandboxes, and serves them over REST on a unix socket. "
        "Needs root. SIGTERM stops it and leaves the kernels to the next one; SIGINT ends them."
    )
    page += ".SH OPTIONS\n"
    daemon = SandboxKernelDaemon
    for name, target in sorted(dict(daemon.aliases.default_args[0]).items()):
        owner, _, trait = target.partition(".")
        found = daemon.class_traits().get(trait)
        page += _entry(f"--{name}=VALUE", f"{found.help if found else ''} ({owner}.{trait})")
    for name, (_, text) in sorted(dict(daemon.flags.default_args[0]).items()):
        page += _entry(f"--{name}", text)
    page += _entry("--help-all", "Every setting.")
    return page + FILES + ".SH SEE ALSO\n" + _references(
        [("sandboxkernel", 1), ("sandboxkernel_config.py", 5)]
    )  # fmt: skip


def _config_page() -> str:
    name = "sandboxkernel_config.py"
    page = _header(name, 5, "configuration of the daemon that runs Jupyter kernels in sandboxes")
    page += ".SH DESCRIPTION\n" + _text(
        "Python, as all configuration of Jupyter: assignments to members of c.SandboxKernelDaemon. "
        "The file is looked for on Jupyter's system path (/etc/jupyter, /usr/local/etc/jupyter), "
        "and must be root's. A change takes effect when the daemon is restarted; kernels that run "
        "are not touched."
    )
    page += ".SH SETTINGS\n"
    for trait_name, trait in _traits():
        default = trait.default_value_repr()
        page += _entry(f"c.SandboxKernelDaemon.{trait_name}", f"{trait.help} Default: {default}.")
    return page + ".SH SEE ALSO\n" + _references([("sandboxkerneld", 8)])


def _runtime_page() -> str:
    parser = runtime_command.make_parser()
    page = _header("sandboxruntime", 8, "runs containers of OCI bundles")
    page += f".SH SYNOPSIS\n{_bold('sandboxruntime')}{_text('[OPTIONS] VERB [OPTIONS] [ID]')}"
    page += f".SH DESCRIPTION\n{_text(parser.description or '')}.SH OPTIONS\n"
    page += "".join(_action(action) for action in parser._actions if action.option_strings)
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    page += ".SH VERBS\n"
    for name, verb in verbs.choices.items():
        page += f".SS {_text(name)}{_text(verb.description or '')}"
        page += "".join(_action(action) for action in verb._actions if action.help)
    return page + ".SH SEE ALSO\n" + _references([("sandboxkernel", 1)])


def _action(action: argparse.Action) -> str:
    term = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    return _entry(term, action.help or "")


if __name__ == "__main__":
    main()
