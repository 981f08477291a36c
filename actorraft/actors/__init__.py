"""Actors: OS processes with mailboxes, their start, their supervision and their end. Knows nothing of Raft."""
