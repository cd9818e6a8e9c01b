"""Outside verification is tested itself: containers that lack one property, each found out.

Of each property that Linux lets a launcher leave out without harm to the host. The others (no mount,
PID or user namespace of its own) are shown to the same checks as facts, in
tests/unit/test_runtime_plans.py; what runc leaves out is in tests/integration/test_executors.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxkernel.errors import KernelStartFailed
from sandboxkernel.models import Kernel
from sandboxruntime.errors import VerifyError
from sandboxruntime.spec import Bind, Credentials
from sandboxruntime.steps import Step
from tests.escape.attacks.views import HOST_IPC, HOST_NETWORK, KEEP_OPEN, LEAK, MOUNT_FLAGS
from tests.harness import harness, make_spec
from tests.support import (
    NO_ZYGOTES,
    ZYGOTES,
    RunningDaemon,
    run_inside,
    running_daemon,
    sandbox,
    wait_until,
)

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
# The program's process does itself what pid 1, which it is a fork of, has left out.
LATE = """
do, seen = init.CREATE_STEPS[init.Step.{step}], []
init.CREATE_STEPS[init.Step.{step}] = seen.append
become = init.become_program
def late(*arguments):
    do(seen[0])
    become(*arguments)
init.become_program = late
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
    "the limit of signals that wait": Lack(
        "rlimits",
        "from sandboxruntime import rlimits\n"
        'rlimits.DEFAULTS = {"RLIMIT_CORE": (0, 0)}',
    ),
    "setgroups denied": Lack(
        "id_maps",
        "from sandboxruntime import namespaces\nwrite = namespaces.write_kernel_file\n"
        "namespaces.write_kernel_file = lambda path, text: "
        'path.endswith("/setgroups") or write(path, text)',
    ),
    "the device list": Lack(
        "devices",
        "from sandboxruntime.cgroup import devices, group\n"
        "group.plan_devices = lambda layout: []\ndevices.attach = lambda directory: None",
    ),
    "the root that was made for it": Lack("root", 'container.device_of = lambda fd: "0:1"'),
    "nobody else": Lack(
        "alone",
        around(Step.CREDENTIALS, after="if os.fork() == 0: os.closerange(0, 999); "
               "__import__('time').sleep(60)"),
    ),
    "the filter of pid 1": Lack("seccomp", LATE.format(step="SECCOMP")),
    "the capabilities of pid 1": Lack("capabilities", LATE.format(step="CAPABILITIES")),
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
    with running_daemon(config, program=("-c", lying(code))) as liar:
        with pytest.raises(KernelStartFailed) as caught, sandbox(liar, *program, cwd=str(work)):
            pass
        assert caught.value.step == Step.VERIFY
        assert f"outside verification failed at {missing.check}" in str(caught.value)
    assert list(work.iterdir()) == []
    with sandbox(daemon, *program, cwd=str(work)) as kernel:  # the control: what ran, would be seen
        info = daemon.client().watch_exit(kernel.id, kernel.generation).wait(30)
        assert info is not None and info.code == 0
    assert [path.name for path in work.iterdir()] == ["it-ran"]


def lying(code: str) -> str:
    """A daemon whose launcher runs this first."""
    source = PROGRAM.format(instead=f"exec({code!r});")
    return source.replace("{", "{{").replace("}", "}}")  # braces are of running_daemon's own format


JOINS = {
    "the filter": (Step.SECCOMP, "seccomp"),
    "no_new_privs": (Step.NO_NEW_PRIVS, "no_new_privs"),
    "the limits": (Step.RLIMITS, "rlimits"),
    "closed descriptors": (Step.CLOSE_FDS, "descriptors"),
}


@pytest.mark.parametrize("lack", JOINS)
def test_no_exec_runs_what_was_found_out(work: Path, lack: str) -> None:
    step, check = JOINS[lack]
    skipped = [step, Step.LANDLOCK, Step.SECCOMP] if step is Step.NO_NEW_PRIVS else [step]
    code = "from sandboxruntime import init\nfrom sandboxruntime.launcher import main\n"
    code += "".join(
        f"init.JOIN_STEPS[init.Step({str(s)!r})] = lambda context: None\n" for s in skipped
    )
    with (
        running_daemon(NO_ZYGOTES, program=("-c", lying(code))) as daemon,
        sandbox(daemon, cwd=str(work)) as kernel,
    ):
        with pytest.raises(KernelStartFailed, match=f"verification failed at {check}"):
            run_inside(daemon, kernel, "touch", str(work / "it-ran"))
        assert list(work.iterdir()) == []


GUEST = """
from sandboxkernel.daemon import app
source = app._guest_source
def changed(name):
    text = source(name)
    return text if name != "zygote.py" else text.replace("taken = _serve(", {patch!r} + "taken = _serve(")
app._guest_source = changed
from sandboxkernel.daemon.__main__ import main
main()
"""
SKIP = "{steps}[step] = lambda context: None"
# Its own root, which those before it and after it see, too, in the place of the one it was given;
# what is mounted below it is locked and gives it away.
OWN_ROOT = (
    "mount = {steps}[step]; open_tree = __import__('sandboxruntime.syscalls').syscalls.open_tree; "
    "{steps}[step] = lambda c: (setattr(c, 'root_fd', open_tree(-100, '/', 0x88001)), mount(c))"
)
# Those that pid 1 makes before it has its orders, and those after it.
NO_MASKS = f"{SKIP}; ahead = init.plan_proc; init.plan_proc = lambda: ahead()[:1]"
FORKS = {
    "the filter": ("JOIN_STEPS", Step.SECCOMP, "seccomp", SKIP),
    "the filter of pid 1": ("CREATE_STEPS", Step.SECCOMP, "seccomp", SKIP),
    "closed descriptors": ("JOIN_STEPS", Step.CLOSE_FDS, "descriptors", SKIP),
    "masks": ("CREATE_STEPS", Step.MASKS, "mounts", NO_MASKS),
    "the user's root": ("CREATE_STEPS", Step.MOUNTS, "mounts", OWN_ROOT),
}


@contextlib.contextmanager
def hostile_zygote(lack: str, profile: str, *, before: str = "") -> Iterator[RunningDaemon]:
    """A daemon with a zygote whose forks leave something out; `before` is code of the daemon's."""
    steps, step, _, does = FORKS[lack]
    patch = f"step = steps.Step({str(step)!r}); {does.format(steps=f'init.{steps}')}\n    "
    source = (before + GUEST.format(patch=patch)).replace("{", "{{").replace("}", "}}")
    config = 'c.SandboxKernelDaemon.profiles = {"default": {}, "on_demand": {"spares": 0}}\n'
    with running_daemon(config, program=("-c", source)) as daemon:
        with sandbox(daemon, as_kernel=True, profile=profile):
            pass

        def stands() -> bool:
            found = daemon.client().zygotes()
            return not found.starting and any(
                z.spares or profile == "on_demand" for z in found.zygotes
            )

        wait_until(stands)
        yield daemon


@pytest.mark.skipif(not ZYGOTES, reason="needs zygotes")
@pytest.mark.parametrize("profile", ["default", "on_demand"])
@pytest.mark.parametrize("lack", FORKS)
def test_no_fork_of_a_hostile_zygote_gets_what_a_kernel_gets(lack: str, profile: str) -> None:
    """Its image may do as it likes; the kernel is started without it, and the zygote replaced."""
    check = FORKS[lack][2]
    with hostile_zygote(lack, profile) as daemon:
        client = daemon.client()
        with sandbox(daemon, as_kernel=True, profile=profile) as kernel:
            assert kernel.start_path == "cold"
            assert f"verification failed at {check}" in client.inspect(kernel.id).cold_reason
        log = daemon.log_path.read_text()
        assert f"is replaced: outside verification failed at {check}" in log


BLIND = """
from sandboxkernel.daemon import launching
launching.verify = launching.verify_init = lambda *_, **__: None
"""


@pytest.mark.skipif(not ZYGOTES, reason="needs zygotes")
@pytest.mark.parametrize("profile", ["default", "on_demand"])
def test_without_verification_a_fork_of_a_hostile_zygote_sees_what_is_masked(profile: str) -> None:
    """The control of the masks: such a fork does become a kernel, and they are what it lacks."""

    def interrupts(kernel: Kernel) -> bytes:
        return Path(f"/proc/{kernel.pid}/root/proc/interrupts").read_bytes()

    with hostile_zygote("masks", profile, before=BLIND) as daemon:
        with sandbox(daemon, as_kernel=True, profile=profile) as kernel:
            assert kernel.start_path == {"default": "spare", "on_demand": "warm"}[profile]
            assert b"CPU0" in interrupts(kernel)
            # What enters it is looked at by other eyes.
            with pytest.raises(KernelStartFailed, match="verification failed at mounts"):
                run_inside(daemon, kernel, "true")
        with sandbox(daemon) as cold:  # which the launcher has masked
            assert interrupts(cold) == b""


ZYGOTES_LACK = {
    "the filter": ("seccomp", Step.SECCOMP),
    "the limits": ("rlimits", Step.RLIMITS),
    "closed descriptors": ("descriptors", Step.CLOSE_FDS),
}


@pytest.mark.skipif(not ZYGOTES, reason="needs zygotes")
@pytest.mark.parametrize("lack", ZYGOTES_LACK)
def test_no_zygote_is_made_of_what_was_found_out(lack: str) -> None:
    check, step = ZYGOTES_LACK[lack]
    code = f"""
from sandboxruntime import init
from sandboxruntime.launcher import main
do = init.CREATE_STEPS[init.Step({str(step)!r})]
init.CREATE_STEPS[init.Step({str(step)!r})] = lambda c: None if c.spec.zygote else do(c)
"""
    with running_daemon(program=("-c", lying(code))) as daemon:
        with sandbox(daemon, as_kernel=True):
            pass
        wait_until(lambda: "no zygote for default" in daemon.log_path.read_text())
        with sandbox(daemon, as_kernel=True) as kernel:
            reason = daemon.client().inspect(kernel.id).cold_reason
            assert f"verification failed at {check}" in reason
