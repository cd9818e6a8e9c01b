"""Operations whose failure lets a start, an end or an exec go on, each with its reason. Reviewed.

What is started in spite of such a failure passes outside verification all the same.
"""

from __future__ import annotations

import errno

from tests.faults.record import Fault

__all__ = ["LEFT", "TOLERATED", "ends_by_itself", "may_leave", "reason_for"]

_ANY: tuple[int, ...] = ()
_ENDS = "init.be_init"
# Scenario ("": every one), part of the operation's place -> errnos, and why nothing is lessened.
TOLERATED: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {
    ("", "cgroup.files._apply <"): (
        _ANY, "what the file shows afterwards is compared with what is wanted"
    ),
    ("", "acting._take_back"): (
        _ANY, "done again, up to three times; a launcher that cannot, ends"
    ),
    ("", "os.setsid in handover.take_over"): (
        (errno.EPERM,), "it is the leader of a session already"
    ),
    ("", "keyctl_join_session_keyring in init.join_keyring"): (
        (errno.ENOSYS,), "Linux without CONFIG_KEYS has no keyring to share"
    ),
    ("", _ENDS): (_ANY, "pid 1 ends, and with it every process of its namespace"),
    ("", "end_with_parent < namespaces.make_user_namespace"): (
        _ANY, "the process that this would end with the launcher has been ended by it already"
    ),
    ("exec", "os.write in container._wait_for_joined"): (
        _ANY, "the program has ended, which is told; how is not known"
    ),
    ("", "guest.pages."): (
        _ANY, "the memory that a kernel is about to write is copied when it does so"
    ),
    ("park", "in guest.zygote._become_container"): (
        _ANY, "a spare that has ended is told, and no kernel is made of it"
    ),
    ("", "os.rmdir in cgroup.layout.remove_from_others"): (
        _ANY, "it is not there, or it is a parent, which the next removal takes"
    ),
    ("", "os.rmdir in oci.forget"): (
        _ANY, "an empty directory of the launcher's own, which the next removal takes"
    ),
    ("", "processes.open_process < cgroup.lifecycle._signal_and_wait"): (
        (errno.EINVAL,), "so Linux before 6.16 says that it has ended; who is left is looked for again"
    ),
    ("", "cgroup.lifecycle._unthrottle"): (
        _ANY, "what is ended in spite of its quota of processor time takes longer, as it must"
    ),
    ("delete_runc", "oci._become"): (
        _ANY, "what runc would have removed, its records and our cgroup, is removed without it"
    ),
}  # fmt: skip
# Removals that leave the one thing that they were to remove, of this kind: an entry of the
# launcher's own tmpfs and mount namespace, which ends with the launcher, or an empty directory.
LEFT = {
    "os.rmdir in rootfs.": ("staging", "mounts"),
    "syscalls.umount2 in rootfs.": ("staging", "mounts"),
    "os.rmdir in oci.forget": ("records",),
}


def reason_for(fault: Fault) -> str:
    """Why a failure of this operation may be passed over; "" if it may not. Pure."""
    for (scenario, part), (codes, reason) in TOLERATED.items():
        fits = scenario in ("", fault.scenario) and part in fault.operation.label
        if fits and (not codes or fault.code in codes):
            return reason
    return ""


def ends_by_itself(fault: Fault) -> bool:
    """Whether the sandbox may end although it was said to have started. Pure."""
    return _ENDS in fault.operation.label


def may_leave(fault: Fault, kind: str) -> bool:
    """Whether the launcher may keep something of this kind after this failure. Pure."""
    return any(
        fault.operation.label.startswith(part) and kind in kinds for part, kinds in LEFT.items()
    )
