"""The table of what ran where."""

from __future__ import annotations

from pathlib import Path

from tests.lanes import Ran, page, read_results, reason_for

SERVICE = "tests/vm/test_service.py"
JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.integration.test_api" name="test_a"/>
<testcase classname="tests.conformance.test_contract" name="test_b[runc]"/>
<testcase classname="tests.conformance.test_contract" name="test_b[cold-runc-x]"><failure/></testcase>
<testcase classname="tests.conformance.test_jupyter_kernel.TestWarm" name="test_c"><skipped/></testcase>
<testcase classname="tests.integration.test_executors" name="test_d"/>
</testsuite></testsuites>"""


def test_records_of_pytest_are_read(tmp_path: Path) -> None:
    (tmp_path / "native.xml").write_text(JUNIT)
    assert read_results(tmp_path / "native.xml") == [
        Ran("tests/integration/test_api.py", "test_a", "native", "passed"),
        Ran("tests/conformance/test_contract.py", "test_b[runc]", "runc", "passed"),
        Ran("tests/conformance/test_contract.py", "test_b[cold-runc-x]", "runc", "failure"),
        Ran("tests/conformance/test_jupyter_kernel.py", "test_c", "native", "skipped"),
        Ran("tests/integration/test_executors.py", "test_d", "runc", "passed"),
    ]
    (tmp_path / "runc.xml").write_text(JUNIT)
    assert {ran.executor for ran in read_results(tmp_path / "runc.xml")} == {"runc"}


def test_an_empty_place_needs_a_reason() -> None:
    ran = [Ran("tests/integration/test_api.py", "test_a", "native", "passed")]
    text, wrong = page([("v1", ran)], ["tests/integration/test_api.py"])
    assert "| integration/test_api.py (parts on v2) | 1 | [1] | [1] | [2] |" in text
    assert wrong == [
        "tests/integration/test_api.py: nothing ran, and nobody has said why (v1 runc)",
        "tests/integration/test_api.py: nothing ran, and nobody has said why (v2 native)",
    ]


def test_a_failure_is_told() -> None:
    ran = [Ran(SERVICE, name, "native", how) for name, how in (("a", "passed"), ("b", "failure"))]
    text, wrong = page([("v2", ran)], [SERVICE])
    assert "| 1, 1 failed |" in text
    assert f"{SERVICE}: 1 failed (v2 native)" in wrong
    again = Ran(SERVICE, "b", "native", "passed")
    assert "| 2 |" in page([("v2", ran), ("v2", [again])], [SERVICE])[0]


def test_what_a_list_leaves_out_has_that_lists_reason() -> None:
    assert reason_for("tests/browser/test_lab.py", "v2 native").startswith("Chromium")
    assert "forked" in reason_for("tests/integration/test_zygotes.py", "v1 runc")
    assert reason_for("tests/integration/test_quotas.py", "v2 native") == ""
