"""Experiments: stages that build on each other, each an ordinary verb of `lsemrl` in a process of its own."""
