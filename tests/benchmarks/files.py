"""Groups `files` and `cpu`: the same work inside a sandboxed and a plain kernel."""

from __future__ import annotations

import contextlib
import posixpath
import shutil
from collections.abc import Callable

from tests.benchmarks import cells
from tests.benchmarks.bench import Bench, attempt, connected, in_blocks
from tests.benchmarks.client import RawClient
from tests.benchmarks.peers import ManagedPeer

__all__ = ["measure_cells", "measure_files"]

METADATA_FILES, METADATA_FILES_QUICK = 2000, 500
DATA_MIB, DATA_MIB_QUICK = 256, 32
CELL_TIMEOUT_MS = 120_000


def seconds(client: RawClient, source: str) -> float:
    """What a cell of cells.py has measured, in milliseconds."""
    taken: list[float] = client.evaluate_json(source, cells.RESULT, timeout_ms=CELL_TIMEOUT_MS)
    return taken[0] * 1000


def measure_files(bench: Bench) -> None:
    """The user layer beside a folder of the host file system that it lies on; the image's files.

    The plain kernel opens the image's files in a copy on that host file system. All of it with a
    warm page cache.
    """
    count = bench.size.of(METADATA_FILES, METADATA_FILES_QUICK)
    mib = bench.size.of(DATA_MIB, DATA_MIB_QUICK)
    metadata = bench.series("files_metadata", f"Create, stat, rename, unlink {count} files", "ms")
    data = bench.series("files_data", f"Write, fsync and read {mib} MiB", "ms")
    base = bench.series("files_base", f"Open and stat {cells.FILES} files of the image", "ms")
    beside = bench.daemon.data_dir / "bench"
    library = posixpath.dirname(posixpath.dirname(bench.python)) + "/lib"
    # Each kernel with where it writes and where it finds the image's files.
    peers: list[tuple[ManagedPeer, str, str]] = [
        (bench.ours("warm"), "~", library),
        (bench.plain(), str(beside), f"{bench.rootfs}{library}"),
    ]
    bench.warm_up([peer for peer, _, _ in peers])
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, beside, ignore_errors=True)
        clients = {peer.name: stack.enter_context(connected(peer)) for peer, _, _ in peers}

        def sample(row: tuple[ManagedPeer, str, str]) -> None:
            peer, folder, root = row
            client = clients[peer.name]

            def timed(source: str) -> Callable[[], list[float]]:
                return lambda: [seconds(client, source)]

            source = cells.METADATA.format(folder=folder, count=count)
            attempt(peer.name, [metadata], timed(source))
            attempt(peer.name, [data], timed(cells.DATA.format(folder=folder, mib=mib)))
            source = cells.BASE_FILES.format(root=root, count=cells.FILES)
            attempt(peer.name, [base], timed(source))

        in_blocks("files", bench.size.blocks, peers, sample)


def measure_cells(bench: Bench) -> None:
    """Five pure Python programs of about a second each, in both kernels by turns."""
    share = 0.2 if bench.size.quick else 4.0
    peers: list[ManagedPeer] = [bench.ours("warm"), bench.plain()]
    bench.warm_up(peers)
    with contextlib.ExitStack() as stack:
        clients = {peer.name: stack.enter_context(connected(peer)) for peer in peers}

        def sample(work: tuple[str, str]) -> None:
            cell, name = work
            series = bench.series(f"cpu_{cell}", f"Processor: {cell}", "ms")
            source = cells.PROCESSOR[cell].format(share=share)
            attempt(name, [series], lambda: [seconds(clients[name], source)])

        # Cell by cell, both kernels one after the other: a slow minute hits both.
        work = [(cell, name) for cell in cells.PROCESSOR for name in clients]
        in_blocks("processor", bench.size.blocks, work, sample)
