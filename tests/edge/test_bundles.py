"""Installed bundles: whole or not at all, whatever is unpacked, whenever the power fails, whoever else installs."""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import itertools
import json
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from handmade import FILES, manifest

from orcawatch import daemon, interpreter, shelf, unpacking
from orcawatch.bundle import CARD, SHIPPED, Bundle, load_bundle, write_bundle
from orcawatch.bundle_command import shelf_lines
from orcawatch.bundles import in_force
from orcawatch.config import Settings
from orcawatch.detector import score_silence
from orcawatch.errors import BundleError, InputError, OrcawatchError
from orcawatch.shelf import Shelf
from orcawatch.store import Store


def make(folder: Path, name: str) -> Path:
    described = manifest(name=name, members=["vggish"], vote=["vggish"])
    write_bundle(folder / name, described, {**FILES, "heads.tflite": name.encode() * 1000})
    return folder / name


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, Path]:
    return {name: make(tmp_path / "made", name) for name in "abcd"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def current(output: Path) -> str:
    found = in_force(Settings(output=output))
    assert not found.faults
    return found.bundle.name


def test_no_link_is_followed_that_is_put_in_while_a_bundle_is_tried(
    bundles: dict[str, Path], output: Path, tmp_path: Path
) -> None:
    """The service's user owns the folder in which root installs."""
    secret = tmp_path / "secret"
    secret.write_text("of root alone")
    secret.chmod(0o600)

    def swap(found: Bundle) -> None:
        (found.folder / CARD).unlink()
        (found.folder / CARD).symlink_to(secret)

    with pytest.raises(OrcawatchError, match="was changed while it was installed"):
        Shelf(output).install(bundles["a"], swap)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert current(output) == "first-light"


def test_install_rollback_and_forth(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    assert current(output) == "first-light"
    for name in "ab":
        assert place.install(bundles[name]).name == name and current(output) == name
    assert place.rollback().name == "a" and current(output) == "a"
    assert place.rollback().name == "b" and current(output) == "b"
    place.install(bundles["c"])
    assert [(item.bundle.name, item.roles) for item in place.listed() if item.bundle] == [
        ("c", ("current",)),
        ("b", ("previous",)),
    ]
    actions = [(entry["action"], entry["bundle"][0]) for entry in place.history()]
    assert actions == [("install", "a"), ("install", "b"), ("rollback", "a"), ("rollback", "b"), ("install", "c")]
    assert all(entry["who"] and entry["utc"] for entry in place.history())
    assert not list(place.folder.glob("*.partial"))


def test_installed_again_nothing_changes(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    place.install(bundles["b"])
    place.install(bundles["b"])
    assert (place.bundle("current").name, place.bundle("previous").name) == ("b", "a")


def test_rollback_of_the_first_installation_leads_to_the_shipped_bundle(bundles: dict[str, Path], output: Path) -> None:
    place, settings = Shelf(output), Settings(output=output)
    with pytest.raises(
        BundleError, match=r"the bundle that comes with orcawatch scores, and .* has none to go back to"
    ):
        place.rollback()
    place.install(bundles["a"])
    assert place.rollback().folder == SHIPPED
    found = in_force(settings)
    assert (found.bundle.folder, found.origin, found.faults) == (SHIPPED, "shipped", ())
    assert [(item.folder[0], item.roles) for item in place.listed()] == [("s", ("current",)), ("a", ("previous",))]
    assert place.bundle("current").folder == SHIPPED and place.history()[-1]["current"] == "shipped"
    assert place.rollback().name == "a" and current(output) == "a"  # there and back
    damage(place.folder / "current")
    found = in_force(settings)
    assert found.origin == "shipped" and len(found.faults) == 1
    assert place.rollback().folder == SHIPPED and place.install(bundles["b"]).name == "b"
    assert place.rollback().folder == SHIPPED and current(output) == "first-light"
    place.install_shadow(bundles["c"], 1)
    assert place.promote().name == "c" and place.rollback().folder == SHIPPED


def test_previous_bundle_that_is_damaged_is_not_gone_back_to(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    place.install(bundles["b"])
    damage(place.folder / "previous")
    with pytest.raises(BundleError, match=r"cannot be used, and nothing was changed: .*heads.tflite is damaged"):
        place.rollback()
    assert current(output) == "b"


def damage(folder: Path) -> None:
    (folder / "heads.tflite").write_bytes(b"rot")


def test_damaged_bundle_falls_back_loudly(
    bundles: dict[str, Path], output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, settings = Shelf(output), Settings(output=output)
    place.install(bundles["a"])
    place.install(bundles["b"])
    damage(place.folder / "current")
    assert daemon.open_bundle(settings).name == "a"
    assert "the installed bundle cannot be used" in caplog.text and "scores in its place" in caplog.text
    damage(place.folder / "previous")
    found = in_force(settings)
    assert (found.bundle.folder, found.origin, len(found.faults)) == (SHIPPED, "shipped", 2)
    for _ in range(2):
        place.note_fall_back(found)
    assert [entry["action"] for entry in place.history()] == ["install", "install", "fall back"]
    assert place.install(bundles["b"]).name == "b" and current(output) == "b"  # the cure


def test_what_others_have_put_there_is_left_alone(bundles: dict[str, Path], output: Path) -> None:
    """The folder `bundles` may have been somebody's own before."""
    place = Shelf(output)
    for name in ("mine", "new.partial"):
        shutil.copytree(bundles["a"], place.folder / name)
    assert place.install(place.folder / "mine").name == "a"
    for name in "bc":
        place.install(bundles[name])
    assert place.install(place.folder / "mine").name == "a"
    assert len(list((place.folder / "mine").iterdir())) == len(list((place.folder / "new.partial").iterdir())) == 5
    assert sum(path.is_dir() and not path.is_symlink() for path in place.folder.iterdir()) == 4


def test_folder_that_may_not_be_looked_into_is_a_fault(tmp_path: Path, bundles: dict[str, Path], output: Path) -> None:
    """And not the same as nothing installed."""
    Shelf(output).install(bundles["a"])
    for path in (output, *output.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(0o755)
    (output / "bundles").chmod(0o700)
    if os.geteuid() == 0:
        os.seteuid(12345)
    else:
        (output / "bundles").chmod(0)
    try:
        found = in_force(Settings(output=output))
    finally:
        os.seteuid(os.getuid())
        (output / "bundles").chmod(0o755)
    assert found.origin == "shipped" and "ermission denied" in "".join(found.faults)


def test_history_with_lines_that_are_no_entries(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    with (place.folder / "history.jsonl").open("ab") as file:
        file.write(b'7\n[[1]]\nnull\n{"utc": 1}\n\0\0\n\xff\n')
    place.install(bundles["b"])
    assert [item.installed_utc is not None for item in place.listed()] == [True, True]
    assert [entry["action"] for entry in place.history()] == ["install", "install"]


@pytest.mark.parametrize(("utc", "kept"), [("yesterday", 2), (7, 1), (["2026"], 1)])
def test_history_with_a_time_that_is_none_is_listed(
    bundles: dict[str, Path], output: Path, utc: Any, kept: int
) -> None:
    """Found by fuzzing: `bundle list` broke."""
    place = Shelf(output)
    place.install(bundles["a"])
    lines = (place.folder / "history.jsonl").read_text()
    entry = {**json.loads(lines), "utc": utc}
    (place.folder / "history.jsonl").write_text(f"{lines}{json.dumps(entry)}\n")
    assert len(place.history()) == kept
    assert [item.installed_utc is None for item in place.listed()] == [kept == 2]
    assert "install" in "\n".join(shelf_lines(place))


def test_folder_that_vanishes_or_holds_a_broken_link_is_listed(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    (place.folder / "current" / "more").symlink_to("nowhere")
    assert "more" in place.listed()[0].fault


def test_full_disk_keeps_nobody_from_going_back(
    bundles: dict[str, Path], output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    place.install(bundles["b"])
    place.install_shadow(bundles["c"], 1)

    def full(path: Path, line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shelf, "append", full)
        assert place.rollback().name == "a" == current(output)
        assert place.stop_shadow().startswith("c-") and place.target("shadow") is None
    assert "the disk is full: rollback a-" in caplog.text
    place.install(bundles["d"])
    assert [entry["action"] for entry in place.history()][-2:] == ["found", "install"]


def test_leftover_that_cannot_be_removed_does_not_hide_that_it_is_installed(
    bundles: dict[str, Path], output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    place.install(bundles["b"])
    remove = shutil.rmtree

    def refused(path: Path, ignore_errors: bool = False) -> None:
        if path.name.startswith("a-"):
            raise OSError(errno.EACCES, "Permission denied")
        remove(path, ignore_errors)

    monkeypatch.setattr(shelf.shutil, "rmtree", refused)
    assert place.install(bundles["c"]).name == "c" == current(output)
    assert "cannot be removed" in caplog.text


def test_lost_link_and_unreadable_manifest_are_faults_too(bundles: dict[str, Path], output: Path) -> None:
    place, settings = Shelf(output), Settings(output=output)
    place.install(bundles["a"])
    place.install(bundles["b"])
    (place.folder / "current").unlink()
    found = in_force(settings)
    assert found.bundle.name == "a" and len(found.faults) == 1
    shutil.rmtree(place.folder / place.target("previous"))  # type: ignore[operator]
    assert in_force(settings).origin == "shipped"


def test_bundle_named_in_the_settings_has_no_stand_in(bundles: dict[str, Path], output: Path) -> None:
    Shelf(output).install(bundles["a"])
    assert in_force(Settings(output=output, bundle=bundles["b"])).origin == "settings"
    damage(bundles["b"])
    with pytest.raises(BundleError, match="is damaged"):
        in_force(Settings(output=output, bundle=bundles["b"]))


def test_installed_bundle_that_cannot_score_falls_back(bundles: dict[str, Path], output: Path) -> None:
    Shelf(output).install(bundles["a"])  # whole, but its files are no models
    found, ensemble = daemon.open_working(Settings(output=output))
    assert found.origin == "shipped" and ensemble.bundle.name == "first-light" and len(found.faults) == 1


def test_unfit_bundle_changes_nothing(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])

    def fits(found: Bundle) -> None:
        raise BundleError("it scores 2.0")

    damaged = bundles["c"]
    damage(damaged)
    for path, check, words in [
        (bundles["b"], fits, "it scores 2.0"),
        (damaged, lambda found: None, "is damaged"),
        (output, lambda found: None, "not a bundle"),
        (output / "nowhere", lambda found: None, "no bundle's folder"),
    ]:
        before = sorted(path.name for path in place.folder.iterdir())
        with pytest.raises(BundleError, match=words):
            place.install(path, check)
        assert sorted(path.name for path in place.folder.iterdir()) == before and current(output) == "a"


# The power fails.


class Cut(BaseException):
    """The power fails: nothing is cleaned up."""


CALLS = ["mkdir", "open", "fsync", "rename", "replace", "symlink", "unlink", "chmod", "chown", "rmdir"]


def cut_before(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[int]:
    """The error comes in place of the numbered call of the system that changes something, and of all after it."""
    count: list[int] = []

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def cut(*given: Any, **more: Any) -> Any:
            count.append(1)
            if len(count) >= number:
                raise error
            return call(*given, **more)

        return cut

    for name in CALLS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    monkeypatch.setattr(shelf.shutil, "rmtree", wrapped(shutil.rmtree))
    return count


CHANGES: dict[str, tuple[Callable[[Shelf, dict[str, Path]], object], set[str]]] = {
    "install": (lambda place, bundles: place.install(bundles["c"]), {"b", "c"}),
    "rollback": (lambda place, bundles: place.rollback(), {"b", "a"}),
    "rollback to ours": (lambda place, bundles: place.rollback(), {"a", "first-light"}),
    "shadow": (lambda place, bundles: place.install_shadow(bundles["c"], 14), {"b"}),
    "promote": (lambda place, bundles: place.promote(), {"b", "d"}),
    "stop": (lambda place, bundles: place.stop_shadow(), {"b"}),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("disk_error", [False, True])
def test_power_cut_before_every_step_leaves_what_works(
    change: str, disk_error: bool, bundles: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As it is after the cut: a bundle is in force, and the same change, made again, works."""
    caplog.set_level(logging.CRITICAL)
    make_change, allowed = CHANGES[change]
    number, done = 0, False
    before = tmp_path / "before"
    before.mkdir()
    Shelf(before).install(bundles["a"])
    if change != "rollback to ours":
        Shelf(before).install(bundles["b"])
    Shelf(before).install_shadow(bundles["d"], 1)
    while not done:
        number += 1
        output = tmp_path / f"out{number}"
        shutil.copytree(before, output, symlinks=True)
        place = Shelf(output)
        error: BaseException = OSError(5, "Input/output error") if disk_error else Cut()
        with pytest.MonkeyPatch.context() as patch:
            count = cut_before(patch, number, error)
            with suppress(Cut, OrcawatchError):
                make_change(place, bundles)
            done = len(count) < number
        assert current(output) in allowed
        trial = place.trial()
        assert trial is None or load_bundle(place.folder / trial.folder)
        assert place.install(bundles["c"]).name == "c" == current(output)
        assert place.history()[-1]["current"] == place.target("current")
    assert number > 8


@pytest.mark.parametrize("change", list(CHANGES))
def test_after_a_power_cut_the_next_change_finds_all_links_old_or_all_new(
    change: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """And a shadow with its time, or none: cut between two links, a rollback would have gone astray."""
    make_change, _ = CHANGES[change]
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    Shelf(before).install(bundles["a"])
    if change != "rollback to ours":
        Shelf(before).install(bundles["b"])
    Shelf(before).install_shadow(bundles["d"], 1)
    shutil.copytree(before, after, symlinks=True)
    make_change(Shelf(after), bundles)
    whole = [{link: Shelf(output).target(link) for link in shelf.LINKS} for output in (before, after)]
    for number in itertools.count(1):
        output = Path(shutil.copytree(before, tmp_path / f"out{number}", symlinks=True))
        place = Shelf(output)
        with pytest.MonkeyPatch.context() as patch:
            count = cut_before(patch, number, Cut())
            with suppress(Cut):
                make_change(place, bundles)
        place.note_fall_back(in_force(Settings(output=output)))
        links = {link: place.target(link) for link in shelf.LINKS}
        assert links in whole, number
        trial = place.trial()
        assert (None if trial is None else trial.folder) == links["shadow"], number
        assert (place.folder / shelf.TRIAL).exists() == (trial is not None)
        if len(count) < number:
            break


def test_a_history_that_leads_elsewhere_mends_nothing(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    for name in "ab":
        place.install(bundles[name])
    entry = place.history()[-1]
    for previous in ("../../etc", 7, "c-0123456789ab"):
        with (place.folder / shelf.HISTORY).open("a") as file:
            file.write(json.dumps({**entry, "current": "a-0123456789ab", "previous": "b-0123456789ab"}) + "\n")
            file.write(json.dumps({**entry, "previous": previous}) + "\n")
        links = {link: place.target(link) for link in shelf.LINKS}
        place.note_fall_back(in_force(Settings(output=output)))
        assert {link: place.target(link) for link in shelf.LINKS} == links


HISTORY_TORN = '{"utc": "2026-07-01T00:00:00+00:00", "who"'


def test_torn_line_of_the_history_is_passed_over(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    with (place.folder / "history.jsonl").open("a") as file:
        file.write(HISTORY_TORN)
    place.install(bundles["b"])
    assert [entry["bundle"][0] for entry in place.history()] == ["a", "b"]
    (place.folder / "current").unlink()
    (place.folder / "current").symlink_to(place.target("previous") or "")  # by hand
    place.install(bundles["c"])
    assert [entry["action"] for entry in place.history()][-2:] == ["found", "install"]


INSTALLER = """
import sys
from pathlib import Path
from orcawatch.shelf import Shelf
place = Shelf(Path(sys.argv[1]))
print(flush=True)
while True:
    for name in sys.argv[2:]:
        place.install(Path(name))
    place.rollback()
    place.install_shadow(Path(sys.argv[3]), 1)
    place.promote()
"""


@pytest.mark.parts
def test_killed_again_and_again_a_whole_bundle_is_current(bundles: dict[str, Path], output: Path) -> None:
    chance = random.Random(5)
    paths = [str(bundles[name]) for name in "abc"]
    Shelf(output).install(bundles["d"])
    seen: set[str] = set()
    for _ in range(12):
        command = [sys.executable, "-c", INSTALLER, str(output), *paths]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        seen.add(current(output))
    assert len(seen) > 1
    Shelf(output).install(bundles["a"])
    assert current(output) == "a" and not list((output / "bundles").glob("*.partial"))


# Others, and disks.


def test_two_at_once(bundles: dict[str, Path], output: Path) -> None:
    place = Shelf(output)
    place.install(bundles["a"])
    with (place.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for change in (lambda: place.install(bundles["b"]), place.rollback, place.stop_shadow):
            with pytest.raises(InputError, match="another orcawatch changes"):
                change()
    assert current(output) == "a" and place.install(bundles["b"]).name == "b"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_that_cannot_be_written(bundles: dict[str, Path], output: Path) -> None:
    output.chmod(0o500)
    with pytest.raises(OrcawatchError, match=r"cannot be changed: .*check the disk"):
        Shelf(output).install(bundles["a"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_installs_belongs_to_whom_the_output_belongs_to(bundles: dict[str, Path], output: Path) -> None:
    os.chown(output, 12345, 12345)
    before = os.umask(0o077)
    try:
        Shelf(output).install(bundles["a"])
        Shelf(output).install_shadow(bundles["b"], 1)
    finally:
        os.umask(before)
    paths = [output / "bundles", *(output / "bundles").rglob("*")]
    assert len(paths) > 10
    for path in paths:
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (12345, 12345), path
        if stat.S_ISDIR(found.st_mode):
            assert stat.S_IMODE(found.st_mode) == 0o755, path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_folder_of_an_installation_that_was_killed_right_away_is_given_away_at_the_next(
    bundles: dict[str, Path], output: Path
) -> None:
    os.chown(output, 12345, 12345)
    (output / "bundles").mkdir(0o700)
    Shelf(output).install(bundles["a"])
    assert (output / "bundles").stat().st_uid == 12345


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_links_in_place_of_our_files_are_not_followed(bundles: dict[str, Path], output: Path, tmp_path: Path) -> None:
    """The folder is the service's; root must not be led to write elsewhere by it."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("history.jsonl", "lock"):
        folder = output / "bundles"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / name).symlink_to(victim)
        with pytest.raises(OrcawatchError, match="cannot be changed"):
            Shelf(output).install(bundles["a"])
    assert victim.read_text() == "mine" and victim.stat().st_uid == 0


# Archives.


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "bundles").iterdir())


def tarred(path: Path, add: Callable[[tarfile.TarFile], object]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        add(archive)
    return path


def entry(name: str, content: bytes = b"x", **changes: Any) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".zip"])
@pytest.mark.parametrize("inside", ["", "a"])
def test_archives(suffix: str, inside: str, bundles: dict[str, Path], output: Path, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in bundles["a"].iterdir():
                archive.write(file, f"{inside}/{file.name}" if inside else file.name)
    else:
        tarred(path, lambda archive: archive.add(bundles["a"], inside or "."))
    assert Shelf(output).install(path).name == "a"
    assert current(output) == "a" and not list((output / "bundles").glob("*.partial"))


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([entry("../evil")], "lie in one folder"),
        ([entry("a/../../evil")], "lie in one folder"),
        ([entry("/tmp/evil")], "lie in one folder"),
        ([entry("a/b/c")], "lie in one folder"),
        ([entry("a\\..\\evil")], "lie in one folder"),
        ([entry("a/manifest.json", b"", **LINK)], "link or a device"),
        ([entry("a/x", b"", type=tarfile.LNKTYPE, linkname="a/y")], "link or a device"),
        ([entry("a/x", b"", type=tarfile.CHRTYPE)], "link or a device"),
        ([entry("a/x", b"", type=tarfile.FIFOTYPE)], "link or a device"),
        ([entry("a/x"), entry("a/x")], "twice"),
        ([entry("a/x"), entry("b/x")], "beside"),
        ([entry("a/x")], "no manifest.json"),
        ([entry(f"a/{number}", b"") for number in range(300)], "more than 200 files"),
        ([], "holds no files"),
    ],
)
def test_archive_that_means_harm(members: list[Any], words: str, output: Path, tmp_path: Path) -> None:
    path = tarred(tmp_path / "evil.tar.gz", lambda archive: [archive.addfile(*member) for member in members])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=words):
        Shelf(output).install(path)
    after = [
        found for found in sorted(tmp_path.rglob("*")) if found.relative_to(tmp_path).parts[:2] != ("out", "bundles")
    ]
    assert after == before and names(output) == ["lock"]


def test_zip_that_means_harm(output: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    for name, mode, words in [("../evil", 0o100644, "lie in one folder"), ("a/x", 0o120777, "link or a device")]:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(BundleError, match=words):
            Shelf(output).install(path)
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(BundleError, match="damaged or no archive"):
        Shelf(output).install(path)


def bombs(folder: Path) -> Iterator[Path]:
    """Much from little: a zip, a tar, a header that wants memory, a header that lies about a size."""
    zeros = bytes(40 << 20)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x", zeros)
    yield folder / "bomb.zip"
    yield tarred(folder / "bomb.tar.gz", lambda archive: archive.addfile(*entry("a/x", zeros)))
    for name, kind in (("pax.tar.gz", tarfile.XHDTYPE), ("long.tar.gz", tarfile.GNUTYPE_LONGNAME)):
        info = tarfile.TarInfo("a/x")
        info.type, info.size = kind, len(zeros)
        with gzip.open(folder / name, "wb") as file:
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + zeros)
        yield folder / name
    info = tarfile.TarInfo("a/x")
    info.size = 1 << 60
    (folder / "liar.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    yield folder / "liar.tar"


def test_bombs(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_B", 32 << 20)
    for path in bombs(tmp_path):
        assert path.stat().st_size < 200_000
        with pytest.raises(BundleError, match=r"unpacks to more than|damaged or no archive"):
            Shelf(output).install(path)
        assert names(output) == ["lock"]


def test_manifest_that_would_not_fit_into_the_memory(output: Path, tmp_path: Path) -> None:
    content = b"[" * (17 << 20)
    path = tarred(tmp_path / "a.tar.gz", lambda archive: archive.addfile(*entry("a/manifest.json", content)))
    with pytest.raises(BundleError, match=r"more than 16777216 bytes in manifest.json"):
        Shelf(output).install(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_compressed_in_an_unusual_way(compression: int, output: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        archive.writestr("a/manifest.json", b"{}")
    with pytest.raises(BundleError, match="compressed in an unusual way"):
        Shelf(output).install(tmp_path / "a.zip")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_damaged_archives_are_refused_whatever_the_damage(
    suffix: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Never any other error, and none that blames the disk."""
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in bundles["a"].iterdir():
                archive.write(file, f"a/{file.name}")
    else:
        tarred(tmp_path / f"whole{suffix}", lambda archive: archive.add(bundles["a"], "a"))
    whole, refused = (tmp_path / f"whole{suffix}").read_bytes(), 0
    chance = random.Random(7)
    for number in range(300):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(chance.choice((1, 2, 30)) if damaged else 0):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 47, 255, chance.randrange(256)))
        path, place = tmp_path / f"damaged{suffix}", tmp_path / f"unpacked{number}"
        path.write_bytes(damaged)
        place.mkdir()
        try:
            unpacking.unpack(path, place)
        except BundleError:
            refused += 1
    assert refused > 100


# The command line, with the real bundle.


def orcawatch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orcawatch.cli", "bundle", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parts
def test_commands(bundles: dict[str, Path], tmp_path: Path) -> None:
    assert orcawatch(tmp_path, "install", str(SHIPPED)).stdout.startswith("current: first-light ")
    refused = orcawatch(tmp_path, "install", str(bundles["a"]))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    shown = orcawatch(tmp_path, "list").stdout
    assert "in force   first-light" in shown and "(installed)" in shown and ": install first-light-" in shown
    assert "the bundle that comes with orcawatch" in orcawatch(tmp_path, "rollback").stdout
    assert "current    shipped, 22.9 MB" in orcawatch(tmp_path, "list").stdout
    assert orcawatch(tmp_path, "rollback").returncode == 0
    done = orcawatch(tmp_path, "install", str(SHIPPED), "--shadow", "--days", "14")
    assert "scores beside the current bundle until 20" in done.stdout
    assert orcawatch(tmp_path, "shadow", "stop").returncode == 0
    assert orcawatch(tmp_path, "shadow", "stop").returncode == 2
    assert orcawatch(tmp_path, "install", str(SHIPPED), "--days", "3").returncode == 2
    text = (tmp_path / "orcawatch-out" / "bundles" / "history.jsonl").read_text()
    actions = ["install", "rollback", "rollback", "install shadow", "stop shadow"]
    assert [json.loads(line)["action"] for line in text.splitlines()] == actions


class Sick:
    """An interpreter's answer to a model that it reads and cannot run, as after another version was installed."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self.given = given

    def get_signature_list(self) -> dict[str, Any]:
        return {"score": {}}

    def allocate_tensors(self) -> None:
        raise RuntimeError("Node number 45 (MUL) failed to prepare")


def test_model_that_the_interpreter_cannot_run_is_passed_over(
    bundles: dict[str, Path], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Shelf(output).install(bundles["a"])
    real, shipped = interpreter.runtime(), [path.resolve() for path in SHIPPED.iterdir()]

    class Runtime:
        __name__ = real.__name__

        @staticmethod
        def Interpreter(model_path: str, num_threads: int) -> Any:  # noqa: N802
            return (real.Interpreter if Path(model_path).resolve() in shipped else Sick)(
                model_path=model_path, num_threads=num_threads
            )

    monkeypatch.setattr(interpreter, "runtime", Runtime)
    found, ensemble = daemon.open_working(Settings(output=output))
    assert found.origin == "shipped" and "failed to prepare" in found.faults[0]
    assert ensemble.bundle.name == "first-light"


def test_check_that_breaks_leaves_nothing_behind(bundles: dict[str, Path], output: Path) -> None:
    def broken(found: Bundle) -> None:
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError):
        Shelf(output).install(bundles["a"], broken)
    assert names(output) == ["lock"]


def test_bundle_that_breaks_in_scoring_silence(make_ensemble: Any) -> None:
    broken = make_ensemble()
    broken.score = lambda window: np.reshape(np.zeros(3), (2, 2))
    with pytest.raises(BundleError, match="cannot score silence: cannot reshape"):
        score_silence(broken)


@pytest.mark.parts
def test_bundle_that_wants_faster_audio_than_there_is_is_not_installed(tmp_path: Path) -> None:
    """The watch would end with it."""
    (tmp_path / "orcawatch.yaml").write_text("source: {rate_hz: 6000}\noutput: out\n")
    refused = orcawatch(tmp_path, "install", str(SHIPPED), "--config", "orcawatch.yaml")
    assert refused.returncode == 2 and "sample rate must be at least 8000 Hz, not 6000 Hz" in refused.stderr
    assert names(tmp_path / "out") == ["lock"]


LIVE = """\
source: {device: nowhere, rate_hz: 16000, device_channels: 2}
output: out
snapshots: false
"""


def renamed(folder: Path) -> Path:
    """The shipped bundle under another name."""
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    files = {name: (SHIPPED / name).read_bytes() for name in manifest["files"]}
    rest = {key: value for key, value in manifest.items() if key not in ("schema", "files", "digest")}
    write_bundle(folder, {**rest, "name": "next"}, files)
    return folder


@pytest.mark.parts
def test_running_watch_takes_the_new_bundle_at_a_reload(tmp_path: Path) -> None:
    """And begins a new session, with the time between in the ledger; one that cannot be used is not taken."""
    (tmp_path / "orcawatch.yaml").write_text(LIVE)
    place, database = Shelf(tmp_path / "out"), tmp_path / "out" / "detections.sqlite"
    with (tmp_path / "log").open("w+") as told:
        command = [sys.executable, "-m", "orcawatch.cli", "run", "--config", "orcawatch.yaml"]
        watch = subprocess.Popen(command, cwd=tmp_path, stderr=told, stdout=told)
        try:
            wait_for(lambda: read(database, "SELECT count(*) FROM ledger")[0][0] > 0)
            place.install(renamed(tmp_path / "next"))
            watch.send_signal(signal.SIGHUP)
            wait_for(lambda: read(database, "SELECT count(*) FROM sessions")[0][0] == 2)
            assert place.rollback().folder == SHIPPED
            watch.send_signal(signal.SIGHUP)
            wait_for(lambda: read(database, "SELECT count(*) FROM sessions")[0][0] == 3)
            place.install(SHIPPED)
            damage(place.folder / "current")
            watch.send_signal(signal.SIGHUP)
            wait_for(lambda: "scores in its place" in (tmp_path / "log").read_text())
            watch.send_signal(signal.SIGTERM)
            assert watch.wait(30) == 0
        finally:
            watch.kill()
            watch.wait()
    scored = [name for (name,) in read(database, "SELECT bundle FROM sessions ORDER BY id")]
    assert scored == ["first-light", "next", "first-light"]
    assert all(ended for (ended,) in read(database, "SELECT ended_utc FROM sessions"))
    between = read(database, "SELECT end_steady_s - start_steady_s FROM ledger WHERE cause = 'not running'")
    assert sum(seconds for (seconds,) in between) < 5.0


def wait_for(come: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not come():
        assert time.monotonic() < until_s
        time.sleep(0.1)


def read(database: Path, query: str) -> list[Any]:
    if not database.is_file():
        return [(0,)]
    try:
        with Store.reader(database) as reader, reader.transaction() as connection:
            return connection.execute(query).fetchall()
    except OrcawatchError:
        return [(0,)]  # it is being made
