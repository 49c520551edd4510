"""Bundles installed beside what they detect: put in place whole, changed by the rename of a link, rolled back.

In the output folder, `bundles/` holds a folder for each bundle and the links `current`, `previous` and `shadow`. Each
step of a change leaves a state that works, so that the power may fail between any two.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Optional

from .bundle import SHIPPED, SIGNATURE, Bundle, load_bundle
from .bundles import CURRENT, DIGEST_CHARACTERS, FOLDER, OF_OURS, PREVIOUS, Fits, InForce, nothing, usable
from .durable import PARTIAL, Complaint, make_folder, sync_folder, write_bytes
from .errors import BundleError, InputError, OrcawatchError
from .trial import Trial, trial_of
from .unpacking import stage

log = logging.getLogger(__name__)

SHADOW = "shadow"
LINKS = (CURRENT, PREVIOUS, SHADOW)
HISTORY = "history.jsonl"
TRIAL = "shadow.json"
LOCK = "lock"
INCOMING, DAMAGED = "incoming", "damaged"
NAME_CHARACTERS = 40  # of a bundle's name in the name of its folder
NAMED = re.compile(f".+-[0-9a-f]{{{DIGEST_CHARACTERS}}}")  # by `folder_name`
KEYS = {"utc", "who", "action", "bundle"}  # of every entry of the history
FOLDER_MODE, FILE_MODE = 0o755, 0o644  # the service's user reads what root has installed


Links = dict[str, Optional[str]]  # where each of `LINKS` leads; None where there is no such link


@dataclass(frozen=True)
class Listed:
    """One installed bundle.

    Attributes
    ----------
    folder : its name in `bundles/`; `shipped` for the one that comes with orcawatch, where a link leads to it.
    roles : which links lead to it.
    size_b : of its files.
    installed_utc : when it was put there; None where the history does not say.
    bundle : None where it is damaged,
    fault : and why.
    """

    folder: str
    roles: tuple[str, ...]
    size_b: int
    installed_utc: datetime | None
    bundle: Bundle | None
    fault: str = ""


class Shelf:
    """The installed bundles of an output folder; what changes them holds a lock and writes the history.

    Parameters
    ----------
    output : the output folder.
    now : the time, timezone-aware.
    """

    def __init__(self, output: Path, now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)) -> None:
        self.folder = output / FOLDER
        self._output = output
        self._now = now
        self._complaint = Complaint(log)

    def target(self, link: str) -> str | None:
        """Name of the folder that a link leads to, or `shipped`; None where there is no such link."""
        try:
            return str((self.folder / link).readlink())
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise InputError(f"{self.folder / link} is no link ({fault.strerror}): move it away") from fault

    def bundle(self, link: str) -> Bundle:
        """The bundle that a link leads to; raises BundleError where there is none, or it is damaged."""
        if (name := self.target(link)) is None:
            raise BundleError(f"{self.folder} has no {link} bundle: `orcawatch bundle list` shows what there is")
        return load_bundle(self._place(name))

    def trial(self) -> Trial | None:
        """How long the shadow scores; None where there is no shadow."""
        found = self._trial_there()
        # A change of shadows was cut short where it is another.
        return found if found is not None and found.folder == self.target(SHADOW) else None

    def _trial_there(self) -> Trial | None:
        """What its file says."""
        try:
            found = trial_of((self.folder / TRIAL).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            self._complaint.say(f"{self.folder / TRIAL} cannot be read: {fault}; install the shadow again")
            return None
        self._complaint.end(f"{self.folder / TRIAL} can be read again")
        return found

    def history(self) -> list[dict[str, Any]]:
        """What was done, oldest first; a line that the power cut short, or that is no entry, is passed over."""
        try:
            lines = (self.folder / HISTORY).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            with suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if is_entry(entry)]

    def listed(self) -> list[Listed]:
        """Every installed bundle, those in use first."""
        times = {entry["bundle"]: entry["utc"] for entry in self.history() if entry["action"] in INSTALLING}
        roles = {link: self.target(link) for link in LINKS}
        names = [name for name in folders(self.folder) if not name.endswith(PARTIAL)]
        names += [OF_OURS] if OF_OURS in roles.values() else []
        found = [self._listed(name, roles, times.get(name)) for name in names]
        return sorted(found, key=lambda item: [link not in item.roles for link in LINKS])

    def _listed(self, name: str, roles: Mapping[str, str | None], utc: str | None) -> Listed:
        folder = self._place(name)
        size_b, bundle, fault = 0, None, ""
        try:
            size_b = sum(file.stat().st_size for file in folder.iterdir())
            bundle = load_bundle(folder)
        except (OrcawatchError, OSError) as found:
            fault = str(found)
        return Listed(name, tuple(link for link in LINKS if roles[link] == name), size_b, moment(utc), bundle, fault)

    # What changes something.

    def install(self, path: Path, fits: Fits = nothing) -> Bundle:
        """Put a bundle in place and make it the current one; the one before is then the previous one.

        Parameters
        ----------
        path : a bundle's folder, or an archive of one.
        fits : raises OrcawatchError for a bundle that cannot be used; called before anything is changed.

        Raises
        ------
        BundleError, OrcawatchError : the bundle cannot be used, or the disk refuses; nothing was changed.
        """
        with self._changing():
            name = self._put_in_place(path, fits)
            self._make_current(name, "install")
            self._prune()
            return load_bundle(self.folder / name)

    def install_shadow(self, path: Path, days: float | None, fits: Fits = nothing) -> Trial:
        """Put a bundle in place and let it score beside the current one, for so many days or without end."""
        with self._changing():
            name = self._put_in_place(path, fits)
            now = self._now()
            trial = Trial(name, now, None if days is None else now + timedelta(days=days))
            self._log("install shadow", name, {SHADOW: name}, until_utc=trial.until_utc and trial.until_utc.isoformat())
            self._write(TRIAL, trial.to_text())
            self._point(SHADOW, name)
            self._prune()
            return trial

    def rollback(self, fits: Fits = nothing) -> Bundle:
        """Make the previous bundle the current one; the current one is then the previous one.

        Where there is no previous one, the bundle that comes with orcawatch is made the current one.

        Raises
        ------
        BundleError : nothing is installed, or that bundle cannot be used; nothing was changed.
        """
        with self._changing():
            now, before = self.target(CURRENT), self.target(PREVIOUS)
            before = OF_OURS if before in (None, now) else before
            if (now or OF_OURS) == before:
                raise BundleError(
                    f"the bundle that comes with orcawatch scores, and {self.folder} has none to go back to; install "
                    "one: orcawatch bundle install PATH"
                )
            try:
                found = usable(self._place(before), fits)
            except OrcawatchError as fault:
                raise BundleError(f"the previous bundle cannot be used, and nothing was changed: {fault}") from fault
            self._log("rollback", before, {CURRENT: before, PREVIOUS: now})
            self._point(CURRENT, before)  # first what matters: the power may fail now
            self._point(PREVIOUS, now)
            return found

    def promote(self, fits: Fits = nothing) -> Bundle:
        """Make the shadow the current bundle, and end it as shadow; raises BundleError as `rollback`."""
        with self._changing():
            name = self.target(SHADOW)
            if name is None:
                raise BundleError(f"{self.folder} has no shadow to promote; see `orcawatch bundle list`")
            found = usable(self.folder / name, fits)
            self._make_current(name, "promote shadow", {SHADOW: None})
            self._end_shadow()
            return found

    def stop_shadow(self) -> str:
        """End the shadow; its folder's name. Raises BundleError where there is none."""
        with self._changing():
            name = self.target(SHADOW)
            if name is None:
                raise BundleError(f"{self.folder} has no shadow to stop; see `orcawatch bundle list`")
            self._log("stop shadow", name, {SHADOW: None})
            self._end_shadow()
            self._prune()
            return name

    def change_trial(self, before: Trial, after: Trial) -> bool:
        """Write how the shadow fares, unless it is another one meanwhile; whether that was done."""
        with self._changing():
            if self.trial() != before:
                return False
            if after.fault and not before.fault:
                self._log("shadow failed", after.folder, {}, fault=after.fault)
            self._write(TRIAL, after.to_text())
            return True

    def note_fall_back(self, found: InForce) -> None:
        """Enter in the history that another than the current bundle scores; once for the same faults."""
        with self._changing():
            entries = [entry for entry in self.history() if entry.get("action") == "fall back"]
            if not entries or entries[-1].get("faults") != list(found.faults):
                self._log("fall back", found.bundle.folder.name, {}, origin=found.origin, faults=list(found.faults))

    def _make_current(self, name: str, action: str, along: Mapping[str, str | None] | None = None) -> None:
        """Point the links; `along` is what other links the change is going to change."""
        before = self.target(CURRENT)
        if before == name and not along:
            return
        previous = self.target(PREVIOUS) if before in (None, name) else before
        self._log(action, name, {CURRENT: name, PREVIOUS: previous, **(along or {})})
        self._point(PREVIOUS, previous)
        self._point(CURRENT, name)

    def _end_shadow(self) -> None:
        self._point(SHADOW, None)
        (self.folder / TRIAL).unlink(missing_ok=True)
        sync_folder(self.folder)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """While nobody else changes anything; what an earlier change left half-done is entered first.

        Raises
        ------
        InputError : another program changes something.
        OrcawatchError : the disk refuses.
        """
        try:
            self._make_folder()
            with locked(self.folder / LOCK):
                self._give(self.folder / LOCK)
                self._mend()
                if self._states_differ():
                    self._log("found", self.target(CURRENT) or "", {}, why="the change above was cut short, or undone")
                yield
        except BlockingIOError as fault:
            raise InputError(f"another orcawatch changes {self.folder} now: try again when it is done") from fault
        except OSError as fault:
            raise OrcawatchError(f"{self.folder} cannot be changed: {told(fault)}; check the disk") from fault

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            make_folder(self.folder)
            self.folder.chmod(FOLDER_MODE)
        self._give(self.folder)  # each time: whoever made it may have been killed before this

    def _states_differ(self) -> bool:
        """Whether the links are others than the history's last entry says."""
        entries = self.history()
        return bool(entries) and links_of(entries[-1]) != self._links()

    def _links(self) -> Links:
        return {link: self.target(link) for link in LINKS}

    def _mend(self) -> None:
        """Where a change was cut short between two links, go on with it, or undo it: a rollback would go astray.

        The current bundle stays as it is: with the new one the change is gone on with, with the old one it is undone.
        A shadow is the new one as soon as its time is written.
        """
        links, (before, after) = self._links(), self._last_change()
        trial = self._trial_there()
        if trial is not None and trial.folder == after[SHADOW] != links[SHADOW] and links == before:
            self._point(SHADOW, after[SHADOW])
        elif links not in (before, after) and all(links[link] in (before[link], after[link]) for link in LINKS):
            whole = after if links[CURRENT] == after[CURRENT] else before
            for link, name in whole.items():
                if name is None or self._place(name).is_dir():
                    self._point(link, name)
        if self.target(SHADOW) is None:
            (self.folder / TRIAL).unlink(missing_ok=True)

    def _last_change(self) -> tuple[Links, Links]:
        """The links before and after the history's last change."""
        entries = [dict.fromkeys(LINKS), *map(links_of, self.history())]
        return entries[-2] if len(entries) > 1 else entries[-1], entries[-1]

    def _log(self, action: str, bundle: str, after: Mapping[str, str | None], **more: Any) -> None:
        """Enter a change, with the links as they are to be after it, before it is made.

        A full disk keeps nobody from going back: then the next change enters what it finds.
        """
        entry = {
            "utc": self._now().isoformat(),
            "who": who(),
            "action": action,
            "bundle": bundle,
            **{link: after.get(link, self.target(link)) for link in LINKS},
            **more,
        }
        try:
            append(self.folder / HISTORY, json.dumps(entry, ensure_ascii=False))
            self._give(self.folder / HISTORY)
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("the history does not say so, for the disk is full: %s %s", action, bundle)

    def _put_in_place(self, path: Path, fits: Fits) -> str:
        """Copy or unpack a bundle, look whether it is whole and fits, and give it its name; that name."""
        self._clear()
        incoming = self.folder / f"{INCOMING}{PARTIAL}"
        try:
            incoming.mkdir()
            stage(path, incoming)
            name = folder_name(usable(incoming, fits))
            self._own(incoming)
            if not self._is_whole(name):
                self._take_the_place(incoming, name)
            elif (incoming / SIGNATURE).exists():  # it was installed before, and is signed, or signed anew, now
                (incoming / SIGNATURE).replace(self.folder / name / SIGNATURE)
                sync_folder(self.folder / name)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return name

    def _place(self, name: str) -> Path:
        """The folder that a link's target stands for."""
        return SHIPPED if name == OF_OURS else self.folder / name

    def _is_whole(self, name: str) -> bool:
        """Whether that bundle is there already."""
        try:
            return (self.folder / name).is_dir() and bool(load_bundle(self.folder / name))
        except (OrcawatchError, OSError):
            return False

    def _take_the_place(self, incoming: Path, name: str) -> None:
        """Give a staged bundle its name; a damaged one of that name goes."""
        place = self.folder / name
        sync_folder(incoming)
        if os.path.lexists(place):
            place.rename(self.folder / f"{DAMAGED}{PARTIAL}")
        incoming.rename(place)
        sync_folder(self.folder)

    def _own(self, folder: Path) -> None:
        """Let the service's user read it, whoever installs."""
        for path in (folder, *folder.iterdir()):
            with opened(path) as handle:  # the service's user may change this folder, too: no link is followed
                os.fchmod(handle, FOLDER_MODE if path == folder else FILE_MODE)
                if os.geteuid() == 0:
                    owner = self._output.stat()
                    os.fchown(handle, owner.st_uid, owner.st_gid)

    def _give(self, path: Path) -> None:
        """What root makes belongs to whom the output folder belongs to."""
        if os.geteuid() == 0:
            owner = self._output.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def _write(self, name: str, text: str) -> None:
        write_bytes(self.folder / name, text.encode())
        self._give(self.folder / name)

    def _point(self, link: str, name: str | None) -> None:
        """Let a link lead to another folder: it does so before or after a power cut, and never nowhere.

        None takes it away; where it leads there already it is left alone.
        """
        if self.target(link) == name:
            return
        if name is None:
            (self.folder / link).unlink()
            sync_folder(self.folder)
            return
        partial = self.folder / f"{link}{PARTIAL}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(name)
        self._give(partial)
        partial.replace(self.folder / link)
        sync_folder(self.folder)

    def _prune(self) -> None:
        """Remove the bundles that no link leads to; one that is open stays readable for who has it open."""
        kept = {self.target(link) for link in LINKS}
        try:
            for name in folders(self.folder):
                if name not in kept and NAMED.fullmatch(name):
                    (self.folder / name).rename(self.folder / f"{name}{PARTIAL}")
            self._clear()
        except OSError as fault:  # the change itself is made
            log.warning("bundles that are not used any more cannot be removed: %s", fault)

    def _clear(self) -> None:
        """Remove what is half there; what others have put there is left alone."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            name = path.name[: -len(PARTIAL)]
            if name not in (INCOMING, DAMAGED, TRIAL, *LINKS) and not NAMED.fullmatch(name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


INSTALLING = ("install", "install shadow")


def links_of(entry: Mapping[str, Any]) -> Links:
    """Where the links lead after a change, by its entry in the history."""
    names = {link: entry.get(link) for link in LINKS}
    ours = {name for name in names.values() if isinstance(name, str) and (name == OF_OURS or NAMED.fullmatch(name))}
    return {link: name if name in ours else None for link, name in names.items()}


def folder_name(bundle: Bundle) -> str:
    """Name of an installed bundle's folder."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.name)[:NAME_CHARACTERS].lstrip(".-") or "bundle"
    return f"{name}-{bundle.digest[:DIGEST_CHARACTERS]}"


def folders(place: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none where it is not there."""
    if not place.is_dir():
        return []
    return sorted(path.name for path in place.iterdir() if path.is_dir() and not path.is_symlink())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """While nobody else holds this lock; raises BlockingIOError where somebody does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def append(path: Path, line: str) -> None:
    """Add a line to a file, durably; half a line that a power cut left is ended first."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(handle, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * torn + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def is_entry(found: Any) -> bool:
    """Whether a line of the history says what every entry says."""
    return isinstance(found, dict) and all(isinstance(found.get(key), str) for key in KEYS)


def moment(utc: str | None) -> datetime | None:
    """A time of the history; None where it is not known, or none any more."""
    with suppress(ValueError):
        return None if utc is None else datetime.fromisoformat(utc)
    return None


def who() -> str:
    """The person at the terminal, as far as the system knows."""
    if name := os.environ.get("SUDO_USER"):
        return f"{name} (sudo)"
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def told(fault: OSError) -> str:
    """An error of the disk in words."""
    if fault.errno == errno.EPERM and fault.filename2 is not None:
        return f"{fault.strerror}; bundles need a file system with symbolic links"
    return str(fault)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A handle of a plain file or folder; raises OrcawatchError for a link and anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as fault:
        raise OrcawatchError(f"{path} was changed while it was installed: {told(fault)}; install it again") from fault
    try:
        if not (stat.S_ISREG(os.fstat(handle).st_mode) or stat.S_ISDIR(os.fstat(handle).st_mode)):
            raise OrcawatchError(f"{path} was changed while it was installed: it is no file; install it again")
        yield handle
    finally:
        os.close(handle)
