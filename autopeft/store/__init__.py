"""The trial table, which is the only truth about a run."""
