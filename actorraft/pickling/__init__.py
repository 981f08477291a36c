"""What travels between client and node: commands, results and errors as bytes, and code that a node cannot import."""
