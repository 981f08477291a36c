"""What runs in the process of whoever calls a cluster: submit, query, watch, administer; one I/O thread behind."""
