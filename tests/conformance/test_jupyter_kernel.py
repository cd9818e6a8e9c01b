"""jupyter_kernel_test in full, against a sandbox."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from sandboxkernel.client import SandboxClient
from sandboxkernel.provisioner import SandboxProvisioner
from tests.conformance import bridged
from tests.support import RunningDaemon

WORK = Path("/srv/sandboxkernel-tests/kernel-test")


@pytest.fixture(scope="class", autouse=True)
def environment(daemon: RunningDaemon, request: pytest.FixtureRequest) -> object:
    if request.cls is TestColdSandboxedPython:
        daemon = request.getfixturevalue("cold_daemon")
    before, folder = os.environ.get("SANDBOXKERNEL_HOST"), os.getcwd()
    os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    yield
    os.chdir(folder)
    if before is None:
        del os.environ["SANDBOXKERNEL_HOST"]
    else:
        os.environ["SANDBOXKERNEL_HOST"] = before


@pytest.mark.usefixtures("environment")
class TestSandboxedPython(bridged.Samples, bridged.KernelTests):
    """Every test of the suite has its sample, so that none is skipped."""

    kernel_name = "sandboxed-python"


class TestColdSandboxedPython(TestSandboxedPython):
    """The same on a fresh interpreter; the class above has kernels that are forked."""


class TestStockPython(TestSandboxedPython):
    """The stock kernelspec, with our provisioner as the default: the server's own environment."""

    kernel_name = "python3"

    @classmethod
    def setUpClass(cls) -> None:
        patch = cls.enterClassContext(pytest.MonkeyPatch.context())
        factory = KernelProvisionerFactory.instance()
        patch.setattr(factory, "default_provisioner_name", "sandboxkernel")
        super().setUpClass()
        assert isinstance(cls.km.provisioner, SandboxProvisioner)


class TestBridgedPython(TestSandboxedPython):
    """The same over TCP, by a client that runs the command and knows of nothing else."""

    kernel_name = bridged.KERNEL_NAME

    @classmethod
    def setUpClass(cls) -> None:
        cls.enterClassContext(bridged_kernelspec())
        super().setUpClass()
        assert isinstance(cls.km.provisioner, LocalProvisioner)
        assert cls.km.transport == "tcp"


@contextlib.contextmanager
def bridged_kernelspec() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        bridged.set_up(patch, Path(folder))
        yield
    bridged.remove_orphans(SandboxClient())


def test_history_range_is_answered_as_by_a_plain_kernel(
    environment: object, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation that the suite does not expect of ipykernel: ours is no different."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # the plain kernel's own history stays clean
    answers = []
    for name in ("sandboxed-python", "python3"):
        manager = KernelManager(kernel_name=name)
        manager.start_kernel(cwd=str(work))
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            for code in ("1 + 1", "2 + 2"):
                client.execute_interactive(code, timeout=60, output_hook=lambda _: None)
            client.history(hist_access_type="range", session=0, start=1, stop=3, output=True)
            answers.append(client.get_shell_msg(timeout=60)["content"])
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    ours, plain = answers
    assert ours == plain
    assert [entry[2] for entry in ours["history"]] == [["1 + 1", "2"], ["2 + 2", "4"]]
