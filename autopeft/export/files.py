"""Files and folders that appear whole or not at all, also after a power cut."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from autopeft.domain.errors import Problem, UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, bring it to the disk, and give it the name; makes the folder.

    Raises:
        UserError: where the folder cannot be written or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _speaking_plainly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            _to_disk(partial)
            os.replace(partial, path)
            _to_disk(path.parent)
    finally:
        if partial.exists():
            partial.unlink()
    return path


@contextmanager
def replaced_folder(out: Path, marker: str, own: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill; in the end it takes the place of `out`, an earlier one of ours included.

    Args:
        out: Where it shall be. Its parents are made.
        marker: File that every folder of ours has.
        own: Names of all files that such a folder may hold.

    Raises:
        UserError: where `out` holds something that is not ours, cannot be written, or the disk is full.
    """
    _refuse_foreign(out, marker, own)
    fresh, old = (out.with_name(f".{out.name}.{kind}-{uuid.uuid4().hex[:8]}") for kind in ("new", "old"))
    try:
        with _speaking_plainly(out):
            fresh.mkdir(parents=True)
            yield fresh
            for path in (*fresh.iterdir(), fresh):
                _to_disk(path)
            if out.exists():
                os.replace(out, old)
            os.replace(fresh, out)
            _to_disk(out.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(out: Path, marker: str, own: Collection[str]) -> None:
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(Problem("out", f"{out} is not a folder", "a new or empty folder", "Choose another --out."))
    found = sorted(path.name for path in out.iterdir())
    if not found or (marker in found and set(found) <= set(own)):
        return
    foreign = [name for name in found if name not in own] or found
    shown = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
    raise UserError(
        Problem(
            "out",
            f"{out} holds files that no export wrote ({shown}); nothing was overwritten",
            "a new or empty folder, or an earlier export",
            "Choose another --out, or move these files away.",
        )
    )


@contextmanager
def _speaking_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found, next_step = f"the disk is full, {path} was not written", "Free some space and repeat the command."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            found, next_step = f"{path} cannot be written ({error.strerror})", "Choose another folder."
        else:
            raise
        raise UserError(Problem("out", found, "", next_step)) from error


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
