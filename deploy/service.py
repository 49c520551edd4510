"""The systemd service: what is written where, and what is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..durable import write_bytes
from ..errors import InputError, OrcawatchError

if TYPE_CHECKING:
    from ..config import Settings

UNIT = "orcawatch.service"
PAGE_UNIT = "orcawatch-web.service"  # the review page: installed, and started by who wants it
UPLINK_UNIT = "orcawatch-uplink.service"  # what sends to the shore: runs where the settings say `uplink: apart`
USER = "orcawatch"
UNITS = {name: Path("/etc/systemd/system") / name for name in (UNIT, PAGE_UNIT, UPLINK_UNIT)}
CONFIGURATION = Path("/etc/orcawatch/config.yaml")
STATE = Path("/var/lib/orcawatch")
CACHE = Path("/var/cache/orcawatch")
# From the file as it ships to where it goes.
FILES = {
    "orcawatch.sysusers": Path("/etc/sysusers.d/orcawatch.conf"),
    "orcawatch.tmpfiles": Path("/etc/tmpfiles.d/orcawatch.conf"),
    **UNITS,
}
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # ProtectHome= and PrivateTmp= of the unit
READ_ONLY = ("clips", "snapshots", "bundles")  # of the output folder, for the page and the uplink
SYSTEM = ("/etc", "/home", "/opt", "/usr", "/var/lib", "/var/log")  # no output folder holds these
MACHINE = Path("/")


@dataclass(frozen=True)
class Plan:
    """What an installation does.

    Attributes
    ----------
    files : text by path, without those that are there already and the same.
    commands : run in this order after the files were written.
    """

    files: Mapping[Path, str]
    commands: Sequence[Sequence[str]]


def plan_install(config: Path, command: str, root: Path = MACHINE, start: bool = True) -> Plan:
    """The files and commands that make the service; what is there already is not written again.

    Parameters
    ----------
    config : the settings that the service reads. A commented file is made where there is none, and none is overwritten.
    command : the program, as the unit's `ExecStart=` takes it (see `program`).
    root : the system's root folder; another than `/` is prepared and nothing is started.
    start : start the service, or start it again where its files have changed.

    Raises
    ------
    InputError : the settings are wrong, or lie where the service cannot see them.
    """
    config = absolute(config)
    check_visible(config, "the settings")
    if root == MACHINE:
        check_visible(config.resolve(), "the settings")
    texts = {inside(root, path): shipped(name) for name, path in FILES.items()}
    if not inside(root, config).exists():
        texts[inside(root, config)] = shipped("config.yaml")
    settings = settings_of(root, config)
    output = STATE if settings is None else STATE / outside(root, settings.output)
    check_output(output)
    network = OPEN if settings is None else network_lines(settings)
    texts |= {inside(root, path): unit_text(name, command, config, output, network) for name, path in UNITS.items()}
    texts[inside(root, FILES["orcawatch.tmpfiles"])] += folder_lines(output)
    files = {path: text for path, text in texts.items() if not path.exists() or path.read_bytes() != text.encode()}
    apart = settings is not None and needs_uplink(settings)
    first, *others = install_commands(root, start, changed=bool(files), apart=apart)
    owning = [owning_command(output)] if root == MACHINE and output.is_dir() else []
    return Plan(files, [first, *owning, *others])


def owning_command(output: Path) -> Sequence[str]:
    """Gives the service what root has made in the output folder, by trying the program there: it could not write it."""
    return ["chown", "--recursive", "--from=root", f"{USER}:{USER}", str(output)]


def install_commands(root: Path, start: bool, changed: bool, apart: bool = False) -> Iterator[Sequence[str]]:
    """What has to be run once the files are written; `apart` is whether the uplink is a service of its own."""
    within = [] if root == MACHINE else [f"--root={root}"]
    yield ["systemd-sysusers", *within, "orcawatch.conf"]
    yield ["systemd-tmpfiles", *within, "--create", "orcawatch.conf"]
    if not within:
        yield ["systemctl", "daemon-reload"]
    yield ["systemctl", *within, "enable", UNIT]
    if apart:
        yield ["systemctl", *within, "enable", UPLINK_UNIT]
    else:
        yield ["systemctl", *within, "disable", *([] if within else ["--now"]), UPLINK_UNIT]
    if start and not within:
        yield ["systemctl", "try-restart", PAGE_UNIT]
        yield ["systemctl", "restart" if changed else "start", UNIT]
        if apart:  # after the watch, which may have sent by itself
            yield ["systemctl", "restart" if changed else "start", UPLINK_UNIT]


def carry_out(plan: Plan) -> None:
    """Write the files, each whole or not at all, and run the commands.

    They can be read by all, whatever the umask: the service's user must reach its settings.

    Everything is on the disk when this returns, the program itself, too: pip leaves it to the system's leisure, and a
    power cut in the first half minute would leave a program of 0 bytes.

    Raises
    ------
    OrcawatchError : a file cannot be written, or a command fails.
    """
    before = os.umask(0o022)
    try:
        write_files(plan.files)
    finally:
        os.umask(before)
    os.sync()
    for command in plan.commands:
        run(command)
    os.sync()


def write_files(files: Mapping[Path, str]) -> None:
    """Write some files, each whole or not at all, and make their folders."""
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, text.encode())
        except OSError as fault:
            raise OrcawatchError(f"{path} cannot be written: {fault.strerror}; run this as root") from fault


def remove(root: Path = MACHINE) -> list[Path]:
    """Stop and disable the service and the page, and delete their files; settings and data stay. The deleted files."""
    within = [] if root == MACHINE else [f"--root={root}"]
    there = [path for path in (inside(root, place) for place in FILES.values()) if path.exists()]
    units = [name for name, path in UNITS.items() if inside(root, path) in there]
    if units:
        run(["systemctl", *within, "disable", *([] if within else ["--now"]), *units])
    for path in there:
        path.unlink()
    if not within:
        run(["systemctl", "daemon-reload"])
    return there


def purged(root: Path = MACHINE) -> list[Path]:
    """What a purge deletes: the folders of settings, data and cache that are there."""
    return [path for path in (inside(root, place) for place in (CONFIGURATION.parent, STATE, CACHE)) if path.exists()]


def purge(root: Path = MACHINE) -> list[Path]:
    """Delete settings and data, and the service's user. The deleted folders.

    Raises
    ------
    OrcawatchError : a folder cannot be deleted, for instance because a disk is mounted there.
    """
    folders = purged(root)
    for path in folders:
        try:
            shutil.rmtree(path)
        except OSError as fault:
            raise OrcawatchError(
                f"{path} cannot be deleted: {fault.strerror}; unmount the disk, if it is one, and run this again"
            ) from fault
    if root == MACHINE and run(["id", "--user", USER], check=False):
        run(["userdel", USER])
    return folders


def check_machine(root: Path, start: bool) -> None:
    """Raise OrcawatchError where nothing can be installed: not root, or no systemd."""
    if root == MACHINE and os.geteuid() != 0:
        raise OrcawatchError(
            f"the service is installed and removed by root: sudo {' '.join(sys.argv)}; --dry-run shows what is done"
        )
    if shutil.which("systemctl") is None:
        raise OrcawatchError("this machine has no systemd (systemctl is missing): run `orcawatch run` by other means")
    if root == MACHINE and start and not Path("/run/systemd/system").is_dir():
        raise OrcawatchError(
            "this machine was not booted by systemd, so nothing can be started: --no-start only prepares the service"
        )


def program(interpreter: Path = Path(sys.executable), script: Path = Path(sys.argv[0])) -> str:
    """The console script that runs now, or its interpreter with the module, quoted for `ExecStart=`.

    Raises
    ------
    InputError : it lies where the service cannot see it.
    """
    script = absolute(script)
    for path in (interpreter, interpreter.resolve(), script):
        check_visible(path, "orcawatch")
    if script.name == "orcawatch" and os.access(script, os.X_OK):
        return quoted(script)
    return f"{quoted(interpreter)} -m orcawatch.cli"


def check_visible(path: Path, what: str) -> None:
    """Raise InputError for a path that the service's sandbox hides."""
    hiding = [folder for folder in HIDDEN if path.is_relative_to(folder)]
    if hiding:
        raise InputError(
            f"{what} cannot be at {path}: the service does not see what is under {hiding[0]}; use /opt/orcawatch for "
            "the program (python3 -m venv /opt/orcawatch), /etc/orcawatch for settings, and /var/lib/orcawatch for data"
        )


def check_output(output: Path) -> None:
    """Raise InputError for an output folder that the service cannot have to itself."""
    check_visible(output, "the output folder")
    if any(Path(place).is_relative_to(output) for place in SYSTEM):
        raise InputError(
            f"the output folder cannot be {output}, which is the system's; name one of its own, like /var/lib/orcawatch"
        )


OPEN = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
CLOSED = "PrivateNetwork=yes\nRestrictAddressFamilies=AF_UNIX"


def network_lines(settings: Settings) -> str:
    """What the watch's unit says of the network: none where the uplink is apart."""
    return OPEN if settings.uplink == "inside" else CLOSED


def needs_uplink(settings: Settings) -> bool:
    """Whether there is something for the uplink's unit to send, or to hand on."""
    return settings.uplink == "apart" and (bool(settings.sinks) or settings.metrics.port is not None)


def unit_text(name: str, command: str, config: Path, output: Path, network: str = OPEN) -> str:
    """The file of one of `UNITS`."""
    text = shipped(name).replace("@COMMAND@", command).replace("@NETWORK@", network)
    text = text.replace("--config @CONFIGURATION@", f"--config {quoted(config)}")
    text = re.sub(r"-@OUTPUT@(\S*)", lambda found: quoted(Path(f"{output}{found[1]}"), before="-"), text)
    return text.replace("@CONFIGURATION@", str(config)).replace("@OUTPUT@", str(output))


def folder_lines(output: Path) -> str:
    """The lines of tmpfiles.d that give an output folder to the service; `STATE` is in those that ship.

    What the other units only read is there before they start: `ReadOnlyPaths=` passes over what is not.
    """
    # Also what is above it in `STATE`: root's folders in a user's are refused.
    own = [path for path in (*reversed(output.parents), output) if STATE in path.parents or path == output != STATE]
    folders = [*own, *(output / name for name in READ_ONLY)]
    return "".join(f"d {quoted(folder)} 0755 {USER} {USER}\n" for folder in folders)


def settings_of(root: Path, config: Path) -> Settings | None:
    """The settings; None where there are none yet.

    Raises
    ------
    ConfigError : they are wrong.
    """
    from ..config import load_settings

    path = inside(root, config)
    return load_settings(path) if path.exists() else None


def shipped(name: str) -> str:
    """Text of a file that comes with the package."""
    from importlib import resources

    return resources.files("orcawatch.systemd").joinpath(name).read_text(encoding="utf-8")


def quoted(path: Path, before: str = "") -> str:
    """A path as one word of a unit file.

    Raises
    ------
    InputError : systemd takes no such character in the name of a program.
    """
    if odd := sorted(set(str(path)) & set("\"'\\$;\n")):
        raise InputError(f"{path} has {' '.join(odd)!r} in its name, which systemd does not take; name it without")
    text = before + str(path).replace("%", "%%")
    return f'"{text}"' if len(text.split()) > 1 else text


def absolute(path: Path) -> Path:
    """The path from the root on; links stay as they are."""
    return Path.cwd() / path


def inside(root: Path, path: Path) -> Path:
    """Where a path of the system lies under its root folder."""
    return root / path.relative_to("/")


def outside(root: Path, path: Path) -> Path:
    """The reverse of `inside`; a path that is not under the root stays."""
    return MACHINE / path.relative_to(root) if path.is_absolute() and path.is_relative_to(root) else path


def run(command: Sequence[str], check: bool = True) -> str:
    """Run a command; its output.

    Raises
    ------
    OrcawatchError : it cannot be run, or fails and `check` is set.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as fault:
        raise OrcawatchError(f"`{' '.join(command)}` cannot be run: {fault.strerror}; is systemd installed?") from fault
    if check and done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise OrcawatchError(f"`{' '.join(command)}` failed: {said}")
    return done.stdout if done.returncode == 0 else ""


def installed_output(root: Path = MACHINE) -> Path:
    """The output folder that the installed unit names."""
    return installed_path(root, "Output", STATE)


def installed_path(root: Path, key: str, otherwise: Path) -> Path:
    """A path that the installed unit names: `Output` or `Configuration`."""
    unit = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.read(inside(root, UNITS[UNIT]))
    return Path(unit.get("X-Orcawatch", key, fallback=str(otherwise)))


def described(plan: Plan) -> str:
    """A plan for people, as files and shell lines."""
    parts = [f"# {path}\n{text}" for path, text in plan.files.items()]
    return "\n".join([*parts, *(f"$ {' '.join(command)}" for command in plan.commands)])
