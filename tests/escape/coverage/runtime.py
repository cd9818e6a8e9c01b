"""A to E: the runtime's program, mounts, /proc and devices, cgroups, ids and capabilities. Data."""

from __future__ import annotations

from tests.escape.coverage.model import Claim, Section

__all__ = ["SECTIONS"]

SECTIONS = (
    Section("A1", "Overwriting the runtime's program (CVE-2019-5736)", (
        Claim("The interpreter that runs cannot be written", ("write to the interpreter",)),
        Claim("A container whose program is /proc/self/exe does not write the runtime's",
              shown="`test_root_inside_cannot_overwrite_the_interpreter`, as inside root, on a copy of Python"),
        Claim("What runs inside is of the image, never the daemon's",
              ("run as a program that is not the image's",), "`test_the_layout_of_memory_is_a_zygotes_own`"),
    )),
    Section("A2", "A working directory outside of the root (CVE-2024-21626)", (
        Claim("A descriptor's number is no working directory", shown=
              "`test_no_descriptor_is_a_directory_to_work_in`, `test_a_directory_of_the_launchers_is_none_to_work_in`"
              " (three defences, taken away one by one), `test_a_bundle_cannot_start_in_a_directory_that_it_was_handed`"
              " (OCI command line)"),
        Claim("The working directory is below the root", ("work outside of the root",)),
        Claim("No directory's descriptor leads out of the root", shown="`test_only_the_declared_descriptors_are_open`",
              reason="There is none to begin at."),
    )),
    Section("A3", "Descriptors that were left open", (
        Claim("A descriptor that was left open is closed", ("use a descriptor of the launcher's",)),
        Claim("A program has the declared ones, and what it starts has no other",
              shown="`test_only_the_declared_descriptors_are_open`, `test_a_forked_kernel_is_like_a_fresh_one`"),
    )),
    Section("A4", "Looking into a process that once was the launcher (CVE-2016-9962)", (
        Claim("Pid 1 cannot be looked into", ("look at pid 1's *",)),
        Claim("Nor can a process that enters, while it sets itself up",
              shown="`test_a_process_that_enters_cannot_be_looked_into`, halted after a step, without the filter"),
        Claim("Nor pid 1 while it is set up", reason=
              "Until its set-up has ended no other process is in its PID namespace."),
    )),
    Section("A5", "Entering a hostile container (exec)", (
        Claim("Who enters joins every namespace and has dropped everything when a program runs",
              shown="`test_an_exec_is_as_confined_as_the_kernel`"),
        Claim("Until then it reads no file of the image: no user's name, no library, no module",
              shown="`test_a_process_that_enters_reads_no_file_of_the_image`"),
        Claim("A process inside gets nothing of it", shown="`test_a_process_that_enters_cannot_be_looked_into`"),
    )),
    Section("A6", "Variables of the daemon or the server", (
        Claim("Only declared variables are in the environment",
              shown="`test_environment_is_the_allow_list`, `test_environment_of_the_server_stays_outside`"),
        Claim("Pid 1's cannot be read", shown="A4, look at pid 1's environment"),
    )),
    Section("B1", "Mounts that a link moves (CVE-2021-30465 and later)", (
        Claim("A link in a layer or an image moves no mount",
              shown="`test_a_link_in_the_layer_cannot_move_a_mount`, `test_a_link_of_the_image_leads_nowhere`"),
        Claim("Nor does one that is put there while sandboxes start",
              shown="`test_a_folder_that_becomes_a_link_never_leads_away`"),
        Claim("Nobody inside can write to the image's folders", ("write to the image's programs",)),
    )),
    Section("B2", "Devices made through a link at /dev (CVE-2026-41579)", (
        Claim("No node and no link is made outside",
              shown="`test_a_link_of_the_image_leads_nowhere`: every mount point is resolved below the new root,"
              " through no link, and before runc is run. Control: `test_without_the_check_runc_follows_a_link_at_dev`"
              " (runc 1.1.5 makes links on the host, and removes a `ptmx` there)"),
    )),
    Section("B3", "Masks that are unmounted, or made of another file (CVE-2025-31133)", (
        Claim("A mask stays", ("unmount a mask",), "`test_masked_files_are_empty_and_are_not_without_the_mask`"),
        Claim("It is made of the host's null device, by its numbers",
              shown="`test_what_the_image_has_in_dev_and_proc_is_covered`, with runc, too;"
              " `test_a_launcher_that_leaves_it_out_is_found_out` (masks of something else)"),
    )),
    Section("B4", "A console that is a link (CVE-2025-52565)", (
        Claim("Nothing is bound to a console of the image",
              shown="`test_what_the_image_has_in_dev_and_proc_is_covered`; `test_a_terminal_is_the_containers_own`"
              " for bundles", reason="A kernel has no console: its output is a pipe."),
    )),
    Section("B5", "Writing labels and sysctls through a changed /proc (CVE-2025-52881)", (
        Claim("A /proc that is a link is refused", shown="`test_a_link_of_the_image_leads_nowhere`"),
        Claim("Nothing is written to the container's /proc",
              reason="Maps and cgroups are written through the host's files, before."),
    )),
    Section("B6", "Files made on the host through a volume's target (CVE-2024-45310)", (
        Claim("A mount point is made inside or not at all", shown="`test_a_link_in_the_layer_cannot_move_a_mount`"),
    )),
    Section("B7", "Mounting, and getting back to the old root", (
        Claim("No path of the host is in the mount table", ("find a file of the host's",),
              "`test_nothing_of_the_host_is_in_the_mount_table`"),
        Claim("Nothing can be mounted, moved or made", ("mount *", "move a mount", "make a file system", "make an overlay")),
        Claim("The root can be neither cloned nor configured anew",
              ("clone the mount of the root", "pick the file system of the root")),
        Claim("The root cannot be changed", ("change the root", "chroot", "climb out of the root by chroot")),
        Claim("Mounts of the host do not appear inside, nor the other way round",
              shown="`test_a_host_whose_mounts_propagate_hands_none_of_them_in`,"
              " `test_a_runtime_that_confines_less_is_caught` (mounts-propagating)"),
        Claim("Mounts of other namespaces cannot be listed", shown="F1, list mounts by namespace"),
    )),
    Section("B8", "Files by their handles, namespaces by their files", (
        Claim("No file is opened by its handle", ("open a file by its handle",)),
        Claim("No namespace is entered", ("enter a namespace again",)),
        Claim("The links of /proc lead to the own root", ("climb by the links of /proc",)),
    )),
    Section("B9", "Clearing flags of mounts", (
        Claim("Flags stay", ("make /proc/sys writable", "clear *")),
        Claim("Each mount has them from the start", shown="`test_a_launcher_that_leaves_it_out_is_found_out`"),
    )),
    Section("C1", "What /proc and /sys tell of the host", (
        Claim("What is masked is empty", ("read the host's interrupts", "list System V objects by /proc"),
              "`test_masked_files_are_empty_and_are_not_without_the_mask`"),
        Claim("/sys tells nothing", shown="`test_nothing_of_the_host_is_in_the_mount_table`", reason="It is not mounted."),
        Claim("What of /proc can be read all the same is known", shown="[audit.md](audit.md)"),
    )),
    Section("C2", "Writing to /proc", (
        Claim("No sysctl is writable", ("open the pattern of core files",), "`test_no_sysctl_can_be_opened_for_writing`,"
              " `test_sysctls_of_the_own_namespaces_could_be_written_without_the_read_only_paths` (control)"),
        Claim("Nothing else of /proc is, but for a process's own files", ("open a trigger of Linux",),
              "`test_nothing_in_proc_but_masks_and_oneself_can_be_opened_for_writing`"),
        Claim("Linux watches the host's pressure for nobody", ("have Linux watch *",)),
        Claim("/sys is not writable", shown="C1", reason="It is not mounted."),
    )),
    Section("C3", "Core files", (
        Claim("A crash leaves no core", shown="`test_a_crash_leaves_no_core`"),
    )),
    Section("C4", "Devices", (
        Claim("/dev holds what it should", shown=
              "`test_the_device_directory_holds_what_it_should_and_nothing_can_be_added`"),
        Claim("No node can be made", ("make a device node",), "H5, leave a device node by a rename"),
        Claim("One that is in a layer cannot be opened", ("open a device node of the layer",),
              "`test_a_device_node_in_the_layer_cannot_be_opened`"),
        Claim("Nor would it without nodev", shown="`test_devices_outside_the_list_cannot_be_opened` (v1),"
              " `test_only_devices_of_the_list_can_be_opened` (v2, a BPF program; control without it)"),
    )),
    Section("C5", "Terminals", (
        Claim("There are not too many", ("take more terminals *",)),
        Claim("Nobody types into one", ("push input to a terminal", "change a terminal's line discipline"),
              "`test_a_terminal_cannot_be_typed_into`"),
        Claim("None of the host's is held", shown="`test_only_the_declared_descriptors_are_open`"),
    )),
    Section("C6", "Processes of others in /proc", (
        Claim("Only own processes are there", shown="`test_only_own_processes_are_visible`. Control: those of E6 whose"
              " victim is in the sandbox's PID namespace see it"),
        Claim("Files about mounts, disks and memory of the host are known", shown="[audit.md](audit.md)"),
    )),
    Section("D1", "A release agent (CVE-2022-0492)", (
        Claim("No hierarchy can be mounted", ("mount the cgroup hierarchy", "mount a hierarchy of cgroup v1")),
        Claim("No release agent is there to be written", shown="D2, find a cgroup file"),
    )),
    Section("D2", "Leaving the cgroup", (
        Claim("Its place in the tree is not seen", ("see its place in the cgroup tree",)),
        Claim("There is no file to leave by", ("find a cgroup file",)),
        Claim("It is in its cgroup in every hierarchy", shown="`test_every_hierarchy_holds_the_process`"),
    )),
    Section("D3", "Raising a limit", (
        Claim("No limit is writable", shown="D2; `test_the_cgroup_directory_that_a_zygote_is_given_leads_nowhere`"),
        Claim("Who enters has the same limits", shown="`test_an_exec_is_as_confined_as_the_kernel` (every line of cgroup)"),
    )),
    Section("D4", "Processes outside the cgroup", (
        Claim("All are in it, from the first", shown="`test_fork_bomb_stops_at_the_limit_and_dies_with_the_cgroup`"),
        Claim("All end with it", shown="`test_background_process_ends_with_the_kernel`"),
    )),
    Section("D5", "Devices by the cgroup", (
        Claim("What is not listed is refused", shown="`test_devices_outside_the_list_cannot_be_opened` (v1),"
              " `test_not_even_root_of_the_host_opens_or_makes_another` (v2)"),
    )),
    Section("E1", "Capabilities", (
        Claim("There is none, and none can be taken", ("hold a capability", "take a capability", "unlock the secure bits"),
              "`test_every_set_is_empty_after_drop_all_even_after_exec_as_uid_0`"),
        Claim("None by a set-user-id program", ("gain an id by a set-user-id program",),
              "`test_a_set_user_id_program_in_the_layer_gains_nothing`"),
        Claim("None by the capabilities of a file", ("gain a capability by a program's file capabilities",),
              "`test_a_programs_capabilities_in_the_work_folder_are_passed_over`"),
    )),
    Section("E2", "Ids and namespaces of others", (
        Claim("Each namespace is its own", shown="`test_a_launcher_that_leaves_it_out_is_found_out`,"
              " `test_a_runtime_that_confines_less_is_caught` (namespaces), `test_what_runc_made_is_what_the_spec_says`"),
        Claim("Ids of the host and of other users are not mapped", shown="`test_the_users_ids_do_not_overlap`"),
        Claim("The map stays", ("write another map of ids",)),
        Claim("No other id is taken or given", ("setuid *", "setgid *", "give a file away")),
    )),
    Section("E3", "Group permissions that exclude (CVE-2014-8989)", (
        Claim("No group can be shed", ("shed a group that excludes",), reason=
              "In our own containers setgroups is denied; in runc's it is not, and the missing capability stands alone."),
        Claim("There are no supplementary groups", shown="`test_a_launcher_that_leaves_it_out_is_found_out`;"
              " `test_a_runtime_that_confines_less_is_caught` (credentials-groups: runc can be told to give some, and"
              " only outside verification finds it)"),
    )),
    Section("E4", "Namespaces within", (
        Claim("None can be made", ("unshare the *", "clone into a *", "clone3", "make a user namespace"),
              "`test_clone_makes_no_namespace`"),
        Claim("A second layer for user namespaces", reason=
              "There is none: they need no capability, and the filter alone refuses them (`user.max_user_namespaces`"
              " is not lowered)."),
    )),
    Section("E5", "Keyrings", (
        Claim("The launcher's keys are not there", ("find a key of the launcher's",)),
        Claim("No key is made or asked for", ("keyctl", "add a key", "join a keyring by its name")),
        Claim("Two sandboxes share no keyring",
              shown="`test_a_forked_kernel_has_one_keyring_which_its_zygotes_uid_pays_for`"),
    )),
    Section("E6", "Other processes: memory, descriptors, signals", (
        Claim("No process is traced, read, written or robbed of a descriptor",
              ("ptrace a child", "have oneself traced", "read another *", "write another *", "take a descriptor *",
               "compare kernel objects", "advise another *")),
        Claim("No process of the host's is signalled, by its pid or by kill(-1)",
              shown="`test_a_process_of_the_hosts_cannot_be_signalled` (control: a victim in the sandbox's PID namespace,"
              " without Landlock), `test_landlock_keeps_signals_and_abstract_sockets_inside`"),
        Claim("Nor do other users of the host reach a sandbox's",
              shown="`test_on_the_host_the_others_processes_and_files_are_out_of_reach`"),
    )),
    Section("E7", "Process attributes", (
        Claim("The layout of memory stays unpredictable, and data no code", ("personality *",)),
        Claim("System calls go to Linux", ("dispatch system calls to user space",)),
        Claim("Options of prctl that move a process's memory are refused", shown="`test_prctl`"),
    )),
    Section("E8", "Names and time of the host", (
        Claim("Names stay", ("set the host name", "set the domain name")),
        Claim("So does the time", shown="F1, change the clock; E4, unshare the time namespace"),
    )),
)  # fmt: skip
