"""Kernelspecs that know nothing of us, on our provisioner: the administrator's switch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from sandboxkernel.errors import RequestError, WorkFolderError
from sandboxkernel.provisioner import SandboxProvisioner
from tests.conformance.server import running_server
from tests.conformance.session import TIMEOUT_S, Session, profile_config, session
from tests.conformance.test_clients import Channels
from tests.support import EXECUTOR, RunningDaemon

STOCK = "python3"
# What the environment decides of an interpreter; "only there" is a package that no image holds.
LOOK = """
import importlib.util, json, os, site, sys, sysconfig
print(json.dumps({
    "executable": sys.executable, "prefix": sys.prefix, "base": sys.base_prefix,
    "path": sys.path[1:] if sys.path[0] == "" else sys.path, "user": site.ENABLE_USER_SITE,
    "paths": sysconfig.get_paths(), "site": site.getsitepackages(), "which": os.environ["PATH"].split(":")[0],
    "only there": importlib.util.find_spec("jupyter_kernel_test").origin,
}))
"""


@pytest.fixture(autouse=True)
def switch(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = KernelProvisionerFactory.instance()
    monkeypatch.setattr(factory, "default_provisioner_name", "sandboxkernel")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of kernelspecs."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return tmp_path / "kernels"


def kernelspec(kernels: Path, name: str, argv: list[str], **members: Any) -> None:
    (kernels / name).mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python", **members}
    (kernels / name / "kernel.json").write_text(json.dumps(spec))


def look(kernel: Session) -> Any:
    return json.loads(kernel.run(LOOK).text)


def plain_look(work: Path) -> Any:
    """The same of the kernelspec without a sandbox."""
    manager = KernelManager(kernel_name=STOCK)
    factory = KernelProvisionerFactory.instance()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "default_provisioner_name", "local-provisioner")
        manager.start_kernel(cwd=str(work))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT_S)
        return look(Session(manager, client))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_stock_kernelspec_is_the_servers_environment(work: Path, daemon: RunningDaemon) -> None:
    with session(work, kernel_name=STOCK) as kernel:
        assert isinstance(kernel.manager.provisioner, SandboxProvisioner)
        found = daemon.client().inspect(kernel.kernel_id)
        assert kernel.run("import os; print(os.getpid() < 10, os.getcwd())").text == f"True {work}"
        inside, outside = look(kernel), plain_look(work)
        assert inside["prefix"] == sys.prefix
        assert inside.pop("which") == os.path.dirname(sys.executable)
        outside.pop("which")  # the server's own PATH
        assert inside == outside
        paths = {name for name in os.listdir(sys.prefix) if not name.startswith(".")}
        listed = kernel.run("import os, sys; print(*os.listdir(sys.prefix), sep='\\n')").text
        assert paths <= set(listed.splitlines())
        warm = daemon.client().zygotes().zygotes != []
        assert (found.start_path != "cold") == warm, found.cold_reason


def test_environment_is_read_only_and_the_work_folder_is_not(work: Path) -> None:
    with session(work, kernel_name=STOCK) as kernel:
        for path in ("pyvenv.cfg", "bin/planted", "lib/planted"):
            reply = kernel.run(f"import sys; open(sys.prefix + '/{path}', 'a')")
            assert reply.error.startswith("OSError: [Errno 30]"), reply.error
        kernel.run("open('made inside', 'w').write('x')")
        kernel.run("open('/tmp/private', 'w').write('x')")
    assert (work / "made inside").read_text() == "x"
    assert not Path("/tmp/private").exists()


def test_programs_of_the_environment_run(work: Path) -> None:
    code = """
import subprocess, sys
program = 'import jupyter_kernel_test, sys; print(sys.prefix)'
for python in (sys.executable, 'python', 'python3'):
    print(subprocess.check_output([python, '-c', program], text=True), end='')
print(subprocess.check_output(['jupyter', '--version'], text=True).splitlines()[0])
"""
    with session(work, kernel_name=STOCK) as kernel:
        lines = kernel.run(code).text.splitlines()
        assert lines[:3] == [sys.prefix] * 3
        assert lines[3].startswith("Selected Jupyter core packages")


def test_restart_and_interrupt(work: Path) -> None:
    with session(work, kernel_name=STOCK) as kernel:
        msg_id = kernel.start("print('loop', flush=True)\nwhile True: pass", until="loop")
        kernel.manager.interrupt_kernel()
        assert kernel.finish(msg_id).error.startswith("KeyboardInterrupt")
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        assert look(kernel)["prefix"] == sys.prefix


@pytest.mark.parametrize("by", ["variable", "setting"])
def test_stock_kernelspec_under_a_server(
    work: Path, tmp_path: Path, daemon: RunningDaemon, by: str
) -> None:
    name = "sandboxkernel"
    options = [f"--KernelProvisionerFactory.default_provisioner_name={name}"]
    env = {**os.environ, "JUPYTER_DEFAULT_PROVISIONER_NAME": name}
    with running_server(
        work,
        tmp_path / "server.log",
        *(options if by == "setting" else []),
        env=env if by == "variable" else None,
    ) as server:
        kernel_id = server.call("POST", "kernels", {"name": STOCK})["id"]
        assert [k.kernel_id for k in daemon.client().kernels()] == [kernel_id]
        channels = Channels(server, kernel_id)
        assert channels.result("import os; os.getpid() < 10") == "True"
        assert channels.result("import sys; sys.prefix") == repr(sys.prefix)
        assert channels.result("import jupyter_kernel_test; 1") == "1"
        server.call("POST", f"kernels/{kernel_id}/restart")
        channels.reopen()
        assert channels.result("import sys; sys.prefix") == repr(sys.prefix)
        channels.close()
        server.call("DELETE", f"kernels/{kernel_id}")
        assert list(daemon.client().kernels()) == []


@pytest.fixture(scope="module")
def other_environment() -> Iterator[Path]:
    """A virtual environment with ipykernel that is not the server's."""
    folder = Path("/srv/sandboxkernel-tests/other-environment")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    (own,) = Path(sys.prefix).glob("lib/python3*/site-packages")
    large = ("numpy*", "jupyterlab*", "notebook*", "selenium*", "mypy*", "babel*", "playwright*")
    shutil.copytree(
        own, site_packages, dirs_exist_ok=True, symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", *large),
    )  # fmt: skip
    (site_packages / "only_here.py").write_text("said = 'so'\n")
    yield folder
    shutil.rmtree(folder)


def test_kernelspec_of_another_environment(
    work: Path, kernels: Path, daemon: RunningDaemon, other_environment: Path
) -> None:
    python = str(other_environment / "bin" / "python")
    argv = [python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}",
            "--HistoryManager.hist_file=:memory:"]  # fmt: skip
    kernelspec(kernels, "other", argv)
    with session(work, kernel_name="other") as kernel:
        inside = look(kernel)
        assert (inside["executable"], inside["prefix"]) == (python, str(other_environment))
        assert kernel.run(
            "import only_here, ipykernel; print(only_here.said, ipykernel.__file__)"
        ).text
        assert kernel.run("print(get_ipython().history_manager.hist_file)").text == ":memory:"
        found = daemon.client().inspect(kernel.kernel_id)
        assert found.start_path == "cold"
        if EXECUTOR == "native":
            assert found.cold_reason == "no zygote has its environment's kernel"


ECHO_KERNEL = """
import sys
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Echo(Kernel):
    implementation, implementation_version, banner = "echo", "1", ""
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt"}

    async def do_execute(self, code, silent, *args, **kwargs):
        text = f"{code} {sys.argv[3:]} {sys.path[0]}"
        self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": text})
        return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}

IPKernelApp.launch_instance(kernel_class=Echo)
"""


def test_kernel_of_another_language_that_is_written_in_python(
    work: Path, kernels: Path, other_environment: Path
) -> None:
    (site_packages,) = other_environment.glob("lib/python3*/site-packages")
    (site_packages / "echo_kernel.py").write_text(ECHO_KERNEL)
    python = str(other_environment / "bin" / "python")
    argv = [python, "-m", "echo_kernel", "-f", "{connection_file}", "--Session.username=ada"]
    kernelspec(kernels, "echo", argv, language="echo")
    with session(work, kernel_name="echo") as kernel:
        assert kernel.run("said").text == f"said ['--Session.username=ada'] {work}"
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIMEOUT_S)
        assert kernel.run("again").text.startswith("again")


def test_environment_inside_the_work_folder_stays_read_only(
    kernels: Path, other_environment: Path
) -> None:
    """A project with its .venv: whoever could write there would run code on the host."""
    python = str(other_environment / "bin" / "python")
    kernelspec(kernels, "other", [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    work = other_environment.parent
    with session(work, kernel_name="other") as kernel:
        reply = kernel.run("import sys; open(sys.prefix + '/bin/planted', 'w')")
        assert reply.error.startswith("OSError: [Errno 30]")
        assert kernel.run("open('beside', 'w').close()").status == "ok"
    (work / "beside").unlink()


def test_environment_is_held_to_the_profiles_folders(
    work: Path, kernels: Path, tmp_path: Path
) -> None:
    """A profile that offers few folders offers no others as environments; the daemon's own, yes."""
    folder = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    argv = [str(folder / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernelspec(kernels, "elsewhere", argv)
    manager = KernelManager(kernel_name="elsewhere", config=profile_config("rooted"))
    with pytest.raises(WorkFolderError, match="not among the folders"):
        manager.start_kernel(cwd=str(work))
    with session(work, kernel_name=STOCK, config=profile_config("rooted")) as kernel:
        assert look(kernel)["prefix"] == sys.prefix


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["julia", "{connection_file}"], "julia is not a Python interpreter"),
        (["python3", "-m", "a", "run", "-f", "{connection_file}"], "'run' precedes"),
        (["python3", "-O", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "'-O' precedes"),
        (["python3", "-m", "ipykernel_launcher"], "no `-f {connection_file}`"),
        (["/no/such/python", "-m", "ipykernel", "-f", "{connection_file}"], "no interpreter"),
        (["/usr/bin/env", "python3", "-m", "ipykernel", "-f", "{connection_file}"], "env is not"),
        (["sandboxkernel", "launch", "--profile", "a", "-f", "{connection_file}"], "--profile a"),
    ],
)
def test_other_commands_are_refused(
    work: Path, kernels: Path, daemon: RunningDaemon, argv: list[str], said: str
) -> None:
    kernelspec(kernels, "foreign", argv)
    assert "foreign" in KernelSpecManager().find_kernel_specs()
    manager = KernelManager(kernel_name="foreign")
    with pytest.raises(RequestError) as caught:
        manager.start_kernel(cwd=str(work))
    assert said in caught.value.message
    assert caught.value.hint
    assert list(daemon.client().kernels()) == []


def test_environment_of_another_interpreter_is_refused(
    work: Path, kernels: Path, tmp_path: Path
) -> None:
    """Its links would lead to the image's interpreter, silently."""
    folder = tmp_path / "other"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    (tmp_path / "python3.9").write_text("#!/bin/sh\n")
    (tmp_path / "python3.9").chmod(0o755)
    (folder / "bin" / "python").symlink_to(tmp_path / "python3.9")
    argv = [str(folder / "bin/python"), "-m", "ipykernel", "-f", "{connection_file}"]
    kernelspec(kernels, "old", argv)
    with pytest.raises(RequestError, match=r"is based on .*python3\.9, and sandboxes have"):
        KernelManager(kernel_name="old").start_kernel(cwd=str(work))
