"""Adapters of peft: which are read, how they are read, what of a model they change, and how they are written.

An adapter is accepted only where it is proven (tests/modules/adapters) that it is read as peft reads it. The published
model stays what it was: whatever would change it while an adapter is read is refused.
"""
