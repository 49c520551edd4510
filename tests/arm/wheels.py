"""Which packages have wheels for which Python and processor: what is missing must be built, or taken from the system.

    python tests/arm/wheels.py

Asks the package index through pip, for the newest version that fits, and downloads nothing but descriptions.
"""

from __future__ import annotations

import subprocess
import sys
from tempfile import TemporaryDirectory

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64", "armv7l")
GLIBC = 36  # Debian 12's, 2.36
INTERPRETERS = ("ai-edge-litert>=2.1", "tflite-runtime==2.14.0")
# The others that are compiled; wheels of what remains serve every machine.
COMPILED = ("numpy", "pyyaml", "soxr", "soundfile", "matplotlib", "contourpy", "kiwisolver", "pillow", "fonttools", "cffi",
            "markupsafe", "cryptography")  # fmt: skip


def main() -> None:
    print("| machine | Python | ai-edge-litert | tflite-runtime | other packages without a wheel |")
    print("|---|---|---|---|---|")
    for machine in MACHINES:
        for python in PYTHONS:
            told = ["yes" if there(machine, python, one) else "no" for one in INTERPRETERS]
            print(f"| {machine} | {python} | {' | '.join(told)} | {lacking(machine, python)} |", flush=True)


def lacking(machine: str, python: str) -> str:
    """Names of the compiled packages without a wheel."""
    if there(machine, python, *COMPILED):
        return "none"
    return ", ".join(one for one in COMPILED if not there(machine, python, one))


def there(machine: str, python: str, *packages: str) -> bool:
    """Whether all packages have a wheel."""
    tags = [f"manylinux_2_{number}_{machine}" for number in range(5, GLIBC + 1)]
    tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"linux_{machine}"]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--target", folder,
                   "--only-binary=:all:", f"--python-version={python}", *(f"--platform={tag}" for tag in tags)]  # fmt: skip
        done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" not in done.stderr:
        raise SystemExit(done.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    main()
