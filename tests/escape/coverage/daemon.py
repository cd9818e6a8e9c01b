"""J to L: zygotes, the daemon's API, exhaustion. Data."""

from __future__ import annotations

from tests.escape.coverage.model import Claim, Section

__all__ = ["SECTIONS"]

SECTIONS = (
    Section("J1", "Random state of siblings", (
        Claim("They draw different numbers, names and keys", shown="`test_siblings_share_no_random_state`"),
    )),
    Section("J2", "Secrets of others in one's memory", (
        Claim("Nothing of a sibling's", shown="`test_a_sibling_finds_nothing_of_an_earlier_one`"),
        Claim("Nothing of the daemon's", shown="`test_the_layout_of_memory_is_a_zygotes_own`", reason=
              "A zygote is a program of the image that was executed; of the launcher only its pid 1 is a copy, into which"
              " nobody looks (A4)."),
    )),
    Section("J3", "The zygote from its children", (
        Claim("It is not seen, and has no power", shown="`test_a_zygote_has_no_power_and_is_out_of_reach`"),
        Claim("It can be neither stopped nor robbed of its descriptors",
              shown="`test_a_fork_can_neither_stop_nor_exhaust_its_zygote`"),
        Claim("One that stops all the same costs a cold start", shown="`test_a_wedged_zygote_is_passed_by_and_replaced`"),
    )),
    Section("J4", "Threads and descriptors at the fork", (
        Claim("One thread, pipes and sockets of its own", shown="`test_a_zygote_has_no_power_and_is_out_of_reach`"),
    )),
    Section("J5", "Libraries after the fork", (
        Claim("They work", shown="`test_threads_of_blas_are_the_kernels_own`, `test_numpy`, and all conformance tests on both"
              " paths"),
    )),
    Section("J6", "One layout of memory for a generation", (
        Claim("It is neither the daemon's nor the next zygote's", shown="`test_the_layout_of_memory_is_a_zygotes_own`"),
        Claim("Siblings have one", reason="Not promised: a zygote for each user, or none, is the means (docs/security.md)."),
    )),
    Section("J7", "A forked kernel is confined as a fresh one", (
        Claim("Every attack is refused from its cells", shown="`test_every_attack_is_refused_from_a_cell`"),
        Claim("It looks the same from inside", shown="`test_a_forked_kernel_is_like_a_fresh_one`"),
    )),
    Section("J8", "Killed at any point", (
        Claim("Nothing is lost or left", shown="`test_a_crash_at_a_step_of_a_start_or_an_end_loses_and_leaves_nothing`,"
              " `test_a_class_starts_while_its_zygote_dies`"),
    )),
    Section("K1", "Who calls", (
        Claim("The uid of the connection decides", shown="`test_over_the_api_the_others_kernel_does_not_exist`"),
        Claim("In a user namespace of one's own, too, mapped or not", shown="`test_a_user_namespace_of_ones_own_makes_nobody_root`"),
        Claim("A connection stays its maker's", shown="`test_a_connection_that_is_handed_on_stays_its_makers`"),
        Claim("Subordinate ids are nobody", shown="`test_a_subordinate_id_is_no_user`"),
        Claim("A pid that is used again is nobody else", reason="No decision is made by a client's pid."),
    )),
    Section("K2", "Hostile requests", (
        Claim("They neither leak nor stop the daemon, nor keep others out", shown="[Hostile input](security.md#hostile-input)"),
    )),
    Section("K3", "Another user's sandboxes", (
        Claim("They do not exist", shown="`test_over_the_api_the_others_kernel_does_not_exist`,"
              " `test_lists_events_and_layers_show_only_ones_own`"),
        Claim("Nor do their files on the host", shown="`test_on_the_host_the_others_processes_and_files_are_out_of_reach`"),
    )),
    Section("K4", "Paths of requests", (
        Claim("They are opened with the caller's rights", shown="`test_what_is_no_folder_of_the_callers_is_refused`,"
              " `test_a_user_cannot_mount_what_that_user_cannot_read`"),
    )),
    Section("K5", "Clients that leave", (
        Claim("They leave nothing", shown="`test_a_client_that_leaves_while_its_kernel_starts_leaves_nothing`"),
    )),
    Section("L", "Exhaustion", (
        Claim("Memory and swap", shown="`test_a_memory_bomb_dies_alone_and_is_reported_as_out_of_memory`,"
              " `test_swap_does_not_stretch_the_limit`"),
        Claim("Processes", shown="`test_a_fork_bomb_stops_at_the_cap`"),
        Claim("Processors", shown="`test_a_cpu_burn_on_four_threads_gets_its_quota_and_no_more`"),
        Claim("/tmp, /dev/shm and their inodes", shown="`test_tmp_and_shm_are_bounded`"),
        Claim("Depth of directories", shown="`test_folders_as_deep_as_one_likes_can_be_removed`; H6"),
        Claim("Terminals", shown="C5"),
        Claim("Logs", shown="`test_logs_are_bounded_without_a_reader`"),
        Claim("Zombies, pipes, sockets, signals, watches, mappings, keyrings, the page cache",
              shown="[Noisy neighbours](security.md#noisy-neighbours)"),
        Claim("Room on the disk", shown="`test_a_full_disk_ends_nothing_and_keeps_nothing`",
              reason="The disk space of layers is not capped yet."),
        Claim("The start's own protocol", shown="`test_no_guest_holds_up_or_fills_the_daemon`"),
    )),
)  # fmt: skip
