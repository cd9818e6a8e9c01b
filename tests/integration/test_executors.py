"""Containers that another runtime makes: the spec handed over, and what happens when it lies.

That everything else works in them is shown by running other files of the lanes with them: see
BY_RUNC in tests/conftest.py, and `make test-runc`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT4

from sandboxkernel.errors import HostUnsupported, KernelStartFailed, SandboxError
from sandboxruntime import oci, rlimits
from sandboxruntime.channel import send_message
from sandboxruntime.errors import HostError, VerifyError
from sandboxruntime.oci_config import oci_config
from sandboxruntime.spec import Spec, to_json
from sandboxruntime.syscalls import machine
from tests.escape.attacks import ANYWHERE, Attack
from tests.harness import Harness, harness, make_spec
from tests.support import RunningDaemon, by_executor, running_daemon, sandbox, wait_until

# golang-github-opencontainers-specs-dev: the schema that the specification's authors publish.
SCHEMA = Path("/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema")
# Stands in for runc: changes the config.json that it was given, then is runc.
LIAR = """#!{python} -IS
import json, os, sys
arguments = sys.argv[1:]
if "run" in arguments:
    path = arguments[arguments.index("--bundle") + 1] + "/config.json"
    with open(path) as stream:
        config = json.load(stream)
    process, linux = config["process"], config["linux"]
    {change}
    with open(path, "w") as stream:
        json.dump(config, stream)
os.execv({runc!r}, ["runc", *arguments])
"""


def validator() -> jsonschema.protocols.Validator:
    contents = {path.name: json.loads(path.read_text()) for path in SCHEMA.glob("*.json")}
    for schema in contents.values():
        schema.pop("id", None)  # so that references are to names of files
    registry: Registry[Any] = Registry().with_resources(
        (name, DRAFT4.create_resource(schema)) for name, schema in contents.items()
    )
    return jsonschema.Draft4Validator(contents["config-schema.json"], registry=registry)


def planned(spec: Spec) -> dict[str, Any]:
    return oci_config(
        spec, rootfs="/b/0", binds=[f"/b/{i}" for i, _ in enumerate(spec.binds, 1)], args=["true"],
        env={}, rlimits=rlimits.plan_own(rlimits.DEFAULTS), machine=machine(),
    )  # fmt: skip


def test_the_spec_that_is_handed_over_is_valid() -> None:
    check = validator()
    with make_spec(executor="runc") as spec:
        config = planned(spec)
    assert [error.message for error in check.iter_errors(config)] == []
    config["linux"]["namespaces"].append({"type": "moon"})
    config["process"]["capabilities"]["bounding"] = "all"
    assert len(list(check.iter_errors(config))) == 2


@pytest.fixture(scope="module")
def honest() -> Any:
    with harness() as running:
        yield running


@pytest.mark.parametrize("shared_mounts", [False, True])
def test_what_runc_made_is_what_the_spec_says(shared_mounts: bool) -> None:
    """Also where the host's mounts propagate, as they do wherever systemd has booted."""
    with (
        harness(shared_mounts=shared_mounts) as running,
        make_spec(executor="runc") as spec,
        running.container(spec) as attempt,
    ):
        attempt.verify()
        code, output = attempt.run("python3", "-c", "import os; print(os.getuid(), os.getppid())")
        assert (code, output.split()) == (0, ["1000", "1"])


@pytest.mark.parametrize("attack", ANYWHERE, ids=lambda attack: attack.name)
def test_every_attack_is_refused(honest: Harness, attack: Attack) -> None:
    """Their controls are in tests/escape, where the same container lacks one defence."""
    with contextlib.ExitStack() as stack:
        values = stack.enter_context(attack.arrange(None)) if attack.arrange else {}
        spec = stack.enter_context(make_spec(executor="runc"))
        attempt = stack.enter_context(honest.container(spec))
        _, output = attempt.run("python3", "-c", attack.source(values))
    assert output.strip().splitlines()[-1] in attack.outcomes()


def install_liar(folder: Path, change: str) -> Path:
    program = folder / "runc"
    text = LIAR.format(python=sys.executable, change=change, runc=oci.find_program("runc"))
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


LIES = {
    "namespaces": 'linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"]',
    "namespaces-cgroup": (
        'linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "cgroup"]'
    ),
    "capabilities": 'process["capabilities"] = {s: ["CAP_SYS_ADMIN"] for s in ("bounding", "permitted", "effective", "inheritable", "ambient")}',
    "capabilities-bounding": 'process["capabilities"]["bounding"] = ["CAP_CHOWN"]',
    "credentials": 'process["user"] = {"uid": 0, "gid": 0}',
    "credentials-gid": 'process["user"]["gid"] = 0',
    "credentials-groups": 'process["user"]["additionalGids"] = [27]',
    "seccomp": 'del linux["seccomp"]',
    "id_maps": 'linux["uidMappings"][0]["size"] = linux["gidMappings"][0]["size"] = 32768',
    "mounts": 'config["mounts"].append({"destination": "/mnt", "type": "bind", "source": "/etc", "options": ["bind"]})',
    "mounts-missing": 'config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/tmp"]',
    "mounts-unmasked": 'linux["maskedPaths"].remove("/proc/kmsg")',
    "mounts-suid": '[m for m in config["mounts"] if m["destination"] == "/tmp"][0]["options"].remove("nosuid")',
    "mounts-dev": '[m for m in config["mounts"] if m["destination"] == "/dev/shm"][0]["options"].remove("nodev")',
    "mounts-writable": 'linux["readonlyPaths"].remove("/proc/sys")',
    "mounts-propagating": 'config["mounts"][3]["options"].append("shared")',
    "rlimits": 'process["rlimits"] = [dict(r, soft=4096, hard=4096) if r["type"] == "RLIMIT_CORE" else r for r in process["rlimits"]]',
}


@pytest.mark.parametrize("lie", LIES)
def test_a_runtime_that_confines_less_is_caught(tmp_path: Path, lie: str) -> None:
    """Before the process has received anything: no environment, no key, no socket."""
    executors = install_liar(tmp_path, LIES[lie])
    with harness(executors=executors) as running, make_spec(executor="runc") as spec:
        with running.container(spec) as attempt, pytest.raises(VerifyError) as caught:
            attempt.verify()
        assert caught.value.check == lie.partition("-")[0]


# As root inside, whose exec would give it what the bounding set allows (capabilities(7)): OCI has no
# word for securebits, which forbid just that in our own containers.
ROOT_EXECUTES = """
    process["user"] = {{"uid": 0, "gid": 0}}
    process["args"] = [process["args"][0], "-ISc", "print(open('/proc/self/status').read())"]
    process["noNewPrivileges"] = {no_new_privs}
    process["capabilities"]["bounding"] = {bounding}
"""


@pytest.mark.parametrize(
    ("no_new_privs", "bounding", "gained"),
    [
        (True, [], 0),
        (True, ["CAP_CHOWN"], 0),
        (False, [], 0),
        (False, ["CAP_CHOWN"], 1),  # the control: without both it gains a capability
    ],
)
def test_without_securebits_an_exec_gains_nothing(
    tmp_path: Path, no_new_privs: bool, bounding: list[str], gained: int
) -> None:
    change = ROOT_EXECUTES.format(no_new_privs=no_new_privs, bounding=bounding).strip()
    executors = install_liar(tmp_path, change)
    ours, theirs = socket.socketpair()
    log_read, log_write = os.pipe()
    with harness(executors=executors) as running, make_spec(executor="runc") as spec, ours, theirs:
        try:
            with pytest.raises(SandboxError):  # it is none of our pid 1
                running.request("create", [theirs.fileno(), log_write], spec=to_json(spec))
        finally:
            os.close(log_write)
            with open(log_read, "rb") as log:
                status = log.read().decode()
    found = re.search(r"^CapEff:\s+(\w+)", status, re.MULTILINE)
    assert found is not None, status
    assert int(found.group(1), 16) == gained


def test_a_runtime_that_uses_another_cgroup_is_refused(tmp_path: Path) -> None:
    other = "/sandboxkernel-tests-elsewhere"
    executors = install_liar(tmp_path, f'linux["cgroupsPath"] = {other!r}')
    with (
        harness(executors=executors) as running,
        make_spec(executor="runc") as spec,
        pytest.raises(Exception, match="is not pid 1 of container"),
        running.container(spec),
    ):
        pass
    for base in running.layout.hierarchies().values():
        assert not Path(base + other).exists()


def test_a_runtime_that_fails_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    executors = install_liar(tmp_path, 'process["cwd"] = "relative"')
    with harness(executors=executors) as running, make_spec(executor="runc") as spec:
        for _ in range(2):
            with pytest.raises(KernelStartFailed) as caught, running.container(spec):
                pass
            assert re.search(r"clone: runc ended with 1: .*[Cc]wd", str(caught.value))
            assert records(running) == []
            assert not Path(f"{running.staging}.oci").exists()


def records(running: Harness) -> list[str]:
    root = Path(f"{running.staging}.oci/runc")
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def test_the_runtime_knows_its_containers_until_they_are_deleted(honest: Harness) -> None:
    with make_spec(executor="runc") as spec:
        with honest.container(spec):
            done = subprocess.run(
                ["runc", "--root", f"{honest.staging}.oci/runc", "list", "--format", "json"],
                capture_output=True, check=True,
            )  # fmt: skip
            (found,) = json.loads(done.stdout)
            assert (found["id"], found["status"]) == (spec.container_id, "running")
        assert records(honest) == []


# The launcher's child is held up before it can ask to be told of its parent's death.
LATE = """
import os, time
wanted, launcher_pid = syscalls.prctl, os.getpid()
def prctl(option, *arguments):
    if option == 1:
        while os.getppid() == launcher_pid:
            time.sleep(0.01)
    return wanted(option, *arguments)
syscalls.prctl = prctl
"""


@pytest.mark.parametrize("patch", ["", LATE], ids=["while it runs", "before it has asked"])
def test_a_launcher_that_is_killed_takes_the_runtime_along(tmp_path: Path, patch: str) -> None:
    executors = install_liar(tmp_path, "import time; time.sleep(600)")
    with make_spec(executor="runc") as spec:
        running = Harness(executors=executors, patch=patch)
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull, "wb") as log:
            message = {"op": "create", "serial": 1, "spec": to_json(spec)}
            send_message(running._sock, message, [theirs.fileno(), log.fileno()])
            child = wait_until(lambda: children(running.pid), what="the runtime runs")[0]
            running.kill()
        wait_until(lambda: not Path(f"/proc/{child}").exists(), what="it has ended")
        with harness() as following:
            following.request(
                "delete", container_id=spec.container_id, cgroups_path=spec.cgroups_path
            )
        running.remove_staging()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_an_executor_that_is_not_installed_says_what_to_do() -> None:
    with pytest.raises(HostError) as caught:
        oci.find_program("runc-of-the-moon")
    assert caught.value.hint.startswith("apt-get install runc-of-the-moon")


def test_inspect_tells_the_executor_and_why_a_start_was_cold(daemon: RunningDaemon) -> None:
    with running_daemon(by_executor("runc")) as own, sandbox(own, as_kernel=True) as kernel:
        assert (kernel.executor, kernel.start_path) == ("runc", "cold")
        assert kernel.cold_reason == "containers of runc have no zygote"


def test_a_host_without_the_executor_refuses_the_start(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daemon's own environment has nothing to do with where executors are looked for.
    program = (
        "-c",
        "from sandboxkernel.daemon import launcher_client as c; c._BOOTSTRAP = c._BOOTSTRAP.replace("
        "'import main;', 'import main; from sandboxruntime import oci; oci.SEARCH_PATH = \"/x\";');"
        "from sandboxkernel.daemon.__main__ import main; main()",
    )
    with (
        running_daemon(by_executor("runc"), program=program) as own,
        pytest.raises(HostUnsupported) as caught,
        sandbox(own),
    ):
        pass
    assert "runc is not installed" in str(caught.value)
    assert "apt-get install runc" in caught.value.hint
