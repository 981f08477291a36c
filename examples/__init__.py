"""Scripts to read and run: `python examples/bank.py`, `make demo`."""
