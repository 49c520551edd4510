"""A bundle tried in a process of its own: a TFLite file that is made to harm can end the process that runs it.

The interpreter looks a file through before it reads it, and yet some pass that crash it. So no bundle is installed, and
no watch begins with one that the settings name, that has not scored silence, and scored and explained noise there.
`scan` and `explain` open what they are given as it is: whoever asked sees them end.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ._version import __version__
from .durable import make_folder, write_bytes
from .errors import BundleError, OrcawatchError
from .owner import give_to_owner

if TYPE_CHECKING:
    from .bundle import Bundle
    from .config import Settings

log = logging.getLogger(__name__)

TRIED = "tried-bundle"  # in an output folder: the named bundle that passed last, and what it was tried with
LONGEST_S = 600.0
TOLD = 2000  # characters of what the process said


class Peak(NamedTuple):
    """The most memory that the process of a trial had: of all that it held, in MB of 10**6 bytes.

    Attributes
    ----------
    score_mb : until it had scored.
    explain_mb : until it had explained, too.
    """

    score_mb: float
    explain_mb: float


def try_out(folder: Path, longest_s: float = LONGEST_S) -> Peak:
    """Let another process open a bundle, score silence and noise with every backbone, and explain the noise.

    Returns
    -------
    What memory that took.

    Raises
    ------
    BundleError : it cannot, it ends the process, or takes longer.
    """
    command = [sys.executable, "-m", "orcawatch.attempt", str(folder.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=longest_s, check=False, cwd="/")
    except subprocess.TimeoutExpired as fault:
        raise BundleError(f"{folder} did not score one window in {longest_s:g} s: make it again") from fault
    except OSError as fault:
        raise OrcawatchError(f"{folder} could not be tried in a process of its own: {fault}; try again") from fault
    if done.returncode == -signal.SIGKILL:
        raise BundleError(f"{folder} was ended by signal 9, as where the memory is too small: use a smaller bundle")
    if done.returncode < 0:
        raise BundleError(f"{folder} ends the process that runs it (signal {-done.returncode}): do not use it")
    if done.returncode:
        raise BundleError(done.stderr.decode(errors="replace").strip()[-TOLD:])
    score_mb, explain_mb = map(float, done.stdout.split()[-2:])
    return Peak(score_mb, explain_mb)


def try_named(bundle: Bundle, settings: Settings) -> None:
    """Try the bundle that the settings name; the others were tried when they were installed. Raises as `try_out`."""
    if settings.bundle is not None:
        try_out(bundle.folder)


def try_named_once(bundle: Bundle, settings: Settings) -> None:
    """As `try_named`, unless it has passed before: the output folder remembers that, so that starts are quick.

    Another version of orcawatch or of the interpreter tries it anew.

    Raises
    ------
    BundleError : as `try_out`.
    """
    passed, note = f"{bundle.digest} {tried_with()}\n".encode(), settings.output / TRIED
    if settings.bundle is None or says(note, passed):
        return
    log.info("%s is tried in another process, once", bundle.name)
    try:
        try_out(bundle.folder)
    except BundleError as fault:
        raise BundleError(f"{fault}; name another as `bundle`, or leave that key out for the installed one") from fault
    try:
        make_folder(note.parent)
        write_bytes(note, passed)
        give_to_owner(note)
    except OSError as fault:
        log.warning("%s cannot be written, so %s is tried at the next start, too: %s", note, bundle.name, fault)


def says(note: Path, passed: bytes) -> bool:
    """Whether the note has these bytes; not where it cannot be read."""
    try:
        return note.is_file() and note.read_bytes() == passed
    except OSError:
        return False


def tried_with() -> str:
    """This program and its interpreter, with their versions."""
    from importlib.metadata import PackageNotFoundError, version

    from .interpreter import runtime_name

    name = runtime_name()
    try:
        return f"orcawatch {__version__} {name} {version(name)}"
    except PackageNotFoundError:  # where it was put there by other means than pip
        return f"orcawatch {__version__} {name}"


def main(folder: Path) -> int:
    """Try a bundle in this process, and print what memory that took as in `Peak`; exit code."""
    import numpy as np

    from .bundle import load_bundle
    from .detector import bands, score_silence
    from .ensemble import Ensemble
    from .records import Window

    try:
        ensemble = Ensemble(load_bundle(folder))
        ensemble.cascade = ensemble.cascade.opened
        score_silence(ensemble)
        noise = np.random.default_rng(0)
        ends = {name: entry.front_end for name, entry in ensemble.bundle.backbones.items()}
        rows = {name: noise.random((1, end.frames, bands(end)), np.float32) for name, end in ends.items()}
        ensemble.score(Window(0, 0, rows))
        score_mb = peak_mb()
        ensemble.explain([Window(0, 0, rows)], 0)
        for name, backbone in ensemble._backbones.items():  # one without any part in the noise was passed over
            ones = np.ones(ensemble.bundle.backbones[name].feature_size, np.float32)
            backbone.explain([ends[name].finish(rows[name][0])], [ones])
    except OrcawatchError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    except (RuntimeError, ValueError) as fault:  # of the interpreter
        print(f"{folder} cannot score or explain noise: {fault}; make it again", file=sys.stderr)
        return BundleError.exit_code
    print(score_mb, peak_mb())
    return 0


def peak_mb() -> float:
    """The most memory that this process had so far; `ru_maxrss` would count that of the one that began it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
