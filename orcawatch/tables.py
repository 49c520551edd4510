"""A folder of tables that are ours: each whole or not at all, and none replaced that somebody has edited."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from .durable import PARTIAL, make_folder, sync_folder, write_bytes
from .errors import InputError, OrcawatchError
from .files import printable

SUMS = "SHA256SUMS"
NAME_BYTES = 180  # of a file's name before its suffix
BLOCK_BYTES = 1 << 20


class Folder:
    """Tables in one folder, and a list of their digests by which those that somebody changed are told.

    Parameters
    ----------
    path : the folder; it is made where it is missing.
    overwrite : whether to replace also what is not ours, or was changed.

    Raises
    ------
    OrcawatchError : the folder cannot be made, or its list not be read.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        self._written: dict[str, str] = {}
        with refusals(path):
            make_folder(path)
            self._known = read_sums(path / SUMS)

    def check(self, names: Iterable[str]) -> None:
        """See that these may be written, before anything is; names are relative, with forward slashes.

        Raises
        ------
        InputError : some are there that were edited, or are not ours.
        """
        others = [] if self._overwrite else [name for name in names if not self._ours(name)]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise InputError(
                f"{printable(self.path / others[0])}{more} would be replaced, but was edited since it was written, or "
                "comes from elsewhere: move it away, name another place with -o, or give --overwrite"
            )

    @contextmanager
    def writing(self, name: str) -> Iterator[Lines]:
        """Write one table, line by line; it appears when the block ends.

        Raises
        ------
        InputError : it would replace what is not ours.
        OrcawatchError : the disk refuses.
        """
        self.check([name])
        with refusals(self.path / name), whole(self.path / name) as lines:
            yield lines
            self._note(name, lines.digest.hexdigest())

    def finish(self, groups: Iterable[str]) -> None:
        """Remove our tables of these groups (the folders that names begin with) that were not written this time.

        Those that somebody changed stay.
        """
        for group in groups:
            for name in [name for name in self._known if name.startswith(f"{group}/") and name not in self._written]:
                self._remove(name)
        rows = [(digest, name) for name, digests in self._known.items() for digest in sorted(digests)]
        with refusals(self.path / SUMS):
            write_bytes(self.path / SUMS, "".join(f"{digest}  {name}\n" for digest, name in rows).encode())

    def _remove(self, name: str) -> None:
        if self._ours(name):
            with refusals(self.path / name):
                (self.path / name).unlink(missing_ok=True)
            del self._known[name]

    def _ours(self, name: str) -> bool:
        """Whether nothing is there, or what we wrote."""
        path = self.path / name
        return not os.path.lexists(path) or (path.is_file() and digest_of(path) in self._known.get(name, ()))

    def _note(self, name: str, digest: str) -> None:
        """Put a digest on the list before the table appears, so that a kill in between does no harm."""
        with (self.path / SUMS).open("a", encoding="utf-8") as file:
            file.write(f"{digest}  {name}\n")
        self._known[name] = {digest}
        self._written[name] = digest


class Lines:
    """A file that is being written.

    Attributes
    ----------
    digest : SHA-256 of what was written so far.
    """

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._file = path.open("wb")

    def write(self, text: str) -> None:
        """Add text as it is, in UTF-8."""
        content = text.encode()
        self.digest.update(content)
        self._file.write(content)

    def close(self) -> None:
        """Close the file; its content is on the disk."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def whole(path: Path) -> Iterator[Lines]:
    """A file that is written line by line, and appears under its name whole and on the disk, or not at all.

    Raises
    ------
    OSError : the disk refuses.
    """
    make_folder(path.parent)
    partial = path.with_name(path.name + PARTIAL)
    try:
        lines = Lines(partial)
        try:
            yield lines
        finally:
            lines.close()
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error tells more
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Say in our words that a disk refuses."""
    try:
        yield
    except OSError as fault:
        raise OrcawatchError(
            f"{printable(path)} cannot be written: {fault.strerror}; check the disk, or name another place with -o"
        ) from fault


def read_sums(path: Path) -> defaultdict[str, set[str]]:
    """Digests by name; a name may have several where a writer was killed."""
    known: defaultdict[str, set[str]] = defaultdict(set)
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            known[name].add(digest)
    return known


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def table_names(sources: Iterable[str], folder: str, suffix: str, taken: Iterable[str] = ()) -> dict[str, str]:
    """A name for the table of each sound file: the file's own, and its folders below the one that all share.

    Parameters
    ----------
    sources : the files' paths, each once.
    folder, suffix : what the names begin and end with.
    taken : names that none of them may have.
    """
    places = {source: parts_of(source) for source in sources}
    shared = shared_folders([parts[:-1] for parts in places.values()])
    used = set(taken)
    return {source: _free("/".join([folder, *parts[shared:]]), suffix, used) for source, parts in places.items()}


def shared_folders(places: Sequence[list[str]]) -> int:
    """How many folders, from the top, all places have in common."""
    if not places:
        return 0
    first, last = min(places), max(places)  # in sorted order all others lie between these two
    return next((depth for depth, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


def parts_of(source: str) -> list[str]:
    """Folders and stem of a path, as names that any disk takes."""
    parts = [part for part in os.path.normpath(source).split("/") if part not in ("", ".", "..")] or ["unnamed"]
    return [_plain(part) for part in (*parts[:-1], PurePosixPath(parts[-1]).stem)]


def _plain(part: str) -> str:
    """A name without control characters, cut to what a disk takes."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", "_", part).encode()[:NAME_BYTES].decode("utf-8", "ignore")


def _free(stem: str, suffix: str, taken: set[str]) -> str:
    """The name, with a number where another file has it."""
    name, number = f"{stem}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name)
    return name
