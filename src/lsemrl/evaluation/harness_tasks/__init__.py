"""Tasks of ours in the form of lm-evaluation-harness, whose own command finds them by --include_path."""
