"""Published weights: where downloads are kept, how they are fetched, and how arrays become a network's weights."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsError

Arrays = dict[str, NDArray[np.float32]]

NAMED_AT_ONCE = 4  # of many missing arrays


def cache_folder() -> Path:
    """Folder for downloads: $ORCAWATCH_CACHE, else ~/.cache/orcawatch."""
    return Path(os.environ.get("ORCAWATCH_CACHE", Path.home() / ".cache" / "orcawatch"))


def cached(url: str) -> Path:
    """Where the file of that URL is kept; it need not be there yet."""
    return cache_folder() / url.rsplit("/", 1)[-1]


def download(url: str, what: str, md5: str | None = None) -> Path:
    """Path of a published file, downloaded where the cache does not hold it.

    Parameters
    ----------
    url : of the file.
    what : the weights' name, for the error.
    md5 : digest of the whole file, where it was published.

    Raises
    ------
    WeightsError : no network, or another file than the published one came; the text says where to bring it by hand.
    """
    path = cached(url)
    if path.exists():
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # of this process: several workers may fetch at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(url, partial)
        _require_digest(partial, md5)
        return partial.replace(path)
    except (urllib.error.URLError, OSError) as fault:
        raise WeightsError(
            f"{what} could not be downloaded from {url}: {fault}. Without a network, bring {path.name} by hand to "
            f"{path}, or give its path; or train from scratch on purpose (--from-scratch)"
        ) from fault
    finally:
        if partial.exists():
            partial.unlink()


def _require_digest(path: Path, md5: str | None) -> None:
    """Raise OSError, as for any failed download, where the file is not the published one."""
    if md5 is not None and (found := hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()) != md5:
        raise OSError(f"what came has the MD5 digest {found}, the published file {md5}")


def require_file(path: Path, expected: str) -> Path:
    """The path; raises WeightsError, which names what is expected there, where no file is."""
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}: expected is {expected}; or train from scratch on purpose (--from-scratch)"
        )
    return path


def read_npz(path: Path) -> Arrays:
    """Arrays of a weights file as float32; raises WeightsError where it is no NumPy archive of finite numbers."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], np.float32) for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as fault:
        raise WeightsError(f"{path} is no NumPy archive of weights: {fault}") from fault
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise WeightsError(f"{path}: {_listed(broken)} must be finite; make the file again")
    return arrays


def fold_gamma(arrays: Mapping[str, Any]) -> Arrays:
    """The same batch norms without their factor gamma, for networks that have none.

    gamma (x - mean) / s + beta = (gamma x - gamma mean) / s + beta, and x is the output of a convolution without bias:
    so gamma goes into its kernel and into the mean. `batch_normalization_K` follows `conv2d_K`, and `NAME_bn` `NAME`.
    """
    folded = {name: array for name, array in arrays.items() if not name.endswith("/gamma")}
    for name in sorted(set(arrays) - set(folded)):
        norm = name[: -len("/gamma")]
        kernel = norm.replace("batch_normalization", "conv2d").replace("_bn", "") + "/kernel"
        for factored in (kernel, f"{norm}/moving_mean"):
            if factored in folded:
                folded[factored] = folded[factored] * arrays[name]
    return folded


def set_weights(model: Any, arrays: Mapping[str, Any], path: Path) -> None:
    """Set every weight of a network from the array `LAYER/WEIGHT` (`conv2d_1/kernel`, ...).

    Raises
    ------
    WeightsError : an array is missing, left over, or of another shape than the network's; nothing is set then.
    """
    wanted = {f"{layer.name}/{_part(weight)}": weight for layer in model.layers for weight in layer.weights}
    if missing := [name for name in wanted if name not in arrays]:
        raise WeightsError(f"{path} lacks {_listed(missing)}: not weights of {model.name}")
    if surplus := [name for name in arrays if name not in wanted]:
        raise WeightsError(f"{path} holds {_listed(surplus)}, which {model.name} has not: leave them out")
    for name, weight in wanted.items():
        if arrays[name].shape != tuple(weight.shape):
            raise WeightsError(
                f"{path}: {name} must have shape {tuple(weight.shape)}, not {arrays[name].shape}: "
                f"not weights of {model.name}"
            )
    model.set_weights([arrays[name] for name in _in_order(model)])


def _in_order(model: Any) -> list[str]:
    """Names of the weights in the order of `model.get_weights`."""
    names = {id(weight): f"{layer.name}/{_part(weight)}" for layer in model.layers for weight in layer.weights}
    return [names[id(weight)] for weight in model.weights]


def _part(weight: Any) -> str:
    name: str = weight.name
    return name.split("/")[-1].split(":")[0]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_AT_ONCE
    return ", ".join(names[:NAMED_AT_ONCE]) + (f" and {more} more" if more > 0 else "")
