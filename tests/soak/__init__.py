"""Long trials of real clusters, one promise each; every module runs by `python -m tests.soak.NAME --help`."""
