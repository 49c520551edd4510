"""Recipes: a YAML file into frozen, validated settings; every fault is told at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..backbone import Backbone, backbone_names, load_backbone
from ..errors import OrcawatchError, TrainingError
from ..spectrogram import front_end_from_dict
from .augment import Augmentation
from .baselines import BaselineSettings
from .finetune import FineTuneSettings
from .heads import HeadSettings
from .teacher import TeacherSettings

LAYOUTS = ("labels", "compare2019")
ON_CORRUPT = ("refuse", "set_aside")
MASKS = ("negative", "minimal", "none")
ANY_MEMBER = "any"
CHANNEL_FUSIONS = ("max", "mean")
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TrainingError(f"{name} must be one of {list(allowed)}, not {value!r}{_meant(value, allowed)}")


def _meant(word: str, allowed: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(name) for name in allowed], n=1)
    return f"; did you mean {close[0]}?" if close else ""


@dataclass(frozen=True)
class DataSettings:
    """Where the recordings are.

    Attributes
    ----------
    layout : `labels` (labels.csv and wav/) or `compare2019`.
    folder : the data's folder; `--data` goes before it.
    further : folders that are read with it as one data set, each with labels.csv and wav/: reviewed detections.
    on_corrupt : `refuse` to train with unreadable files, or `set_aside` and report them.
    simulated_clips : simulated calls added to the training split, and as many clips of simulated sea without calls.
    predict_test : score the test split too, whose labels may be unknown (`?`); otherwise its files are never read.
    """

    layout: str = "labels"
    folder: str | None = None
    further: tuple[str, ...] = ()
    on_corrupt: str = "refuse"
    simulated_clips: int = 0
    predict_test: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        _check_choice("layout", self.layout, LAYOUTS)
        _check_choice("on_corrupt", self.on_corrupt, ON_CORRUPT)
        if self.simulated_clips < 0:
            raise TrainingError(f"simulated_clips must be 0 or more, not {self.simulated_clips}")


@dataclass(frozen=True)
class BackboneSettings:
    """How one backbone comes to its weights: either loaded, or on purpose from scratch.

    Attributes
    ----------
    front_end : front-end constants other than the plugin's own, as a manifest writes them.
    weights : a file or name for the plugin's `load_weights`.
    from_scratch : start from random weights; the model card says so. Needs `fine_tune`.
    fine_tune : settings of the fine-tuning; none where the weights are used as they are.
    """

    front_end: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    from_scratch: bool = False
    fine_tune: FineTuneSettings | None = None

    def __post_init__(self) -> None:
        """Refuse weights of unclear origin, and a network of random weights."""
        if (self.weights is None) != self.from_scratch:
            raise TrainingError(
                f"needs either weights (a name such as imagenet, or a file) or from_scratch: true, not weights "
                f"{self.weights!r} with from_scratch {self.from_scratch}"
            )
        if self.from_scratch and self.fine_tune is None:
            raise TrainingError("from_scratch needs fine_tune: a network of random weights hears nothing")
        if self.from_scratch and self.fine_tune is not None and self.fine_tune.trainable_from is not None:
            raise TrainingError(
                "from_scratch needs fine_tune without trainable_from: layers before it would stay random"
            )


@dataclass(frozen=True)
class WindowSettings:
    """How recordings are cut.

    Attributes
    ----------
    hop_s : distance between windows, seconds; the bundle's hop too.
    """

    hop_s: float = 0.48

    def __post_init__(self) -> None:
        """Refuse a hop that is not positive."""
        if self.hop_s <= 0:
            raise TrainingError(f"hop_s must be above 0 and at most one window, not {self.hop_s}")


@dataclass(frozen=True)
class FeatureSettings:
    """What the heads are trained on.

    Attributes
    ----------
    augmented_passes : passes over the augmented training clips, besides one over the clips as they are.
    """

    augmented_passes: int = 0

    def __post_init__(self) -> None:
        """Refuse a negative number."""
        if self.augmented_passes < 0:
            raise TrainingError(f"augmented_passes must be 0 or more, not {self.augmented_passes}")


@dataclass(frozen=True)
class MaskSettings:
    """The masks (paper section 2.4).

    Attributes
    ----------
    minimal_keep : features that a minimal mask keeps, the paper's n.
    """

    minimal_keep: int = 512

    def __post_init__(self) -> None:
        """Refuse an empty mask."""
        if self.minimal_keep < 1:
            raise TrainingError(f"minimal_keep must be 1 or more, not {self.minimal_keep}")


@dataclass(frozen=True)
class VoteSettings:
    """How the vote is chosen.

    Attributes
    ----------
    must_contain : a member with this mask must be in the vote (`negative`, `minimal`, `none`), or `any`.
    draws : bootstrap resamples by recording.
    channel_fusion : how the bundle fuses channels, `max` or `mean`.
    """

    must_contain: str = "negative"
    draws: int = 2000
    channel_fusion: str = "max"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        _check_choice("must_contain", self.must_contain, (*MASKS, ANY_MEMBER))
        _check_choice("channel_fusion", self.channel_fusion, CHANNEL_FUSIONS)
        if self.draws < 100:
            raise TrainingError(f"draws must be 100 or more, not {self.draws}")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run besides the data.

    Attributes
    ----------
    name : of the run and its bundle.
    backbones : by plugin name, in the order in which the heads take their features.
    seed : of every random choice.
    augmentation : of fine-tuning and of the augmented passes.
    data, windows, teacher, features, head, masks, vote : see their classes.
    baselines : the methods of the paper's Table 3 to compare with; none where it is left out.
    """

    name: str
    backbones: dict[str, BackboneSettings]
    seed: int = 1
    data: DataSettings = field(default_factory=DataSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)
    augmentation: Augmentation | None = None
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    vote: VoteSettings = field(default_factory=VoteSettings)
    baselines: BaselineSettings | None = None

    def __post_init__(self) -> None:
        """Refuse what no run can be made of."""
        if not self.backbones:
            raise TrainingError(f"backbones is empty; installed are {backbone_names()}")
        if self.features.augmented_passes and self.augmentation is None:
            raise TrainingError("features.augmented_passes needs an augmentation section")


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises
    ------
    TrainingError : no such file, no YAML, or faults in it; the text lists every one.
    """
    if not path.is_file():
        raise TrainingError(f"there is no recipe {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise TrainingError(f"{path} is not YAML: {fault}") from fault
    return parse_recipe(content, str(path))


def parse_recipe(content: Any, where: str = "the recipe") -> Recipe:
    """Settings from what YAML gave; errors as `read_recipe`."""
    faults: list[str] = []
    recipe = _build(Recipe, content, "", faults)
    if isinstance(recipe, Recipe):
        faults += _plugin_faults(recipe)
    if faults or not isinstance(recipe, Recipe):
        raise TrainingError(f"{where} has {len(faults)} faults:\n  " + "\n  ".join(faults))
    return recipe


def with_data(recipe: Recipe, folder: str | None, further: Sequence[str] = ()) -> Recipe:
    """The recipe with that data folder and those further ones, made absolute; unchanged where none is given."""
    if not folder:
        return recipe
    first, *others = [str(Path(one).resolve()) for one in (folder, *further)]
    return replace(recipe, data=replace(recipe.data, folder=first, further=tuple(others)))


def with_weights(recipe: Recipe, weights: Mapping[str, str], from_scratch: Sequence[str]) -> Recipe:
    """The recipe with other weights for some backbones, by name, and others from scratch.

    From scratch all layers are trained, batch norm too, and there is no phase for the head alone.

    Raises
    ------
    TrainingError : a name that is no backbone of the recipe, or one that is to have both.
    """
    names = [*weights, *from_scratch]
    for name in names:
        if name not in recipe.backbones:
            raise TrainingError(f"the recipe has the backbones {list(recipe.backbones)}, not {name!r}")
        if names.count(name) > 1:
            raise TrainingError(f"{name} can have weights or start from scratch, not both")
    chosen: dict[str, str | None] = {**weights, **dict.fromkeys(from_scratch)}
    changed = {
        name: _with_source(one, chosen[name]) if name in chosen else one for name, one in recipe.backbones.items()
    }
    return replace(recipe, backbones=changed)


def _with_source(settings: BackboneSettings, weights: str | None) -> BackboneSettings:
    tuning = settings.fine_tune
    if weights is None and tuning is not None:
        tuning = replace(tuning, batch_norm="trained", trainable_from=None, head_steps=0)
    return replace(settings, weights=weights, from_scratch=weights is None, fine_tune=tuning)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON and YAML take it; `parse_recipe` reads it back."""
    plain: dict[str, Any] = _plain(asdict(recipe))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def backbone_of(name: str, settings: BackboneSettings) -> Backbone:
    """The plugin of that name, with the recipe's front-end constants.

    Raises
    ------
    OrcawatchError : no such plugin, or a front end that it does not take.
    """
    plugin = load_backbone(name)
    if not settings.front_end:
        return plugin
    own = plugin.front_end.to_dict()
    kind = settings.front_end.get("kind", own["kind"])
    constants = {**(own if kind == own["kind"] else {"kind": kind}), **settings.front_end}
    return load_backbone(name, front_end_from_dict(constants))


def has_teacher(recipe: Recipe, name: str) -> bool:
    """Whether a backbone's fine-tuning or heads learn from a teacher."""
    tuning = recipe.backbones[name].fine_tune
    return bool(recipe.head.teacher_share or (tuning and tuning.teacher_weight))


def _plugin_faults(recipe: Recipe) -> list[str]:
    faults = []
    for name, settings in recipe.backbones.items():
        try:
            window_s = _window_s(backbone_of(name, settings))
            if recipe.windows.hop_s > window_s:
                faults.append(f"windows.hop_s must be at most {window_s} ({name}'s window), not {recipe.windows.hop_s}")
        except (OrcawatchError, TypeError) as fault:
            faults.append(f"backbones.{name}: {fault}{_meant(name, backbone_names())}")
    return faults


def _window_s(plugin: Backbone) -> float:
    return float(plugin.front_end.frames * plugin.front_end.hop_samples / plugin.front_end.rate_hz)


def _build(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """A dataclass from a mapping; faults are added to the list, and None is given back where there were some."""
    if not isinstance(value, Mapping):
        faults.append(f"{where or 'the file'} must be a section of settings, not {value!r}")
        return None
    before = len(faults)
    faults += _key_faults(kind, value, where)
    hints = _hints(kind)
    given = {key: inner for key, inner in value.items() if key in hints}
    known = {key: _convert(hints[key], inner, _join(where, key), faults) for key, inner in given.items()}
    if len(faults) > before:
        return None
    try:
        return kind(**known)
    except (OrcawatchError, ValueError) as fault:
        faults.append(f"{where}: {fault}" if where else str(fault))
        return None


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _key_faults(kind: Any, value: Mapping[Any, Any], where: str) -> list[str]:
    allowed = [entry.name for entry in fields(kind)]
    needed = [e.name for e in fields(kind) if e.default is MISSING and e.default_factory is MISSING]
    unknown = [f"{_join(where, key)} is unknown{_meant(key, allowed)}" for key in value if key not in allowed]
    return unknown + [f"{_join(where, name)} is missing" for name in needed if name not in value]


def _hints(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each field, and whether it may be empty; `X | None` is read as text, so that Python 3.9 takes it."""
    texts = {entry.name: str(entry.type) for entry in fields(kind)}
    bare = type("Bare", (), {"__annotations__": {name: text.replace(" | None", "") for name, text in texts.items()}})
    types = get_type_hints(bare, vars(__import__(kind.__module__, fromlist=["_"])))
    return {name: (types[name], texts[name].endswith("| None")) for name in texts}


def _convert(hint: tuple[Any, bool], value: Any, where: str, faults: list[str]) -> Any:
    kind, optional = hint
    if value is None and optional:
        return None
    if is_dataclass(kind):
        return _build(kind, value, where, faults)
    if get_origin(kind) is dict:
        return _convert_mapping(kind, value, where, faults)
    if get_origin(kind) is tuple:
        return _convert_tuple(kind, value, where, faults)
    return _convert_plain(kind, value, where, faults)


def _convert_mapping(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(f"{where} must be a section of settings, not {value!r}")
        return None
    inner = get_args(kind)[1]
    if inner is Any:
        return dict(value)
    return {str(key): _convert((inner, False), entry, _join(where, key), faults) for key, entry in value.items()}


def _convert_tuple(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    inner = get_args(kind)
    kinds = [inner[0]] * len(value) if isinstance(value, list) and inner[-1] is Ellipsis else list(inner)
    if not isinstance(value, list) or len(value) != len(kinds):
        number = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        faults.append(f"{where} must be a list of {number}values, not {value!r}")
        return None
    return tuple(_convert((k, False), v, f"{where}[{i}]", faults) for i, (k, v) in enumerate(zip(kinds, value)))


def _convert_plain(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        faults.append(f"{where} must be {NAMES[kind]}, not {value!r}")
        return None
    return value
