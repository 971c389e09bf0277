"""The trial table, which is the only truth about a run."""

from autopeft.store.runs import SqlRunStore, SqlStore, open_store

__all__ = ["SqlRunStore", "SqlStore", "open_store"]
