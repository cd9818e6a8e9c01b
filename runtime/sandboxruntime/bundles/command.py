"""`sandboxruntime`: the command line of an OCI runtime, as runc has it.

Those who drive runtimes (containerd, Docker, Podman) read a failure's last words on stderr, or as
JSON in the file of --log.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandboxruntime.bundles import lifecycle
from sandboxruntime.bundles.capability_names import capability_mask
from sandboxruntime.bundles.config import Process, parse_process
from sandboxruntime.bundles.creation import Creation, create
from sandboxruntime.bundles.features import default_config, features
from sandboxruntime.bundles.records import Record, Records
from sandboxruntime.bundles.sealing import seal
from sandboxruntime.errors import ContainerError, SpecError

__all__ = ["main", "make_parser"]

DEFAULT_ROOT = "/run/sandboxruntime"
_ENTERING = ("create", "run", "exec")  # a process of this program gets into a container
VERSION = "1.0.2"  # of the OCI runtime specification


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb. Returns the exit code: of the program, or 1 with a message."""
    options = make_parser().parse_args(argv)
    records = Records(Path(options.root))
    try:
        verb: Callable[[Records, argparse.Namespace], int | None] = options.verb
        if options.name in _ENTERING:
            seal()
        return verb(records, options) or 0
    except (ContainerError, OSError, ValueError) as exc:
        _fail(options, exc)
        return 1


def _fail(options: argparse.Namespace, exc: BaseException) -> None:
    hint = getattr(exc, "hint", "")
    text = f"{exc} ({hint})" if hint else str(exc)
    sys.stderr.write(f"sandboxruntime {options.name}: {text}\n")
    if options.log:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"level": "error", "msg": text, "time": now}
        with open(options.log, "a", encoding="utf-8") as log:
            as_json = options.log_format == "json"
            log.write((json.dumps(line) if as_json else f"{now} error {text}") + "\n")


def make_parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    parser = argparse.ArgumentParser(
        "sandboxruntime",
        description="Run containers of OCI bundles. What a config.json asks for and this runtime "
        "cannot do is refused by name.",
    )
    parser.add_argument("--version", action="version", version=f"sandboxruntime\nspec: {VERSION}")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="where containers are remembered")
    parser.add_argument("--log", help="file for messages, beside stderr")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true", help="accepted; there is no more to say")
    verbs = parser.add_subparsers(dest="name", required=True, metavar="VERB")

    def add(name: str, verb: Callable[..., int | None], help_: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=help_, description=help_)
        found.set_defaults(verb=verb)
        return found

    for name, verb, help_ in (
        ("create", _create, "make a container, whose program waits for `start`"),
        ("run", _run, "create, start, and wait for the end"),
    ):
        each = add(name, verb, help_)
        each.add_argument("-b", "--bundle", default=".", help="directory with a config.json")
        each.add_argument("--console-socket", help="unix socket that takes the terminal's master")
        each.add_argument("--pid-file", help="file for the pid")
        each.add_argument(
            "--preserve-fds", type=int, default=0, metavar="N", help="from 3 on, passed"
        )
        each.add_argument("container_id", metavar="ID")
    each.add_argument("-d", "--detach", action="store_true", help="do not wait")
    each.add_argument("--keep", action="store_true", help="do not delete it at its end")
    for name, verb, help_ in (
        ("start", _start, "let a created container's program go on"),
        ("state", _state, "print a container's state as JSON"),
        ("pause", _pause, "stop every process of a container"),
        ("resume", _resume, "let them go on"),
    ):
        add(name, verb, help_).add_argument("container_id", metavar="ID")
    each = add("update", _update, "change the limits (linux.resources) of a container")
    each.add_argument("-r", "--resources", required=True, help="file, or -")
    each.add_argument("container_id", metavar="ID")
    each = add("kill", _kill, "send a signal to a container's first process")
    each.add_argument("-a", "--all", action="store_true", help="to every process")
    each.add_argument("container_id", metavar="ID")
    each.add_argument("signal", nargs="?", default="SIGTERM")
    each = add("delete", _delete, "give back what a container that has stopped holds")
    each.add_argument("-f", "--force", action="store_true", help="kill it first")
    each.add_argument("container_id", metavar="ID")
    _add_exec(add("exec", _exec, "run one more program in a running container"))
    each = add("ps", _ps, "print the host's pids of a container")
    each.add_argument("-f", "--format", choices=("table", "json"), default="table")
    each.add_argument("container_id", metavar="ID")
    each = add("list", _list, "print all containers")
    each.add_argument("-f", "--format", choices=("table", "json"), default="table")
    each.add_argument("-q", "--quiet", action="store_true", help="ids only")
    each = add("spec", _spec, "write a config.json to begin with")
    each.add_argument("-b", "--bundle", default=".", help="where to")
    add("features", _features, "print what this runtime can do, as OCI's features.md has it")
    return parser


def _add_exec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--process", help="file with an OCI process")
    parser.add_argument("--cwd")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("-u", "--user", help="uid or uid:gid")
    parser.add_argument("-g", "--additional-gids", action="append", type=int, default=[])
    parser.add_argument("-c", "--cap", action="append", default=[], help="one more capability")
    parser.add_argument("--no-new-privs", action="store_true")
    parser.add_argument("-t", "--tty", action="store_true", help="with --console-socket")
    parser.add_argument("--console-socket")
    parser.add_argument("--pid-file")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait")
    parser.add_argument("container_id", metavar="ID")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="PROGRAM")


def _creation(options: argparse.Namespace) -> Creation:
    return Creation(
        container_id=options.container_id,
        bundle=Path(options.bundle),
        console_socket=_path(options.console_socket),
        pid_file=_path(options.pid_file),
        preserve_fds=options.preserve_fds,
    )


def _path(text: str | None) -> Path | None:
    return Path(text).absolute() if text else None


def _create(records: Records, options: argparse.Namespace) -> None:
    create(records, _creation(options))


def _run(records: Records, options: argparse.Namespace) -> int:
    record = create(records, _creation(options))
    try:
        lifecycle.start(records, record.id)
    except BaseException:
        lifecycle.delete(records, record.id, force=True)
        raise
    if options.detach:
        return 0
    code = _wait_for(record.pid)
    if not options.keep:
        lifecycle.delete(records, record.id, force=True)
    return code


def _wait_for(pid: int) -> int:
    """Pass signals on, and wait for our child's end; its exit code, as shells give it."""

    def forward(signum: int, _frame: object) -> None:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
                   signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT):  # fmt: skip
        signal.signal(signum, forward)
    return lifecycle.wait(pid)


def _start(records: Records, options: argparse.Namespace) -> None:
    lifecycle.start(records, options.container_id)


def _state(records: Records, options: argparse.Namespace) -> None:
    _print_json(records.state(records.load(options.container_id)))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _pause(records: Records, options: argparse.Namespace) -> None:
    lifecycle.pause(records, options.container_id)


def _resume(records: Records, options: argparse.Namespace) -> None:
    lifecycle.resume(records, options.container_id)


def _update(records: Records, options: argparse.Namespace) -> None:
    source = options.resources
    text = sys.stdin.read() if source == "-" else Path(source).read_text()
    lifecycle.update(records, options.container_id, json.loads(text))


def _kill(records: Records, options: argparse.Namespace) -> None:
    signum = _signal(options.signal)
    lifecycle.kill(records, options.container_id, signum, everybody=options.all)


def _signal(text: str) -> int:
    if text.isdecimal() and 0 < int(text) <= signal.NSIG:
        return int(text)
    name = text.upper()
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    if not isinstance(found, signal.Signals):
        raise SpecError(f"{text!r} is no signal", field="signal")
    return found


def _delete(records: Records, options: argparse.Namespace) -> None:
    lifecycle.delete(records, options.container_id, force=options.force)


def _exec(records: Records, options: argparse.Namespace) -> int:
    record = records.load(options.container_id)
    pid = lifecycle.execute(
        records,
        record.id,
        _exec_process(records, record, options),
        console_socket=_path(options.console_socket),
        pid_file=_path(options.pid_file),
        preserve_fds=options.preserve_fds,
    )
    return 0 if options.detach else _wait_for(pid)


def _exec_process(records: Records, record: Record, options: argparse.Namespace) -> Process:
    """As in a file, or the container's own with what the options change."""
    if options.process:
        return parse_process(json.loads(Path(options.process).read_text()))
    process = records.config(record).process
    args = options.args[1:] if options.args[:1] == ["--"] else options.args
    if not args:
        raise SpecError("no program to run", field="process.args")
    changes: dict[str, Any] = {"args": tuple(args), "terminal": options.tty,
                               "env": (*process.env, *options.env),
                               "groups": (*process.groups, *options.additional_gids)}  # fmt: skip
    if options.cwd:
        changes["cwd"] = options.cwd
    if options.user:
        uid, _, gid = options.user.partition(":")
        if not uid.isdecimal() or not (gid or "0").isdecimal():
            raise SpecError(f"user {options.user!r} is not UID or UID:GID", field="process.user")
        changes |= {"uid": int(uid), "gid": int(gid or process.gid)}
    if options.no_new_privs:
        changes["no_new_privileges"] = True
    if options.cap:
        more = capability_mask(options.cap)
        changes["capabilities"] = {n: mask | more for n, mask in process.capabilities.items()}
    return replace(process, **changes)


def _ps(records: Records, options: argparse.Namespace) -> None:
    pids = lifecycle.processes(records, options.container_id)
    if options.format == "json":
        print(json.dumps(pids))
        return
    print("PID")
    for pid in pids:
        print(pid)


def _list(records: Records, options: argparse.Namespace) -> None:
    found = lifecycle.states(records)
    if options.format == "json":
        _print_json(found)
    elif options.quiet:
        for state in found:
            print(state["id"])
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED")]
        rows += [(s["id"], str(s["pid"]), s["status"], s["bundle"], s["created"]) for s in found]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _spec(records: Records, options: argparse.Namespace) -> None:
    del records
    path = Path(options.bundle) / "config.json"
    if path.exists():
        raise SpecError(f"{path} exists already", field="bundle")
    path.write_text(json.dumps(default_config(), indent=2) + "\n")


def _features(records: Records, options: argparse.Namespace) -> None:
    del records, options
    _print_json(features())


if __name__ == "__main__":
    sys.exit(main())
