"""Which tests run in the virtual machine, and why others do not. Pure.

What is taken: everything whose answer depends on the host's cgroups, mounts, Linux or init. What is
left out runs in `make test`, on real processors; tests/unit/test_vm_selection.py sees to it that each
file of the privileged lanes is decided upon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tests.escape.attacks import filtered

__all__ = ["BOOTS", "LEFT_OUT", "LONG", "MACHINES", "PARTS", "WHOLE", "arguments", "between_boots"]

# Files of which everything runs but what LEFT_OUT names.
WHOLE = (
    "tests/vm/test_service.py",
    "tests/vm/test_neighbour.py",
    "tests/integration/test_cgroup_real.py",
    "tests/integration/test_quotas.py",
    "tests/integration/test_zygotes.py",
    "tests/integration/test_crashes.py",
    "tests/integration/test_two_users.py",
    "tests/integration/test_faults.py",
    "tests/integration/test_executors.py",
    "tests/integration/test_confinement_primitives.py",
    "tests/escape/test_attacks.py",
    "tests/escape/test_surroundings.py",
    "tests/escape/test_misconfined.py",
    "tests/escape/test_neighbours.py",
    "tests/escape/test_hostile_roots.py",
    "tests/escape/test_device_list.py",
    "tests/escape/test_audit.py",
    "tests/conformance/test_confinement.py",
)
# Files of which only these run: what the host has a part in, once each. The rest of them is about
# requests, words and the provisioner; and the least limits, a hundredth of a processor, are too
# little of an emulated one.
PARTS = {
    "tests/integration/test_api.py": (
        "test_parallel_starts_all_succeed",
        "test_an_exec_is_as_confined_as_the_kernel",
        "test_a_missing_feature_of_the_host_refuses_the_start",
        "test_an_ephemeral_sandbox_forgets",
    ),
    "tests/integration/test_bundles.py": (
        "test_the_life_of_a_container",
        "test_exec_ps_list_pause_and_update",
    ),
    "tests/integration/test_recovery.py": (
        # test_crashes has forked kernels, too, and the daemon or the launcher alone.
        "test_what_runs_runs_on_and_everything_works[cold-kill_both]",
        "test_what_runs_runs_on_and_everything_works[cold-stop_daemon]",
        "test_what_runs_runs_on_and_everything_works[by_runc-kill_both]",
        "test_the_same_overlay_serves_kernels_from_before_and_after[kill_both]",
        "test_an_end_that_nobody_saw_is_told[kill_both]",
        "test_running_out_of_memory_unseen_is_told",
    ),
    "tests/integration/test_shared_service.py": (
        "test_a_start_can_be_given_up_at_any_time",
        "test_an_exec_that_gets_no_answer_holds_up_nobody",
    ),
    "tests/integration/test_removals.py": (
        "test_a_layer_that_is_held_is_removed_once_it_is_not",
        "test_an_end_is_told_also_while_its_cgroup_is_held",
    ),
    "tests/integration/test_cli.py": (
        "test_limits_of_run_are_in_force",
        "test_stats_show_all_that_run",
        "test_pause_freezes_and_unpause_thaws",
        "test_doctor_finds_what_this_host_has",
    ),
    "tests/conformance/test_contract.py": (
        "test_life_of_a_process",
        "test_interrupt_of_a_loop",
        "test_restart",
        "test_shutdown_leaves_nothing",
        "test_memory_limit_is_the_reason",
    ),
    "tests/conformance/test_features.py": (
        "test_input",
        "test_multiprocessing",
        "test_shared_memory_is_capped",
        "test_files_of_the_notebook",
    ),
}
# Files whose tests are each a run of pytest's of its own, in this order, and what the machine does
# after it (payload.Phase).
BOOTS = {
    "tests/vm/test_reboot.py": {
        "test_before_a_reset": "reset",
        "test_after_a_reset": "go on",
        "test_before_a_reboot": "reboot",
        "test_after_a_reboot": "go on",
    },
}
# What runs with `--all` alone, files and single tests: with it the machines take most of an hour.
# Each with what says the same sooner.
LONG = {
    "tests/vm/test_neighbour.py": "tests/integration/test_quotas.py has the caps, which decide",
    "tests/integration/test_zygotes.py": (
        "test_the_limits_are_in_the_files_of_cgroup_v2 has kernels of every way; a zygote is a minute"
    ),
    "tests/conformance/test_confinement.py": (
        "tests/escape/test_attacks.py attacks in a container; the ways to one are told apart on v1"
    ),
    "tests/integration/test_bundles.py": (
        "its bundle is a minute to copy; what it makes is what tests/escape has"
    ),
    "tests/integration/test_removals.py": (
        "what the daemon does again after a pause; every test here removes layers and cgroups"
    ),
    "tests/conformance/test_features.py": "test_shutdown_leaves_nothing runs, a kernel all the same",
    **{
        f"tests/conformance/test_contract.py::{name}": "test_memory_limit_is_the_reason restarts one"
        for name in ("test_life_of_a_process", "test_interrupt_of_a_loop", "test_restart")
    },
    "tests/conformance/test_contract.py::test_memory_limit_is_the_reason[runc]": (
        "[cold], and test_running_out_of_memory_unseen_is_told"
    ),
    "tests/vm/test_service.py::test_nothing_is_left_when_all_has_ended[default-spare]": (
        "[cold-cold]; a zygote is a minute"
    ),
    **{
        f"tests/integration/test_cli.py::{name}": "tests/integration/test_quotas.py has these files"
        for name in ("test_stats_show_all_that_run", "test_pause_freezes_and_unpause_thaws")
    },
    "tests/integration/test_quotas.py::test_a_bomb_is_ended_at_its_cap_again_and_again": (
        "test_a_memory_bomb_dies_alone_and_is_reported_as_out_of_memory"
    ),
    "tests/escape/test_audit.py": "tests/escape/test_attacks.py attacks what its rows are about",
    "tests/escape/test_misconfined.py": (
        "the verifier reads /proc, which is the same; test_device_list.py has what v2 adds to it"
    ),
    "tests/integration/test_crashes.py::"
    "test_a_crash_at_a_step_of_a_start_or_an_end_loses_and_leaves_nothing": (
        "test_crashes_at_random_moments_lose_and_leave_nothing"
    ),
    "tests/integration/test_executors.py::test_a_runtime_that_confines_less_is_caught": (
        "what the verifier reads is the same on v1"
    ),
    "tests/integration/test_faults.py::"
    "test_a_failing_operation_runs_no_user_code_and_leaves_nothing": (
        "test_a_failing_step_is_named_and_leaves_nothing[cgroup] and its like"
    ),
    "tests/integration/test_faults.py::test_mistakes_are_noticed": "about the test's own eyes",
    **{
        f"tests/integration/test_faults.py::{name}": "a fork's failures, or the daemon's policy"
        for name in (
            "test_the_end_of_a_kernel_is_told_although_its_cgroup_cannot_be_removed",
            "test_what_was_found_stays_mended",
            "test_a_fork_that_was_given_up_costs_no_zygote",
            "test_a_fork_that_fails_before_it_is_there_says_why",
        )
    },
    "tests/escape/test_hostile_roots.py::test_a_link_of_the_image_leads_nowhere": (
        "paths inside an image, which no cgroup or init has a part in"
    ),
    **{
        "tests/escape/test_attacks.py::test_without_its_defence_the_attack_succeeds"
        f"[{attack.name}]": "the filter's answers depend on no cgroup, mount or init"
        for attack in filtered.ATTACKS
        if attack.control is not None
    },
    **{
        f"tests/vm/test_reboot.py::{name}": "test_before_a_reset and test_after_a_reset"
        for name in ("test_before_a_reboot", "test_after_a_reboot")
    },
}
# Files of which nothing runs, and single tests of the above; each with its reason.
LEFT_OUT = {
    "tests/vm/test_package.py": "needs a machine that has no daemon yet: `make test-package`",
    "tests/integration/test_executors.py::test_every_attack_is_refused": (
        "tests/conformance/test_confinement.py attacks from a cell, in what runc made, too"
    ),
    "tests/escape/test_hostile_layers.py": "walks of directories, which no cgroup or init has a part in",
    "tests/escape/test_joining.py": (
        "the launcher's own order and descriptors, which no cgroup or init has a part in"
    ),
    "tests/escape/test_host_views.py": "namespaces alone, which are the same on v1",
    "tests/escape/test_surroundings.py::"
    "test_nothing_in_proc_but_masks_and_oneself_can_be_opened_for_writing": (
        "its control writes to /proc/pressure, which the machine's older Linux lets nobody inside"
    ),
    "tests/escape/test_attacks.py::test_after_all_of_them_the_image_is_as_it_was_made": (
        "hashes an image; minutes here"
    ),
    "tests/browser/test_lab.py": "Chromium is not in the machine; the browser sees no cgroup",
    "tests/conformance/test_bridge.py": "relays bytes on loopback; minutes here",
    "tests/conformance/test_environments.py": "needs environments beside the machine's only one",
    "tests/conformance/test_managers.py": "threads and event loops of clients",
    "tests/integration/test_checkup.py": "builds and hashes images; minutes here",
    "tests/conformance/test_clients.py": "clients see the provisioner, not the host; minutes here",
    "tests/conformance/test_fork_hygiene.py": "compares Python processes with each other",
    "tests/conformance/test_jupyter_kernel.py": "the protocol of ipykernel; minutes here",
    "tests/hostile/test_clock.py": "the daemon alone, with a clock of its own",
    "tests/hostile/test_configuration.py": "files of the daemon's, read by the daemon",
    "tests/hostile/test_fuzz.py": "requests and words; minutes here",
    "tests/hostile/test_guided.py": "bytes that are parsed; minutes here",
    "tests/hostile/test_launcher.py": "messages that are refused before the host has a part in it",
    "tests/hostile/test_http.py": "the daemon's HTTP; thousands of connections",
    "tests/hostile/test_paths.py": "names of folders; test_two_users and test_confinement_primitives run",
    "tests/hostile/test_resources.py": "the daemon's answers to full file systems of memory",
    "tests/integration/test_third_party.py": "captest and capsh are not in the machine",
    "tests/integration/test_daemon_power.py": "tests/vm/test_service.py runs the unit itself",
    "tests/integration/test_standing_spares.py": "the daemon's policy",
    "tests/integration/test_masks.py": "what /proc says, in which no cgroup has a part",
    "tests/integration/test_descriptors.py": "1100 descriptors in a client and in the event loop",
    "tests/integration/test_confinement_primitives.py::test_programs_work_confined[node]": (
        "node is not in the machine"
    ),
    "tests/integration/test_confinement_primitives.py::test_programs_work_confined[pip]": (
        "makes a virtual environment; minutes here"
    ),
    "tests/integration/test_zygotes.py::test_caps_hold_in_kernels_that_were_forked": (
        "half of an emulated processor is too little for it to end in time"
    ),
    "tests/integration/test_zygotes.py::test_a_class_starts_while_its_zygote_dies": (
        "a class of starts side by side; minutes here"
    ),
    "tests/integration/test_zygotes.py::test_a_wedged_spare_is_passed_by": "the daemon's policy",
    "tests/integration/test_zygotes.py::test_a_spare_that_dies_is_made_again": (
        "the daemon's policy"
    ),
    "tests/integration/test_zygotes.py::test_without_memory_to_spare_nothing_is_made_ahead": (
        "the daemon's policy"
    ),
    "tests/integration/test_faults.py::"
    "test_an_operation_that_fails_costs_a_daemon_no_start_and_no_removal": "the daemon's policy",
    "tests/integration/test_faults.py::"
    "test_a_failing_operation_runs_no_user_code_and_leaves_nothing[zygote]": "minutes here",
    "tests/escape/test_attacks.py::test_the_attack_is_refused"
    "[connect to an abstract socket of the host's from its network]": (
        "the machine's Linux is older than 6.12, which brought Landlock's scopes"
    ),
    "tests/escape/test_attacks.py::test_what_is_left_of_its_defences_stops_it_alone": (
        "the two others decide; minutes here"
    ),
    "tests/escape/test_attacks.py::"
    "test_without_its_defence_the_attack_succeeds[mount a hierarchy of cgroup v1]": (
        "there is none that a control could mount"
    ),
    "tests/escape/test_attacks.py::"
    "test_without_its_defence_the_attack_succeeds[mount the cgroup hierarchy]": (
        "a control that the machine's older Linux refuses, too: to a mount of cgroup2 it applies "
        "the mode of the launcher's directories, 0700"
    ),
    "tests/escape/test_attacks.py::test_without_its_defence_the_attack_succeeds"
    "[make a file without a name in the image's folders]": (
        "a control that the machine's older Linux refuses, too: its overlayfs answers EOPNOTSUPP"
    ),
    "tests/escape/test_hostile_roots.py::test_links_and_exchanges_change_the_layer_alone": (
        "makes a file without a name, to which the machine's older overlayfs answers EOPNOTSUPP"
    ),
    **{
        f"tests/integration/test_cgroup_real.py::{name}": "about the hierarchies of v1"
        for name in (
            "test_v1_freezer_is_thawed_before_killing",
            "test_kill_reaches_a_process_that_is_only_in_a_v1_hierarchy",
            "test_pure_v1_freezes_and_kills_without_the_v2_tree",
        )
    },
    "tests/integration/test_cgroup_real.py::test_devices_outside_the_list_cannot_be_opened": (
        "of v1's controller; tests/escape/test_device_list.py has v2's"
    ),
    **{
        f"tests/escape/test_misconfined.py::test_a_launcher_that_leaves_it_out_is_found_out[{lack}]": (
            "systemd mounts /dev nosuid, and Linux lets nobody in a sandbox's namespaces take that away"
        )
        for lack in ("nosuid of devices", "nosuid of masks")
    },
    "tests/integration/test_confinement_primitives.py::"
    "test_landlock_keeps_signals_and_abstract_sockets_inside": (
        "the machine's Linux is older than 6.12, which brought Landlock's scopes"
    ),
    "tests/integration/test_confinement_primitives.py::"
    "test_the_filter_costs_next_to_nothing_on_common_calls": (
        "compares times of system calls, which an emulator tells nothing of"
    ),
}


# Two machines run the selection side by side: which files each has. Balanced by measurement
# (--durations=0); a test's own daemon is its own, so nothing but time depends on it.
_SECOND = (
    "tests/vm/test_neighbour.py",
    "tests/integration/test_quotas.py",
    "tests/integration/test_crashes.py",
    "tests/integration/test_two_users.py",
    "tests/integration/test_confinement_primitives.py",
    "tests/escape/test_attacks.py",
    "tests/escape/test_surroundings.py",
    "tests/escape/test_neighbours.py",
    "tests/escape/test_hostile_roots.py",
    "tests/escape/test_misconfined.py",
    "tests/vm/test_reboot.py",
)
MACHINES = {
    "first": tuple(file for file in (*WHOLE, *PARTS, *BOOTS) if file not in _SECOND),
    "second": _SECOND,
}


def arguments(machine: str, *, long: bool = False) -> list[str]:
    """For pytest: what this one of MACHINES runs in its first boot; with what takes long or not."""
    omitted = _omitted(long=long)
    files = [file for file in MACHINES[machine] if file not in omitted]
    whole = [file for file in files if file in WHOLE]
    named = [f"{file}::{name}" for file in files for name in PARTS.get(file, ())]
    parts = [name for name in named if name not in omitted]
    taken = {*whole, *parts}
    left_out = [
        name for name in omitted if {name.partition("::")[0], name.partition("[")[0]} & taken
    ]
    return [*whole, *parts, *(f"--deselect={name}" for name in left_out)]


def between_boots(files: Collection[str], *, long: bool = False) -> Iterator[tuple[str, str]]:
    """Each test of these files of BOOTS, and what the machine does after it."""
    omitted = _omitted(long=long)
    for file, tests in BOOTS.items():
        if file in files:
            for name, then in tests.items():
                if f"{file}::{name}" not in omitted:
                    yield f"{file}::{name}", then


def _omitted(*, long: bool) -> Collection[str]:
    return LEFT_OUT if long else {**LEFT_OUT, **LONG}
