"""Walks of a layer hold a bounded part of it in memory, however many names it has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.images import layerdiff, removal, treewalk
from sandboxkernel.images.layerdiff import diff_layer, show_path
from sandboxkernel.images.removal import remove_tree
from sandboxkernel.images.treewalk import measure_tree


class Reads:
    """How many names were read: of all directories, and at most of one at a time."""

    def __init__(self) -> None:
        self.all = self.most = 0
        self._scandir = os.scandir

    @contextlib.contextmanager
    def scandir(self, directory: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        count = 0

        def counted(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
            nonlocal count
            for entry in entries:
                count += 1
                yield entry

        with self._scandir(directory) as entries:
            yield counted(entries)
        self.all += count
        self.most = max(self.most, count)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    monkeypatch.setattr(os, "scandir", found.scandir)
    return found


def make_tree(top: Path, levels: int, files: int) -> None:
    """Each directory has files, and one directory, which is the first of its names."""
    for _ in range(levels):
        top.mkdir()
        for number in range(files):
            (top / f"file-{number}").touch()
        top /= "a"


def test_a_comparison_reads_no_more_names_than_it_may(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every level the names wait while the walk is in the one below: all of them count."""
    make_tree(tmp_path / "upper", levels=10, files=20)
    monkeypatch.setattr(layerdiff, "ENTRIES_MAX", 50)
    changes = diff_layer(tmp_path / "upper", [], host_uid_base=0, limit=1000)
    assert reads.all == 50
    assert 40 <= len(changes) <= 50


def test_a_comparison_tells_the_same_wherever_its_bound_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "upper", levels=3, files=5)
    whole = diff_layer(tmp_path / "upper", [], host_uid_base=-1, limit=1000)
    assert len(whole) == 17
    monkeypatch.setattr(layerdiff, "ENTRIES_MAX", 17)
    assert diff_layer(tmp_path / "upper", [], host_uid_base=-1, limit=1000) == whole
    assert diff_layer(tmp_path / "upper", [], host_uid_base=-1, limit=3) == whole[:3]


@pytest.mark.parametrize("files", [0, 6, 7, 8, 100])
def test_a_removal_reads_a_few_names_at_a_time_and_leaves_none(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr(removal, "NAMES_MAX", 7)
    top = tmp_path / "top"
    make_tree(top, levels=4, files=files)
    for number in range(50):
        (top / f"folder-{number}" / "x").mkdir(parents=True)
    remove_tree(top)
    assert not top.exists()
    assert reads.most == 7


@pytest.mark.parametrize("times", [1, 99, 100])
def test_a_removal_ends_only_when_the_tree_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    top = tmp_path / "top"
    make_tree(top, levels=2, files=3)
    gone = 0
    unlink = os.unlink

    def taken_away(name: str, *, dir_fd: int | None = None) -> None:
        nonlocal gone
        gone += 1
        if gone <= times:  # as by somebody who removes the tree, too
            raise FileNotFoundError(name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", taken_away)
    if times < removal.ROUNDS:
        remove_tree(top)
    else:
        with pytest.raises(FileNotFoundError):
            remove_tree(top)
    monkeypatch.undo()
    assert top.exists() == (times == removal.ROUNDS)


def test_the_size_of_links_is_told_also_of_more_than_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        (tmp_path / f"file-{number}").write_bytes(bytes(8192))
        for again in range(3):
            os.link(tmp_path / f"file-{number}", tmp_path / f"file-{number}-{again}")
    whole = measure_tree(tmp_path)
    monkeypatch.setattr(treewalk, "LINKED_MAX", 2)
    bounded = measure_tree(tmp_path)
    assert (bounded.size_bytes, bounded.entries) == (whole.size_bytes, whole.entries)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", "a\\x0ab"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\udcff", "\\xff"),
        ("\\", "\\\\"),
        ("\u2028", "\\u2028"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),  # turns what follows around
        ("a\u200bb", "a\\u200bb"),
        ("\udcad", "\\xad"),
        ("\xad", "\\u00ad"),
        ("\U000e0041", "\\U000e0041"),
        ("ä", "ä"),
    ],
)
def test_a_name_is_shown_as_one_line_without_controls(name: str, shown: str) -> None:
    assert show_path(name) == shown
