# Configuration of the daemon that runs Jupyter kernels in sandboxes. After a change:
#   systemctl restart sandboxkernel      (kernels that run are not touched)
# Every setting: sandboxkerneld --help-all, and docs/configuration.md.
#
# c.SandboxKernelDaemon.profiles = {
#     "bio101": {
#         "description": "Biology 101",
#         "limits": {"memory": "1G", "cpus": 0.5, "pids": 128},
#         "maximum": {"memory": "2G", "cpus": 1},
#     },
# }
# c.SandboxKernelDaemon.grants = [
#     {"group": "students", "profiles": ["bio101"], "max_kernels": 3},
#     {"user": "*", "profiles": ["default"]},
# ]
