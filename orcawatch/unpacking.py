"""Bundles on their way in: folders are copied, archives unpacked without trust, for they may be made to harm."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, Any, Callable, TypeVar

from .bundle import MANIFEST, SIGNATURE, load_bundle
from .errors import BundleError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
BLOCK_B = 1 << 20
MOST_FILES = 200
MOST_B = 4 << 30  # of all files together, unpacked
MOST_AT_ONCE_B = 16 << 20  # of memory that a header may ask for, or the manifest takes

T = TypeVar("T")
Member = tuple[str, Callable[[], IO[bytes]]]


def is_archive(path: Path) -> bool:
    """Whether the name is one of an archive that can be unpacked."""
    return path.name.endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the files of the one bundle in an archive into a folder that exists; they are on the disk at the end.

    The bundle may lie in the archive's root or in one folder of it. Names that lead elsewhere, links, devices, files
    beside the bundle, and more than `MOST_FILES` or `MOST_B` are refused, whatever the headers say.

    Raises
    ------
    BundleError : it is no archive, damaged, or holds what no bundle holds.
    OSError : the disk refuses.
    """
    left_b = MOST_B
    names: list[str] = []
    with closing(readable(archive, members(archive))) as found:
        for name, opened in found:
            names.append(checked(archive, name, names))
            path = folder / PurePosixPath(name).name
            most_b = min(left_b, MOST_AT_ONCE_B) if path.name == MANIFEST else left_b
            left_b -= write_file(archive, path, readable(archive, blocks(opened)), most_b)
    if not names:
        raise BundleError(f"{archive} holds no files; make it of a bundle's folder")


def readable(archive: Path, parts: Iterable[T]) -> Generator[T, None, None]:
    """Yield what is read of an archive; Python's modules raise nearly anything where bytes are made to harm."""
    try:
        yield from parts
    except BundleError:
        raise
    except Exception as fault:
        raise BundleError(f"{archive} is damaged or no archive: {fault or type(fault)}; copy it again") from fault


def members(archive: Path) -> Iterator[Member]:
    """Name of each file, and what opens it."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as found:
            yield from zipped(archive, found)
        return
    with archive.open("rb") as file:
        raw: Any = file if archive.name.endswith(".tar") else gzip.GzipFile(fileobj=file)
        with tarfile.open(fileobj=Bounded(raw), mode="r:") as tape:  # type: ignore[call-overload]
            yield from taped(archive, tape)


def zipped(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    """Files of a ZIP."""
    for info in opened.infolist():
        kind = info.external_attr >> 28  # of a file's mode, where it was made under Unix
        if kind not in (0, 4, 8):
            raise BundleError(
                f"{archive} holds {info.filename!r}, which is a link or a device: a bundle has files only"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may ask for any memory
            raise BundleError(f"{archive} is compressed in an unusual way: make it with `zip -r`, or as .tar.gz")
        if not info.filename.endswith("/"):
            yield info.filename, lambda info=info: opened.open(info)  # type: ignore[misc]


def taped(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    """Files of a tar."""
    for info in opened:
        if info.isdir():
            continue
        if not info.isreg():
            raise BundleError(f"{archive} holds {info.name!r}, which is a link or a device: a bundle has files only")
        yield info.name, lambda info=info: opened.extractfile(info)  # type: ignore[misc]


def checked(archive: Path, name: str, before: list[str]) -> str:
    """The name, where it is one that a file of a bundle may have: in the root, or in the one folder of all."""
    path = PurePosixPath(name[2:] if name.startswith("./") else name)
    if path.is_absolute() or not 1 <= len(path.parts) <= 2 or ".." in path.parts or set(name) & set("\\\0"):
        raise BundleError(f"{archive} holds {name!r}: the files of a bundle lie in one folder, and nothing else")
    if before and path.parent != PurePosixPath(before[0]).parent:
        raise BundleError(f"{archive} holds {name!r} beside {before[0]!r}: pack one bundle's folder alone")
    if str(path) in before:
        raise BundleError(f"{archive} holds {name!r} twice: make it again")
    if len(before) >= MOST_FILES:
        raise BundleError(f"{archive} holds more than {MOST_FILES} files: that is no bundle")
    return str(path)


def blocks(opened: Callable[[], IO[bytes]]) -> Iterator[bytes]:
    """Yield the content of one file."""
    with opened() as source:
        while block := source.read(BLOCK_B):
            yield block


def write_file(archive: Path, path: Path, content: Iterable[bytes], most_b: int) -> int:
    """Write one file, durably; its size. What is unpacked counts, not what the header says."""
    size_b = 0
    with path.open("xb") as file:
        for block in content:
            size_b += len(block)
            if size_b > most_b:
                raise BundleError(f"{archive} unpacks to more than {most_b} bytes in {path.name}: that is no bundle")
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size_b


class Bounded:
    """A file of which nobody reads much at once: headers of a tar may ask for any amount of memory."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.tell = file.tell

    def seek(self, position: int, whence: int = 0) -> int:
        """As the file's; past `MOST_B` there is nothing."""
        if position > MOST_B + BLOCK_B:
            raise ValueError("a file in it is longer than any bundle")
        return int(self._file.seek(position, whence))

    def read(self, size: int = -1) -> bytes:
        """As the file's."""
        if not 0 <= size <= MOST_AT_ONCE_B:
            raise ValueError("a header in it is longer than any bundle's")
        return bytes(self._file.read(size))


def stage(path: Path, incoming: Path) -> None:
    """Copy or unpack a bundle into a folder that exists, durably.

    Raises
    ------
    BundleError : it is none, or not whole.
    OSError : the disk refuses.
    """
    if path.is_file() and is_archive(path):
        unpack(path, incoming)
        return
    if not path.is_dir():
        raise BundleError(f"{path} is no bundle's folder, and no .tar, .tar.gz or .zip of one: name one of these")
    signature = [SIGNATURE] if (path / SIGNATURE).exists() else []
    for name in (*load_bundle(path).manifest["files"], *signature, MANIFEST):
        copy(path / name, incoming / name)


def copy(source: Path, target: Path) -> None:
    """Copy a file, durably."""
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written, BLOCK_B)
        written.flush()
        os.fsync(written.fileno())
