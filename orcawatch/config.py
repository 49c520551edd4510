"""Settings: one YAML file, checked whole, into frozen dataclasses.

Each key is defined once, as a field below: its kind, unit, range, default and one line of documentation. The checks
and `docs/configuration.md` (`python -m orcawatch.config > docs/configuration.md`) come from these definitions.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from .errors import ConfigError

if TYPE_CHECKING:
    from .bundle import Bundle

log = logging.getLogger(__name__)

OUTPUT = Path("orcawatch-out")


@dataclass(frozen=True)
class Key:
    """What one key takes.

    Attributes
    ----------
    kind : in words, for the reference and for errors.
    check : whether a value fits.
    make : from the value in the file to the one in the settings.
    optional : whether `null` is allowed.
    instead : what stands in the reference for a default of None.
    doc : one line.
    """

    kind: str
    check: Callable[[Any], bool]
    make: Callable[[Any], Any]
    optional: bool
    instead: str
    doc: str


def key(default: Any, definition: Key) -> Any:
    """A dataclass field that carries its definition."""
    return field(default=default, metadata={"key": definition})


def number(default: float | None, low: float, high: float, unit: str, doc: str, instead: str = "") -> Any:
    """A number in a range, `unit` may be empty."""
    kind = f"a number from {low:g} to {high:g} {unit}".rstrip()
    fits = lambda value: is_number(value) and low <= value <= high  # noqa: E731
    return key(default, Key(kind, fits, float, default is None, instead, doc))


def whole(default: int, low: int, high: int, doc: str) -> Any:
    """A whole number in a range."""
    kind = f"a whole number from {low} to {high}"
    return key(default, Key(kind, lambda value: is_whole(value) and low <= value <= high, int, False, "", doc))


def switch(default: bool, doc: str) -> Any:
    """True or false."""
    return key(default, Key("true or false", lambda value: isinstance(value, bool), bool, False, "", doc))


def text(default: str, doc: str) -> Any:
    """Any text."""
    return key(default, Key("text", lambda value: isinstance(value, str), str, False, "", doc))


def choice(names: Sequence[str], doc: str, instead: str) -> Any:
    """One of some names."""
    return key(None, Key(" or ".join(names), lambda value: value in names, str, True, instead, doc))


def path(default: Path | None, doc: str, instead: str = "") -> Any:
    """A file or folder."""
    fits = lambda value: isinstance(value, str) and value != ""  # noqa: E731
    return key(default, Key("a path", fits, lambda value: Path(value).expanduser(), default is None, instead, doc))


def channel_list(doc: str, instead: str) -> Any:
    """Channel numbers, 0-based."""
    kind = "a list of different channel numbers from 0"
    return key(None, Key(kind, are_channels, tuple, True, instead, doc))


def section(kind: type[Any]) -> Any:
    """A group of keys with a class of its own."""
    return field(default_factory=kind, metadata={"section": kind})


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def are_channels(value: Any) -> bool:
    """A list of different channel numbers, at least one."""
    numbers = isinstance(value, list) and all(is_whole(item) and item >= 0 for item in value)
    return numbers and 0 < len(value) == len(set(value))


@dataclass(frozen=True)
class SourceSettings:
    """Where the audio comes from."""

    file: Path | None = path(None, "The audio file to listen to.", "none; `--input` gives it")  # noqa: RUF009
    realtime: bool = switch(False, "Play the file at its own speed, as a live stream, instead of as fast as possible.")


@dataclass(frozen=True)
class EventSettings:
    """How scored windows become detections."""

    merge_gap_s: float = number(1.0, 0, 60, "s", "Events no further apart than this become one.")
    min_duration_s: float = number(0.0, 0, 60, "s", "Shorter events are dropped.")
    max_duration_s: float = number(30.0, 1, 300, "s", "An event that has grown to this length is closed.")


@dataclass(frozen=True)
class ClipSettings:
    """The audio clip of each detection: the chosen channels at their own rate."""

    pre_roll_s: float = number(2.0, 0, 60, "s", "Audio kept before the event.")
    post_roll_s: float = number(2.0, 0, 60, "s", "Audio kept after the event.")


@dataclass(frozen=True)
class Settings:
    """Everything that an operator can choose. What is left out keeps its default."""

    station: str = text("", "Name of the station, written with every detection.")
    source: SourceSettings = section(SourceSettings)  # noqa: RUF009
    bundle: Path | None = path(None, "The folder of the bundle: the trained detector.", "the shipped one")  # noqa: RUF009
    output: Path = path(  # noqa: RUF009
        OUTPUT, "The folder for the database, clips and snapshots; it is made where it is missing."
    )
    channels: tuple[int, ...] | None = channel_list(
        "The source's channels to use, from 0, in this order. Others are not heard.", "all"
    )
    channel_fusion: str | None = choice(
        ("max", "mean"), "How the channels' scores become one: the highest, or the average.", "the bundle's"
    )
    hop_s: float | None = number(
        None, 0.01, 0.96, "s", "Distance between windows, in steps of the front end's (0.01 s).", "the bundle's"
    )
    start_threshold: float | None = number(None, 0, 1, "", "Fused score at which an event opens.", "the bundle's")
    stop_threshold: float | None = number(
        None, 0, 1, "", "Fused score below which an event closes; at most `start_threshold`.", "the bundle's"
    )
    events: EventSettings = section(EventSettings)  # noqa: RUF009
    clips: ClipSettings = section(ClipSettings)  # noqa: RUF009
    snapshots: bool = switch(True, "Make a relevance snapshot (PNG and NPZ) of each detection.")
    threads: int = whole(1, 1, 64, "Processor threads for scoring; more than the machine's cores are of no use.")


def load_settings(file: Path) -> Settings:
    """Read a YAML file; relative paths in it are relative to its folder.

    Raises
    ------
    ConfigError : the file cannot be read, or is wrong; the text lists every fault.
    """
    import yaml

    faults: list[str] = []
    try:
        content = file.read_text(encoding="utf-8")
        raw = {} if (found := yaml.safe_load(content)) is None else found
        nodes = yaml.compose(content, yaml.SafeLoader)
        faults += [f"{name} is given twice; keep one" for name in repeated(nodes, "", set())]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(f"{file} cannot be read as YAML: {fault}") from fault
    settings: Settings = build(Settings, raw, "", faults)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{file} has {count}:\n" + "\n".join(f"  {fault}" for fault in faults))
    warn_of_threads(settings.threads)
    return located(settings, file.parent, raw)


def warn_of_threads(threads: int) -> None:
    """Log where there are more threads than cores."""
    if threads > (cores := os.cpu_count() or threads):
        log.warning("threads is %d, but this machine has %d cores: more make scoring no faster", threads, cores)


def repeated(node: Any, where: str, visited: set[int]) -> Iterator[str]:
    """Paths of keys that a YAML mapping holds more than once; the parser would silently take the last.

    What an alias names again, possibly inside itself, is looked at once: `visited` holds the nodes seen so far.
    """
    if getattr(node, "id", None) != "mapping" or id(node) in visited:
        return
    visited.add(id(node))
    names = [joined(where, str(name.value)) for name, _ in node.value]
    yield from sorted({name for name in names if names.count(name) > 1})
    for name, (_, value) in zip(names, node.value):
        yield from repeated(value, name, visited)


def located(settings: Settings, folder: Path, raw: Mapping[str, Any]) -> Settings:
    """Paths that the file gives, relative to its folder; the default output folder stays where the program runs."""
    source = settings.source
    return replace(
        settings,
        source=replace(source, file=None if source.file is None else folder / source.file),
        bundle=None if settings.bundle is None else folder / settings.bundle,
        output=folder / settings.output if "output" in raw else settings.output,
    )


def build(kind: type[Any], raw: Any, where: str, faults: list[str]) -> Any:
    """An instance of a settings class from what the file holds; what is wrong is added to `faults`."""
    if not isinstance(raw, Mapping):
        faults.append(f"{where or 'the file'} must hold keys and values, not {raw!r}")
        return kind()
    known = {item.name: item for item in fields(kind)}
    faults += [unknown(str(name), where, known) for name in raw if name not in known]
    values = {name: _value(known[name], raw[name], joined(where, name), faults) for name in raw if name in known}
    right = {name: value for name, value in values.items() if value is not WRONG}
    settings = kind(**right)
    faults += crossed(settings, where)
    return settings


WRONG = object()


def _value(item: Field[Any], raw: Any, where: str, faults: list[str]) -> Any:
    if "section" in item.metadata:
        return build(item.metadata["section"], {} if raw is None else raw, where, faults)
    definition: Key = item.metadata["key"]
    if raw is None and definition.optional:
        return None
    if definition.check(raw):
        return definition.make(raw)
    faults.append(f"{where} must be {allowed(definition)}, not {raw!r}")
    return WRONG


def allowed(definition: Key) -> str:
    """What a key takes, in words."""
    return definition.kind + (f", or null ({definition.instead})" if definition.optional else "")


def unknown(name: str, where: str, known: Mapping[str, Any]) -> str:
    """The text about a key that does not exist."""
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {joined(where, close[0])}?" if close else f"allowed here: {', '.join(known)}"
    return f"{joined(where, name)} is no key; {hint}"


def joined(where: str, name: str) -> str:
    """Path of a key."""
    return f"{where}.{name}" if where else name


def crossed(settings: Any, where: str) -> Iterator[str]:
    """Faults between keys that are right by themselves."""
    for low, high in PAIRS.get(type(settings), ()):
        least, most = getattr(settings, low), getattr(settings, high)
        if least is not None and most is not None and least > most:
            yield f"{joined(where, low)} must be at most {joined(where, high)} ({most:g}), not {least:g}"


PAIRS: Mapping[type[Any], tuple[tuple[str, str], ...]] = {
    Settings: (("stop_threshold", "start_threshold"),),
    EventSettings: (("min_duration_s", "max_duration_s"),),
}


def overridden(bundle: Bundle, settings: Settings) -> Bundle:
    """The bundle with the operator's hop, fusion and thresholds in place of its own.

    Raises
    ------
    ConfigError : one threshold is given, and does not fit the bundle's other one.
    """
    names = ("hop_s", "channel_fusion", "start_threshold", "stop_threshold")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    result = replace(bundle, **given)
    if result.stop_threshold > result.start_threshold:
        raise ConfigError(
            f"stop_threshold must be at most start_threshold, not {result.stop_threshold:g} over "
            f"{result.start_threshold:g} (the bundle's own: {bundle.stop_threshold:g} and {bundle.start_threshold:g}); "
            "give both"
        )
    return result


def reference() -> str:
    """The text of `docs/configuration.md`."""
    return "\n".join([*HEAD, *_section(Settings, ""), ""])


HEAD = (
    "# Configuration",
    "",
    "`orcawatch run --config FILE` reads one YAML file. Every key has a default; an unknown key, a wrong type or a",
    "value out of range is refused, and all faults of a file are reported at once. Relative paths in the file are",
    "relative to the file's folder. This page is made from the definitions in `orcawatch/config.py`:",
    "`python -m orcawatch.config > docs/configuration.md`.",
    "",
)


def _section(kind: type[Any], where: str) -> list[str]:
    head = [f"## `{where}`", ""] if where else []
    lines = [*head, str(kind.__doc__), "", "| key | takes | default | |", "|---|---|---|---|"]
    lines += [_line(item, where) for item in fields(kind) if "key" in item.metadata]
    for item in fields(kind):
        if "section" in item.metadata:
            lines += ["", *_section(item.metadata["section"], joined(where, item.name))]
    return lines


def _line(item: Field[Any], where: str) -> str:
    definition: Key = item.metadata["key"]
    return f"| `{joined(where, item.name)}` | {definition.kind} | {default_text(item)} | {definition.doc} |"


def default_text(item: Field[Any]) -> str:
    """A default as it would stand in the file."""
    if item.default is None:
        return str(item.metadata["key"].instead)
    if isinstance(item.default, bool):
        return str(item.default).lower()
    return f"`{item.default}`" if item.default != "" else "empty"


if __name__ == "__main__":
    print(reference(), end="")
