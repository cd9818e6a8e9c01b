"""Packaged tools of others, run inside our sandboxes: what they find is in docs/third-party.md."""
