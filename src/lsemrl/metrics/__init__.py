"""Scores of outputs, of a corpus and of a row."""
