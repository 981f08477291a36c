"""The command line, `actorraft`: founding, serving, watching and mending clusters without writing Python."""
