"""What runs in a node's process: the driver of the core, the machine and its thread, sessions, snapshots."""
