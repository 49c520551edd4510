"""`orcawatch train` where the extra `train` is not installed."""

from __future__ import annotations

import importlib.util

import pytest

from orcawatch.errors import OrcawatchError
from orcawatch.training.cli import require_training


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here")
def test_training_without_its_packages_names_the_cure() -> None:
    with pytest.raises(OrcawatchError, match=r"training needs tensorflow, .*pip install 'orcawatch\[train\]'"):
        require_training()
