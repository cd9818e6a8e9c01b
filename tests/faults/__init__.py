"""Every privileged operation of the launcher fails once, with every errno."""
