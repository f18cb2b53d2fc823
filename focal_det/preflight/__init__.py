"""The start of a run: every check in stages, before anything is written."""
