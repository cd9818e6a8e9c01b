"""The catalogue's sections: what is attacked, and where what is not in it is shown. Data.

The letters are those of the threat model: A the runtime's own program and descriptors, B mounts, C
/proc and devices, D cgroups, E ids and capabilities, F system calls, G sockets and channels between
sandboxes, H storage, J zygotes, K the daemon's API, L exhaustion.
"""

from __future__ import annotations

__all__ = ["SECTIONS"]

# (section, what it is about, where else it is shown or why it is not)
SECTIONS = (
    ("A1", "Overwriting the runtime's program (CVE-2019-5736)",
     "`test_root_inside_cannot_overwrite_the_interpreter` attacks as inside root, with its control on a"
     " copy of Python. What runs inside is the image's interpreter, never the daemon's."),
    ("A2", "A working directory outside of the root (CVE-2024-21626)",
     "`test_only_the_declared_descriptors_are_open`: there is no directory to work in."),
    ("A3", "Descriptors that were left open", "`test_only_the_declared_descriptors_are_open`"),
    ("A4", "Looking into pid 1, which once was the launcher (CVE-2016-9962)", ""),
    ("A5", "Entering a hostile container (exec)",
     "`test_an_exec_is_as_confined_as_the_kernel`: joins every namespace and drops everything before a"
     " program of the image runs; nothing is looked up in the image's files before."),
    ("A6", "Variables of the daemon or the server",
     "`test_environment_is_the_allow_list`, `test_environment_of_the_server_stays_outside`"),
    ("B1", "Mounts that a link moves (CVE-2021-30465 and later)",
     "`test_a_link_in_the_layer_cannot_move_a_mount`, `test_a_folder_that_becomes_a_link_never_leads_away`"
     " (swapped while sandboxes start)"),
    ("B2", "Devices made through a link at /dev (CVE-2026-41579)",
     "`test_a_link_of_the_image_leads_nowhere`: every mount point is resolved below the new root,"
     " through no link, and before runc is run. Control: `test_without_the_check_runc_follows_a_link_at_dev`"
     " (runc 1.1.5 makes links on the host, and removes a `ptmx` there)."),
    ("B3", "Masks that are unmounted, or made of another file (CVE-2025-31133)",
     "`test_masked_files_are_empty_and_are_not_without_the_mask`; devices are cloned from the host's /dev"
     " and compared with their numbers, the image's are not used: `test_what_the_image_has_in_dev_and_proc_is_covered`,"
     " with runc, too."),
    ("B4", "A console that is a link (CVE-2025-52565)",
     "There is no console: output is a pipe, `test_what_the_image_has_in_dev_and_proc_is_covered`."
     " `test_a_terminal_is_the_containers_own` for bundles."),
    ("B5", "Writing labels and sysctls through a changed /proc (CVE-2025-52881)",
     "Nothing is written to the container's /proc: maps and cgroups are the host's files. A /proc that is"
     " a link is refused: `test_a_link_of_the_image_leads_nowhere`."),
    ("B6", "Files made on the host through a volume's target (CVE-2024-45310)",
     "`test_a_link_in_the_layer_cannot_move_a_mount`"),
    ("B7", "Mounting, and getting back to the old root",
     "`test_nothing_of_the_host_is_in_the_mount_table`, `test_a_host_whose_mounts_propagate_hands_none_of_them_in`"),
    ("B8", "Files by their handles, namespaces by their files", ""),
    ("B9", "Clearing flags of mounts", ""),
    ("C1", "What /proc and /sys tell of the host",
     "`test_masked_files_are_empty_and_are_not_without_the_mask`. /sys is not mounted at all."),
    ("C2", "Writing to /proc",
     "`test_no_sysctl_can_be_opened_for_writing`,"
     " `test_sysctls_of_the_own_namespaces_could_be_written_without_the_read_only_paths` (control)"),
    ("C3", "Core files", "`test_a_crash_leaves_no_core`"),
    ("C4", "Devices",
     "`test_the_device_directory_holds_what_it_should_and_nothing_can_be_added`,"
     " `test_devices_outside_the_list_cannot_be_opened` (device cgroup, v1),"
     " `test_only_devices_of_the_list_can_be_opened` (v2, a BPF program; control without it)."),
    ("C5", "Terminals", ""),
    ("C6", "Processes of others in /proc", "`test_only_own_processes_are_visible`"),
    ("D1", "A release agent (CVE-2022-0492)", ""),
    ("D2", "Leaving the cgroup", "`test_every_hierarchy_holds_the_process`"),
    ("D3", "Raising a limit",
     "No cgroup file is reachable (D1, D2); `test_the_cgroup_directory_that_a_zygote_is_given_leads_nowhere`"),
    ("D4", "Processes outside the cgroup",
     "`test_fork_bomb_stops_at_the_limit_and_dies_with_the_cgroup`,"
     " `test_background_process_ends_with_the_kernel`"),
    ("D5", "Devices by the cgroup",
     "`test_devices_outside_the_list_cannot_be_opened` (v1),"
     " `test_not_even_root_of_the_host_opens_or_makes_another` (v2)"),
    ("E1", "Capabilities",
     "`test_every_set_is_empty_after_drop_all_even_after_exec_as_uid_0`,"
     " `test_a_set_user_id_program_in_the_layer_gains_nothing`"),
    ("E2", "Ids and namespaces of others",
     "`test_the_users_ids_do_not_overlap`, `test_what_runc_made_is_what_the_spec_says`"),
    ("E3", "Group permissions that exclude (CVE-2014-8989)",
     "setgroups is denied in every container, and outside verification demands that there are no"
     " supplementary groups: `test_a_runtime_that_confines_less_is_caught` (credentials-groups)."),
    ("E4", "Namespaces within", "`test_clone_makes_no_namespace`"),
    ("E5", "Keyrings", "`test_a_forked_kernel_has_one_keyring_which_its_zygotes_uid_pays_for`"),
    ("E6", "Other processes: memory, descriptors, signals",
     "`test_landlock_keeps_signals_and_abstract_sockets_inside`,"
     " `test_on_the_host_the_others_processes_and_files_are_out_of_reach`"),
    ("E7", "Process attributes", ""),
    ("E8", "Names and time of the host", ""),
    ("F1", "System calls that a notebook does not need",
     "`test_forbidden_calls_answer_as_the_profile_says` calls every one of them."),
    ("F2", "The 32-bit and x32 tables", "`test_the_32_bit_gate_kills_and_x32_does_not_exist`"),
    ("F3", "System calls that do not exist yet",
     "ENOSYS: tests/unit/test_seccomp.py asks the program for every number."),
    ("F4", "Writing to the page cache of shared files (Dirty Pipe, Copy Fail and relatives)",
     "`test_tcp_ulp_is_refused_before_linux_sees_it`; `test_a_byte_of_an_image_is_found_and_the_image_made_again`"
     " finds a file of an image that was changed all the same."),
    ("F5", "File systems and filters in a namespace of one's own",
     "E4 and B7: there is no such namespace, and no file system can be made even with capabilities."),
    ("F6", "Threads without the filter", "`test_every_thread_has_the_filter`"),
    ("G1", "Abstract sockets", "`test_the_hosts_sockets_are_out_of_reach`"),
    ("G2", "Sockets in the file system",
     "`test_the_sockets_of_a_kernel_let_only_their_owner_connect`; inside there is none but what the"
     " notebook makes."),
    ("G3", "Names that a sandbox chooses and the host follows",
     "The daemon binds a kernel's sockets itself and passes them as descriptors: there is no name that"
     " a sandbox could replace. `test_any_name_is_mounted_as_it_is` for work folders."),
    ("G4", "Descriptors that are sent along", "`test_descriptors_that_are_sent_along_are_not_kept`"),
    ("G5", "System V and POSIX objects",
     "`test_a_sibling_finds_nothing_of_an_earlier_one`"),
    ("G6", "Locks and watches on files of the image",
     "`test_locks_and_watches_of_the_image_stay_with_their_user`: each user's overlay has its own inodes"
     " (control: two sandboxes of one user); `test_the_runtimes_own_files_tell_nothing_of_others`. Folders"
     " of the host that several users see have the host's inodes: flock, fcntl locks and inotify cross"
     " (`test_locks_and_watches_of_a_shared_folder_cross`), leases and dnotify would without the filter"
     " (`test_leases_and_notices_of_a_shared_folder_would_cross`)."),
    ("G7", "The network",
     "`test_the_hosts_sockets_are_out_of_reach`. There is no interface but the loopback, so nothing else"
     " can be reached or forged."),
    ("G8", "The hypervisor's sockets", "Only made, never connected: this is not namespaced by Linux."),
    ("H1", "Hostile layers",
     "Images are built from the host's packages only; there is no import and no registry yet."),
    ("H2", "Whiteouts", "The same."),
    ("H3", "Marks of the overlay", ""),
    ("H4", "Set-user-id files in the layer", "`test_setuid_bits_cannot_be_set`"),
    ("H5", "Links and clones across layers",
     "`test_links_and_exchanges_change_the_layer_alone`: with every capability inside and no filter, what"
     " they change is a copy in the layer. No other user's layer is mounted, so none can be named."),
    ("H6", "Host programs that walk a layer", "`test_a_hostile_layer_is_told_and_removed_and_leads_nowhere`: links, pipes, sockets, marks,"
     " names, depth and width, while directories and links change places, through the daemon's diff, disk"
     " usage and reset. `test_a_link_is_followed_only_without_both_defences` has the controls,"
     " `test_a_directory_that_becomes_a_link_once_it_was_seen_is_not_entered` the exchange at the one"
     " moment that counts. What is held in memory is bounded: `test_a_comparison_reads_no_more_names_than_it_may`,"
     " `test_a_removal_reads_a_few_names_at_a_time_and_leaves_none`."),
    ("H7", "Changing the image", ""),
    ("H8", "Words of an image that are executed", "`test_a_hostile_image_name_is_refused`"),
    ("J1", "Random state of siblings", "`test_siblings_share_no_random_state`"),
    ("J2", "Secrets of others in one's memory",
     "`test_a_sibling_finds_nothing_of_an_earlier_one`, `test_a_zygote_has_no_power_and_is_out_of_reach`"),
    ("J3", "The zygote from its children", "`test_a_zygote_has_no_power_and_is_out_of_reach`"),
    ("J4", "Threads and descriptors at the fork", "`test_a_zygote_has_no_power_and_is_out_of_reach`"),
    ("J5", "Libraries after the fork", "`test_threads_of_blas_are_the_kernels_own`, `test_numpy`"),
    ("J6", "One layout of memory for a generation", "Not promised: docs/security.md."),
    ("J7", "A forked kernel is confined as a fresh one", "`test_every_attack_is_refused_from_a_cell`"),
    ("J8", "Killed at any point",
     "`test_a_crash_at_a_step_of_a_start_or_an_end_loses_and_leaves_nothing`,"
     " `test_a_class_starts_while_its_zygote_dies`"),
    ("K1", "Who calls", "`test_a_subordinate_id_is_no_user`, `test_over_the_api_the_others_kernel_does_not_exist`"),
    ("K2", "Hostile requests", "[Hostile input](security.md#hostile-input)"),
    ("K3", "Another user's sandboxes", "`test_over_the_api_the_others_kernel_does_not_exist`"),
    ("K4", "Paths of requests", "`test_what_is_no_folder_of_the_callers_is_refused`"),
    ("K5", "Clients that leave", "`test_a_client_that_leaves_while_its_kernel_starts_leaves_nothing`"),
    ("L", "Exhaustion",
     "`test_a_memory_bomb_dies_alone_and_is_reported_as_out_of_memory`, `test_a_fork_bomb_stops_at_the_cap`,"
     " `test_tmp_and_shm_are_bounded`, `test_folders_as_deep_as_one_likes_can_be_removed`, `test_logs_are_bounded_without_a_reader`; terminals: C5. The disk"
     " space of layers is not capped yet."),
)  # fmt: skip
