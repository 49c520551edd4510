"""What any plugin's own tests should hold: the conformance kit, and its weights' way out and in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cove import Cove, save_weights

from orcawatch.backbone import load_backbone
from orcawatch.errors import WeightsError
from orcawatch.testing import check_backbone


def test_orcawatch_finds_it() -> None:
    assert isinstance(load_backbone("cove"), Cove)


def test_conforms() -> None:
    check_backbone(Cove())


def test_weights_are_read_back(tmp_path: Path) -> None:
    model, other = Cove().build_keras(), Cove().build_keras()
    save_weights(model, tmp_path / "cove.npz")
    Cove().load_weights(other, str(tmp_path / "cove.npz"))
    for one, two in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(one, two)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no weights")
    np.savez(tmp_path / "other.npz", kernel=np.zeros(3))
    for name, fault in [("text.npz", "is no .npz file"), ("other.npz", "not Cove's weights")]:
        with pytest.raises(WeightsError, match=fault):
            Cove().load_weights(Cove().build_keras(), str(tmp_path / name))
