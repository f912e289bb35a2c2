"""Experiments: stages that build on each other, once for every seed.

Each part is there for something a user sees: `hashes` for skipping what is complete and running again what changed;
`state` for going on from a checkpoint, for never deleting what another configuration made, and for taking a run that
another experiment has made already; `overlay` for the same stages on another model and data; `children` for two
experiments that never share a folder and for Ctrl-C that ends what it started; `dry_run` and `progress` for what is to
come, and when.
"""
