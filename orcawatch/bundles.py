"""Which bundle is in force: the one that the settings name, an installed one, or the shipped one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .bundle import SHIPPED, Bundle, load_bundle
from .config import Settings
from .errors import OrcawatchError
from .signing import check_signature

Fits = Callable[[Bundle], object]

FOLDER = "bundles"
CURRENT, PREVIOUS = "current", "previous"
OF_OURS = "shipped"  # where a link leads that stands for the bundle that comes with orcawatch; no folder has that name
DIGEST_CHARACTERS = 12


@dataclass(frozen=True)
class InForce:
    """The bundle that scores, and why it is that one.

    Attributes
    ----------
    bundle : without the settings' overrides.
    origin : `settings` (they name it), `current` or `previous` (installed), or `shipped`.
    faults : what is wrong with those that would come before it.
    """

    bundle: Bundle
    origin: str
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = {
            "settings": "named in the settings",
            "current": "installed",
            "previous": "installed, the previous one",
            "shipped": "the shipped one",
        }[self.origin]
        return f"{self.bundle.name} {self.bundle.digest[:DIGEST_CHARACTERS]} ({why})"


def nothing(bundle: Bundle) -> None:
    """Any whole bundle will do."""


def in_force(settings: Settings, fits: Fits = nothing) -> InForce:
    """The bundle that the settings name; without that the installed one, or else the shipped one.

    An installed bundle that is damaged, not signed as the settings want it, or does not fit, is passed over for the
    previous one and then for the shipped one: nobody is there to install another.

    Parameters
    ----------
    settings : bundle, trusted keys and output folder.
    fits : raises OrcawatchError for a bundle that cannot be used.

    Raises
    ------
    OrcawatchError : the bundle that the settings name is damaged, not trusted or does not fit; or the shipped one.
    """

    def trusted(bundle: Bundle) -> None:
        check_signature(bundle, settings.bundles)
        fits(bundle)

    if settings.bundle is not None:
        return InForce(usable(settings.bundle, trusted), "settings")
    faults: list[str] = []
    for origin, folder in installed(settings.output):
        try:
            return InForce(usable(folder, trusted), origin, tuple(faults))
        except (OrcawatchError, OSError) as fault:
            faults.append(f"the {'installed' if origin == CURRENT else 'previous'} bundle cannot be used: {fault}")
    return InForce(usable(SHIPPED, fits), "shipped", tuple(faults))


def usable(folder: Path, fits: Fits = nothing) -> Bundle:
    """A bundle that is whole and fits."""
    found = load_bundle(folder)
    fits(found)
    return found


def installed(output: Path) -> Iterator[tuple[str, Path]]:
    """Yield `current` and `previous` with the folders that they lead to, where anything was ever installed.

    It ends before a link that leads to the bundle that comes with orcawatch.
    """
    places = {origin: output / FOLDER / origin for origin in (CURRENT, PREVIOUS)}
    there = [origin for origin, link in places.items() if is_there(link)]
    for origin in dict.fromkeys([CURRENT, *there] if there else []):
        found = Path(os.path.realpath(places[origin]))
        if found == places[origin].parent.resolve() / OF_OURS:
            return
        yield origin, found


def is_there(link: Path) -> bool:
    """Whether there is such a link; one in a folder that may not be looked into is taken to be, so that it is told."""
    try:
        link.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True
