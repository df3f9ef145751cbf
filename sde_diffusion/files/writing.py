"""Files and folders that appear whole or not at all, also with concurrent writers.

What is written first has a temporary name that nobody can foresee, `.NAME.<16 hex digits>.partial`. It is created with
O_EXCL and O_NOFOLLOW, so that a link that waits under this name is an error and is never written through. A rename
gives it its final name: rename(2) puts a folder in the place of an empty one and refuses a folder that has
something in it, so of several processes that want one name exactly one gets it, whole.

Only names of this form are ever swept, and links are removed as links, so that a folder of the user survives whatever
it is called.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from solvers.errors import ExistsError, InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: what killed writers left is swept by age alone
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)
_LONGEST = 100  # characters of the final name in the temporary one: file names end at 255 bytes
_OLD = 60.0  # seconds without a change after which the folder of a dead process is rubbish
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


def temporary(path: Path) -> Path:
    """A name beside a path that no other process can foresee.

    >>> import re
    >>> bool(re.fullmatch("[.]set[.][0-9a-f]{16}[.]partial", temporary(Path("runs/set")).name))
    True
    """
    return path.with_name(f".{path.name[:_LONGEST]}.{secrets.token_hex(8)}.partial")


def unused(path: Path) -> Path:
    """The path itself, or with -2, -3, ... the first that does not exist.

    >>> unused(Path("no-such-folder/digits-vp")).name
    'digits-vp'
    """
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def is_new(folder: Path) -> bool:
    """Whether nothing is at a path, or an empty folder."""
    return not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()))


def require_new(folder: Path) -> None:
    """Refuse a folder that is not empty, so that nothing in it is overwritten.

    >>> import tempfile
    >>> require_new(Path(tempfile.mkdtemp()))  # an empty folder
    """
    if not is_new(folder):
        raise ExistsError(f"{folder} exists already; choose another folder with --out")


def require_writable(path: Path, suffix: str, force: bool) -> None:
    """Refuse a file to write, before the work is done.

    Args:
        path: final path.
        suffix: required suffix of its name.
        force: whether a file that is there may be replaced.

    Raises:
        ValueError: another suffix, or a folder.
        FileExistsError: there is something, and it should not be replaced.
    """
    if path.suffix.lower() != suffix:
        raise InputError(f"{path} must be called something{suffix}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file")
    if os.path.lexists(path) and not force:
        raise ExistsError(_keep(path))


class NewFolder:
    """A folder that is being made.

    Attributes:
        temporary: folder in which its files are written.
        path: its final name, known for certain when the ``with`` block has ended.
    """

    def __init__(self, temporary: Path, path: Path) -> None:
        self.temporary, self.path = temporary, path


@contextmanager
def new_folder(path: Path, taken: Literal["refuse", "next"] = "refuse") -> Iterator[NewFolder]:
    """Make a folder in a ``with`` block: it appears when the block ends, and not at all when the block fails.

    Args:
        path: its name; nothing or an empty folder is there.
        taken: what happens if another process takes the name meanwhile: "refuse" raises and drops the folder, "next"
            takes the next free name, ``path``-2 and so on, so that the work is not lost.

    Raises:
        FileExistsError: something is there already, or came there first.
        OSError: a file could not be written; the message names the folder, and nothing is left behind.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> with new_folder(root / "set") as new:
    ...     _ = (new.temporary / "x.txt").write_text("1")
    >>> sorted(p.name for p in new.path.iterdir()), [p.name for p in root.iterdir()]
    (['x.txt'], ['set'])
    """
    require_new(path)
    new = NewFolder(temporary(path), path)
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        new.temporary.mkdir()
        handle = hold(new.temporary)
        yield new
        _sync(new.temporary)
        while not _claim(new.temporary, new.path):
            if taken == "refuse":
                raise ExistsError(f"{path} was made by another process meanwhile; choose another folder with --out")
            new.path = unused(path)
        _sync(path.parent)
    except FileExistsError:
        remove(new.temporary)
        raise
    except OSError as error:
        remove(new.temporary)
        if error.filename is not None and not str(error.filename).startswith(str(new.temporary)):
            raise  # of a file that is read
        raise failed(error, path) from error
    except BaseException:
        remove(new.temporary)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def failed(error: OSError, path: Path) -> OSError:
    """The error of writing a path, which says what could not be written and not under what temporary name."""
    number = error.errno or 0
    reason = error.strerror or str(error) or type(error).__name__
    if reason.startswith("could not "):
        return error
    return OSError(number, f"could not write {path}: {reason}; nothing of it was left behind")


def write_file(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file, whole or not at all.

    Args:
        path: path of the file; a link there is replaced by the file and not written through.
        content: the bytes.
        replace: whether a file that is there gives way.

    Raises:
        FileExistsError: there is one, and it should not be replaced.
        OSError: it could not be written; the message names the file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_file(path, b"1")
    >>> path.read_text(), [file.name for file in path.parent.iterdir()]
    ('1', ['a.txt'])
    """
    if not replace and os.path.lexists(path):
        raise ExistsError(_keep(path))
    partial = temporary(path)
    try:
        write_synced(partial, content)
        if replace:
            partial.replace(path)
        else:
            _name_once(partial, path)
        _sync(path.parent)
    except FileExistsError:
        remove(partial)
        raise
    except OSError as error:
        remove(partial)
        raise failed(error, path) from error
    except BaseException:
        remove(partial)
        raise


def _name_once(partial: Path, path: Path) -> None:
    """Give a file its name unless the name is taken, in one step where the file system has links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise ExistsError(_keep(path)) from None
    except OSError:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        partial.replace(path)
    else:
        partial.unlink()


def _keep(path: Path) -> str:
    return f"{path} exists already and is kept; choose another name, or replace it with --force"


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk; a name that is taken, by a link as well, is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with what is in it; links are removed, never followed."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def discard(folder: Path) -> None:
    """Remove a folder; if the process is killed meanwhile, the rest no longer bears the folder's name."""
    if os.path.lexists(folder):
        rubbish = temporary(folder)
        folder.rename(rubbish)
        remove(rubbish)


def sweep(parent: Path, *, everything: bool = False) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Args:
        parent: the folder; one that is a link is left alone.
        everything: for a caller that keeps all other writers out. Otherwise only what no living process holds and
            was not changed in the last minute.
    """
    if parent.is_symlink() and everything:
        return
    with suppress(OSError):  # to tidy up is no reason to fail
        for path in list(parent.iterdir()):
            if _TEMPORARY.fullmatch(path.name) and (everything or _abandoned(path)):
                remove(path)


def _abandoned(path: Path) -> bool:
    """Whether the process that made a temporary folder is gone."""
    try:
        if path.is_symlink() or not path.is_dir() or time.time() - path.stat().st_mtime < _OLD:
            return False
        handle = hold(path)
    except OSError:
        return False
    if handle is not None:
        os.close(handle)
    return True


def hold(folder: Path) -> int | None:
    """Lock a folder until the handle is closed or the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        pass
    return handle


def _claim(partial: Path, path: Path) -> bool:
    """Give a folder its name; False where something is in the way."""
    try:
        if os.name != "posix" and path.is_dir():
            path.rmdir()  # rename replaces an empty folder on POSIX only
        partial.rename(path)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def sync(folder: Path) -> None:
    """Sync a folder, so that renames inside it survive a power cut, where the system offers it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_sync = sync
