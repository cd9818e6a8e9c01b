"""Outside verification is tested itself: containers that lack one property, each found out.

Of each property that Linux lets a launcher leave out without harm to the host. The others (no mount,
PID or user namespace of its own) are shown to the same checks as facts, in
tests/unit/test_runtime_plans.py, and for runc in tests/integration/test_executors.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxkernel.errors import KernelStartFailed
from sandboxruntime.errors import VerifyError
from sandboxruntime.spec import Bind, Credentials
from sandboxruntime.steps import Step
from tests.escape.attacks.views import HOST_IPC, HOST_NETWORK, KEEP_OPEN, LEAK, MOUNT_FLAGS
from tests.harness import harness, make_spec
from tests.support import NO_ZYGOTES, RunningDaemon, running_daemon, sandbox

WORK = Path("/srv/sandboxkernel-tests/misconfined")
PLAN = """
plan = init.plan_mounts
init.plan_mounts = lambda spec: {changed}
"""
STEP = """
do_{name} = init.CREATE_STEPS[init.Step.{step}]
def changed(context):
    import os
    {before}
    do_{name}(context)
    {after}
init.CREATE_STEPS[init.Step.{step}] = changed
"""


def around(step: Step, *, before: str = "pass", after: str = "pass") -> str:
    return STEP.format(name=step.value, step=step.name, before=before, after=after)


@dataclass(frozen=True)
class Lack:
    """A launcher that leaves something out: `steps` do nothing, `patch` changes it."""

    check: str
    patch: str = ""
    steps: tuple[Step, ...] = ()
    keep_capabilities: bool = False


AS = """
import os
def credentials(context):
    import dataclasses
    process = dataclasses.replace(context.spec.process, {members})
    do_credentials(dataclasses.replace(context, spec=dataclasses.replace(context.spec, process=process)))
do_credentials = init.CREATE_STEPS[init.Step.CREDENTIALS]
init.CREATE_STEPS[init.Step.CREDENTIALS] = credentials
"""
DEVICE_FLAGS = """
import sandboxruntime.mounts as m
make, attributes = m.{made_by}, m.DEVICE_ATTRIBUTES
def without(path, root_fd):
    m.DEVICE_ATTRIBUTES = attributes & ~syscalls.MountAttr.{flag}
    make(path, root_fd)
    m.DEVICE_ATTRIBUTES = attributes
m.{made_by} = without
"""
LACKS = {
    "the network namespace": Lack("namespaces", HOST_NETWORK),
    "the IPC namespace": Lack("namespaces", HOST_IPC),
    "the UTS namespace": Lack(
        "namespaces", "container.NAMESPACES &= ~syscalls.CloneFlag.NEWUTS", (Step.HOSTNAME,)
    ),
    "the cgroup namespace": Lack("namespaces", steps=(Step.CGROUP_NAMESPACE,)),
    "the uid": Lack("credentials", AS.format(members="uid=1001")),
    "the gid": Lack("credentials", AS.format(members="gid=1001")),
    "the bounds of the id map": Lack(
        "id_maps",
        "import dataclasses\nwrite = container.write_id_maps\n"
        "wider = lambda maps: tuple(dataclasses.replace(m, size=m.size + 1) for m in maps)\n"
        "container.write_id_maps = lambda pid, u, g: write(pid, wider(u), wider(g))",
    ),
    "dropping capabilities": Lack("capabilities", steps=(Step.CAPABILITIES,), keep_capabilities=True),
    "the bounding set": Lack(
        "capabilities",
        "from sandboxruntime import capabilities\ncapabilities.drop_bounding = lambda: None\n"
        "init.CREATE_STEPS[init.Step.CAPABILITIES] = lambda context: syscalls.capset(0, 0, 0)",
    ),
    "no_new_privs": Lack("no_new_privs", steps=(Step.NO_NEW_PRIVS, Step.LANDLOCK, Step.SECCOMP)),
    "the filter": Lack("seccomp", steps=(Step.SECCOMP,)),
    "a filter of its own alone": Lack(
        "seccomp",
        around(Step.LANDLOCK, after="from sandboxruntime import seccomp; seccomp.install("
               "seccomp.assemble([(6, 0, 0, 0x7FFF0000)]))"),
    ),
    "closed descriptors": Lack("descriptors", LEAK + KEEP_OPEN),
    "the root as working directory": Lack("cwd", around(Step.RLIMITS, after='os.chdir("/tmp")')),
    "the limit of cores": Lack("rlimits", steps=(Step.RLIMITS,)),
    "a mount": Lack(
        "mounts", PLAN.format(changed='[o for o in plan(spec) if getattr(o, "destination", "") != "/tmp"]')
    ),
    "no other mount": Lack(
        "mounts",
        "from sandboxruntime.mounts import FileSystem\n"
        + PLAN.format(changed='[*plan(spec), FileSystem("tmpfs", "/mnt")]'),
    ),
    "nosuid": Lack("mounts", MOUNT_FLAGS.format(flag="NOSUID")),
    "nodev": Lack("mounts", MOUNT_FLAGS.format(flag="NODEV")),
    "nosuid of devices": Lack("mounts", DEVICE_FLAGS.format(made_by="_attach_device", flag="NOSUID")),
    "noexec of devices": Lack("mounts", DEVICE_FLAGS.format(made_by="_attach_device", flag="NOEXEC")),
    "nosuid of masks": Lack("mounts", DEVICE_FLAGS.format(made_by="_mask", flag="NOSUID")),
    "noexec of masks": Lack("mounts", DEVICE_FLAGS.format(made_by="_mask", flag="NOEXEC")),
    "private mounts": Lack(
        "mounts",
        around(Step.MASKS, after='syscalls.mount("none", "/tmp", None, syscalls.MountFlag.SHARED)')
        .replace('"/tmp"', 'f"/proc/self/fd/{context.root_fd}/tmp"'),
    ),
    "masks": Lack("mounts", steps=(Step.MASKS,)),
    "masks that hide": Lack(
        "mounts",
        "import sandboxruntime.mounts as m\nclone = m._clone_device\n"
        'm._clone_device = lambda name: clone("zero" if name == "null" else name)',
    ),
    "read-only paths": Lack("mounts", "init.plan_masks = lambda spec: ["
                            "o for o in __import__('sandboxruntime.mounts').mounts.plan_masks(spec)"
                            " if type(o).__name__ != 'ReadOnly']"),
    "read-only binds": Lack(
        "mounts",
        "from sandboxruntime import rootfs\nset_attributes = rootfs._set_attributes\n"
        "rootfs._set_attributes = lambda fd, wanted, userns: set_attributes("
        "fd, wanted & ~syscalls.MountAttr.RDONLY, userns)",
    ),
    "the cgroup": Lack(
        "cgroup", "container._open_cgroup = lambda *_: -1", (Step.ENTER_CGROUP,)
    ),
}  # fmt: skip


@pytest.fixture
def work() -> Iterator[Path]:
    WORK.mkdir(parents=True, exist_ok=True)
    yield WORK
    for path in WORK.iterdir():
        path.unlink()
    WORK.rmdir()


@pytest.mark.parametrize("lack", LACKS)
def test_a_launcher_that_leaves_it_out_is_found_out(work: Path, lack: str) -> None:
    missing = LACKS[lack]
    bind = Bind(str(work), "/srv/read-only", Credentials(0, 0), read_only=True)
    with (
        harness(
            missing.steps, keep_capabilities=missing.keep_capabilities, patch=missing.patch
        ) as running,
        make_spec(binds=(bind,) if lack == "read-only binds" else ()) as spec,
    ):
        with running.container(spec) as attempt, pytest.raises(VerifyError) as caught:
            attempt.verify()
        assert caught.value.check == missing.check, caught.value


# In a daemon: the same launcher, started by it.
PROGRAM = """
from sandboxkernel.daemon import launcher_client as client
client._BOOTSTRAP = client._BOOTSTRAP.replace("from sandboxruntime.launcher import main;", {instead!r})
from sandboxkernel.daemon.__main__ import main
main()
"""
CODE = """
from sandboxruntime import container, init, syscalls
from sandboxruntime.launcher import main
{patch}
for step in {steps!r}:
    init.CREATE_STEPS[init.Step(step)] = lambda context: None
"""


@pytest.mark.parametrize("lack", ["the filter", "the network namespace", "masks", "the uid"])
def test_no_program_runs_in_what_was_found_out(
    daemon: RunningDaemon, work: Path, lack: str
) -> None:
    """The start fails at the verification: the program, whose first act is a file, has not run."""
    missing = LACKS[lack]
    code = CODE.format(patch=missing.patch, steps=[str(step) for step in missing.steps])
    config = NO_ZYGOTES
    program = ["touch", str(work / "it-ran")]
    # Braces are of running_daemon's own format.
    source = PROGRAM.format(instead=f"exec({code!r});").replace("{", "{{").replace("}", "}}")
    with running_daemon(config, program=("-c", source)) as lying:
        with pytest.raises(KernelStartFailed) as caught, sandbox(lying, *program, cwd=str(work)):
            pass
        assert caught.value.step == Step.VERIFY
        assert f"outside verification failed at {missing.check}" in str(caught.value)
    assert list(work.iterdir()) == []
    with sandbox(daemon, *program, cwd=str(work)) as kernel:  # the control: what ran, would be seen
        info = daemon.client().watch_exit(kernel.id, kernel.generation).wait(30)
        assert info is not None and info.code == 0
    assert [path.name for path in work.iterdir()] == ["it-ran"]
