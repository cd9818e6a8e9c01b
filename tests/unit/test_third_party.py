"""What is read out of the tools' own words, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.third_party.cpython import Outcomes, compare, differing_files, outcomes, result
from tests.third_party.expected import Expected
from tests.third_party.privileges import EXPECTED, judge, not_differing, readings
from tests.third_party.report import document, merged, page
from tests.third_party.stress import judged
from tests.third_party.tools import Result
from tests.third_party.torment import CPUS, MEMORY, PIDS, Seen
from tests.third_party.watch import differences

ROOT = Path(__file__).resolve().parents[2]
CAPSH = """Current: =
Bounding set =cap_chown,cap_kill
Securebits: 00/0x0/1'b0 (no-new-privs=0)
 secure-noroot: no (unlocked)
Guessed mode: HYBRID (4)
"""
REGRTEST = """0:00:01 load avg: 1.00 [ 1/5] test_os failed (1 failure)
0:00:02 load avg: 1.00 [2/5/1] test.test_asyncio.test_base passed (31.8 sec)
0:00:03 load avg: 1.00 [3/5/1] test_gone skipped (resource denied)
0:00:04 load avg: 1.00 [4/5/1] test_slow timed out (4 min)
0:00:04 load avg: 1.00 [5/5/1] test_env failed (env changed)
"""
JUNIT = """<testsuites><testsuite>
<testcase name="test.test_os.A.test_b"><failure>x</failure></testcase>
<testcase name="test.test_os.A.test_b" status="run" />
<testcase name="test.test_os.A.test_c" status="run"><skipped>no</skipped></testcase>
<testcase name="test.test_asyncio.test_base.A.test_d" status="run" />
</testsuite></testsuites>"""


def test_readings_of_capsh_and_captest() -> None:
    found = readings({"capsh": CAPSH, "captest": "Attempting to regain root...FAILED\n"})
    assert found["capsh: Current"] == "="
    assert found["capsh: Bounding set"] == "cap_chown,cap_kill"
    assert found["capsh: secure-noroot"] == "no (unlocked)"
    assert found["captest: regain root"] == "FAILED"


def test_what_is_not_as_it_should_be_is_told() -> None:
    assert judge("cold", EXPECTED) == []
    assert judge("runc", EXPECTED) != []
    assert judge("cold", {**EXPECTED, "setpriv: no_new_privs": "0"}) == [
        "cold: setpriv: no_new_privs is '0', not '1'"
    ]
    assert "setpriv: no_new_privs" in not_differing(EXPECTED)


def test_outcomes_of_files_and_cases() -> None:
    found = outcomes(REGRTEST, JUNIT)
    assert found.files == {
        "test_os": "failed", "test.test_asyncio.test_base": "passed", "test_gone": "skipped",
        "test_slow": "failed", "test_env": "passed",
    }  # fmt: skip
    assert found.cases == {
        "test.test_os.A.test_b": "failed", "test.test_os.A.test_c": "skipped",
        "test.test_asyncio.test_base.A.test_d": "passed",
    }  # fmt: skip


def test_a_difference_needs_its_reason_and_has_to_be_there_twice() -> None:
    outside = Outcomes({"test_os": "passed", "test_x": "passed"}, {"test.test_os.A.b": "passed"})
    inside = Outcomes({"test_os": "failed", "test_x": "failed"}, {"test.test_os.A.b": "failed"})
    assert [each.name for each in compare(outside, inside, ())] == ["test.test_os.A.b", "test_x"]
    assert differing_files(outside, inside) == ["test_os", "test_x"]
    reasons = (Expected(r"^test\.test_os\.", "refused"),)
    assert [each.reason for each in compare(outside, inside, reasons)] == ["refused", ""]
    told = result(outside, inside, (outside, inside)).problems
    assert any(text.startswith("test_x: passed outside") for text in told)
    assert not any(
        "test_x" in text for text in result(outside, inside, (outside, outside)).problems
    )


def test_fates_of_stressors() -> None:
    def fate(reason: str, code: int | None = None, output: str = "") -> str:
        return judged(Seen("x", reason, code, output=output)).fate

    skipped = "stress-ng: info:  [7] tun stressor will be skipped, need CAP_NET_ADMIN\n"
    assert [fate("exited", code) for code in (0, 2, 3, 4, 139)] == [
        "passed", "failed", "refused", "refused", "killed"
    ]  # fmt: skip
    assert (fate("exited", 0, skipped), fate("oom_killed"), fate("")) == (
        "refused", "out of memory", "stuck",
    )  # fmt: skip


def test_what_is_above_a_cap_is_told() -> None:
    assert Seen("x", memory_peak=MEMORY, pids_peak=PIDS, cpus=CPUS).broken() == []
    above = Seen(
        "x", memory_peak=MEMORY + 1, pids_peak=PIDS + 1, cpus=2 * CPUS, host_memory=1 << 40
    )
    assert len(above.broken()) == 4


def test_what_changed_on_the_host_is_named() -> None:
    assert differences({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]
    assert differences(10.0, 10.2) == []
    assert differences(10.0, 13.0) == ["by 3.0 s"]
    assert differences("0\n", "512\n") != []


def test_what_figures_need_said_is_beside_them() -> None:
    made = Result("trinity", "trinity 1", "how", ("a", "b"), [["both tables", "0"]], [], [])
    text = page(document({}, {"trinity": [made]}))
    assert "So no call is counted there." in text.partition("| both tables | 0 |")[2]


def test_the_page_has_every_table_and_what_is_wrong() -> None:
    made = Result("tool", "tool 1", "how", ("a", "b"), [["x|y", "1"]], ["a note"], ["it escaped"])
    found = merged(
        {"tools": {"old": document({}, {"old": [made]})["tools"]["old"]}},
        document({"Linux": "6"}, {"new": [made]}), ["new", "old"],
    )  # fmt: skip
    text = page(found)
    assert list(found["tools"]) == ["new", "old"]
    assert text.count("| x\\|y | 1 |") == text.count("it escaped") == 2


def test_the_page_is_the_records() -> None:
    record = json.loads((ROOT / "docs/benchmarks/third-party.json").read_text())
    assert page(record) == (ROOT / "docs/third-party.md").read_text(), "tests.third_party --of"
