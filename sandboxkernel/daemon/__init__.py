"""The root daemon: authorises, plans, keeps state, verifies and hands over."""
