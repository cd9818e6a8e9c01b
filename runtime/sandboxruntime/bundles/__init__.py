"""OCI bundles: the runtime behind the command line that runc has (`sandboxruntime create ...`).

config (parsing; pure) -> mounts, filters (plans; pure) -> setup (in the container) ->
lifecycle (verbs) -> command (the command line). What a config.json asks for and this package does
not do is refused before anything is made, with the member's name.
"""
