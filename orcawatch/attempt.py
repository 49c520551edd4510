"""A bundle tried in a process of its own: a TFLite file that is made to harm can end the process that runs it.

The interpreter looks a file through before it reads it, and yet some pass that crash it. So no bundle is installed that
has not scored and explained a window of silence there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .errors import BundleError, OrcawatchError

LONGEST_S = 600.0
TOLD = 2000  # characters of what the process said


def try_out(folder: Path, longest_s: float = LONGEST_S) -> None:
    """Let another process open a bundle, score silence and noise with every backbone, and explain the noise.

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
    if done.returncode < 0:
        raise BundleError(f"{folder} ends the process that runs it (signal {-done.returncode}): do not use it")
    if done.returncode:
        raise BundleError(done.stderr.decode(errors="replace").strip()[-TOLD:])


def main(folder: Path) -> int:
    """Try a bundle in this process; exit code."""
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
        ensemble.explain(Window(0, 0, rows), 0)
    except OrcawatchError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    except (RuntimeError, ValueError) as fault:  # of the interpreter
        print(f"{folder} cannot score or explain noise: {fault}; make it again", file=sys.stderr)
        return BundleError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
