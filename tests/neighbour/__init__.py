"""What a sandbox feels of a hostile neighbour."""
