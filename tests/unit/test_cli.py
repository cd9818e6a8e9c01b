"""The command line without a daemon: parsing, formats, errors, exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from sandboxkernel import cli as command_line
from sandboxkernel.cli import doctor, images, kernels, names, options, output, run, views
from sandboxkernel.cli import users as users_module
from sandboxkernel.errors import (
    ERRORS_BY_CODE,
    Conflict,
    DaemonUnavailable,
    KernelNotFound,
    KernelStartFailed,
    LayerNotFound,
    PayloadTooLarge,
    RequestError,
    SandboxError,
)
from sandboxkernel.models import (
    ConnectionInfo,
    Event,
    ExecExit,
    ExecOutput,
    ExitInfo,
    Image,
    IoLimit,
    Kernel,
    Limits,
    Progress,
    Stats,
    UserLayer,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon of this machine is talked to, and none is started."""
    monkeypatch.setenv("SANDBOXKERNEL_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("SANDBOXKERNEL_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("SANDBOXKERNEL_HOST", raising=False)


def kernel(sandbox_id: str = "0123456789ab", kernel_id: str = "a-name", **members: Any) -> Kernel:
    return Kernel(
        **{
            "kernel_id": kernel_id,
            "id": sandbox_id,
            "kernel_name": "",
            "owner_uid": 1000,
            "owner_name": "ana",
            "profile": "default",
            "image": "host",
            "image_digest": "sha256:" + "0" * 64,
            "state": "running",
            "created_at": NOW - timedelta(minutes=3),
            "limits": Limits(memory_bytes=512 * MIB, cpus=0.5, pids=64),
            "connection": ConnectionInfo(ip="/run/x"),
            **members,
        }
    )


def layer(lineage: str) -> UserLayer:
    return UserLayer(
        owner_uid=0, lineage=lineage, size_bytes=MIB, files=3, in_use=0, modified_at=NOW
    )


def stats(seconds: float, cpu: float) -> Stats:
    return Stats(
        kernel_id="a-name", time=NOW + timedelta(seconds=seconds), memory_bytes=MIB,
        memory_peak_bytes=2 * MIB, memory_limit_bytes=512 * MIB, cpu_usage_s=cpu,
        cpu_throttled_s=0.0, cpus=0.5, pids=3, pids_limit=None, io_read_bytes=0,
        io_write_bytes=0, oom_kills=0,
    )  # fmt: skip


def all_commands(
    group: click.Group = command_line.cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in [*group.list_commands(context), *(["launch"] if not path else [])]:
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


COMMANDS = list(all_commands())
LEAVES = [(path, command) for path, command in COMMANDS if not isinstance(command, click.Group)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda v: str(v)[:40])
def test_every_help_has_a_summary_and_an_example(
    path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main([*path, "--help"]) == 0
    text = capsys.readouterr().out
    summary = (command.help or "").splitlines()[0]
    assert summary.endswith((".", ":")) or path[-1] == "layer", summary
    assert len(summary) <= 80
    assert "Example" in text
    assert f"sandboxkernel {path[0]}" in text.split("Example")[1]


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=lambda v: str(v)[:40])
def test_every_option_has_a_help_that_tells_its_default(
    path: tuple[str, ...], command: click.Command
) -> None:
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, (path, option.name)
            silent = option.is_flag or option.multiple or option.required
            told = option.show_default or "default" in option.help
            assert silent or told, (path, option.name)


def test_the_summaries_of_the_overview_are_those_of_the_commands() -> None:
    context = click.Context(command_line.cli)
    for section in command_line.COMMANDS.values():
        for name, (_, summary) in section.items():
            command = command_line.cli.get_command(context, name)
            assert command is not None
            assert command.hidden is not bool(summary)
            assert (command.help or "").splitlines()[0] == summary or command.hidden


def test_help_loads_neither_the_client_nor_the_daemon() -> None:
    code = (
        "import sys; from sandboxkernel.cli import main; main(['--help']); "
        "print([m for m in sys.modules if m.startswith(('sandboxkernel.client', 'msgspec', "
        "'sandboxkernel.daemon', 'sandboxkernel.images', 'sandboxruntime', 'asyncio'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_command_loads_privileged_code() -> None:
    code = (
        "import sys, importlib, pkgutil, sandboxkernel.cli as c\n"
        "for m in pkgutil.iter_modules(c.__path__, c.__name__ + '.'): importlib.import_module(m[1])"
        "\nprint([m for m in sys.modules if m.startswith(('sandboxkernel.daemon', "
        "'sandboxkernel.images', 'sandboxkernel.limits', 'sandboxruntime', 'tornado'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_output_prints() -> None:
    folder = Path(command_line.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "output.py":
            text = path.read_text()
            found = re.findall(r"^\s*print\(|sys\.std(?:out|err)|\becho\(", text, re.MULTILINE)
            assert found == [], path.name


# --- errors and exit codes ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such"], ["ps", "--no-such"], ["ps", "--format", "xml"], ["inspect"], ["stop"],
        ["run"], ["run", "--memory", "lots", "true"], ["run", "--memory", "-1", "true"],
        ["run", "--cpus", "0", "true"], ["run", "--cpus", "nan", "true"],
        ["run", "--pids", "0", "true"], ["run", "--env", "novalue", "true"],
        ["run", "-d", "--rm", "true"], ["exec", "x"], ["exec", "x", "--"],
        ["kill", "--signal", "NOSUCH", "x"], ["kill", "--signal", "99", "x"],
        ["stop", "--time", "-1", "x"], ["stats", "--stream"], ["stats", "--stream", "a", "b"],
        ["events", "--since", "yesterday"], ["events", "--since", "999999999d"],
        ["logs", "--tail", "-1", "x"], ["--host", "tcp://1.2.3.4:5", "ps"],
        ["user", "layer", "diff", "--limit", "0"], ["launch"],
        ["--host", "/x", "daemon"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_exits_with_2_and_says_where_help_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "--help`" in captured.err
    assert captured.err.endswith("code: usage\n")


@pytest.mark.parametrize(
    "arguments",
    [["inspect", "x"], ["exec", "x", "true"], ["logs", "x"], ["stop", "x"], ["kill", "x"],
     ["rm", "x"], ["pause", "x"], ["unpause", "x"], ["stats", "x"], ["events", "-f"],
     ["--host", "/nowhere.sock", "ps"], ["--host", "unix:///nowhere.sock", "run", "--no-stdin", "true"],
     ["--host", "/nowhere.sock", "image", "ls"], ["--host", "/nowhere.sock", "system", "df"]],
    ids=" ".join,
)  # fmt: skip
def test_without_a_daemon_the_exit_code_is_125(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments) == 125
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hint: " in captured.err
    assert captured.err.endswith("code: daemon_unavailable\n")


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [(["ps", "--format", "json"], "[]"), (["ps", "-q"], ""), (["stats", "--format", "json"], "[]"),
     (["events"], "")],
    ids=str,
)  # fmt: skip
def test_what_only_looks_finds_nothing_without_a_daemon(
    arguments: list[str], empty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == empty
    assert "no daemon is running" in captured.err


def test_a_named_daemon_must_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SANDBOXKERNEL_HOST", "unix:///nowhere.sock")
    assert command_line.main(["ps"]) == 125
    assert "/nowhere.sock" in capsys.readouterr().err


def test_info_without_a_daemon_tells_the_client(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["system", "info", "--format", "json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["daemon"] is None
    assert info["socket"].endswith("/api.sock")


def raising(monkeypatch: pytest.MonkeyPatch, exc: BaseException) -> None:
    def fail() -> None:
        raise exc

    monkeypatch.setattr(kernels, "connect_or_none", fail)


@pytest.mark.parametrize("error_type", ERRORS_BY_CODE.values(), ids=lambda e: str(e.code))
def test_every_error_is_told_with_its_hint_and_code(
    error_type: type[SandboxError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(monkeypatch, error_type("it failed: so it is", hint="Do this."))
    assert command_line.main(["ps"]) == (125 if error_type is DaemonUnavailable else 1)
    expected = f"error: it failed: so it is\nhint: Do this.\ncode: {error_type.code}\n"
    assert capsys.readouterr().err == expected


def test_an_error_without_a_hint_has_two_lines() -> None:
    assert output.render_error("x", hint="", code="y") == "error: x\ncode: y\n"


def test_an_error_cannot_drive_the_terminal() -> None:
    assert "\x1b" not in output.render_error("no kernel '\x1b[2J\r\n'", hint="", code="y")


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert command_line.main(["ps"]) == 130


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        command_line.main(["ps"])


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "from sandboxkernel.cli import output\n"
        "output.prepare()\nfor i in range(10000): output.line('x' * 1000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_names_that_the_terminal_cannot_show_are_escaped() -> None:
    code = "from sandboxkernel.cli import output; output.prepare(); output.line('\\u2603')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"\\u2603\n")


def test_doctor_knows_which_client_is_required() -> None:
    assert re.match(r"jupyter[-_]client>=\d", doctor.required_client())


# --- options ---


def convert(kind: Any, text: str) -> Any:
    return kind.convert(text, None, None)


def test_options_are_parsed_as_people_write_them() -> None:
    assert convert(options.SIZE, "1.5G") == 3 << 29
    assert convert(options.CPUS, "0.5") == 0.5
    assert [convert(options.SIGNAL, text) for text in ("INT", "sigint", "2")] == [2, 2, 2]
    assert convert(options.VARIABLE, "A=b=c") == ("A", "b=c")
    assert convert(options.VARIABLE, "A=") == ("A", "")
    assert convert(options.SINCE, "2026-01-02T03:04:05+01:00") == "2026-01-02T02:04:05+00:00"
    ago = datetime.now(UTC) - datetime.fromisoformat(convert(options.SINCE, "10m"))
    assert timedelta(minutes=9) < ago < timedelta(minutes=11)


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The request that `run -d` would send."""
    seen: list[Any] = []

    def create(client: object, request: Any) -> Kernel:
        seen.append(request)
        return kernel()

    monkeypatch.setattr(run, "connect_or_start", lambda: None)
    monkeypatch.setattr(run, "_create_detached", create)
    assert command_line.main(["run", "-d", *arguments]) == 0
    return seen[0]


def test_run_turns_its_options_into_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    request = parsed(
        ["--profile", "bio101", "--memory", "512M", "--cpus", "0.5", "--pids", "64", "--shm", "1M",
         "--tmp", "2M", "--swap", "0", "--io-write", "3M", "--name", "n", "--env", "A=1", "-e",
         "B=2", "--work-folder", "/srv", "--ephemeral", "--", "sh", "-c", "x", "--memory", "1"],
        monkeypatch,
    )  # fmt: skip
    assert request.argv == ["sh", "-c", "x", "--memory", "1"]
    assert request.limits == Limits(
        memory_bytes=512 * MIB, swap_bytes=0, cpus=0.5, pids=64, shm_bytes=MIB, tmp_bytes=2 * MIB,
        io=IoLimit(write_bytes_per_s=3 * MIB),
    )  # fmt: skip
    assert (request.profile, request.kernel_id, request.ephemeral) == ("bio101", "n", True)
    assert request.env == {"A": "1", "B": "2"}
    assert request.work_folder == request.cwd == "/srv"


def test_run_asks_for_nothing_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    request = parsed([], monkeypatch)
    assert request.limits == Limits()
    assert (request.profile, request.work_folder, request.env) == (None, None, {})
    assert request.argv == ["sleep", "infinity"]


def test_words_of_the_command_are_not_options_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(["ls", "--all", "-d"], monkeypatch).argv == ["ls", "--all", "-d"]


def test_a_relative_work_folder_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed(["--work-folder", "."], monkeypatch).work_folder == str(tmp_path.resolve())


# --- run and exec on a fake client ---


class FakeClient:
    """Answers an exec with what it was given."""

    def __init__(self, *items: Any, **usage: int) -> None:
        self.items = items
        self.usage = usage

    def exec(self, name: str, argv: list[str], **members: Any) -> Iterator[Any]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    def stats(self, name: str) -> Stats:
        return msgspec.structs.replace(stats(0, 0), **self.usage)


def execute(client: Any) -> int:
    return run.execute(client, kernel(), ["x"], env={}, cwd=None, stdin="")


def test_an_exec_keeps_the_streams_apart(capfd: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(
        ExecOutput(stream="stdout", data="out ü"), ExecOutput(stream="stderr", data="err"),
        ExecExit(exit_code=3),
    )  # fmt: skip
    assert execute(client) == 3
    assert tuple(capfd.readouterr()) == ("out ü", "err")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOENT, 127), (errno.EACCES, 126)])
def test_a_program_that_cannot_start_exits_like_in_a_shell(number: int, code: int) -> None:
    failed = KernelStartFailed("cannot execute", step="hand_over", errno=number)
    with pytest.raises(click.exceptions.Exit) as caught:
        execute(FakeClient(failed))
    assert caught.value.exit_code == code


def test_another_failure_of_a_start_is_none_of_the_program() -> None:
    with pytest.raises(KernelStartFailed):
        execute(FakeClient(KernelStartFailed("x", step="rootfs", errno=errno.ENOENT)))


def test_an_exec_without_an_end_is_a_missing_daemon() -> None:
    with pytest.raises(DaemonUnavailable):
        execute(FakeClient(ExecOutput(stream="stdout", data="x")))


@pytest.mark.parametrize(
    ("usage", "told"),
    [({"oom_kills": 1}, True), ({"memory_peak_bytes": 512 * MIB}, True), ({}, False)],
    ids=str,
)
def test_a_kill_by_the_memory_cap_is_told(
    usage: dict[str, int], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(FakeClient(ExecExit(exit_code=137), **usage)) == 137
    assert ("memory cap of 512.0 MiB" in capsys.readouterr().err) is told


def stdin_of(monkeypatch: pytest.MonkeyPatch, data: bytes) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return run.read_stdin()


def test_stdin_is_passed_on_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stdin_of(monkeypatch, "ü\n".encode()) == "ü\n"
    assert len(stdin_of(monkeypatch, b"x" * run.STDIN_MAX)) == run.STDIN_MAX
    with pytest.raises(PayloadTooLarge):
        stdin_of(monkeypatch, b"x" * (run.STDIN_MAX + 1))
    with pytest.raises(RequestError, match="byte 1"):
        stdin_of(monkeypatch, b"x\xff")
    monkeypatch.setattr(sys, "stdin", None)
    assert run.read_stdin() == ""


# --- names ---


def test_a_prefix_finds_a_sandbox_by_id_and_by_name() -> None:
    known = [kernel("aaaa00000000", "first"), kernel("aabb00000000", "second")]
    for name in ("aaaa00000000", "aaa", "first", "f"):
        assert names.find_kernel(name, known, uid=0).kernel_id == "first"


def test_an_exact_name_wins_over_a_prefix() -> None:
    known = [kernel("aaaa00000000", "run"), kernel("bbbb00000000", "run-2")]
    assert names.find_kernel("run", known, uid=0).id == "aaaa00000000"


def test_the_callers_own_sandbox_wins_over_another_users() -> None:
    known = [kernel("a" * 12, "n", owner_uid=1), kernel("b" * 12, "n", owner_uid=2)]
    assert names.find_kernel("n", known, uid=2).id == "b" * 12
    with pytest.raises(Conflict):
        names.find_kernel("n", known, uid=0)


def test_an_ambiguous_prefix_lists_what_it_could_be() -> None:
    known = [kernel(f"aa{index:010d}", f"n{index}") for index in range(12)]
    with pytest.raises(Conflict, match=r"ambiguous: aa0000000000 \(n0\).* and 2 more") as caught:
        names.find_kernel("aa", known, uid=0)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "zz", "0123456789abc"])
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(KernelNotFound) as caught:
        names.find_kernel(name, [kernel()], uid=0)
    assert "ps -a" in caught.value.hint


def test_the_only_layer_needs_no_name() -> None:
    assert names.find_layer(None, [layer("host-3.11")]).lineage == "host-3.11"
    assert names.find_layer("host", [layer("host"), layer("host-2")]).lineage == "host"
    assert names.find_layer("b", [layer("a"), layer("bc")]).lineage == "bc"
    with pytest.raises(Conflict, match="several layers: a, b"):
        names.find_layer(None, [layer("a"), layer("b")])
    for lineage in (None, "x"):
        with pytest.raises(LayerNotFound):
            names.find_layer(lineage, [])


def test_users_are_named_or_numbered() -> None:
    assert [users_module.parse_user(u) for u in ("me", "all", "1000", "root")] == [
        "me", "all", "1000", "0",
    ]  # fmt: skip
    assert users_module.user_name(0) == "root"
    assert users_module.user_name(4_000_000_000) == "4000000000"
    with pytest.raises(RequestError):
        users_module.parse_user("no such user")


# --- views ---


def test_a_table_has_columns_without_trailing_blanks() -> None:
    text = output.render_table(("A", "BB"), [("x", "y"), ("longer", "\x1b[2J")])
    assert text == "A        BB\nx        y\nlonger   \\x1b[2J\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "now"), (0.5, "now"), (1, "1 second ago"), (59, "59 seconds ago"), (60, "1 minute ago"),
     (7200, "2 hours ago"), (86400 * 3, "3 days ago")],
)  # fmt: skip
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert views.age(NOW - timedelta(seconds=seconds), NOW) == text


def test_a_sandbox_is_one_row_in_human_units() -> None:
    assert views.kernel_row(kernel(), NOW) == (
        "0123456789ab", "a-name", "ana", "default", "running", "512.0 MiB", "0.5", "64",
        "3 minutes ago",
    )  # fmt: skip
    assert len(views.kernel_row(kernel(limits=Limits()), NOW)) == len(views.KERNEL_HEADERS)


@pytest.mark.parametrize(
    ("info", "text"),
    [(ExitInfo(reason="exited", code=3), "exited (3)"),
     (ExitInfo(reason="signaled", signal=15), "exited (-15)"),
     (ExitInfo(reason="oom_killed", signal=9), "out of memory")],
    ids=str,
)  # fmt: skip
def test_the_status_tells_the_end(info: ExitInfo, text: str) -> None:
    assert text in views.kernel_row(kernel(state="exited", exit=info), NOW)


def test_the_share_of_the_cpu_comes_from_two_readings() -> None:
    first, second = stats(0, 1.0), stats(2, 2.0)
    assert views.stats_row("id", first)[2] == "-"
    assert views.stats_row("id", second, first)[2] == "50%"
    assert views.stats_row("id", first, first)[2] == "-"
    assert "1.0 MiB / 512.0 MiB" in views.stats_row("id", first)
    assert "3 / -" in views.stats_row("id", first)
    assert len(views.stats_row("id", first)) == len(views.STATS_HEADERS)


def test_rows_have_as_many_cells_as_headers() -> None:
    event = Event(time=NOW, action="kernel_exited", kernel_id="n", detail={"reason": "exited"})
    image = Image(ref="host", digest="sha256:" + "a" * 64, size_bytes=5, layers=[], created_at=NOW)
    assert len(views.event_row(event)) == len(views.EVENT_HEADERS) == len(kernels.EVENT_WIDTHS)
    assert "reason=exited" in views.event_row(event)[-1]
    assert len(views.image_row(image, NOW)) == len(views.IMAGE_HEADERS)
    assert "a" * 12 in views.image_row(image, NOW)
    assert len(views.layer_row(layer("x"), "ana", NOW)) == len(views.LAYER_HEADERS)
    assert len(views.STATS_HEADERS) == len(kernels.STATS_WIDTHS)


def test_an_inspected_model_is_flat_and_human() -> None:
    rows = dict(views.flatten(msgspec.to_builtins(kernel())))
    assert rows["limits.memory_bytes"] == "512.0 MiB"
    assert rows["connection.ip"] == "/run/x"
    assert rows["ephemeral"] == "no"
    assert "exit" not in rows
    assert views.flatten({"list": ["a", "b"]}) == [("list[0]", "a"), ("list[1]", "b")]


def test_a_wish_that_was_not_granted_is_told() -> None:
    asked = Limits(memory_bytes=1 << 40, cpus=1.0, io=IoLimit(write_bytes_per_s=8 * MIB))
    given = Limits(memory_bytes=256 * MIB, cpus=1.0, pids=64, io=IoLimit(write_bytes_per_s=4 * MIB))
    memory, writes = views.clamped(asked, given)
    assert memory.startswith("memory is 256.0 MiB, not the 1024.0 GiB") or "1.0 TiB" in memory
    assert writes.startswith("write is 4.0 MiB/s, not the 8.0 MiB/s")
    assert views.clamped(Limits(), given) == []


@pytest.mark.parametrize(
    ("step", "text"),
    [(Progress(phase="copy", done=3, total=9, unit="files"), "copy: 3 of 9 files"),
     (Progress(phase="copy", done=1024, total=2048, unit="bytes"), "copy: 1.0 KiB of 2.0 KiB"),
     (Progress(phase="scan", done=7, unit="files"), "scan: 7 files"),
     (Progress(phase="scan"), "scan")],
)  # fmt: skip
def test_progress_is_one_line(step: Progress, text: str) -> None:
    assert images.progress_text(step) == text


def test_a_tail_is_whole_lines() -> None:
    data = b"a\nbb\r\nccc"
    assert [kernels.tail_size(data, n) for n in (0, 1, 2, 3, 9)] == [0, 3, 7, 9, 9]


# --- doctor ---


def probe(name: str, present: bool) -> dict[str, Any]:
    fix = "" if present else "do"
    return {"name": name, "present": present, "detail": "d", "promise": "p", "fix": fix}


def test_only_what_is_required_and_missing_fails_the_doctor() -> None:
    probes = [probe("seccomp", True), probe("cgroup_kill", False), probe("landlock", False)]
    findings = doctor.parse_probes(json.dumps(probes).encode())
    assert [f.status for f in findings] == ["ok", "optional", "MISSING"]
    assert [f.name for f in doctor.lacking(findings)] == ["landlock"]
    with pytest.raises(msgspec.MsgspecError):
        doctor.parse_probes(b"Traceback")


def test_what_is_optional_is_the_name_of_a_probe() -> None:
    from sandboxruntime import host

    known = {p.name for p in (*host._probes("/tmp"), *host._cgroup_probes())}
    # cgroup_cpuacct is probed on hosts with cgroup v1 only.
    assert known >= doctor.OPTIONAL - {"cgroup_cpuacct"}


def test_a_missing_feature_is_told_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = doctor.parse_probes(json.dumps([probe("landlock", False)]).encode())
    monkeypatch.setattr(doctor, "_probe_host", lambda: findings)
    assert command_line.main(["doctor", "--quiet"]) == 1
    text = capsys.readouterr().out
    assert "MISSING" in text
    assert "at stake: p" in text
    assert "fix: do" in text
    assert command_line.main(["doctor", "--quiet", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["required"] is True


def test_releases_are_compared_by_number() -> None:
    assert doctor.version_key("8.10.0") > doctor.version_key("8.9.1")
    assert doctor.version_key("8.9.1.dev0") == (8, 9, 1)
