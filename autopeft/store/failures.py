"""What a database's own error messages mean to a person, with every password taken out."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import URL

from autopeft.domain.errors import Problem

_SQLITE = {
    "database or disk is full": (
        "the disk is full",
        "Free some space and run the same command again: what is finished is kept.",
    ),
    "disk i/o error": (
        "the disk cannot be read or written",
        "Check the disk and its free space, then run the same command again: what is finished is kept.",
    ),
    "readonly database": (
        "the file may not be written",
        "Change its permissions and those of its folder, or choose another folder with --runs.",
    ),
    "unable to open database file": (
        "the file cannot be opened",
        "Check that its folder exists and may be written, or choose another folder with --runs.",
    ),
    "file is not a database": ("the file is not an SQLite database", "Move it away or give another path."),
    "malformed": (
        "the file is damaged",
        "Put a copy back, or save what is readable with `sqlite3 FILE .recover`.",
    ),
    "database is locked": (
        "another process has kept the file locked for half a minute",
        "End it (`fuser FILE` names it) and run the same command again.",
    ),
}
_POSTGRES = {
    "password authentication failed": ("the user or the password is wrong", "Correct them in the URL."),
    "no password supplied": ("the server wants a password", "Put it into the URL: postgresql://USER:PASSWORD@HOST/…"),
    "no pg_hba.conf entry": ("the server lets this user in from nowhere near", "Ask its administrator for access."),
    "does not exist": ("the database or the user does not exist", "Create it (createdb NAME) or correct the URL."),
    "permission denied": (
        "the user may not make or use tables there",
        "Grant it: GRANT ALL ON SCHEMA public TO USER.",
    ),
    "disk full": ("the server's disk is full", "Free some space and run the same command again."),
    "no space left on device": ("the server's disk is full", "Free some space and run the same command again."),
    "too many clients": (
        "the server has no connection left",
        "Close others or raise max_connections, then run the same command again.",
    ),
}


def describe(error: sa.exc.DBAPIError, url: URL, shown: str) -> Problem | None:
    """The problem that a person can mend behind a driver's error; None where it is a bug.

    Args:
        error: What SQLAlchemy raised.
        url: The database, whose password is removed from every text.
        shown: The URL as a message may quote it.
    """
    text = " ".join(_without(str(error.orig), url.password).split())
    known = _SQLITE if url.get_backend_name() == "sqlite" else _POSTGRES
    if isinstance(error, sa.exc.ProgrammingError) and "permission denied" not in text.lower():
        return None
    if isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
        return None
    for part, (meaning, next_step) in known.items():
        if part in text.lower():
            return Problem("store", f"{shown}: {meaning} ({text})", "", next_step)
    if url.get_backend_name() == "postgresql" and isinstance(error, sa.exc.OperationalError):
        return Problem(
            "store",
            f"{shown} cannot be reached ({text})",
            "",
            "Check host, port and that the server runs (pg_isready), then run the same command again.",
        )
    return None


def _without(text: str, password: object) -> str:
    return text.replace(str(password), "***") if password else text
