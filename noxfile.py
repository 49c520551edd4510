"""The edge on every Python and interpreter, the training side on its own: `nox --list`, `nox -s litert-3.13`.

Not part of `make test`, which has Python 3.11 alone. A Python that is not there is passed over, and a line says so.
What follows `--` goes to pytest: `nox -s tflite-3.9 -- -k ledger`. The sessions of the edge leave the scores of one
scene in build/scores; `nox -s scores` compares them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["litert", "tflite", "train", "scores"]

SCORES = Path("build/scores")


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def litert(session: nox.Session) -> None:
    """The edge's tests with ai-edge-litert."""
    install(session, "test")
    edge(session)


@nox.session(python=["3.9", "3.10", "3.11"])
def tflite(session: nox.Session) -> None:
    """The edge's tests with tflite-runtime."""
    install(session, "test,tflite-runtime")
    if session.python != "3.9":  # there, nothing else is there
        session.run_install("python", "-m", "pip", "uninstall", "--quiet", "--yes", "ai-edge-litert")
    edge(session)


@nox.session(python=["3.9", "3.10", "3.11"])
def train(session: nox.Session) -> None:
    """The training side's tests."""
    install(session, "train,baselines,test")
    session.run("pytest", "tests/train", *session.posargs)


@nox.session(python=False)
def scores(session: nox.Session) -> None:
    """The largest differences between the scores that the edge's sessions left."""
    session.run("python3", "tests/arm/compare.py", *map(str, sorted(SCORES.glob("*-3.*.json"))))


def install(session: nox.Session, extras: str) -> None:
    """Install this tree as a wheel, as users do."""
    shutil.rmtree("build/lib", ignore_errors=True)  # or modules deleted since the last build would be in the wheel
    session.install(f".[{extras}]")


def edge(session: nox.Session) -> None:
    """All that needs no parts beside Python, and the scores of one scene."""
    session.run("pytest", "tests/edge", "-m", "not parts", *session.posargs)
    SCORES.mkdir(parents=True, exist_ok=True)
    scene = SCORES / "scene.flac"
    if not scene.exists():
        session.run("orcawatch", "simulate", str(scene), "--seconds", "60", "--calls", "10", "--seed", "7")
    session.run("python", "tests/arm/scores.py", str(scene), str(SCORES / f"{session.name}.json"))
