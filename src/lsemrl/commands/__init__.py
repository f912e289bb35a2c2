"""What a verb does that no room below does alone."""
