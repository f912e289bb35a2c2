"""The command line: which verb, with which settings."""
