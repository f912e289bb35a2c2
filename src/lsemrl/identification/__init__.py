"""Telling languages apart that share a script: by an identifier fitted on the user's texts, or by a fastText model."""
