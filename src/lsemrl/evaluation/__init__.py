"""One policy measured against its base: what it gained, what it lost, how far it moved."""
