"""What a running daemon takes over from a changed configuration file when it is told to (SIGHUP)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, fields, replace
from typing import Any, Callable

from .bundle import Bundle
from .config import Settings, overridden
from .errors import ConfigError
from .shown import every_key, shown

log = logging.getLogger(__name__)

NOTHING = (None, "nothing")  # the value of a key that is not there, and how that is shown


@dataclass(frozen=True)
class Change:
    """One key whose value is another now.

    Attributes
    ----------
    key : its path in the file.
    old, new : the values as they are told; secrets are masked.
    """

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def reload(load: Callable[[], Settings], old: Settings, bundle: Bundle) -> Settings:
    """The settings to go on with; every change, and every fault of the file, is logged.

    Parameters
    ----------
    load : reads the settings again, as they were read at the start.
    old : the settings in force.
    bundle : as it is in its folder, without the settings' overrides; new thresholds must fit it.

    Returns
    -------
    The new settings where they are right: reloadable keys are taken, others stay as they are. Otherwise `old`.
    """
    try:
        new = load()
        settings, taken, waiting = reloaded(old, new)
        overridden(bundle, settings)
    except ConfigError as fault:
        log.error("reload: the old settings stay in force, all of them; %s", fault)
        return old
    report(taken, waiting)
    return settings


def report(taken: Iterable[Change], waiting: Iterable[Change]) -> None:
    """Log what a reload did and what it could not do."""
    for change in taken:
        log.info("reload: %s", change)
    for change in waiting:
        log.warning("reload: %s waits for a restart (`systemctl restart orcawatch`)", change)
    if not taken and not waiting:
        log.info("reload: nothing has changed")


def reloaded(old: Settings, new: Settings) -> tuple[Settings, list[Change], list[Change]]:
    """Settings to go on with, the changes that they take from the new ones, and those that wait for a restart.

    A group whose reloadable keys do not fit its other keys, which stay as they are, waits as a whole: both may be
    right in the new file and only together.
    """
    settings = mixed(old, new)
    return settings, list(changes(old, settings)), list(changes(settings, new))


def mixed(old: Any, new: Any) -> Any:
    """The old settings with the new ones' reloadable keys."""
    groups = {item.name: mixed(getattr(old, item.name), getattr(new, item.name)) for item in grouped(old)}
    keys = {item.name: getattr(new, item.name) for item in fields(old) if is_reloadable(item)}
    together = replace(old, **groups, **keys)
    return replace(old, **groups) if contradicts(together) else together


def grouped(settings: Any) -> list[Field[Any]]:
    """The fields that are groups of keys."""
    return [item for item in fields(settings) if "section" in item.metadata]


def is_reloadable(item: Field[Any]) -> bool:
    """Whether a field is a key that a running daemon takes."""
    return "key" in item.metadata and bool(item.metadata["key"].reload)


def contradicts(settings: Any) -> bool:
    """Whether keys that are right by themselves do not go together."""
    return hasattr(settings, "crossed") and any(True for _ in settings.crossed(""))


def changes(old: Any, new: Any) -> Iterator[Change]:
    """Yield what differs between two settings objects, key by key, also inside lists of groups."""
    before, after = told(old), told(new)
    for key in dict.fromkeys([*before, *after]):
        was, now = before.get(key, NOTHING), after.get(key, NOTHING)
        if was != now:
            yield Change(key, was[1], now[1])


def told(settings: Any) -> dict[str, tuple[Any, str]]:
    """Every key's value, and how it is shown, by path."""
    return {key: (value, shown(item, value)) for key, item, value in every_key(settings)}
