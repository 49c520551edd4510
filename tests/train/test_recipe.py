"""Recipes: every fault at once, with what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orcawatch.errors import TrainingError
from orcawatch.training import recipe

WEIGHTS = {"backbones": {"vggish": {"weights": "audioset"}}}
SHIPPED = Path(recipe.__file__).resolve().parent / "recipes" / "first_light.yaml"


def parse(**more: Any) -> recipe.Recipe:
    """A recipe of loaded weights and the given settings."""
    return recipe.parse_recipe({"name": "test", **WEIGHTS, **more})


def test_defaults_are_the_papers() -> None:
    found = parse()
    assert found.masks.minimal_keep == 512
    assert found.vote.must_contain == "negative"
    assert recipe.parse_recipe(recipe.to_dict(found)) == found


def test_the_shipped_recipe_is_valid_and_survives_yaml() -> None:
    found = recipe.read_recipe(SHIPPED)
    assert found.vote.must_contain == "negative"
    assert recipe.parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.to_dict(found)))) == found


def test_all_faults_are_told_at_once_with_what_was_meant() -> None:
    wrong = {
        "seeed": 1,
        "head": {"epochs": "many", "droput": 0.1},
        "vote": {"must_contain": "negativ"},
        "masks": {"minimal_keep": 0},
        "windows": 3,
        "backbones": {"vggish": {}},
        "augmentation": None,
    }
    with pytest.raises(TrainingError) as caught:
        recipe.parse_recipe(wrong, "first.yaml")
    text = str(caught.value)
    for part in (
        "first.yaml has 8 faults",
        "seeed is unknown; did you mean seed?",
        "name is missing",
        "head.epochs must be a whole number, not 'many'",
        "head.droput is unknown; did you mean dropout?",
        "vote: must_contain must be one of ['negative', 'minimal', 'none', 'any'], not 'negativ'",
        "did you mean negative?",
        "masks: minimal_keep must be 1 or more, not 0",
        "windows must be a section of settings, not 3",
        "backbones.vggish: needs either weights (a name such as imagenet, or a file) or from_scratch: true",
    ):
        assert part in text


def test_unknown_backbones_hops_and_front_ends_are_refused() -> None:
    with pytest.raises(TrainingError, match="did you mean vggish"):
        recipe.parse_recipe({"name": "x", "backbones": {"vgish": {"weights": "audioset"}}})
    with pytest.raises(TrainingError, match=r"hop_s must be at most 0\.96"):
        parse(windows={"hop_s": 2})
    with pytest.raises(TrainingError, match="no constant"):
        parse(backbones={"vggish": {"weights": "audioset", "front_end": {"mels": 3}}})


def test_front_end_constants_reach_the_plugin() -> None:
    found = parse(backbones={"vggish": {"weights": "audioset", "front_end": {"high_hz": 7800}}})
    plugin = recipe.backbone_of("vggish", found.backbones["vggish"])
    assert (plugin.front_end.to_dict()["high_hz"], plugin.front_end.to_dict()["low_hz"]) == (7800, 125.0)


def test_weights_are_replaced_and_left_out_on_purpose() -> None:
    found = parse(
        backbones={"vggish": {"weights": "audioset", "fine_tune": {}}, "inception_v3": {"weights": "imagenet"}}
    )
    changed = recipe.with_weights(found, {"inception_v3": "mine.npz"}, ["vggish"])
    assert (changed.backbones["vggish"].weights, changed.backbones["vggish"].from_scratch) == (None, True)
    assert (changed.backbones["inception_v3"].weights, changed.backbones["inception_v3"].from_scratch) == (
        "mine.npz",
        False,
    )
    assert changed.backbones["vggish"].fine_tune.batch_norm == "trained"
    with pytest.raises(TrainingError, match="not 'resnet'"):
        recipe.with_weights(found, {"resnet": "x"}, [])
    with pytest.raises(TrainingError, match="not both"):
        recipe.with_weights(found, {"vggish": "x"}, ["vggish"])
    with pytest.raises(TrainingError, match="from_scratch needs fine_tune"):
        recipe.with_weights(found, {}, ["inception_v3"])


def test_augmented_passes_need_an_augmentation() -> None:
    with pytest.raises(TrainingError, match="needs an augmentation section"):
        parse(features={"augmented_passes": 2})


@pytest.mark.parametrize(("text", "fault"), [("a: [", "is not YAML"), ("- 1", "must be a section of settings")])
def test_files_that_are_no_recipe(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=fault):
        recipe.read_recipe(path)
    with pytest.raises(TrainingError, match="there is no recipe"):
        recipe.read_recipe(tmp_path / "other.yaml")


def test_the_data_folder_given_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse(data={"folder": "one"})
    assert recipe.with_data(found, "two").data.folder == str(tmp_path / "two")
    assert recipe.with_data(found, None).data.folder == "one"
    both = recipe.with_data(found, "two", ["three"]).data
    assert (both.folder, both.further) == (str(tmp_path / "two"), (str(tmp_path / "three"),))
    assert recipe.with_data(parse(data={"folder": "one", "further": ["four"]}), "two").data.further == ()
