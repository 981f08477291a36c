"""What a cluster reaches on this machine, as a user's own client sees it."""
