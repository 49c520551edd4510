from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser, SectionProxy
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from orcawatch.config import Settings, load_settings
from orcawatch.deploy import health, service
from orcawatch.deploy.cli import deploy
from orcawatch.errors import ConfigError, InputError, OrcawatchError
from orcawatch.turn import NOBODY, take_turn

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "/opt/orcawatch/bin/orcawatch"
MOST_EXPOSED = 2.0
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)
ACTIVE = {
    **dict.fromkeys(health.PROPERTIES, ""),
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (Debian: the package systemd)"
)


@pytest.fixture
def units(tmp_path: Path) -> dict[str, Path]:
    """The units as they are installed, with a program that exists, by name."""
    paths = {name: tmp_path / name for name in service.UNITS}
    for name, path in paths.items():
        path.write_text(service.unit_text(name, str(shutil.which("true")), service.CONFIGURATION, service.STATE))
    return paths


def values_of(unit: Path) -> SectionProxy:
    """What the unit says of its service."""
    return unit_values(unit.read_text())["Service"]


def unit_values(text: str) -> ConfigParser:
    found = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    found.read_string(text)
    return found


def plan(root: Path, **changes: object) -> service.Plan:
    settings: dict[str, object] = {"config": service.CONFIGURATION, "command": COMMAND, "root": root, **changes}
    return service.plan_install(**settings)  # type: ignore[arg-type]


def write_files(found: service.Plan) -> None:
    service.carry_out(replace(found, commands=[]))


@needs_systemd
@pytest.mark.parametrize("name", service.UNITS)
def test_the_sandbox_leaves_an_exposure_of_at_most_two(units: dict[str, Path], name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:g}"]
    done = subprocess.run(
        [*command, units[name]],
        capture_output=True,
        text=True,
        check=False,
    )
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= MOST_EXPOSED and done.returncode == 0


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_units(units: dict[str, Path]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *units.values()], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if "orcawatch" in line]
    assert (about_it, done.returncode) == ([], 0)


def test_the_unit_keeps_what_capture_and_clock_need(units: dict[str, Path]) -> None:
    values = values_of(units[service.UNIT])
    assert "MemoryDenyWriteExecute" not in values and "PrivateDevices" not in values
    assert values["DeviceAllow"] == "char-alsa rw" and values["SupplementaryGroups"] == "audio"
    assert values["KillMode"] == "mixed"


def test_the_page_goes_after_capture_in_everything(units: dict[str, Path]) -> None:
    page, daemon = values_of(units[service.PAGE_UNIT]), values_of(units[service.UNIT])
    for weight in ("CPUWeight", "IOWeight"):
        assert int(page[weight]) * 10 <= int(daemon[weight])
    assert int(page["OOMScoreAdjust"]) > 0 > int(daemon["OOMScoreAdjust"]) and int(page["Nice"]) > int(daemon["Nice"])
    assert float(page["MemoryMax"].rstrip("%")) <= 100 - 60 and page["MemorySwapMax"] == "0"
    bonds = unit_values(units[service.PAGE_UNIT].read_text())["Unit"]
    assert service.UNIT in bonds["After"] and not {"Requires", "Wants", "BindsTo", "PartOf"} & set(bonds)


def test_the_page_needs_the_token_of_everybody_and_tells_it_to_nobody(units: dict[str, Path]) -> None:
    values = values_of(units[service.PAGE_UNIT])
    assert values["ExecStart"].endswith(" --private") and values["StandardOutput"] == "null"


NETWORK = {
    "uplink: inside": (service.OPEN, False),
    "uplink: apart": (service.CLOSED, False),
    "uplink: apart\nsinks: [{kind: jsonl}]": (service.CLOSED, True),
    "uplink: apart\nsinks: [{kind: jsonl}]\nmetrics: {port: 9400}": (service.CLOSED, True),
    "uplink: apart\nmetrics: {port: 9400, address: 0.0.0.0}": (service.CLOSED, True),
}


@pytest.mark.parametrize("text", NETWORK)
def test_the_watch_has_the_network_that_its_settings_need(tmp_path: Path, text: str) -> None:
    lines, runs = NETWORK[text]
    (tmp_path / "etc/orcawatch").mkdir(parents=True)
    (tmp_path / "etc/orcawatch/config.yaml").write_text(text)
    found = plan(tmp_path)
    write_files(found)
    unit = (tmp_path / "etc/systemd/system" / service.UNIT).read_text()
    assert f"\n{lines}\n" in unit and "@NETWORK@" not in unit
    within = ["systemctl", f"--root={tmp_path}"]
    assert (([*within, "enable", service.UPLINK_UNIT] in found.commands), (
        [*within, "disable", service.UPLINK_UNIT] in found.commands
    )) == (runs, not runs)  # fmt: skip


def test_an_uplink_apart_is_started_and_one_inside_is_ended() -> None:
    apart = list(service.install_commands(service.MACHINE, start=True, changed=True, apart=True))
    inside = list(service.install_commands(service.MACHINE, start=True, changed=True))
    assert ["systemctl", "restart", service.UPLINK_UNIT] in apart
    assert ["systemctl", "disable", "--now", service.UPLINK_UNIT] in inside
    assert not any(service.UPLINK_UNIT in command and "restart" in command for command in inside)
    # The watch that sent by itself has to end first.
    assert apart.index(["systemctl", "restart", service.UNIT]) < apart.index(
        ["systemctl", "restart", service.UPLINK_UNIT]
    )


@pytest.mark.parametrize("output", ["/var/lib/orcawatch", "/var/lib/orcawatch/north/1", "/media/sea data"])
def test_folders_that_other_units_only_read_are_made_beforehand(tmp_path: Path, output: str) -> None:
    """`ReadOnlyPaths=-` passes over a folder that is not there, which could then be made and written."""
    (tmp_path / "etc/orcawatch").mkdir(parents=True)
    (tmp_path / "etc/orcawatch/config.yaml").write_text(f"output: {output}\n")
    write_files(plan(tmp_path))
    lines = (tmp_path / "etc/tmpfiles.d/orcawatch.conf").read_text().splitlines()
    for unit in (service.PAGE_UNIT, service.UPLINK_UNIT):
        names = [word.rsplit("/", 1)[1] for word in values_of_shipped(unit)["ReadOnlyPaths"].split()]
        assert len(names) == 3
        for folder in ["", *(f"/{name}" for name in names)]:
            assert f"d {service.quoted(Path(output + folder))} 0755 orcawatch orcawatch" in lines


def test_an_uplink_that_nobody_started_is_a_problem(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def problems(text: str) -> list[str]:
        config.write_text(text)
        return list(health.sender_problems(config, tmp_path))

    apart = "uplink: apart\nsinks: [{kind: jsonl}]\n"
    assert problems(apart) == [NOBODY] and "orcawatch deploy install" in NOBODY
    assert problems("uplink: apart\nmetrics: {port: 9100}\n") == [NOBODY]  # it hands on the figures
    assert problems("metrics: {port: 9100}\n") == []
    assert problems("uplink: apart\n") == problems("sinks: [{kind: jsonl}]\n") == problems("uplnk: x\n") == []
    lock = take_turn(tmp_path)
    assert lock is not None and problems(apart) == []
    lock.close()
    assert problems(apart) == [NOBODY]


@needs_systemd
def test_a_watch_without_a_network_is_less_exposed(tmp_path: Path) -> None:
    figures = []
    for lines in (service.OPEN, service.CLOSED):
        path = tmp_path / service.UNIT
        text = service.unit_text(service.UNIT, str(shutil.which("true")), service.CONFIGURATION, service.STATE, lines)
        path.write_text(text)
        figures.append(exposure(path))
    assert figures[1] <= figures[0] - 0.5, figures
    uplink = values_of_shipped(service.UPLINK_UNIT)
    assert uplink["PrivateDevices"] == "yes" and uplink["ReadOnlyPaths"].count("-@OUTPUT@/") == 3


def exposure(unit: Path) -> float:
    """What systemd says of a unit's sandbox: 0 is closed, 10 is none."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert found is not None, told
    return float(found[1])


def values_of_shipped(name: str) -> SectionProxy:
    return unit_values(service.shipped(name))["Service"]


def test_the_service_can_read_what_a_careful_root_installs(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        found = plan(tmp_path / "machine")
        write_files(found)
    finally:
        os.umask(before)
    assert os.umask(before) == before
    for path in found.files:
        assert path.stat().st_mode & 0o444 == 0o444 and path.parent.stat().st_mode & 0o555 == 0o555


@needs_systemd
@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is missing")
def test_an_image_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).touch()
    (tmp_path / "etc/orcawatch").mkdir()
    (tmp_path / "etc/orcawatch/config.yaml").write_text("output: /media/100% sea\n")
    found = plan(tmp_path)
    if os.geteuid() != 0:
        found = replace(found, commands=[command for command in found.commands if command[0] == "systemctl"])
    service.carry_out(found)
    assert (tmp_path / "etc/systemd/system/multi-user.target.wants/orcawatch.service").is_symlink()
    assert not (tmp_path / "etc/systemd/system/multi-user.target.wants/orcawatch-web.service").is_symlink()
    if os.geteuid() == 0:
        assert re.search(r"^audio:.*orcawatch", (tmp_path / "etc/group").read_text(), re.MULTILINE)
        user = (tmp_path / "etc/passwd").read_text().split(":")[2]
        assert (tmp_path / "var/lib/orcawatch").stat().st_uid == int(user) > 0
        assert (tmp_path / "media/100% sea").stat().st_uid == int(user)  # or the service could not write there
        assert (tmp_path / "etc/orcawatch/config.yaml").stat().st_mode & 0o777 == 0o640
    removed = service.remove(tmp_path)
    assert sorted(removed) == sorted(tmp_path / path.relative_to("/") for path in service.FILES.values())
    assert not (tmp_path / "etc/systemd/system/multi-user.target.wants/orcawatch.service").is_symlink()
    assert (tmp_path / "etc/orcawatch/config.yaml").is_file()


def test_a_second_installation_writes_nothing(tmp_path: Path) -> None:
    write_files(plan(tmp_path))
    assert dict(plan(tmp_path).files) == {}


def test_an_upgrade_writes_what_differs_and_never_the_settings(tmp_path: Path) -> None:
    write_files(plan(tmp_path))
    settings = tmp_path / "etc/orcawatch/config.yaml"
    settings.write_text("station: mine\noutput: /var/lib/orcawatch\n")
    found = plan(tmp_path, command="/opt/newer/bin/orcawatch")
    assert list(found.files) == [tmp_path / f"etc/systemd/system/{name}" for name in service.UNITS]
    write_files(found)
    assert settings.read_text().startswith("station: mine\n")


def test_the_service_is_restarted_only_where_its_files_changed() -> None:
    first = list(service.install_commands(service.MACHINE, start=True, changed=True))
    again = list(service.install_commands(service.MACHINE, start=True, changed=False))
    assert first[:-1] == again[:-1]
    assert ["systemctl", "try-restart", service.PAGE_UNIT] in first  # where it runs: the program may be another
    assert (first[-1][:2], again[-1][:2]) == (["systemctl", "restart"], ["systemctl", "start"])
    for quiet in ((service.MACHINE, False), (Path("/image"), True)):
        commands = list(service.install_commands(*quiet, changed=True))
        assert not any({"start", "restart", "try-restart"} & set(command) for command in commands)


def test_wrong_settings_are_told_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "etc/orcawatch").mkdir(parents=True)
    (tmp_path / "etc/orcawatch/config.yaml").write_text("statoin: x\nthreads: 0\n")
    with pytest.raises(ConfigError, match=r"2 faults[\s\S]*did you mean station"):
        plan(tmp_path)
    assert not (tmp_path / "etc/systemd").exists()


def test_the_service_may_write_where_the_settings_say(tmp_path: Path) -> None:
    (tmp_path / "etc/orcawatch").mkdir(parents=True)
    (tmp_path / "etc/orcawatch/config.yaml").write_text("output: /media/sea data\n")
    write_files(plan(tmp_path))
    for name in service.UNITS:
        assert values_of(tmp_path / "etc/systemd/system" / name)["ReadWritePaths"] == '"-/media/sea data"'
    page = values_of(tmp_path / "etc/systemd/system" / service.PAGE_UNIT)
    parts = '"-/media/sea data/clips" "-/media/sea data/snapshots" "-/media/sea data/bundles"'
    assert page["ReadOnlyPaths"] == parts
    assert service.installed_output(tmp_path) == Path("/media/sea data")


@pytest.mark.parametrize("output", ["/", "/var", "/var/lib", "/etc", "/home/me/data", "/tmp/data"])
def test_an_output_folder_that_cannot_be_the_services_own_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "etc/orcawatch").mkdir(parents=True)
    (tmp_path / "etc/orcawatch/config.yaml").write_text(f"output: {output}\n")
    with pytest.raises(InputError, match="the output folder cannot be"):
        plan(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_has_made_by_trying_becomes_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "USER", "daemon")
    (tmp_path / "clips").mkdir()
    for name in ("detections.sqlite", "clips/another's"):
        (tmp_path / name).touch()
    os.chown(tmp_path / "clips/another's", 65534, 65534)
    service.run(service.owning_command(tmp_path))
    owners = {path.name: path.owner() for path in tmp_path.glob("**/*")}
    assert owners == {"detections.sqlite": "daemon", "clips": "daemon", "another's": "nobody"}


@pytest.mark.parametrize(
    ("output", "place"),
    [("", "/var/lib/orcawatch/orcawatch-out"), ("output: data", "/etc/orcawatch/data"), ("output: /srv/x", "/srv/x")],
)
def test_output_is_found_as_the_service_will_find_it(tmp_path: Path, output: str, place: str) -> None:
    (tmp_path / "etc/orcawatch").mkdir(parents=True)
    (tmp_path / "etc/orcawatch/config.yaml").write_text(output)
    write_files(plan(tmp_path))
    assert service.installed_output(tmp_path) == Path(place)


def test_the_shipped_settings_are_valid_with_and_without_their_examples(tmp_path: Path) -> None:
    text = service.shipped("config.yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_settings(file) == replace(Settings(), output=service.STATE)
    every = re.sub(r"^# (?=[ a-z_]+:|  - )", "", text.split("\n\n", 1)[1], flags=re.MULTILINE)
    assert len(yaml.safe_load(every)) > 6
    file.write_text(every)
    assert load_settings(file).hydrophones[3].serial == "1045"


@pytest.mark.parametrize("place", ["/home/me/config.yaml", "/root/config.yaml", "/tmp/config.yaml"])
def test_what_the_service_cannot_see_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match="does not see"):
        plan(tmp_path, config=Path(place))
    with pytest.raises(InputError, match="/opt/orcawatch"):
        service.program(Path("/usr/bin/python3"), Path(place))


def test_settings_behind_a_link_are_refused_where_the_service_cannot_see_them() -> None:
    """The folders of tests are under /tmp themselves."""
    link = Path("/dev/shm") / f"orcawatch-{os.getpid()}.yaml"
    link.symlink_to("/root/config.yaml")
    try:
        with pytest.raises(InputError, match=r"cannot be at /root/config\.yaml"):
            plan(service.MACHINE, config=link)
    finally:
        link.unlink()


def test_an_older_file_may_hold_anything(tmp_path: Path) -> None:
    unit = tmp_path / "etc/systemd/system/orcawatch.service"
    unit.parent.mkdir(parents=True)
    unit.write_bytes(b"[Unit]\nDescription=caf\xe9\n")
    assert unit in plan(tmp_path).files


def test_the_program_is_the_one_that_runs() -> None:
    script = Path(sys.executable).with_name("orcawatch")
    assert service.program(Path("/usr/bin/python3"), Path("/opt/x/cli.py")) == "/usr/bin/python3 -m orcawatch.cli"
    if script.exists() and not any(script.is_relative_to(folder) for folder in service.HIDDEN):
        assert service.program(Path("/usr/bin/python3"), script) == str(script)


@needs_systemd
@pytest.mark.parametrize("name", ["with space", "100%", "émile"])
def test_a_path_survives_the_unit_file(tmp_path: Path, name: str) -> None:
    odd = tmp_path / name
    odd.mkdir()
    program = odd / "orcawatch"
    program.symlink_to(str(shutil.which("true")))
    units = [tmp_path / unit for unit in service.UNITS]
    for unit in units:
        unit.write_text(service.unit_text(unit.name, service.quoted(program), odd / "config.yaml", odd))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "orcawatch" in line] == []


@pytest.mark.parametrize("name", ["a$b", 'qu"ote', "back\\slash", "line\nbreak", "a;b"])
def test_a_path_that_systemd_would_misread_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="systemd does not take"):
        service.quoted(Path("/opt") / name)


def test_dry_run_writes_nothing_and_says_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "program", lambda: COMMAND)
    done = CliRunner().invoke(deploy, ["install", "--dry-run", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"ExecStart={COMMAND} run --config /etc/orcawatch/config.yaml" in done.output
    assert "$ systemctl" in done.output and "@" not in re.sub(
        "@system-service|@privileged|@resources|@ signs", "", done.output
    )
    assert list(tmp_path.iterdir()) == []


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OrcawatchError, match="sudo"):
        service.check_machine(service.MACHINE, start=True)


def test_a_machine_without_systemd_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OrcawatchError, match="no systemd"):
        service.check_machine(tmp_path, start=False)


def test_a_failing_command_is_told_with_its_own_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no such unit >&2; exit 5"]
    with pytest.raises(OrcawatchError, match="no such unit"):
        service.carry_out(service.Plan({}, [command]))
    with pytest.raises(OrcawatchError, match="cannot be run"):
        service.run(["/no/such/program"])


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file in the way")
    with pytest.raises(OrcawatchError, match="cannot be written"):
        service.carry_out(plan_of(tmp_path / "etc/x"))


def plan_of(path: Path) -> service.Plan:
    return service.Plan({path: "text"}, [])


def test_uninstalling_asks_before_it_deletes_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "check_machine", lambda root, start: None)
    data = tmp_path / "var/lib/orcawatch/detections.sqlite"
    data.parent.mkdir(parents=True)
    data.touch()
    asked = CliRunner().invoke(deploy, ["uninstall", "--purge", "--root", str(tmp_path)], input="n\n")
    assert asked.exit_code == 1 and data.exists() and "all detections" in asked.output
    kept = CliRunner().invoke(deploy, ["uninstall", "--root", str(tmp_path)])
    assert kept.exit_code == 0 and data.exists()
    gone = CliRunner().invoke(deploy, ["uninstall", "--purge", "--yes", "--root", str(tmp_path)])
    assert gone.exit_code == 0 and not data.exists()


def test_a_folder_that_cannot_be_purged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is mounted on the folder is emptied, and stays."""
    (tmp_path / "var/lib/orcawatch").mkdir(parents=True)

    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    with pytest.raises(OrcawatchError, match="var/lib/orcawatch cannot be deleted: Device or resource busy; unmount"):
        service.purge(tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Callable[[float], Path]:
    """A log whose ledger ends so many seconds before `NOW`."""

    def make(age_s: float) -> Path:
        from orcawatch.store import Store

        path = tmp_path / "data" / health.DATABASE
        end = (NOW - timedelta(seconds=age_s)).isoformat()
        with Store(path) as store, store.transaction() as connection:
            connection.execute(
                "INSERT INTO ledger (session, kind, cause, start_utc, end_utc) VALUES (1, 'gap', 'device gone', ?, ?)",
                (end, end),
            )
        return path

    return make


@pytest.mark.parametrize(("age_s", "problems"), [(20.0, 0), (400.0, 1)])
def test_a_ledger_that_nobody_keeps_is_a_problem(log: Callable[[float], Path], age_s: float, problems: int) -> None:
    account = health.read_account(log(age_s))
    assert dict(health.account_lines(account, NOW))["ledger"].startswith("gap: device gone until 2026-11-23")
    found = list(health.account_problems(account, ACTIVE, NOW))
    assert len(found) == problems and all("no entry for 400 s" in text for text in found)


def test_a_clock_that_was_set_back_does_not_hide_that_nobody_keeps_the_ledger(log: Callable[[float], Path]) -> None:
    path = log(-3600.0)
    end = (NOW - timedelta(seconds=400)).isoformat()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO ledger (session, kind, start_utc, end_utc) VALUES (1, 'recorded', ?, ?)", (end, end)
        )
    account = health.read_account(path)
    assert account.kind == "recorded" and len(list(health.account_problems(account, ACTIVE, NOW))) == 1


def test_reading_the_log_leaves_it_as_it_is(log: Callable[[float], Path]) -> None:
    path = log(1.0)
    before = path.read_bytes()
    health.read_account(path)
    assert path.read_bytes() == before


def test_a_log_that_is_not_there_is_a_problem_with_a_cure(tmp_path: Path) -> None:
    account = health.read_account(tmp_path / health.DATABASE)
    assert not (tmp_path / health.DATABASE).exists()
    assert "orcawatch doctor" in next(health.account_problems(account, ACTIVE, NOW))
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"SQLite format 3\0" + bytes(200))
    with pytest.raises(sqlite3.Error), sqlite3.connect(damaged) as connection:
        connection.execute("SELECT * FROM ledger")
    assert "cannot be read" in health.read_account(damaged).fault


def test_a_service_that_does_not_run_is_a_problem() -> None:
    assert list(health.service_problems(ACTIVE)) == []
    failed = {**ACTIVE, "ActiveState": "activating", "Result": "watchdog", "UnitFileState": "disabled"}
    assert [text.split(":")[0] for text in health.service_problems(failed)] == [
        "the service is activating (last result watchdog, exit code )",
        "the service does not start at boot",
    ]


def test_a_page_or_an_uplink_that_is_wanted_and_does_not_run_is_a_problem() -> None:
    def problems(**changes: str) -> list[str]:
        return list(health.other_problems("the uplink", service.UPLINK_UNIT, {**ACTIVE, **changes}))

    assert problems() == [] and problems(ActiveState="inactive", UnitFileState="disabled") == []
    (found,) = problems(ActiveState="activating")
    assert found == "the uplink is activating: journalctl --unit orcawatch-uplink.service --lines 50"


def test_the_service_commands_load_no_training_library() -> None:
    code = (
        "import sys; from orcawatch.deploy.cli import deploy\n"
        "try:\n    deploy(['install', '--dry-run', '--root', '/var/empty-root'], 'orcawatch')\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "docs")
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {"tensorflow", "tqdm", "numpy", "matplotlib", "soundfile", "sounddevice"}
