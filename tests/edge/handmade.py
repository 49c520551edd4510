"""A bundle that no interpreter can run, but whole, for what only looks at its manifest and its files."""

from __future__ import annotations

from typing import Any

from orcawatch.spectrogram import LogMel

FILES = {
    "vggish.tflite": b"backbone",
    "vggish-explain.tflite": b"relevance",
    "heads.tflite": b"heads",
    "model-card.md": b"# card\n",
}


def manifest(**changes: Any) -> dict[str, Any]:
    """Its manifest, without what `write_bundle` adds; with other values where given."""
    backbone = {
        "name": "vggish",
        "file": "vggish.tflite",
        "explain_file": "vggish-explain.tflite",
        "feature_size": 512,
        "front_end": LogMel().to_dict(),
    }
    return {
        "name": "small",
        "backbones": [backbone],
        "heads": {"file": "heads.tflite"},
        "members": ["vggish", "vggish_neg"],
        "vote": ["vggish_neg"],
        "hop_s": 0.48,
        "channel_fusion": "max",
        "thresholds": {"start": 0.7, "stop": 0.5},
        **changes,
    }
