"""Where CPython's tests answer otherwise inside than outside, and why. Data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["EXPECTED", "IGNORED", "NOT_RUN", "Expected"]


class Expected(NamedTuple):
    """`pattern` is searched for in the name of a case or file."""

    pattern: str
    reason: str


EXPECTED: tuple[Expected, ...] = (
    Expected(
        r"\.test_os\.FileTests\.test_splice",
        "the filter refuses splice, the common step of exploits that write to files that are only "
        "open for reading",
    ),
    Expected(
        r"\.test_os\.MakedirTests\.test_exist_ok_s_isgid_directory|"
        r"\.test_tarfile\..*\.test_modes",
        "no file or folder gets a set-user-id or set-group-id bit; where tarfile asks for one, it "
        "goes on without setting the mode",
    ),
    Expected(
        r"\.test_fcntl\.TestFcntl\.test_fcntl_64_bit",
        "the filter refuses F_NOTIFY: on a folder that several users see, it tells who reads what",
    ),
    Expected(
        r"\.test_os\..*\.test_closerange",
        "left out by itself where the next descriptors are open, which chance decides outside",
    ),
)
# test file -> why it does not run
NOT_RUN: Mapping[str, str] = {}
# cases of any file, as patterns of regrtest's --ignore -> why they do not run
IGNORED: Mapping[str, str] = {
    "*UDPLITE*": "the filter refuses UDP-Lite, as Linux without CONFIG_IP_UDPLITE does; the tests "
    "take it for there and end the whole file",
}
