"""Markdown tables of what deploy measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def interval(found: Mapping[str, Any], digits: int = 3) -> str:
    """A figure with its interval."""
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def quantization_tables(found: Mapping[str, Any]) -> str:
    """The content of `quantization.json` (see `deploy.quantize`) as Markdown."""
    about = (
        f"# Quantization\n\nProcessor time: median of {found['timed_windows']} windows, one thread of "
        f"{found['machine']}, interpreter {found['runtime']}. AUC: {found['clips']} devel clips ({found['windows']} "
        "windows); in brackets the loss against the training side's AUC with its 95 % interval, paired, recordings "
        "resampled."
    )
    return "\n\n".join([about, _backbones(found), _members(found), _vote(found)]) + "\n"


def _backbones(found: Mapping[str, Any]) -> str:
    rows = [
        [name, variant, *_variant(one)]
        for name, entry in found["backbones"].items()
        for variant, one in entry["variants"].items()
    ]
    header = [
        "backbone",
        "variant",
        "MB",
        "of these explain",
        "ms features",
        "ms explain",
        "SNR dB",
        "mask bits flipped",
    ]
    return table(header, rows)


def _variant(one: Mapping[str, Any]) -> list[str]:
    return [
        f"{one['bytes'] / 1e6:.1f}",
        f"{one['files']['explain'] / 1e6:.1f} ({one['explained_by']})",
        f"{one['features_ms']:.1f}",
        f"{one['explain_ms']:.0f}",
        "" if one["snr_db"] is None else f"{one['snr_db']:.1f}",
        "" if one["mask_bits_flipped"] is None else f"{one['mask_bits_flipped']:.2%}",
    ]


def _members(found: Mapping[str, Any]) -> str:
    vote = found["vote"]
    rows = [[name, *_aucs(one)] for name, one in {**found["members"], "vote": vote}.items()]
    return table(["member", "trained", *vote["variants"]], rows) + f"\n\nvote: {' + '.join(vote['members'])}"


def _aucs(one: Mapping[str, Any]) -> list[str]:
    cells = [f"{v['auc']['value']:.4f} ({_loss(v['loss'])})" for v in one["variants"].values()]
    return [f"{one['trained']['value']:.4f}", *cells]


def _loss(loss: Mapping[str, Any]) -> str:
    value, low, high = (f"{round(loss[key], 4) + 0.0:+.4f}" for key in ("value", "low", "high"))
    return f"{value}, {low} to {high}"


def _vote(found: Mapping[str, Any]) -> str:
    rows = [
        [variant, f"{one['bytes'] / 1e6:.1f}", f"{one['features_ms']:.1f}", f"{one['largest_difference']:.2g}"]
        for variant, one in found["vote"]["variants"].items()
    ]
    header = ["variant of the vote's backbones", "MB", "ms features", "largest difference of a window's score"]
    return table(header, rows)


def budget_table(found: Mapping[str, Any]) -> str:
    """The content of `budget.json` (see `deploy.budget`) as Markdown."""
    fronts = [
        f"AUC against {unit}:\n\n" + table(["vote", "AUC", "ms", "MB"], [_priced(one) for one in found["front"][by]])
        for by, unit in (("ms", "time per window"), ("mb", "size"))
    ]
    votes = [[what, *_priced(found[what])] for what in ("trained", "chosen")]
    return "\n\n".join([*fronts, table(["", "vote", "AUC", "ms", "MB"], votes)]) + "\n"


def _priced(one: Mapping[str, Any]) -> list[str]:
    return [" + ".join(one["members"]), f"{one['auc']:.4f}", f"{one['ms']:.1f}", f"{one['mb']:.1f}"]


def verification_table(found: Any) -> str:
    """A `build.Verification` as Markdown."""
    rows = [
        [
            name,
            f"{found.trained_auc[name].value:.4f}",
            f"{one.value:.4f} ({one.low:.3f} to {one.high:.3f})",
            f"{found.largest_difference[name]:.2g}",
        ]
        for name, one in found.auc.items()
    ]
    header = ["member", "ROC AUC trained", "exported (95 % interval by recording)", "largest difference"]
    return table(header, rows)
