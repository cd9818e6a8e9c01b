"""Docker drives the runtime: `make test-docker`."""
