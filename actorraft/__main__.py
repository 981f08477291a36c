"""`python -m actorraft` is the command line."""

from actorraft.cli.app import main

if __name__ == "__main__":
    main()
