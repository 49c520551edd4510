"""Keys of a configuration: each is defined once, as a dataclass field with its kind, unit, range and documentation.

The checks, the errors and the reference page come from these definitions. Plugins define their own keys with them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Callable


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
    reload : whether a running daemon takes a new value when it is told to reload (SIGHUP).
    secret : whether the value is not to be printed or logged.
    """

    kind: str
    check: Callable[[Any], bool]
    make: Callable[[Any], Any]
    optional: bool
    instead: str
    doc: str
    reload: bool
    secret: bool = False


def key(default: Any, kind: str, check: Callable[[Any], bool], make: Callable[[Any], Any], doc: str,
        instead: str = "", reload: bool = False, secret: bool = False) -> Any:  # fmt: skip
    """A dataclass field that carries its definition; `null` is allowed where the default is None."""
    definition = Key(kind, check, make, default is None, instead, doc, reload, secret)
    return field(default=default, metadata={"key": definition})


def number(
    default: float | None, low: float, high: float, unit: str, doc: str, instead: str = "", reload: bool = False
) -> Any:
    """A number in a range, `unit` may be empty."""
    kind = f"a number from {low:g} to {high:g} {unit}".rstrip()
    return key(default, kind, lambda value: is_number(value) and low <= value <= high, float, doc, instead, reload)


def whole(
    default: int | None, low: int, high: int, doc: str, instead: str = "", reload: bool = False, unit: str = ""
) -> Any:
    """A whole number in a range, `unit` may be empty."""
    kind = f"a whole number from {low} to {high} {unit}".rstrip()
    return key(default, kind, lambda value: is_whole(value) and low <= value <= high, int, doc, instead, reload)


def switch(default: bool | None, doc: str, instead: str = "", reload: bool = False) -> Any:
    """True or false."""
    return key(default, "true or false", lambda value: isinstance(value, bool), bool, doc, instead, reload)


def text(default: str | None, doc: str, instead: str = "", reload: bool = False, secret: bool = False) -> Any:
    """Any text; a password is `secret`."""
    return key(default, "text", lambda value: isinstance(value, str), str, doc, instead, reload, secret)


def choice(default: str | None, names: Sequence[str], doc: str, instead: str = "", reload: bool = False) -> Any:
    """One of some names."""
    return key(default, " or ".join(names), lambda value: value in names, str, doc, instead, reload)


def several(default: Sequence[str], names: Sequence[str], doc: str, reload: bool = False) -> Any:
    """A list of different names out of some."""

    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(name in names for name in value) and len(set(value)) == len(value)

    return key(tuple(default), f"a list of different names from {', '.join(names)}", fits, tuple, doc, reload=reload)


def path(default: Path | None, doc: str, instead: str = "") -> Any:
    """A file or folder."""
    return key(default, "a path", is_path, lambda value: Path(value).expanduser(), doc, instead)


def paths(doc: str, reload: bool = False) -> Any:
    """Files, in a list."""

    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_path, value))

    def made(value: list[str]) -> tuple[Path, ...]:
        return tuple(Path(one).expanduser() for one in value)

    return key((), "a list of paths", fits, made, doc, reload=reload)


def channel_list(doc: str, instead: str) -> Any:
    """Channel numbers, 0-based."""
    return key(None, "a list of different channel numbers from 0", are_channels, tuple, doc, instead)


def position(doc: str, instead: str) -> Any:
    """Three numbers: metres east, north and up."""

    def fits(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))

    return key(None, "a list of 3 numbers, m", fits, lambda value: tuple(map(float, value)), doc, instead)


def section(kind: type[Any]) -> Any:
    """A group of keys with a class of its own."""
    return field(default_factory=kind, metadata={"section": kind})


def sections(kind: type[Any], doc: str) -> Any:
    """A list of groups of keys of one class."""
    return field(default=(), metadata={"sections": lambda raw: kind, "doc": doc, "shown": lambda: {"": kind}})


def plugins(kinds: Callable[[], Mapping[str, type[Any]]], doc: str) -> Any:
    """A list of groups of keys; each group's key `kind` names its class among `kinds()`."""

    def chosen(raw: Mapping[str, Any]) -> type[Any] | str:
        name, known = str(raw.get("kind")), kinds()
        return known[name] if name in known else unknown_name("kind", name, known)

    return field(default=(), metadata={"sections": chosen, "doc": doc, "shown": kinds})


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_whole(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_path(value: Any) -> bool:
    """Whether a value can be the name of a file, and of a user where it begins with `~`."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        Path(value).expanduser()
    except RuntimeError:
        return False
    return True


def are_channels(value: Any) -> bool:
    """A list of different channel numbers, at least one."""
    numbers = isinstance(value, list) and all(is_whole(item) and item >= 0 for item in value)
    return numbers and 0 < len(value) == len(set(value))


WRONG = object()


def build(kind: type[Any], raw: Any, where: str, faults: list[str]) -> Any:
    """An instance of a settings class from what the file holds; what is wrong is added to `faults`.

    A class may have a method `crossed(where)` that yields faults between keys that are right by themselves.
    """
    if not isinstance(raw, Mapping):
        faults.append(f"{where or 'the file'} must hold keys and values, not {raw!r}")
        return kind()
    known = {item.name: item for item in fields(kind)}
    faults += [unknown(str(name), where, known) for name in raw if name not in known]
    values = {name: _value(known[name], raw[name], joined(where, name), faults) for name in raw if name in known}
    settings = kind(**{name: value for name, value in values.items() if value is not WRONG})
    faults += settings.crossed(where) if hasattr(settings, "crossed") else ()
    return settings


def _value(item: Field[Any], raw: Any, where: str, faults: list[str]) -> Any:
    if "section" in item.metadata:
        return build(item.metadata["section"], {} if raw is None else raw, where, faults)
    if "sections" in item.metadata:
        return _list(item, [] if raw is None else raw, where, faults)
    definition: Key = item.metadata["key"]
    if raw is None and definition.optional:
        return None
    if definition.check(raw):
        return definition.make(raw)
    told = "" if definition.secret else f", not {raw!r}"
    faults.append(f"{where} must be {allowed(definition)}{told}{in_quotes(definition, raw)}")
    return WRONG


def _list(item: Field[Any], raw: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(raw, list):
        faults.append(f"{where} must be a list of groups of keys (each begins with `- `), not {raw!r}")
        return WRONG
    found = [_member(item, entry, f"{where}[{index}]", faults) for index, entry in enumerate(raw)]
    return tuple(entry for entry in found if entry is not WRONG)


def _member(item: Field[Any], raw: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(raw, Mapping):
        faults.append(f"{where} must hold keys and values, not {raw!r}")
        return WRONG
    kind = item.metadata["sections"](raw)
    if isinstance(kind, str):
        faults.append(f"{where}: {kind}")
        return WRONG
    return build(kind, raw, where, faults)


def allowed(definition: Key) -> str:
    """What a key takes, in words."""
    return definition.kind + (f", or null ({definition.instead})" if definition.optional else "")


def in_quotes(definition: Key, raw: Any) -> str:
    """The cure where YAML has read a number, a date or a truth (`0117`, `2026-03-01`, `on`) and text was meant."""
    is_read_as_other = isinstance(raw, (int, float, date)) and definition.check(str(raw))
    return "; put it in quotes, as it stands in the file" if is_read_as_other else ""


def unknown(name: str, where: str, known: Mapping[str, Any]) -> str:
    """The text about a key that does not exist."""
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {joined(where, close[0])}?" if close else f"allowed here: {', '.join(known)}"
    return f"{joined(where, name)} is no key; {hint}"


def unknown_name(what: str, name: str, known: Mapping[str, Any]) -> str:
    """The text about a value that is none of some names."""
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{what} must be one of {', '.join(sorted(known))}, not {name!r}{hint}"


def joined(where: str, name: str) -> str:
    """Path of a key."""
    return f"{where}.{name}" if where else name


def leaves(settings: Any, where: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield (path, field, value) of every key of a settings object; a list of groups is one value."""
    for item in fields(settings):
        value, place = getattr(settings, item.name), joined(where, item.name)
        if "section" in item.metadata:
            yield from leaves(value, place)
        else:
            yield place, item, value


def reference(kind: type[Any], where: str = "") -> list[str]:
    """Lines of a page about a settings class: a table of its keys, then its groups."""
    lines = [*([f"## `{where}`", ""] if where else []), str(kind.__doc__).strip(), ""]
    rows = [_line(item, where) for item in fields(kind) if "key" in item.metadata]
    lines += [*HEADER, *rows] if rows else []
    for item in fields(kind):
        place = joined(where, item.name)
        if "section" in item.metadata:
            lines += ["", *reference(item.metadata["section"], place)]
        elif "sections" in item.metadata:
            lines += ["", f"## `{place}`", "", item.metadata["doc"]]
            for name, member in item.metadata["shown"]().items():
                head = f"`{place}` of kind `{name}`" if name else ""
                lines += ["", *([f"### {head}", ""] if head else []), *reference_table(member, place)]
    return lines


def reference_table(kind: type[Any], where: str) -> list[str]:
    """The keys of the members of a list of groups."""
    rows = [_line(item, f"{where}[]") for item in fields(kind) if "key" in item.metadata]
    return [str(kind.__doc__).strip(), "", *HEADER, *rows]


HEADER = ["| key | takes | default | | reload |", "|---|---|---|---|---|"]


def _line(item: Field[Any], where: str) -> str:
    definition: Key = item.metadata["key"]
    takes = "yes" if definition.reload else ""
    return f"| `{joined(where, item.name)}` | {definition.kind} | {default_text(item)} | {definition.doc} | {takes} |"


def default_text(item: Field[Any]) -> str:
    """A default as it would stand in the file."""
    if item.default is None:
        return str(item.metadata["key"].instead)
    if isinstance(item.default, bool):
        return str(item.default).lower()
    if isinstance(item.default, tuple):
        return f"`[{', '.join(item.default)}]`"
    return f"`{item.default}`" if item.default != "" else "empty"
