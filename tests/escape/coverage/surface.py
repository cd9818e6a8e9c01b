"""F to H: system calls, sockets and channels between sandboxes, storage. Data."""

from __future__ import annotations

from tests.escape.coverage.model import Claim, Section

__all__ = ["SECTIONS"]

SECTIONS = (
    Section("F1", "System calls that a notebook does not need", (
        Claim("Every number gets the answer of its list", shown="`test_every_number_gets_the_answer_of_its_list`, of"
              " the program; `test_linux_judges_as_the_simulator_says`, of Linux; 31 calls for real, with their control:"
              " `test_forbidden_calls_answer_as_the_profile_says`"),
        Claim("Those that have been ways out of sandboxes",
              ("io_uring", "userfaultfd", "measure *", "load *", "get a file's handle", "watch the file system",
               "openat2, *", "list *", "read segment descriptors", "memory that *")),
        Claim("Those that tell or move what others share", ("ask *", "set the policy *", "move pages *", "change the clock")),
    )),
    Section("F2", "The 32-bit and x32 tables", (
        Claim("Both are closed", ("a system call of the 32-bit table",), "`test_the_32_bit_gate_kills_and_x32_does_not_exist`"),
    )),
    Section("F3", "System calls that do not exist yet", (
        Claim("They do not exist inside either, and libc falls back", shown="`test_every_number_gets_the_answer_of_its_list`;"
              " E4, clone3"),
    )),
    Section("F4", "Writing to the page cache of shared files (Dirty Pipe, Copy Fail and relatives)", (
        Claim("Pages of files get into no pipe and no socket", ("splice *", "vmsplice *", "tee *")),
        Claim("There are sockets of few families and protocols", ("*socket*",)),
        Claim("No protocol is put on top of TCP or UDP", ("an upper layer protocol *", "encapsulation in UDP"),
              "`test_tcp_ulp_is_refused_before_linux_sees_it`"),
        Claim("No capability over the own network", shown="G7"),
        Claim("The image is what it was after all attacks", shown="`test_after_all_of_them_the_image_is_as_it_was_made`;"
              " `test_a_byte_of_an_image_is_found_and_the_image_made_again` (control)"),
    )),
    Section("F5", "File systems and filters in a namespace of one's own", (
        Claim("There is no such namespace, and no file system can be made even with capabilities", shown="E4, B7"),
    )),
    Section("F6", "Threads without the filter", (
        Claim("Every thread has it", shown="`test_every_thread_has_the_filter`"),
    )),
    Section("G1", "Abstract sockets", (
        Claim("The host's are out of reach", ("connect to an abstract socket of the host's",), "`test_the_hosts_sockets_are_out_of_reach`"),
        Claim("Also from the host's network", ("connect to an abstract socket of the host's from its network",)),
    )),
    Section("G2", "Sockets in the file system", (
        Claim("None of the host's is found, in no folder and by no name", shown="`test_no_socket_of_the_hosts_is_found`",
              reason="One in the work folder can be connected to (that is the control): the folder is the user's own,"
              " and what is hidden in a home is covered."),
        Claim("Only its owner connects to a kernel's", shown="`test_the_sockets_of_a_kernel_let_only_their_owner_connect`"),
    )),
    Section("G3", "Names that a sandbox chooses and the host follows", (
        Claim("No socket or file of a kernel's can be exchanged", reason=
              "The daemon binds its sockets itself and passes them as descriptors, and the kernel's own process writes the"
              " connection file: there is no name that a sandbox could replace."),
        Claim("Names of work folders", shown="`test_any_name_is_mounted_as_it_is`"),
        Claim("Names in a layer", shown="H6"),
    )),
    Section("G4", "Descriptors that are sent along", (
        Claim("The daemon keeps none of a client's", shown="`test_descriptors_that_are_sent_along_are_not_kept`"),
        Claim("Nor of a guest's, nor the launcher", shown="`test_no_guest_holds_up_or_fills_the_daemon`,"
              " `test_no_message_ends_the_launcher_or_leaves_a_descriptor`"),
        Claim("No socket joins two sandboxes", shown="`test_only_the_declared_descriptors_are_open`"),
    )),
    Section("G5", "System V and POSIX objects", (
        Claim("The host's are not there", ("open System V shared memory of the host's",)),
        Claim("Nor another sandbox's, of the same user: memory, queues, semaphores, files, sockets, ports",
              shown="`test_what_one_sandbox_makes_another_of_its_user_does_not_find`"),
    )),
    Section("G6", "Locks and watches on files of the image", (
        Claim("They stay with their user", shown=
              "`test_locks_and_watches_of_the_image_stay_with_their_user`: each user's overlay has its own inodes"
              " (control: two sandboxes of one user); `test_the_runtimes_own_files_tell_nothing_of_others`"),
        Claim("What is felt by everybody who has a file open is refused", ("take a lease on a file", "be told of *"),
              "`test_leases_and_notices_of_a_shared_folder_would_cross`"),
        Claim("Folders of the host that several users see", shown="`test_locks_and_watches_of_a_shared_folder_cross`",
              reason="They have the host's inodes: flock, fcntl locks and inotify cross, as they do outside."),
    )),
    Section("G7", "The network", (
        Claim("The host's loopback is another one", ("connect to a port of the host's loopback",), "`test_the_hosts_sockets_are_out_of_reach`"),
        Claim("There is nothing but the own loopback to reach or to forge", reason=
              "No other interface is in the namespace: no neighbour, no metadata service, no resolver."),
        Claim("The own network cannot be set up otherwise", ("bring *", "give an interface *", "listen on *")),
    )),
    Section("G8", "The hypervisor's sockets", (
        Claim("None can be made", ("an AF_VSOCK socket",), reason="Only made, never connected: Linux has no namespace for them."),
    )),
    Section("H1", "Hostile layers", (
        Claim("Nothing is unpacked", reason="Images are built from the host's packages only; there is no import and no registry yet."),
    )),
    Section("H2", "Whiteouts", (
        Claim("Those of archives", reason="Nothing is unpacked (H1)."),
        Claim("A user's own files with such names are files", shown="`test_a_hostile_layer_is_told_and_removed_and_leads_nowhere`"),
    )),
    Section("H3", "Marks of the overlay", (
        Claim("A user sets none of root's kind", ("mark a file for the overlay",)),
        Claim("None is followed, whoever has set it", shown="`test_marks_in_a_layer_are_not_followed` (redirect, metacopy, and a"
              " user's own; control: an overlay that follows them)"),
        Claim("A layer is in one overlay at a time", shown="`test_the_same_overlay_serves_kernels_from_before_and_after`,"
              " `test_a_data_directory_is_one_daemons`"),
        Claim("Nobody else enters its directories", shown="`test_on_the_host_the_others_processes_and_files_are_out_of_reach`"),
    )),
    Section("H4", "Set-user-id files in the layer", (
        Claim("None can be made, nor one with capabilities", ("set-*", "a set-*", "give a program capabilities"),
              "`test_setuid_bits_cannot_be_set`"),
        Claim("No user of the host reaches one", shown="`test_on_the_host_the_others_processes_and_files_are_out_of_reach`",
              reason="Layers lie below a directory that only root enters; the flags of its file system are the administrator's."),
    )),
    Section("H5", "Links and clones across layers", (
        Claim("Nothing of the image is changed by a link or a name", ("link *", "exchange *", "make a file without *", "leave *"),
              "`test_links_and_exchanges_change_the_layer_alone`: with every capability inside and no filter, what they"
              " change is a copy in the layer"),
        Claim("Nor by a copy of ranges", ("write to a file of the image by *",)),
        Claim("Nothing of another user's layer is", reason="None is mounted, so none can be named."),
    )),
    Section("H6", "Host programs that walk a layer", (
        Claim("They follow no link, open no pipe, socket or device, and end, while the tree changes, too",
              shown="`test_a_hostile_layer_is_told_and_removed_and_leads_nowhere` (the daemon's diff, disk usage, reset)"),
        Claim("Two defences keep a walk inside", shown="`test_a_link_is_followed_only_without_both_defences`"),
        Claim("The second alone, when a folder becomes a link after the look",
              shown="`test_a_directory_that_becomes_a_link_once_it_was_seen_is_not_entered`,"
              " `test_a_removal_enters_no_link_although_something_still_changes_the_tree`"),
        Claim("What they hold in memory is bounded", shown="`test_a_comparison_reads_no_more_names_than_it_may`,"
              " `test_a_removal_reads_a_few_names_at_a_time_and_leaves_none`,"
              " `test_the_size_of_links_is_told_also_of_more_than_are_remembered`"),
        Claim("Names are shown as one line", shown="`test_a_name_is_shown_as_one_line_without_controls`"),
    )),
    Section("H7", "Changing the image", (
        Claim("Its files cannot be written or owned", ("truncate *", "own *")),
        Claim("Nor be made immutable", ("make a file of the image immutable",)),
        Claim("Its mounts cannot be made writable", shown="B7, B9"),
        Claim("Its device cannot be opened", shown="C4"),
    )),
    Section("H8", "Words of an image that are executed", (
        Claim("Names of images are names", shown="`test_a_hostile_image_name_is_refused`"),
        Claim("Labels, commands and hooks of an image", reason="Images are made by the daemon alone (H1), and it writes them."),
    )),
)  # fmt: skip
