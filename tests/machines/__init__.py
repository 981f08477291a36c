"""Clusters over many machines: hosts in network namespaces, nodes by the command line, nothing shared but the wire."""
