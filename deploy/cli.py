"""`orcawatch deploy`: the service on a buoy, and the way from a training run to a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .variants import QUANTIZATIONS, check_quantization

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
RUN = click.argument("run", type=FOLDER)
QUANTIZATION = click.option(
    "--quantization",
    multiple=True,
    default=["dynamic"],
    show_default=True,
    metavar="V|NAME=V",
    help=f"One of {', '.join(QUANTIZATIONS)}; for one backbone NAME=V, as often as needed.",
)
MOST_MS = click.option("--most-ms", type=float, help="Most milliseconds per window and channel, on this machine.")
MOST_MB = click.option("--most-mb", type=float, help="Most megabytes of the backbones' files.")
TIMED = click.option("--timed-windows", type=click.IntRange(1), default=20, show_default=True, help="Windows timed.")
MOST_LOST = click.option(
    "--most-lost",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of the windows called by the full vote that the cascade may lose, of clips and of their calls fainter.",
)
CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/orcawatch/config.yaml"),
    show_default=True,
    metavar="FILE",
    help="The settings that the service reads.",
)
ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    default=Path("/"),
    show_default=True,
    metavar="FOLDER",
    help="Prepare the system in this folder, an image for instance; nothing is started.",
)
OUT = click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: RUN/deploy]")


@click.group()
def deploy() -> None:
    """Install the service; quantize training runs, weigh their cost, make bundles and verify them.

    install, uninstall, status and gate run on the buoy as it is; the others need the extra `train`.
    """


@deploy.command()
@CONFIG
@click.option("--start/--no-start", default=True, show_default=True, help="Start it now, too.")
@ROOT
@click.option("--dry-run", is_flag=True, help="Print what would be written and run, do nothing.")
def install(config: Path, start: bool, root: Path, dry_run: bool) -> None:
    """Install this orcawatch as a service of systemd that starts at boot.

    Writes the unit, its user and its folders, and commented settings where there are none; what exists of settings is
    never changed. Running it again is harmless: it writes what differs, and restarts the service only then.
    """
    from . import service

    if not dry_run:
        service.check_machine(root, start)
    plan = service.plan_install(config, service.program(), root, start)
    if dry_run:
        click.echo(service.described(plan))
        return
    service.carry_out(plan)
    for path in plan.files:
        click.echo(f"written: {path}")
    click.echo("running: orcawatch deploy status" if start and root == service.MACHINE else "installed, not started")


@deploy.command()
@ROOT
@click.option("--purge", is_flag=True, help="Delete settings and data, too, but no output folder elsewhere.")
@click.option("--yes", is_flag=True, help="Do not ask before a purge.")
def uninstall(root: Path, purge: bool, yes: bool) -> None:
    """Stop the service and remove it; settings and data stay."""
    from . import service

    service.check_machine(root, start=False)
    if purge and not yes:
        folders = ", ".join(str(path) for path in service.purged(root)) or "nothing"
        click.confirm(f"This deletes {folders}, with all detections in it. Go on?", abort=True)
    for path in service.remove(root):
        click.echo(f"removed: {path}")
    if purge:
        for path in service.purge(root):
            click.echo(f"removed: {path}")


@deploy.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Print how the service fares; the exit code is 0 where it runs and its ledger is kept, else 1."""
    from .health import report

    found = report()
    for name, text in found.lines:
        click.echo(f"{name:<11} {text}")
    for problem in found.problems:
        click.echo(f"problem     {problem}")
    ctx.exit(1 if found.problems else 0)


@deploy.command()
@RUN
@click.option("--variants", default=",".join(QUANTIZATIONS), show_default=True, help="Which to measure, with commas.")
@TIMED
@OUT
def quantize(run: Path, variants: str, timed_windows: int, out: Path | None) -> None:
    """Export RUN's backbones in every variant; print and write size, time, noise and AUC lost on devel.

    Models are kept in RUN/deploy/models and measurements in RUN/deploy/measured: what is there is not made again.
    """
    from .quantize import quantize as measure
    from .run import read_run
    from .tables import quantization_tables

    chosen = [check_quantization(name.strip()) for name in variants.split(",")]
    found = measure(read_run(run), chosen, timed_windows, _progress)
    _write(out or run / "deploy", "quantization", found, quantization_tables(found))


@deploy.command()
@RUN
@MOST_MS
@MOST_MB
@QUANTIZATION
@TIMED
@OUT
def budget(
    run: Path,
    most_ms: float | None,
    most_mb: float | None,
    quantization: Sequence[str],
    timed_windows: int,
    out: Path | None,
) -> None:
    """Print and write the Pareto fronts of RUN's votes, AUC against time and size, and the best within a budget."""
    from .run import read_run
    from .tables import budget_table

    found = _budget(read_run(run), quantization, most_ms, most_mb, timed_windows)
    _write(out or run / "deploy", "budget", found, budget_table(found))


@deploy.command()
@RUN
@click.argument("bundle", type=click.Path(path_type=Path))
@QUANTIZATION
@click.option("--vote", help="Members of the vote, A+B+C.  [default: the run's choice]")
@MOST_MS
@MOST_MB
@TIMED
@click.option("--all-members", is_flag=True, help="Keep the heads outside the vote that its backbones can serve.")
@click.option(
    "--cascade/--no-cascade",
    default=True,
    show_default=True,
    help="Hear the heavy backbones only where the cheap ones find something.",
)
@MOST_LOST
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME", help="A cheap backbone outside the vote for the cascade to hear."
)
def bundle(
    run: Path,
    bundle: Path,
    quantization: Sequence[str],
    vote: str | None,
    most_ms: float | None,
    most_mb: float | None,
    timed_windows: int,
    all_members: bool,
    cascade: bool,
    most_lost: float,
    gates: tuple[str, ...],
) -> None:
    """Export a vote of the finished RUN as the new folder BUNDLE, with the export's own figures.

    With --most-ms or --most-mb the vote is the best that costs no more; else the run's own, or --vote.
    """
    from ..bundle import load_bundle
    from ..cascade import cascade_lines
    from .build import build_bundle, plan_bundle
    from .run import parse_vote, read_run

    found = read_run(run)
    within = most_ms is not None or most_mb is not None
    if within and vote is not None:
        raise InputError("the vote is either named by --vote or chosen by --most-ms and --most-mb, not both")
    chosen = parse_vote(found, vote)
    if within:
        chosen = _budget(found, quantization, most_ms, most_mb, timed_windows)["chosen"]["members"]
    plan = plan_bundle(
        found, _quantization(found, quantization), chosen, all_members, most_lost if cascade else None, gates
    )
    build_bundle(found, bundle, plan, _progress)
    size, manifest = sum(path.stat().st_size for path in bundle.iterdir()), load_bundle(bundle).manifest
    variants = ", ".join(f"{one['name']} {one['quantization']}" for one in manifest["backbones"])
    click.echo(f"{bundle}: {size / 1e6:.1f} MB, vote {' + '.join(plan.vote)}, backbones: {variants}")
    for line in cascade_lines(manifest.get("cascade")):
        click.echo(f"cascade: {line}")


@deploy.command()
@click.argument("bundle", type=FOLDER)
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--data", "folders", type=FOLDER, multiple=True, required=True, metavar="FOLDER",
    help="Labelled clips (labels.csv and wav/); several times for several sets.",
)  # fmt: skip
@click.option(
    "--split", type=click.Choice(["devel", "test"]), default="devel", show_default=True,
    help="Which clips; none of those that it was trained on.",
)  # fmt: skip
@MOST_LOST
def gate(bundle: Path, new: Path, folders: tuple[Path, ...], split: str, most_lost: float) -> None:
    """Write BUNDLE as the folder NEW with a gate: where nothing stands out of the background, no backbone is heard.

    For bundles that are there already; those of `orcawatch deploy bundle` have it, and gates that listen, too. It is
    chosen on the clips, and on their calls mixed into their noise, by the same rule, and needs no extra.
    """
    from ..bundle import load_bundle
    from ..cascade import cascade_lines
    from ..compare import clips_of
    from .gate import add_gate

    add_gate(bundle, new, clips_of(folders, split), most_lost, _progress)
    for line in cascade_lines(load_bundle(new).manifest["cascade"]):
        click.echo(f"cascade: {line}")


@deploy.command()
@RUN
@click.argument("bundle", type=FOLDER)
def verify(run: Path, bundle: Path) -> None:
    """Score RUN's devel windows with BUNDLE through the edge's code and compare with the training side."""
    from .build import verify_bundle
    from .run import read_run
    from .tables import verification_table

    found = verify_bundle(read_run(run), bundle, _progress)
    click.echo(f"{found.windows} windows, {found.window_ms:.1f} ms each, interpreter {found.runtime}\n")
    click.echo(verification_table(found))


def _budget(
    run: Any, quantization: Sequence[str], most_ms: float | None, most_mb: float | None, timed_windows: int
) -> dict[str, Any]:
    from .budget import budget

    return budget(run, _quantization(run, quantization), most_ms, most_mb, timed_windows, _progress)


def _quantization(run: Any, given: Sequence[str]) -> dict[str, str]:
    """Variant by backbone from `V` (all) and `NAME=V` (one); `dynamic` where nothing is said."""
    found = dict.fromkeys(run.backbones, "dynamic")
    for text in sorted(given, key=lambda text: "=" in text):
        name, equals, variant = text.rpartition("=")
        if equals and name not in found:
            raise InputError(f"the run's backbones are {list(found)}, not {name!r}")
        found.update(dict.fromkeys([name] if equals else found, check_quantization(variant)))
    return found


def _write(folder: Path, name: str, found: Any, text: str) -> None:
    import json

    from .models import store

    store(folder / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
    store(folder / f"{name}.md", text.encode())
    click.echo(text)


def _progress(items: Any) -> Any:
    """A progress bar on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, "listening", console=console, disable=not console.is_terminal)
