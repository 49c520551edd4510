"""The report of a run, over a small result folder with everything in it, and over one with as little as there can be."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch import metrics, ranking
from orcawatch.backbone import load_backbone
from orcawatch.errors import TrainingError
from orcawatch.training import (
    document,
    examples,
    findings,
    heads,
    pictures,
    report,
    run_files,
    sections,
    tables,
    words,
)
from orcawatch.training.analysis import Scores, analyse

EVIL = '<script>alert("1")</script> |*_a_*.flac'
STRANGE = ("d\u00e9j\u00e0 vu \u9be8\u9be8 \u202egpj.flac", "x" * 180 + ".flac")
HIDDEN = 8
DRAWS = 100

WIDE = '''
"""A second small backbone, on the linear front end."""

from orcawatch.spectrogram import LinearPower


class Wide:
    name = "wide"
    feature_size = 10

    def __init__(self, front_end=None):
        self.front_end = front_end or LinearPower(size=24)

    def build_keras(self):
        from tensorflow.keras import Model, layers

        x = first = layers.Input(self.front_end.shape)
        x = layers.Conv2D(10, 3, strides=2, padding="same", activation="relu")(x)
        return Model(first, layers.GlobalAveragePooling2D()(x))
'''


# --- a run that was never trained ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def plugins(plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plugins `tiny` and `wide`, installed."""
    folder = tmp_path_factory.mktemp("wide-site")
    (folder / "wide_backbone.py").write_text(WIDE)
    info = folder / "wide_backbone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-backbone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orcawatch.backbones]\nwide = wide_backbone:Wide\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(plugin_folder))
        patch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        yield


def members_of(names: list[str]) -> list[dict[str, Any]]:
    """Three members of each backbone, and of their fusion where there are several."""
    families = [*[(name, [name]) for name in names], *([("fusion", names)] if len(names) > 1 else [])]
    masks = (("", "none"), ("_min", "minimal"), ("_neg", "negative"))
    return [
        {
            "name": family + suffix,
            "backbones": backbones,
            "mask": mask,
            "relevance_of": backbones if mask == "negative" else None,
        }
        for family, backbones in families
        for suffix, mask in masks
    ]


def clips_of(number: int, strange: bool) -> list[dict[str, Any]]:
    """Devel clips, half of them orca, two of a recording; some names as users write them."""
    names = [EVIL, *STRANGE] if strange else []
    clips = []
    for k in range(2 * number):
        label = "orca" if k < number else "noise"
        name = names[(k % number)] + f"{label}.flac" if k % number < len(names) else f"devel_{k:03d}.flac"
        kind = "orca" if label == "orca" else ("ship", "ambient")[k % 2]
        clips.append({"file_name": name, "label": label, "group": f"{label}-{k // 2}", "kind": kind, "seconds": 1.5})
    return clips


def make_head(generator: np.random.Generator, inputs: int) -> dict[str, Any]:
    """Weights of a head of a few units."""
    return {
        "hidden_kernel": generator.normal(0, 1, (inputs, HIDDEN)).astype(np.float32),
        "hidden_bias": generator.normal(0, 0.1, HIDDEN).astype(np.float32),
        "kernel": generator.normal(0, 1, (HIDDEN, 2)).astype(np.float32),
        "bias": np.zeros(2, np.float32),
    }


def make_networks(result: Path, names: list[str], generator: np.random.Generator, windows: int) -> dict[str, Any]:
    """Weights, spectrograms and features of the backbones; an entry of `selection.json` for each."""
    found = {}
    for name in names:
        plugin = load_backbone(name)
        model, shape = plugin.build_keras(), plugin.front_end.shape
        np.savez(result / f"backbone-{name}.npz", **{f"weight_{k:03d}": w for k, w in enumerate(model.get_weights())})
        spectrograms = generator.random((windows, *shape[:2])).astype(np.float32)
        np.save(result / f"devel_spectrograms-{name}.npy", spectrograms)
        entry = {
            "name": name,
            "feature_size": plugin.feature_size,
            "front_end": plugin.front_end.to_dict(),
            "input_shape": list(shape),
            "weights": f"backbone-{name}.npz",
            "weights_source": "from scratch",
            "spectrograms": f"devel_spectrograms-{name}.npy",
            "history": {
                "step": [10, 20, 30],
                "loss": [0.7, 0.5, 0.4],
                "label_loss": [0.6, 0.5, 0.4],
                "phase": ["head"] * 3,
            },
        }
        found[name] = {"entry": entry, "features": np.asarray(model.predict_on_batch(spectrograms.reshape(-1, *shape)))}
    return found


def make_result(
    result: Path, names: list[str], number: int, spread: float, strange: bool, costs: bool
) -> dict[str, Any]:
    """The folder of a stage `result`, consistent in itself; `spread` sets the classes apart. Its `selection.json`."""
    result.mkdir(parents=True)
    generator, clips, members = np.random.default_rng(3), clips_of(number, strange), members_of(names)
    window_clip = np.repeat(np.arange(len(clips)), 2)
    networks = make_networks(result, names, generator, len(window_clip))
    sizes = {name: networks[name]["entry"]["feature_size"] for name in names}
    trained = {one["name"]: make_head(generator, sum(sizes[name] for name in one["backbones"])) for one in members}
    heads.save_heads(result / "heads.npz", trained)
    np.savez(
        result / "masks.npz",
        **{f"{name}/minimal": (np.arange(size) % 2).astype(np.float32) for name, size in sizes.items()},
    )
    labels, groups = np.array([one["label"] == "orca" for one in clips]), [one["group"] for one in clips]
    windows = 1 / (
        1 + np.exp(-generator.normal(spread * (2 * labels[window_clip, None] - 1), 1, (len(window_clip), len(members))))
    )
    means = metrics.clip_means(windows, window_clip, len(clips))
    rows = ranking.rank([one["name"] for one in members], means, labels)
    vote = list(ranking.select(rows, [one["name"] for one in members if one["mask"] == "negative"]).members)
    seconds = np.array([one["seconds"] for one in clips])
    scores = Scores(members, means, windows, window_clip, labels, groups, seconds)
    found = analyse(scores, vote, None, DRAWS, 1)
    columns = {**{one["name"]: means[:, k] for k, one in enumerate(members)}, "vote": scores.vote(vote, means)}
    np.savez(
        result / "curves.npz",
        **{f"{n}/{k}": v for n, c in columns.items() for k, v in metrics.curves(c, labels).items()},
    )
    stored = {key: np.array([one[key] for one in clips]) for key in ("file_name", "label", "group", "kind", "seconds")}
    np.savez(
        result / "devel_scores.npz",
        members=[one["name"] for one in members],
        clip_scores=means,
        vote_clip_scores=columns["vote"],
        window_clip=window_clip,
        window_start=np.tile([0, 48], len(clips)),
        window_scores=windows,
        **stored,
    )
    (result / "analysis.json").write_text(json.dumps(found))
    (result / "ranking.csv").write_text(ranking.to_csv([one["name"] for one in members], rows))
    selection = make_selection(names, members, vote, networks, found, scores, rows, costs)
    (result / "selection.json").write_text(json.dumps(selection))
    return selection


def make_selection(names, members, vote, networks, found, scores, rows, costs) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    """What `selection.json` holds."""
    limits = metrics.event_thresholds(
        scores.vote(vote, scores.windows), scores.window_clip, scores.labels, scores.seconds
    )
    fine_tune = {"head_steps": 5, "steps": 30, "batch_size": 4, "precision": "float32"}
    return {
        "name": "test run <b>",
        "seed": 1,
        "backbones": [networks[name]["entry"] for name in names],
        "members": members,
        "dropped": [],
        "vote": vote,
        "hop_s": 0.48,
        "channel_fusion": "max",
        "thresholds": {**asdict(limits), "false_alarms_by_kind": {"ship": [1, 5], "ambient": [0, 5]}},
        "metrics": {
            "split": "devel",
            "score": "mean orca confidence over a clip's windows",
            "interval": found["interval"],
            "members": found["auc"]["members"],
            "vote": found["auc"]["vote"],
            "nested": found["nested"]["auc"],
            **({"teacher": {"value": 0.4321, "low": 0.4, "high": 0.5, "draws": DRAWS}} if costs else {}),
            "note": ranking.OPTIMISTIC.format(rows=len(rows)),
        },
        "all_zero": {name: {"train": {"rows": 40, "orca": 9, "all_zero": 1}} for name in names},
        "masks": {
            name: {
                "features": networks[name]["entry"]["feature_size"],
                "minimal_keep": 5,
                "minimal_is_identity": False,
                "negative_removed_on_average": 4.5,
            }
            for name in names
        },
        "data": {
            "fingerprint": "f" * 64,
            "layout": "labels",
            "splits": [{"split": "devel", "label": "orca", "clips": 9, "seconds": 61.0, "groups": 5}],
            "sources": [
                {"repository": "a/b", "licence": "CC0", "split": "train", "clips": 7},
                {"repository": "a/b", "licence": "CC0", "split": "devel", "clips": 2},
                {"repository": "<i>c</i>", "licence": "not stated", "split": "devel", "clips": 1},
            ],
            "recordings": "given",
            "set_aside": [{"file_name": EVIL, "reason": "cannot be decoded"}],
        },
        "recipe": {
            "name": "test run <b>",
            "backbones": {name: {"weights": None, "fine_tune": fine_tune} for name in names},
            "data": {"simulated_clips": 3},
            "windows": {"hop_s": 0.48},
            "vote": {"must_contain": "negative", "draws": DRAWS},
        },
        "costs": {"data": {"wall_s": 3.2, "peak_mb": 300.4}, "features-tiny": {"wall_s": 4000.0, "peak_mb": 1200.0}}
        if costs
        else {},
        "versions": {"python": "3.11.7", "orcawatch": "0.1.0", "tensorflow": "2.14.1"},
    }


def write_stage(folder: Path, name: str, **inputs: str) -> None:
    """The record that the runner leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "wall_s": 2.0, "peak_mb": 100.0, "inputs": inputs}
    (folder / "stage.json").write_text(json.dumps(record))


def write_data(folder: Path, test_files: list[str]) -> None:
    """The data stage, as far as the report reads it."""
    write_stage(folder, "data")
    clips = [{"file_name": name, "split": "test"} for name in test_files]
    (folder / "clips.json").write_text(json.dumps({"clips": [{"file_name": "devel.flac", "split": "devel"}, *clips]}))


def write_baseline(folder: Path, value: float, data: str) -> None:
    """A baseline's folder."""
    write_stage(folder, folder.name.rsplit("-", 1)[0], data=data)
    auc = {"value": value, "low": value - 0.1, "high": value + 0.1, "draws": DRAWS}
    found = {"name": "opensmile", "auc": auc, "chosen": {"complexity": 0.01}, "note": "a <note>", "versions": {}}
    (folder / "report.json").write_text(json.dumps(found))
    labels = np.array(["noise", "orca"] * 4)
    np.savez(
        folder / "scores.npz",
        label=labels,
        split=np.array(["devel", "devel"] + ["test"] * 6),
        group=np.array([f"{k // 2}" for k in range(8)]),
        score=np.array([0.9, 0.1, 0.2, 0.6, 0.5, 0.4, 0.3, 0.7]),
    )


QUANTIZED = {
    "bytes": 2_500_000,
    "features_ms": 12.3,
    "explain_ms": 40.0,
    "snr_db": None,
    "mask_bits_flipped": 0.0125,
}


def write_deploy(folder: Path, result: Path) -> None:
    """What the export of a run measures."""
    folder.mkdir()
    content = (result / "selection.json").read_bytes()
    selection, digest = json.loads(content), hashlib.sha256(content).hexdigest()
    auc = selection["metrics"]["vote"]
    loss = {"value": 0.0011, "low": -0.002, "high": 0.004, "draws": DRAWS}
    variant = {"auc": auc, "loss": loss, "largest_difference": 0.01, "bytes": 2_500_000, "features_ms": 12.3}
    member = {"backbones": ["tiny"], "trained": auc, "variants": {"dynamic": variant}}
    found = {
        **{
            "selection": digest,
            "runtime": "interpreter",
            "machine": "machine",
            "threads": 1,
            "windows": 40,
            "clips": 20,
            "timed_windows": 5,
        },
        "backbones": {"tiny": {"variants": {"dynamic": QUANTIZED}}},
        "members": {"tiny": member},
        "vote": {**member, "members": selection["vote"]},
    }
    (folder / "quantization.json").write_text(json.dumps(found))
    priced = {"members": ["tiny_neg"], "auc": 0.81, "backbones": ["tiny"], "ms": 12.3, "mb": 2.5}
    more = {**priced, "members": selection["vote"], "auc": 0.9, "ms": 40.0, "mb": 9.0}
    fronts = {"ms": [priced, more], "mb": [priced, more]}
    budget = {"selection": digest, "most_ms": 20.0, "most_mb": None, "front": fronts, "trained": more, "chosen": priced}
    (folder / "budget.json").write_text(json.dumps(budget))


def write_test(result: Path, labels: list[str]) -> list[str]:
    """Scores of a test split; the names of its files in the order of the labels."""
    names = [f"test_{k}.wav" for k in range(len(labels))]
    order = np.arange(len(names))[::-1]
    np.savez(
        result / "test_scores.npz",
        file_name=np.array(names)[order],
        label=np.array(labels)[order],
        group=np.array(names)[order],
        vote_clip_scores=np.linspace(0.1, 0.9, len(names))[order],
    )
    return names


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two backbones and everything that a report can speak of."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = folder / "artifacts" / "result-0123456789abcdef"
    make_result(result, ["tiny", "wide"], 12, 0.6, True, True)
    write_stage(result, "result", data="d" * 64)
    write_data(folder / "artifacts" / ("data-" + "d" * 16), write_test(result, ["?"] * 6))
    write_baseline(folder / "artifacts" / "baseline-opensmile-aaaaaaaaaaaaaaaa", 0.7123, "d" * 64)
    write_baseline(folder / "artifacts" / "baseline-opensmile-bbbbbbbbbbbbbbbb", 0.6456, "of other data")
    write_deploy(folder / "deploy", result)
    (folder / "result").symlink_to(os.path.relpath(result, folder))
    return folder


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    report.render(run, out)
    return out


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, as a stage, of one backbone, few clips, without false alarms, baselines, test split and costs."""
    folder = tmp_path_factory.mktemp("bare")
    make_result(folder / "result", ["tiny"], 4, 9.0, False, False)
    write_data(folder / "data", [])
    (folder / "report").mkdir()
    report.make_report({}, {"result": folder / "result", "data": folder / "data"}, folder / "report")
    return folder


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What stands in a page: tags in order, their attributes, text; tags that were not closed in order."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


def test_page_is_well_formed(page: Page) -> None:
    assert page.wrong == []
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert [name for name, number in ids.items() if number > 1] == []


def test_page_stands_alone(written: Path, page: Page) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    ids = {attributes.get("id") for _, attributes in page.tags}
    for _, attributes in page.tags:
        assert "src" not in attributes
        for key in ("href", "xlink:href"):
            target = attributes.get(key) or "data:"
            assert target.startswith("data:") or (target[0] == "#" and target[1:] in ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= ids
    assert not re.search(r"url\((?!#)|@import", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_page_can_be_read_without_seeing_it(page: Page) -> None:
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    names = {attributes["id"] for tag, attributes in page.tags if tag == "title" and "id" in attributes}
    assert len(drawings) > 15
    assert all(one["role"] == "img" and one["aria-labelledby"] in names for one in drawings)
    cells = [attributes for tag, attributes in page.tags if tag == "th"]
    assert cells and all(one["scope"] in ("col", "row") for one in cells)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:]))


def test_page_fits_light_and_dark_and_paper(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert document.INK not in text and document.PAPER not in text
    assert "currentColor" in text


def test_every_section_is_there(page: Page) -> None:
    ids = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert ids == {
        *(
            "result",
            "training",
            "data",
            "ranking",
            "choice",
            "masks",
            "baselines",
            "curves",
            "edge",
            "test",
            "examples",
        ),
        "provenance",
    }


def test_figures_are_those_of_the_files(run: Path, page: Page) -> None:
    selection = json.loads((run / "result" / "selection.json").read_text())
    for found in (
        selection["metrics"]["vote"],
        selection["metrics"]["nested"],
        *selection["metrics"]["members"].values(),
    ):
        assert f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})" in page.text
    best = next(csv.DictReader((run / "result" / "ranking.csv").open()))
    assert f"{float(best['auc']):.4f}" in page.text
    assert "511 combinations" in page.text
    assert "3 simulated calls" in page.text
    assert "f" * 64 in page.text
    for told in ("optimistic", "1 h 6 min", "1 file set aside", "head_steps: 5", "12.3", "+0.0011", "from scratch"):
        assert told in page.text, told
    assert (
        "The teacher alone, the linear classifier whose answers the networks learned from, reaches 0.432" in page.text
    )
    assert "slope and shift" not in page.text


def test_baselines_of_other_data_do_not_count(page: Page) -> None:
    assert "0.7123" in page.text
    assert "0.6456" not in page.text


def test_names_cannot_become_markup(written: Path, page: Page) -> None:
    assert EVIL in page.text
    assert page.text.count("<b>") >= 1
    assert not [tag for tag, _ in page.tags if tag in ("script", "b", "i", "note")]
    markdown = re.sub(r"```.*?```", "", (written / "report.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<(script|b|i|note)", markdown)
    assert r"\<script\>" in markdown
    for text in (markdown, page.text):
        assert "\u202e" not in text
        assert STRANGE[1] in text


# --- the same as Markdown ---------------------------------------------------------------------------------------------


def test_markdown_says_the_same(written: Path, page: Page) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings and all(heading in page.text for heading in headings)
    assert len(headings) == sum(tag == "section" for tag, _ in page.tags)
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == sum(tag == "svg" for tag, _ in page.tags)
    assert len(re.findall(r"^\|(?::?-+:?\|)+$", text, re.MULTILINE)) == sum(tag == "table" for tag, _ in page.tags) + 1


def test_markdown_has_its_pictures(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"^!\[.*\]\((pictures/[a-z0-9-]+\.svg)\)$", text, re.MULTILINE)
    assert len(linked) == len(set(linked))
    assert {written / one for one in linked} == set((written / "pictures").iterdir())
    for one in linked:
        svg = (written / one).read_text(encoding="utf-8")
        assert svg.startswith("<svg ") and document.INK not in svg and document.WHITE in svg


def test_markdown_tables_are_rectangular(written: Path) -> None:
    lines = (written / "report.md").read_text(encoding="utf-8").split("\n")
    width = 0
    for before, line in zip(["", *lines], lines):
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line)) - 1
            width = width if before.startswith("|") else cells
            assert cells == width, line


def test_equal_runs_give_equal_reports(run: Path, written: Path, tmp_path: Path) -> None:
    report.render(run, tmp_path)
    for name in ("report.html", "report.md", "test_predictions.arff"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


# --- with little in it --------------------------------------------------------------------------------------------------


def test_bare_run(bare: Path) -> None:
    page = Page((bare / "report" / "report.html").read_text(encoding="utf-8"))
    ids = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert page.wrong == [] and page.open == []
    assert not {"baselines", "edge", "test"} & ids
    assert {"ranking", "examples", "provenance"} <= ids
    assert "No noise clip of devel was called orca." in page.text
    assert "Every orca clip of devel was called." in page.text
    assert "Time and peak memory" not in page.text
    assert not (bare / "report" / "test_predictions.csv").exists()


def test_labelled_test_split_is_measured(bare: Path, tmp_path: Path) -> None:
    result, data = bare / "result", tmp_path / "data"
    names = write_test(result, ["noise", "orca", "noise", "orca"])
    write_data(data, names)
    found = run_files.read_run({"result": result, "data": data})
    assert found.test_files == tuple(names)
    assert found.test_auc["value"] == 0.75
    assert found.test_aucs == {"vote": found.test_auc}
    write_baseline(tmp_path / "baseline-opensmile-aaaaaaaaaaaaaaaa", 0.7, "of this data")
    inputs = {"result": result, "data": data, "baseline-opensmile": tmp_path / "baseline-opensmile-aaaaaaaaaaaaaaaa"}
    compared = run_files.read_run(inputs)
    score, orca = np.array([0.2, 0.6, 0.5, 0.4, 0.3, 0.7]), np.array([False, True] * 3)
    expected = metrics.auc_interval(score, orca, ["1", "1", "2", "2", "3", "3"], DRAWS, 1)
    assert compared.test_aucs["opensmile"] == asdict(expected)
    (table, *_) = [block for block in findings.baselines(compared) if isinstance(block, document.Table)]
    assert table.header == ("model", "AUC, devel", "AUC, test")
    assert [row[2] for row in table.rows] == [
        tables.interval(found.test_auc),
        tables.UNKNOWN,
        tables.interval(asdict(expected)),
    ]
    (result / "test_scores.npz").unlink()


@pytest.mark.parametrize("stale", [None, "0" * 64])
def test_exports_of_another_result_are_left_out(run: Path, tmp_path: Path, stale: str | None) -> None:
    shutil.copytree(run / "deploy", tmp_path / "deploy")
    path = tmp_path / "deploy" / "quantization.json"
    written = {**json.loads(path.read_text()), "selection": stale}
    path.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
    found = run_files.read_run(run_files.inputs_of(run), tmp_path / "deploy")
    assert found.quantization == {} and found.budget != {}
    first, *rest = sections.edge(found)
    assert isinstance(first, document.Paragraph) and first.caution
    assert first.text == (
        "quantization.json is left out: it was made for another result than this one. orcawatch deploy quantize makes it "
        "anew."
    )
    captions = [block.caption for block in rest if isinstance(block, document.Table)]
    assert captions == ["The Pareto front of AUC against time"]
    (tmp_path / "deploy" / "budget.json").write_text("{}")
    texts = [block.text for block in sections.edge(run_files.read_run(run_files.inputs_of(run), tmp_path / "deploy"))]
    assert len(texts) == 2 and texts[1].startswith("budget.json is left out")


def test_run_without_result_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no result to report: run `orcawatch train run"):
        report.render(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_lie_beside_the_report(written: Path) -> None:
    rows = list(csv.DictReader((written / "test_predictions.csv").open()))
    assert [row["file_name"] for row in rows] == [f"test_{k}.wav" for k in range(6)]
    assert [float(row["score"]) for row in rows] == pytest.approx(np.linspace(0.1, 0.9, 6), abs=1e-6)


# --- examples ---------------------------------------------------------------------------------------------------------


def test_choose_takes_one_clip_of_a_recording() -> None:
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    groups = ["a", "a", "b", "c", "d", "e", "e", "f"]
    window_clip = np.repeat(np.arange(8), 2)
    highest = np.array([0.9, 0.95, 0.7, 0.2, 0.8, 0.6, 0.9, 0.1])
    scores = np.stack([highest, highest - 0.1], axis=1).ravel()
    found = examples.choose(scores, window_clip, labels, groups, 0.5, 2)
    assert {name: [one.clip for one in some] for name, some in found.items()} == {
        "hits": [1, 2],
        "misses": [3],
        "false alarms": [6, 4],
        "correct rejections": [7],
    }
    assert [(one.window, one.score) for one in found["hits"]] == [(2, 0.95), (4, 0.7)]


def test_choose_counts_a_score_at_the_threshold_as_called() -> None:
    found = examples.choose(np.array([0.5]), np.array([0]), np.array([True]), ["a"], 0.5, 3)
    assert [len(some) for some in found.values()] == [1, 0, 0, 0]


def plain_dense(x: Any, kernel: Any, relevance: Any) -> Any:
    """The z+ rule as loops, x >= 0."""
    out = np.zeros(len(x))
    for j, r in enumerate(relevance):
        shares = [max(0.0, x[i] * kernel[i, j]) for i in range(len(x))]
        if sum(shares):
            out += np.array(shares) / sum(shares) * r
    return out


def plain_head(x: Any, head: Any, start: str) -> tuple[Any, float]:
    """Relevance of one window's features and its confidence, as loops."""
    hidden = np.maximum(x @ head["hidden_kernel"] + head["hidden_bias"], 0)
    logits = hidden @ head["kernel"] + head["bias"]
    confidence = np.exp(logits[1]) / np.exp(logits).sum()
    neuron = 1 if start == "confidence" else int(np.argmax(logits))
    amount = confidence if start == "confidence" else max(0.0, logits[neuron])
    of_hidden = plain_dense(hidden, head["kernel"], amount * np.eye(2)[neuron])
    return plain_dense(x, head["hidden_kernel"], of_hidden), confidence


def plain_vote(features: dict[str, Any], members: Any, vote: Any, trained: Any, minimal: Any) -> tuple[Any, float]:
    """Relevance of one window's features by backbone, and the vote's score, as loops."""
    total, scores = {name: np.zeros(len(x)) for name, x in features.items()}, []
    for member in [one for one in members if one["name"] in vote]:
        parts = []
        for k, name in enumerate(member["backbones"]):
            x = features[name].astype(np.float64)
            if member["mask"] == "minimal":
                x = x * minimal[name]
            if member["mask"] == "negative":
                own, _ = plain_head(x, trained[member["relevance_of"][k]], "highest")
                x = x * (own <= own.mean())
            parts.append(x)
        relevance, score = plain_head(np.concatenate(parts), trained[member["name"]], "confidence")
        scores.append(score)
        for name in member["backbones"]:
            total[name] += relevance[: len(features[name])] / len(vote)
            relevance = relevance[len(features[name]) :]
    return total, float(np.mean(scores))


def test_feature_relevance_equals_loops() -> None:
    generator, members = np.random.default_rng(5), members_of(["tiny", "wide"])
    sizes = {"tiny": 12, "wide": 10}
    features = {name: generator.random((3, size)).astype(np.float32) for name, size in sizes.items()}
    trained = {one["name"]: make_head(generator, sum(sizes[name] for name in one["backbones"])) for one in members}
    minimal = {name: (np.arange(size) % 3 > 0).astype(np.float32) for name, size in sizes.items()}
    vote = ["tiny_min", "wide_neg", "fusion", "fusion_min", "fusion_neg"]
    found = examples.feature_relevance(features, members, vote, trained, minimal)
    for k in range(3):
        one = {name: values[k] for name, values in features.items()}
        expected, score = plain_vote(one, members, vote, trained, minimal)
        for name in sizes:
            np.testing.assert_allclose(found[name][k], expected[name], rtol=1e-4, atol=1e-6)
        assert sum(values[k].sum() for values in found.values()) == pytest.approx(score, rel=1e-3)


def test_maps_add_up_to_the_relevance_of_their_features(run: Path) -> None:
    result = run / "result"
    selection = json.loads((result / "selection.json").read_text())
    windows = [3, 0, 7, 8, 20]
    heard = examples.explain(result, selection, windows)
    assert list(heard) == examples.voting_backbones(selection)
    features = {}
    for name in heard:
        plugin = load_backbone(name)
        stored = np.load(result / f"devel_spectrograms-{name}.npy")[windows]
        np.testing.assert_array_equal(heard[name].spectrograms, stored)
        assert heard[name].seconds == pytest.approx(0.96)
        with np.load(result / f"backbone-{name}.npz") as weights:
            model = plugin.build_keras()
            model.set_weights([weights[key] for key in sorted(weights.files)])
        features[name] = np.asarray(model.predict_on_batch(stored.reshape(-1, *plugin.front_end.shape)))
    with np.load(result / "masks.npz") as stored_masks:
        minimal = {key.split("/")[0]: stored_masks[key] for key in stored_masks.files}
    trained = heads.load_heads(result / "heads.npz")
    for k in range(len(windows)):
        one = {name: values[k] for name, values in features.items()}
        expected, _ = plain_vote(one, selection["members"], selection["vote"], trained, minimal)
        for name, found in heard.items():
            assert found.maps[k].sum() == pytest.approx(expected[name].sum(), rel=1e-3)
            assert found.maps[k].min() >= 0


# --- drawings and words -------------------------------------------------------------------------------------------------


def test_overlay_is_clear_without_relevance_and_dark_at_its_highest() -> None:
    spectrogram = np.zeros((20, 10))
    relevance = np.zeros((20, 10))
    assert (pictures.overlay(spectrogram, relevance) == 255).all()
    relevance[4, 3] = 1.0
    found = pictures.overlay(spectrogram, relevance)
    assert found.shape == (20, 10, 3)
    np.testing.assert_array_equal(found[4, 3], np.round(255 * np.array([0.267004, 0.004874, 0.329415])))
    assert (np.delete(found.reshape(-1, 3), 43, axis=0) == 255).all()


def test_brightness_is_between_its_percentiles() -> None:
    values = np.random.default_rng(0).normal(0, 5, (96, 64))
    found = pictures.brightness(values)
    low, high = np.percentile(values, pictures.LEVELS)
    assert found.min() == 0 and found.max() == 1
    inside = (values > low) & (values < high)
    np.testing.assert_allclose(found[inside], (values[inside] - low) / (high - low))
    assert (pictures.brightness(np.full((3, 3), 2.0)) == 0).all()


def test_frequency_ticks_lie_apart() -> None:
    linear, mel = np.linspace(300, 10000, 301)[1:-1], np.geomspace(125, 7500, 64)
    ticks_hz, places = pictures.frequency_ticks(linear)
    assert ticks_hz == [7000, 4000, 2000, 1000]
    np.testing.assert_allclose(places, [(hertz - linear[0]) / (linear[1] - linear[0]) for hertz in ticks_hz])
    assert pictures.frequency_ticks(mel)[0] == [7000, 4000, 2000, 1000, 500]


def test_lines_differ_by_colour_or_stroke() -> None:
    lines = pictures.lines_of(
        members_of(["vggish", "inception_v3", "inception_resnet_v2"]), ["vggish", "inception_v3", "inception_resnet_v2"]
    )
    assert len(lines) == 12
    assert len({(line.colour, str(line.stroke)) for line in lines}) == 12


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("a|b", r"a\|b"),
        ("<a href=x>", r"\<a href=x\>"),
        ("a\nb", "a\ufffdb"),
        ("[x](y)", r"\[x\](y)"),
        ("&lt;", r"\&lt;"),
        ("\u9be8", "\u9be8"),
    ],
)
def test_markdown_escapes_markup(text: str, escaped: str) -> None:
    assert document.markdown(text) == escaped


def test_fence_is_longer_than_what_it_holds() -> None:
    assert document.fence("a ```` b") == "`````"
    assert document.fence("plain") == "```"


def test_words() -> None:
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.counted(1, "clip") == "1 clip"
    assert words.counted(1200, "clip") == "1,200 clips"
    assert words.duration(41.04) == "41.0 s"
    assert words.duration(200.4) == "3 min 20 s"
    assert words.duration(7499.6) == "2 h 5 min"
    assert words.figure(float("nan")) == "\u2013"
    assert words.slug("False alarms/\u00e9") == "false-alarms"
    assert words.signed({"value": 0.01, "low": -0.02, "high": 0.03}, 2) == "+0.01 (\u22120.02 to +0.03)"
