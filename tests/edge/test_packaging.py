from __future__ import annotations

import ast
import configparser
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("orcawatch", "plugins", "training", "deploy", "systemd")
NEVER_ON_THE_EDGE = ("folding.py", "relevance.py", "masking.py", "testing.py")


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(relative level, module) of every import statement of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found.extend((0, alias.name) for alias in node.names)
    return found


def test_every_package_on_disk_is_listed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    on_disk = ["orcawatch", "orcawatch.web", *(f"orcawatch.{name}" for name in FOLDERS[1:])]
    nested = [str(path.parent.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).glob("*/**/__init__.py")]
    assert sorted(listed) == sorted(on_disk) and set(nested) == {"orcawatch/web"}
    assert all((ROOT / name / "__init__.py").is_file() for name in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows_point_up_to_orcawatch_only(folder: str) -> None:
    siblings = set(FOLDERS[1:])
    for path in sources(folder):
        for level, module in imports(path):
            first = module.split(".")[0]
            deep = module.split(".")[1] if module.startswith("orcawatch.") else ""
            where = f"{path.relative_to(ROOT)} imports {'.' * level}{module}"
            assert level > 0 or first not in siblings, f"{where}: by the bare name"
            assert deep not in siblings - {folder}, f"{where}: sideways or down"
            assert level != 2 or first not in siblings, f"{where}: sideways"
            assert folder != "orcawatch" or level == 0 or first not in siblings, f"{where}: down"


def test_the_edge_names_no_training_library() -> None:
    heavy = {"tensorflow", "librosa", "innvestigate", "scipy", "sklearn"}
    for path in sources("orcawatch"):
        if path.name not in NEVER_ON_THE_EDGE:
            named = {module.split(".")[0] for level, module in imports(path) if level == 0}
            assert not named & heavy, f"{path.name} imports {named & heavy}"


def test_command_line_imports_quickly_and_lightly() -> None:
    code = (
        "import time; start = time.process_time(); import orcawatch.cli, sys; took = time.process_time() - start; "
        "print(took); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    best = 9.0
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "docs"
        )
        took, loaded = done.stdout.splitlines()
        assert not {"tensorflow", "librosa", "matplotlib", "scipy"} & set(loaded.split())
        best = min(best, float(took))
        time.sleep(0.1)
    assert best < 0.3


def test_entry_points_exist() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for group in setup["options.entry_points"].values():
        for line in group.strip().splitlines():
            module, name = line.split("=")[1].strip().split(":")
            folder = module.split(".")
            path = ROOT / ("/".join(folder[1:] if folder[1] in FOLDERS else folder) + ".py")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert name in {getattr(node, "name", "") for node in tree.body}, f"{module}:{name}"
