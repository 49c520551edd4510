from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from orcawatch.backbone import backbone_names, load_backbone
from orcawatch.errors import InputError, WeightsError
from orcawatch.plugins import vggish, weights
from orcawatch.spectrogram import LogMel
from orcawatch.testing import ConformanceError, check_backbone


def write_checkpoint(path: Path, filters: int = 512) -> dict[str, np.ndarray]:
    """A checkpoint with the published one's names, made here, in its single-file form."""
    rng = np.random.default_rng(0)
    planes = [1, 64, 128, 256, 256, 512, filters]
    tensors = {}
    for k, name in enumerate(vggish.LAYERS):
        shape = (3, 3, planes[k], planes[k + 1])
        tensors[f"vggish/{name}/weights"] = rng.normal(0, 0.05, shape).astype(np.float32)
        tensors[f"vggish/{name}/biases"] = rng.normal(0, 0.05, shape[-1:]).astype(np.float32)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(name, initializer=value) for name, value in tensors.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, write_version=tf.compat.v1.train.SaverDef.V1)
        saver.save(session, str(path), write_meta_graph=False)
    return tensors


def test_conforms() -> None:
    check_backbone(load_backbone("vggish"))


def test_kit_finds_a_broken_plugin() -> None:
    backbone = vggish.VGGish()
    backbone.feature_size = 511
    with pytest.raises(ConformanceError, match=r"\(3, 511\), not \(3, 512\)"):
        check_backbone(backbone)


def test_unknown_backbone_names_the_installed_ones() -> None:
    assert "vggish" in backbone_names()
    with pytest.raises(InputError, match=r"vggish.*not 'resnet'"):
        load_backbone("resnet")


def test_published_checkpoint_is_read(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path / "vggish_model.ckpt")
    backbone = vggish.VGGish()
    model = backbone.build_keras()
    backbone.load_weights(model, str(tmp_path / "vggish_model.ckpt"))
    for layer, name in [("conv1", "conv1"), ("conv4_2", "conv4/conv4_2")]:
        kernel, bias = model.get_layer(layer).get_weights()
        np.testing.assert_array_equal(kernel, tensors[f"vggish/{name}/weights"])
        np.testing.assert_array_equal(bias, tensors[f"vggish/{name}/biases"])


def test_other_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "vggish_model.ckpt", filters=256)
    backbone = vggish.VGGish()
    with pytest.raises(WeightsError, match="conv4_2 must have shapes"):
        backbone.load_weights(backbone.build_keras(), str(tmp_path / "vggish_model.ckpt"))


def test_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vggish_model.ckpt").write_text("not a checkpoint")
    with pytest.raises(WeightsError, match="is not VGGish's checkpoint"):
        vggish.read_checkpoint(tmp_path / "vggish_model.ckpt")


def test_offline_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("ORCAWATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights.urllib.request, "urlretrieve", refuse)
    backbone = vggish.VGGish()
    with pytest.raises(WeightsError, match=r"no route to host.*bring vggish_model.ckpt by hand to .*cache"):
        backbone.load_weights(backbone.build_keras(), "audioset")


def test_cached_download_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCAWATCH_CACHE", str(tmp_path))
    tensors = write_checkpoint(tmp_path / "vggish_model.ckpt")
    backbone = vggish.VGGish()
    assert backbone.weights_file("audioset") == tmp_path / "vggish_model.ckpt"
    model = backbone.build_keras()
    backbone.load_weights(model, "audioset")
    np.testing.assert_array_equal(model.get_layer("conv1").get_weights()[0], tensors["vggish/conv1/weights"])


def test_front_end_is_the_published_one() -> None:
    assert load_backbone("vggish").front_end == LogMel()
