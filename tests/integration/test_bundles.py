"""The OCI command line: its verbs, beside runc with the same bundles, and what it refuses."""

from __future__ import annotations

import array
import contextlib
import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxruntime.bundles.features import default_config
from sandboxruntime.cgroup import read_layout
from tests.benchmarks.containers import merged_rootfs
from tests.harness import host_image
from tests.support import CGROUP_PARENT, DEADLINE_S, ROOT, SHARED_DATA, wait_until

OURS = (sys.executable, "-m", "sandboxruntime.bundles.command")
PEER = ("runc",)
ID_BASE = 0x7E000000


@pytest.fixture(scope="module")
def rootfs() -> Path:
    image = host_image()
    name = image.digest.encoded if hasattr(image.digest, "encoded") else str(image.digest)[-16:]
    return merged_rootfs(tuple(image.layer_dirs), SHARED_DATA / "bundles" / name)


class Runtime:
    """A runtime's command line with records of its own, and a bundle."""

    def __init__(self, program: tuple[str, ...], folder: Path, rootfs: Path) -> None:
        self._program = program
        self.folder = folder
        self.root = folder / "records"
        self.bundle = folder / "bundle"
        self.bundle.mkdir(parents=True)
        self.config = default_config()
        self.config["root"]["path"] = str(rootfs)
        self.environment: dict[str, str] = {}
        self.id = f"b{uuid.uuid4().hex[:10]}"
        self.config["linux"]["cgroupsPath"] = f"/{CGROUP_PARENT}/bundles/{self.id}"

    def _env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT / "runtime"), **self.environment}

    def program(self, *args: str) -> None:
        self.config["process"]["args"] = list(args)

    def write(self) -> None:
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def __call__(
        self, *args: str, check: bool = True, by: tuple[str, ...] | None = None,
        env: dict[str, str] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Run a verb, for once `by` another program."""
        if "stdout" not in options:
            options["capture_output"] = True
        done = subprocess.run(
            [*(by or self._program), "--root", str(self.root), *args],
            text=True, check=False, timeout=DEADLINE_S, env=self._env() | (env or {}), **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, (args, done)
        return done

    def create(
        self, *args: str, third: int = -1, by: tuple[str, ...] | None = None
    ) -> None:  # fmt: skip
        """`third` becomes descriptor 3."""
        self.write()
        command = [*(by or self._program), "--root", str(self.root), "create", *args, "--bundle",
                   str(self.bundle), self.id]  # fmt: skip
        if third >= 0:
            command = ["bash", "-c", f'exec "$0" "$@" 3<&{third}', *command]
        # Its program inherits our outputs: a pipe would be open for as long as it runs.
        with (self.folder / "output").open("wb") as output:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True,
                timeout=DEADLINE_S, env=self._env(),
                pass_fds=[third] if third >= 0 else [],
            )  # fmt: skip

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def run(self, check: bool = True, **options: Any) -> Any:
        self.write()
        return self("run", "--bundle", str(self.bundle), self.id, check=check, **options)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("state", self.id).stdout)
        return found

    def stopped(self) -> None:
        wait_until(lambda: self.state()["status"] == "stopped", what="it has stopped")


@contextlib.contextmanager
def runtime(program: tuple[str, ...], folder: Path, rootfs: Path) -> Iterator[Runtime]:
    made = Runtime(program, folder, rootfs)
    try:
        yield made
    finally:
        made("delete", "--force", made.id, check=False)
    assert cgroups() == []
    assert not made.root.exists() or list(made.root.iterdir()) == []


@pytest.fixture
def ours(tmp_path: Path, rootfs: Path) -> Iterator[Runtime]:
    with runtime(OURS, tmp_path / "ours", rootfs) as made:
        yield made


def cgroups() -> list[str]:
    found = []
    for base in read_layout().hierarchies().values():
        found += [str(p) for p in (Path(base) / CGROUP_PARENT / "bundles").glob("*") if p.is_dir()]
    return found


def test_the_life_of_a_container(ours: Runtime) -> None:
    ours.program("sh", "-c", "echo started; exec sleep 600")
    ours.create("--pid-file", str(ours.folder / "pid"))
    state = ours.state()
    assert (state["status"], state["id"]) == ("created", ours.id)
    assert state["bundle"] == str(ours.bundle)
    assert (ours.folder / "pid").read_text() == str(state["pid"])
    assert ours.output == ""
    ours("start", ours.id)
    wait_until(lambda: ours.output == "started\n", what="it runs")
    assert ours.state()["status"] == "running"
    assert ours("start", ours.id, check=False).returncode == 1
    assert ours("delete", ours.id, check=False).returncode == 1
    ours("kill", ours.id, "KILL")
    ours.stopped()
    assert ours("kill", ours.id, "KILL", check=False).returncode == 1
    ours("delete", ours.id)
    missing = ours("state", ours.id, check=False)
    assert (missing.returncode, "no container" in missing.stderr) == (1, True)


def test_run_gives_the_exit_code_and_the_signal(ours: Runtime) -> None:
    for script, code in (("exit 7", 7), ("true", 0)):
        ours.program("sh", "-c", script)
        assert ours.run(check=False).returncode == code
    ours.program("sleep", "600")
    ours.write()
    running = subprocess.Popen(
        [*OURS, "--root", str(ours.root), "run", "--bundle", str(ours.bundle), ours.id],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )
    wait_until(lambda: '"running"' in ours("state", ours.id, check=False).stdout, what="it runs")
    ours("kill", ours.id, "SIGKILL")
    assert running.wait(DEADLINE_S) == 137


def test_a_container_that_is_deleted_before_it_is_started(ours: Runtime) -> None:
    ours.create()
    pid = ours.state()["pid"]
    ours("delete", ours.id)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="it has gone")


def test_exec_ps_list_pause_and_update(ours: Runtime) -> None:
    ours.program("sleep", "600")
    ours.create()
    ours("start", ours.id)
    done = ours("exec", "--cwd", "/tmp", "--env", "A=b", "--user", "12:34", ours.id,
                "sh", "-c", "id -u; id -g; pwd; echo $A; grep CapEff /proc/self/status; exit 3",
                check=False)  # fmt: skip
    assert done.returncode == 3
    # A user that is not root keeps what the set has: the config says so, not setuid(2).
    assert done.stdout.split("\n")[:4] == ["12", "34", "/tmp", "b"]
    pids = json.loads(ours("ps", "--format", "json", ours.id).stdout)
    assert pids == [ours.state()["pid"]]
    assert ours("list", "-q").stdout.split() == [ours.id]
    assert json.loads(ours("list", "--format", "json").stdout)[0]["status"] == "running"
    ours("pause", ours.id)
    assert ours.state()["status"] == "paused"
    ours("resume", ours.id)
    assert ours.state()["status"] == "running"
    ours("update", "--resources", "-", ours.id, input=json.dumps({"pids": {"limit": 33}}))
    layout = read_layout()
    key = "pids" if "pids" in layout.v1 else ""
    directory = layout.directory(key, f"{CGROUP_PARENT}/bundles/{ours.id}")
    assert Path(f"{directory}/pids.max").read_text() == "33\n"


def test_exec_takes_a_process_from_a_file_and_detaches(ours: Runtime) -> None:
    ours.program("sleep", "600")
    ours.create()
    ours("start", ours.id)
    process = {**ours.config["process"], "args": ["sh", "-c", "echo $$ > /dev/shm/here; sleep 600"]}
    (ours.folder / "process.json").write_text(json.dumps(process))
    pid_file = ours.folder / "exec.pid"
    with (ours.folder / "exec.out").open("wb") as out:
        ours_exec = [*OURS, "--root", str(ours.root), "exec", "--detach", "--process",
                     str(ours.folder / "process.json"), "--pid-file", str(pid_file), ours.id]  # fmt: skip
        subprocess.run(ours_exec, check=True, stdout=out, stderr=out, timeout=DEADLINE_S,
                       env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")})  # fmt: skip
    wait_until(lambda: ours("exec", ours.id, "cat", "/dev/shm/here", check=False).stdout)
    pid = int(pid_file.read_text())
    assert pid in json.loads(ours("ps", "--format", "json", ours.id).stdout)
    ours("kill", "--all", ours.id, "KILL")
    ours.stopped()


def test_a_terminal_is_the_containers_own(ours: Runtime) -> None:
    ours.program("sh", "-c", "tty; test -c /dev/console && echo console; sleep 600")
    ours.config["process"]["terminal"] = True
    path = ours.folder / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ours.create("--console-socket", str(path))
        connection, _ = listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
    (master,) = array.array("i", ancillary[0][2])
    ours("start", ours.id)
    text = b""
    while b"console" not in text:
        text += os.read(master, 4096)
    assert text.split() == [b"/dev/pts/0", b"console"]
    os.close(master)


def test_descriptors_are_preserved_and_no_other_is_there(ours: Runtime) -> None:
    ours.program("sh", "-c", "ls -l /proc/self/fd; cat <&3")
    read, write = os.pipe()
    os.write(write, b"from outside\n")
    os.close(write)
    try:
        ours.create("--preserve-fds", "1", third=read)
    finally:
        os.close(read)
    ours("start", ours.id)
    ours.stopped()
    assert "from outside" in ours.output
    assert len(re.findall(r" -> ", ours.output)) == 5  # 0 to 3, and ls's own


def test_hooks_run_in_their_order_and_know_the_state(ours: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "hooks"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    script = f"python3 -c \"import json,sys; s=json.load(sys.stdin); print(sys.argv[1], s['id'], s['status'], file=open('{log}', 'a'))\" $0"
    ours.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", script.replace("$0", kind)],
                "env": [f"PATH={os.environ['PATH']}"]}]
        for kind in kinds
    }  # fmt: skip
    ours.program("true")
    ours.create()
    ours("start", ours.id)
    ours.stopped()
    ours("delete", ours.id)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == list(kinds)
    assert {line[1] for line in lines} == {ours.id}
    assert [line[2] for line in lines] == ["creating", "creating", "created", "running", "stopped"]


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_leaves_nothing(ours: Runtime, kind: str) -> None:
    ours.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]
    }
    done = ours.run(check=False)
    assert done.returncode == 1
    assert re.search(rf"hook {kind} /bin/sh ended with 3: no", done.stderr)
    assert ours("list", "-q").stdout == ""


def test_a_create_that_was_killed_is_cleared_by_force(ours: Runtime) -> None:
    ours.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "600"]}]}
    ours.write()
    process = subprocess.Popen(
        [*OURS, "--root", str(ours.root), "create", "--bundle", str(ours.bundle), ours.id],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")}, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def hook() -> int:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for child in map(int, text.split()):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep"):
                return child
        return 0

    sleeping = wait_until(hook, what="the hook runs")
    process.kill()
    process.wait()
    os.kill(sleeping, 9)
    assert cgroups() != []
    ours("delete", "--force", ours.id)
    assert cgroups() == []


PROBE = r"""
import os, re, resource, socket, json
def text(path):
    try:
        return open(path).read()
    except OSError as exc:
        return type(exc).__name__
status = dict(l.split(":", 1) for l in text("/proc/self/status").splitlines() if ":" in l)
def errno_of(f, *a):
    try:
        f(*a); return "ok"
    except OSError as exc:
        return exc.errno
mounts = {}
for line in text("/proc/self/mountinfo").splitlines():
    left, right = line.split(" - ")
    f = left.split()
    point = f[4]
    options = set(f[5].split(",")) - {"relatime"}
    if not point.startswith(("/sys/fs/cgroup", "/proc/", "/sys/firmware")):
        mounts[point] = (right.split()[0], sorted(options))
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
    "caps": {k: v.strip() for k, v in status.items() if k.startswith("Cap")},
    "privs": [status["NoNewPrivs"].strip(), status["Seccomp"].strip()],
    "host": socket.gethostname(),
    "cwd": os.getcwd(),
    "env": {k: v for k, v in os.environ.items() if k not in ("_", "LC_CTYPE")},
    "umask": os.umask(0),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
    "oom": text("/proc/self/oom_score_adj").strip(),
    "maps": [text("/proc/self/uid_map").split(), text("/proc/self/gid_map").split()],
    "pid": os.getpid() == 1,
    "interfaces": sorted(os.listdir("/proc/self/net/dev_snmp6")) if os.path.exists("/proc/self/net/dev_snmp6") else [],
    "dev": sorted(os.listdir("/dev")),
    "null": [oct(os.stat("/dev/null").st_mode), os.stat("/dev/null").st_rdev],
    "mounts": mounts,
    "masked": {p: (os.path.isdir(p) and os.listdir(p)) or text(p)[:10] for p in ("/proc/kmsg", "/proc/acpi", "/proc/timer_list")},
    "write": [errno_of(open, p, "w") for p in ("/proc/sys/kernel/domainname", "/proc/sysrq-trigger", "/here", "/dev/shm/x")],
    "calls": [errno_of(os.mkfifo, "/dev/shm/p"), errno_of(os.mknod, "/dev/shm/n", 0o20666, os.makedev(1, 9)), errno_of(os.chroot, "/"),
              errno_of(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1), errno_of(os.sethostname if hasattr(os, "sethostname") else socket.sethostname, "x")],
    "sysctl": text("/proc/sys/net/ipv4/ip_forward").strip(),
    "fds": len(os.listdir("/proc/self/fd")),
}, sort_keys=True))
"""
USERNS = {
    "uidMappings": [{"containerID": 0, "hostID": ID_BASE, "size": 65536}],
    "gidMappings": [{"containerID": 0, "hostID": ID_BASE, "size": 65536}],
}


def with_user_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"] |= copy.deepcopy(USERNS)
    # A new sysfs needs a full one in sight; the cgroup mounts of v1 cannot be made there.
    config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/sys")]


def as_user(config: dict[str, Any]) -> None:
    config["process"]["user"] = {"uid": 1000, "gid": 100, "additionalGids": [5, 27], "umask": 0o077}
    config["process"]["cwd"] = "/tmp"
    config["process"]["capabilities"] = {
        name: ["CAP_NET_RAW", "CAP_KILL"]
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }


def with_filter(config: dict[str, Any]) -> None:
    config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 1, "value": 3, "op": "SCMP_CMP_EQ"}]},
            {"names": ["mknod", "mknodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 62,
             "args": [{"index": 2, "value": 0o170000, "valueTwo": 0o20000,
                       "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    }  # fmt: skip


def with_everything(config: dict[str, Any]) -> None:
    config["root"]["readonly"] = False
    config["hostname"] = "all"
    config["process"] |= {"noNewPrivileges": False, "oomScoreAdj": 500,
                          "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 199}]}  # fmt: skip
    config["process"]["env"] += ["HOME=/tmp", "A=b=c"]
    config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    config["linux"]["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 3}
    ]
    config["mounts"] += [
        {"destination": "/data/deep", "type": "tmpfs", "source": "tmpfs",
         "options": ["noexec", "nosuid", "mode=1777", "size=1m"]},
        {"destination": "/var/run/etc", "type": "bind", "source": "/etc",
         "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]},
        {"destination": "/a/file", "type": "bind", "source": "/etc/hostname", "options": ["bind"]},
    ]  # fmt: skip


VARIANTS = {
    "default": lambda config: None,
    "user namespace": with_user_namespace,
    "user": as_user,
    "filter": with_filter,
    "everything": with_everything,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_inside_it_is_as_runc_makes_it(variant: str, tmp_path: Path, rootfs: Path) -> None:
    found = []
    for program in (OURS, PEER):
        folder = tmp_path / Path(program[-1]).name
        with runtime(program, folder, rootfs) as made:
            VARIANTS[variant](made.config)
            made.program("python3", "-c", PROBE)
            if variant in ("everything", "user namespace"):
                # Places for mounts are made in the root; runc needs a way to it for anybody.
                made.config["root"]["path"] = str(copied(rootfs, folder))
            if variant == "user namespace":
                made.folder.chmod(0o755)
                _open_the_way(made.folder)
            found.append(json.loads(made.run().stdout))
    mine, peers = found
    for name in peers:
        assert mine[name] == peers[name], name


def copied(rootfs: Path, folder: Path) -> Path:
    """A root of its own: links to the same files, and directories to write to."""
    subprocess.run(["cp", "-al", str(rootfs), str(folder / "root")], check=True)
    return folder / "root"


def _open_the_way(folder: Path) -> None:
    """Whoever is root in a user namespace is nobody on the way to the bundle."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and str(parent) != "/":
            parent.chmod(parent.stat().st_mode | 0o055)


REFUSED: dict[str, Any] = {
    "linux.intelRdt": {"linux": {"intelRdt": {"closID": "x"}}},
    "process.apparmorProfile": {"process": {"apparmorProfile": "docker-default"}},
    "process.selinuxLabel": {"process": {"selinuxLabel": "x"}},
    "linux.resources.cpu.cpus": {"linux": {"resources": {"cpu": {"cpus": "0"}}}},
    "linux.resources.unified": {"linux": {"resources": {"unified": {"memory.high": "1"}}}},
    "linux.resources.hugepageLimits": {"linux": {"resources": {"hugepageLimits": [{"limit": 1}]}}},
    "linux.sysctl": {"linux": {"sysctl": {"kernel.core_pattern": "x"}}},
    "process.capabilities": {"process": {"capabilities": {"bounding": ["CAP_MOON"]}}},
    "linux.seccomp": {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}},
    "process.terminal": {"process": {"terminal": True}},
    "root.path": {"root": {"path": None}},
    "process.args": {"process": {"args": []}},
    "ociVersion": {"ociVersion": "2.0.0"},
    "linux.namespaces": {"linux": {"namespaces": [{"type": "pid"}]}},
    "linux.uidMappings": {"linux": {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}},
}


def merge(config: dict[str, Any], change: dict[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            merge(config[name], value)
        else:
            config[name] = value


@pytest.mark.parametrize("member", REFUSED)
def test_what_would_be_without_effect_is_refused_by_name(ours: Runtime, member: str) -> None:
    merge(ours.config, REFUSED[member])
    log = ours.folder / "log"
    ours.write()
    done = subprocess.run(
        [*OURS, "--log", str(log), "--log-format", "json", "--root", str(ours.root), "run",
         "--bundle", str(ours.bundle), ours.id],
        capture_output=True, text=True, check=False, timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    assert done.returncode == 1
    assert member.rpartition(".")[2] in done.stderr
    assert "Traceback" not in done.stderr
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["level"] == "error"
    assert cgroups() == []


@pytest.mark.parametrize("option", ["idmap", "tmpcopyup"])
def test_options_of_mounts_that_it_cannot_do_are_refused(ours: Runtime, option: str) -> None:
    ours.config["mounts"].append({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs",
                                  "options": [option]})  # fmt: skip
    done = ours.run(check=False)
    assert (done.returncode, f"option {option}" in done.stderr) == (1, True)


def test_links_of_an_image_do_not_lead_out(ours: Runtime, rootfs: Path, tmp_path: Path) -> None:
    """A mount goes to where the link leads inside; a path of the host's stays as it was."""
    outside = tmp_path / "outside"
    outside.mkdir()
    root = copied(rootfs, tmp_path)
    (root / "trap").symlink_to(outside)
    (root / "up").symlink_to("../../../../../../../../.." + str(outside))
    ours.config["root"] = {"path": str(root)}
    for name in ("trap", "up"):
        ours.config["mounts"].append(
            {"destination": f"/{name}", "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"]}
        )
    ours.program("sh", "-c", f"grep -c ' {outside} ' /proc/mounts; touch /trap/x; ls {outside}")
    done = ours.run()
    assert done.stdout.split() == ["2", "x"]
    assert list(outside.iterdir()) == []


OVERWRITE = """
import os
fd = os.open("/proc/self/exe", os.O_RDONLY)
os.set_inheritable(fd, True)
# As another program, or the file would be busy.
tries = f"for n in 1 2 3 4 5 6 7 8 9; do echo overwritten > /proc/self/fd/{fd} && exit; sleep 0.3; done"
os.execv("/bin/sh", ["sh", "-c", tries])
"""


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("verb", ["create", "exec"])
def test_root_inside_cannot_overwrite_the_interpreter(
    tmp_path: Path, rootfs: Path, verb: str, sealed: bool
) -> None:
    """CVE-2019-5736: the container has `/proc/self/exe` for a program. On a copy of Python."""
    interpreter = tmp_path / "python3"
    shutil.copy(os.path.realpath(sys.executable), interpreter)
    code = "import sys; from sandboxruntime.bundles import command; "
    if not sealed:
        code += "command.seal = lambda: None; "  # the control
    program = (str(interpreter), "-c", code + "sys.exit(command.main())")
    with runtime(OURS, tmp_path / "ours", rootfs) as made:
        attack = ("/proc/self/exe", "-c", OVERWRITE)
        made.config["process"]["env"].append(f"PYTHONHOME={sys.base_prefix}")
        made.environment = {"PYTHONHOME": sys.base_prefix}
        for path in {sys.base_prefix, "/lib", "/lib64", "/usr/lib"}:  # what it needs to run at all
            made.config["mounts"].append(
                {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
            )
        made.config["root"] = {"path": str(copied(rootfs, tmp_path))}
        made.program(*(attack if verb == "create" else ("sleep", "600")))
        made.create(by=program if verb == "create" else None)
        made.environment = {}
        pid = made.state()["pid"]
        made("start", made.id)
        if verb == "exec":
            pid_file = tmp_path / "exec.pid"
            made("exec", "--detach", "--pid-file", str(pid_file), made.id, *attack, by=program,
                 stdout=subprocess.DEVNULL, env={"PYTHONHOME": sys.base_prefix})  # fmt: skip
            pid = int(pid_file.read_text())
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="it has tried")
    overwritten = interpreter.read_bytes() == b"overwritten\n"
    assert overwritten != sealed


def test_features_and_spec(ours: Runtime, tmp_path: Path) -> None:
    features = json.loads(ours("features").stdout)
    assert "SCMP_ACT_ERRNO" in features["linux"]["seccomp"]["actions"]
    ours("spec", "--bundle", str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == default_config()
    assert ours("spec", "--bundle", str(tmp_path), check=False).returncode == 1
