"""Crashes at every step: a daemon and a launcher that kill themselves at a chosen point."""
