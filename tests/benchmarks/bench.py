"""What every group of measurements works with: the daemon, the peers, and how they alternate."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sandboxkernel.client import SandboxClient
from sandboxkernel.images.store import ImageStore
from sandboxkernel.models import Image
from tests.benchmarks.client import RawClient, milliseconds_since
from tests.benchmarks.containers import merged_rootfs
from tests.benchmarks.direct import DirectSandboxPeer, ProcessPeer
from tests.benchmarks.peers import LocalPeer, Peer, SandboxPeer, TcpPeer
from tests.benchmarks.results import Results, Series
from tests.support import RunningDaemon

__all__ = ["CONFIG", "PRELOADED", "SCRATCH", "Bench", "Size", "attempt", "connected", "first_reply",
           "in_blocks",
           "say", "talking_to"]  # fmt: skip

P = TypeVar("P")
SCRATCH = Path("/var/tmp/sandboxkernel-bench")
PYTHON_LABEL = "org.sandboxkernel.python"
PRELOADED = ("numpy", "pandas", "matplotlib.pyplot")
# As many as the scale group starts, and those that are started on top of them.
KERNELS_MAX = 1100
CONFIG = f"""
c.SandboxKernelDaemon.profiles = {{
    "default": {{"spares": 4}},
    "warm": {{"spares": 0}},
    "roomy": {{"spares": 0, "limits": {{"memory": "8G"}}}},
    "cold": {{"zygote": "off"}},
    "science": {{"spares": 0, "preload": {list(PRELOADED)}}},
    "science_spares": {{"preload": {list(PRELOADED)}}},
}}
c.SandboxKernelDaemon.max_kernels = {KERNELS_MAX}
c.SandboxKernelDaemon.grants = [{{"user": "*", "max_kernels": {KERNELS_MAX}}}]
"""


def say(text: str, *, end: str = "\n") -> None:
    """Progress, on stderr: stdout is for data."""
    print(text, end=end, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: `blocks` for what is started once a block."""

    blocks: int
    quick: bool

    def of(self, full: int, quick: int) -> int:
        """One of two sizes, for what blocks do not count."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Bench:
    """A run. `rootfs` is the image's layers in one tree on the host's own file system."""

    daemon: RunningDaemon
    client: SandboxClient
    image: Image
    scratch: Path
    size: Size
    results: Results

    @property
    def python(self) -> str:
        """The interpreter's path in the image."""
        return self.image.labels[PYTHON_LABEL]

    @property
    def work(self) -> Path:
        """The folder in which kernels are started."""
        folder = self.scratch / "work"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def rootfs(self) -> Path:
        """The image's layers copied over one another, made when it is missing."""
        layers = ImageStore(self.daemon.data_dir / "images").resolve("host").layer_dirs
        return merged_rootfs(layers, self.scratch)

    def ours(self, path: str = "warm", *, profile: str | None = None) -> SandboxPeer:
        """A sandboxed kernel on a path; with spares, the profile is the default one."""
        profile = profile or ("default" if path == "spare" else path)
        return SandboxPeer(
            self.work, self.client, path, profile=profile, run_dir=self.daemon.run_dir
        )

    def direct(self, path: str = "warm") -> DirectSandboxPeer:
        """The same without jupyter_client's manager."""
        profile = "default" if path == "spare" else path
        return DirectSandboxPeer(
            self.work, self.client, path, profile=profile, run_dir=self.daemon.run_dir
        )

    def process(self) -> ProcessPeer:
        """A plain kernel without jupyter_client's manager."""
        return ProcessPeer(self.work)

    def plain(self) -> LocalPeer:
        """A kernel that jupyter_client starts by itself, over unix sockets as ours."""
        return LocalPeer(self.work)

    def plain_over_tcp(self) -> TcpPeer:
        """The same over TCP, which is jupyter_client's default."""
        return TcpPeer(self.work)

    def series(self, key: str, title: str, unit: str) -> Series:
        """A series of this run's results."""
        return self.results.open(key, title, unit)

    def warm_up(self, peers: Sequence[Peer]) -> None:
        """Have the zygotes made, then start each peer once: caches are warm for everybody."""
        for peer in peers:
            if isinstance(peer, SandboxPeer):
                peer.call_for_zygote()
        for peer in peers:
            try:
                with connected(peer):
                    pass
            except Exception as exc:  # the measurement will say so, and count it
                say(f"{peer.name}: {exc}")


@contextlib.contextmanager
def connected(peer: Peer) -> Iterator[RawClient]:
    """A started kernel that has answered one cell; stopped at the end."""
    peer.prepare()
    try:
        client = RawClient(peer.start())
        try:
            client.run_cell()
            peer.check()
            yield client
        finally:
            client.close()
    finally:
        peer.stop()


def first_reply(peer: Peer, code: str = "6*7", *, began: float | None = None) -> float:
    """Milliseconds from the start call to the end of a first cell; the kernel is left running.

    `began` is an earlier time.perf_counter() to count from.
    """
    began = time.perf_counter() if began is None else began
    client = RawClient(peer.start())
    try:
        if code == "6*7":
            client.run_cell()
        else:
            client.evaluate(code)
        return milliseconds_since(began)
    finally:
        client.close()


def attempt(peer: str, series: Sequence[Series], sample: Callable[[], Sequence[float]]) -> None:
    """Record what `sample` measures, one value for each series; a failure fails all of them.

    Any exception counts: a run goes on when a peer does not start.
    """
    try:
        values = sample()
    except Exception as exc:
        for one in series:
            one.fail(peer, f"{type(exc).__name__}: {exc}")
        return
    for one, value in zip(series, values, strict=True):
        one.add(peer, value)


def in_blocks(title: str, blocks: int, peers: Sequence[P], measure: Callable[[P], None]) -> None:
    """Interleaved blocks: each does every peer once, in an order that alternates."""
    began = time.monotonic()
    for block in range(blocks):
        for peer in peers if block % 2 else list(reversed(peers)):
            measure(peer)
        say(f"\r{title}: {block + 1} of {blocks}", end="")
    say(f", {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def talking_to(daemon: RunningDaemon) -> Iterator[None]:
    """Have clients in this process and its children find the daemon."""
    before = os.environ.get("SANDBOXKERNEL_HOST")
    os.environ["SANDBOXKERNEL_HOST"] = f"unix://{daemon.socket_path}"
    try:
        yield
    finally:
        del os.environ["SANDBOXKERNEL_HOST"]
        if before is not None:
            os.environ["SANDBOXKERNEL_HOST"] = before
