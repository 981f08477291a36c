"""What runs in the process that owns a cluster: its nodes' processes, where their data is, and a client of them."""
