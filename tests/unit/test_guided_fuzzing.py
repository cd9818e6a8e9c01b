"""Guided fuzzing: its seeds are what readers accept, and its record is on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.errors import ImageError
from sandboxkernel.images.manifest import Index, Manifest, decode_document
from tests.fuzz import documents, product
from tests.fuzz.__main__ import TARGETS
from tests.fuzz.figures import ROWS, found_something, keep, put_into
from tests.fuzz.outside import MOUNTS, STATUS, passes_mounts, passes_status

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "sha256:" + "a" * 64


def _record(seconds: int, finding: str = "") -> dict[str, Any]:
    each = {"inputs": 3, "seconds": 2, "points": 5, "finding": finding}
    return {
        "date": "today", "versions": {"atheris": "3"}, "seed": 7, "seconds": seconds,
        "readers": {name: each for names in ROWS.values() for name in names},
    }  # fmt: skip


def test_every_reader_has_its_place_in_the_table() -> None:
    assert sorted(TARGETS) == sorted(name for names in ROWS.values() for name in names)


def test_the_page_has_the_figures_of_the_record() -> None:
    record = json.loads((ROOT / "docs/benchmarks/fuzz.json").read_text())
    assert sorted(record["readers"]) == sorted(TARGETS)
    assert found_something(record) == []
    page = (ROOT / "docs/security.md").read_text()
    assert put_into(page, record) == page, "run make fuzz-guided"


def test_a_shorter_run_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.json"
    assert keep(path, _record(20)) == ""
    assert keep(path, _record(19)) == "the record is of 20 s, this run of 19 s"
    assert json.loads(path.read_text())["seconds"] == 20
    assert keep(path, _record(21)) == ""


def test_a_finding_is_told_from_none() -> None:
    assert found_something(_record(1)) == []
    assert found_something(_record(1, "b'x'")) == [n for names in ROWS.values() for n in names]
    page = put_into("a\n<!-- make fuzz-guided -->\n<!-- end of make fuzz-guided -->\nb", _record(1))
    assert "63 inputs for 21 readers" in page and "| 9 | 6 | 5, 5, 5 | 0 |" in page


def test_what_the_outside_verification_is_given_first_passes() -> None:
    assert passes_status(STATUS) and passes_mounts(MOUNTS)
    assert not passes_status(STATUS.replace("CapBnd:\t0", "CapBnd:\t1"))
    assert not passes_mounts(MOUNTS.replace("/tmp rw,nosuid", "/tmp rw"))


def test_the_second_reader_of_documents_accepts_what_the_first_does() -> None:
    seeds = [documents.read(data) for data in product.TARGETS[product.image_documents]]
    for seed, kind in zip(seeds, ("image_config", "index", "manifest"), strict=True):
        accepted = [problem.__name__ for problem in documents.KINDS.values() if not problem(seed)]
        assert kind in accepted


@pytest.mark.parametrize("size", ["-1", "9007199254740992"])
def test_a_size_that_no_answer_can_hold_is_refused(size: str) -> None:
    entry = f'{{"mediaType": "m", "digest": "{DIGEST}", "size": {size}}}'
    with pytest.raises(ImageError, match="size"):
        decode_document(f'{{"schemaVersion": 2, "manifests": [{entry}]}}'.encode(), Index, "x")


def test_a_document_that_says_to_be_another_kind_is_refused() -> None:
    text = f"""{{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "config": {{"mediaType": "m", "digest": "{DIGEST}", "size": 1}}, "layers": []}}"""
    assert decode_document(text.encode(), Index, "x").manifests == ()
    with pytest.raises(ImageError, match=r"it says that it is 'application/vnd\.oci\.image\.index"):
        decode_document(text.encode(), Manifest, "x")
