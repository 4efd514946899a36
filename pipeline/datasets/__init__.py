"""Datasets by URI: `digits?split=train`, `npy:/data/mnist?split=test`, `my_package.my_module:factory?size=3`.

A new one is a function `(path, params) -> Dataset` and a line in DATASETS.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.datasets.audio_folder import audio_folder
from pipeline.datasets.base import Dataset, Field, Samples, once_readable
from pipeline.datasets.digits import digits
from pipeline.datasets.image_folder import image_folder
from pipeline.datasets.mnist1d import mnist1d
from pipeline.datasets.npy_folder import npy_folder
from pipeline.datasets.texts.folder import text_folder
from pipeline.datasets.texts.table import text_table
from pipeline.datasets.texts.windows import token_windows
from pipeline.datasets.uri import split_uri
from pipeline.datasets.user import user_dataset
from schemas.errors import ConfigError
from schemas.names import did_you_mean

__all__ = ["DATASETS", "Dataset", "Field", "Samples", "open_dataset"]

DATASETS: dict[str, Callable[[str, dict[str, str]], Dataset]] = {
    "audio": audio_folder,
    "digits": digits,
    "images": image_folder,
    "mnist1d": mnist1d,
    "npy": npy_folder,
    "text": text_folder,
    "text_table": text_table,
    "tokens": token_windows,
}


def open_dataset(uri: str) -> Dataset:
    """The dataset that a URI names: `name[:path][?param=value&...]`, or `module:factory[?...]` for one's own.

    Raises ConfigError for an unknown name or parameter, a missing package, or a folder that is not there;
    DataUnavailable where storage does not answer.
    """
    name, path, params = split_uri(uri)
    known = did_you_mean(name, DATASETS)
    with once_readable(uri):
        if name in DATASETS:
            return DATASETS[name](path, params)
        if path.isidentifier() and all(part.isidentifier() for part in name.split(".")):
            return user_dataset(uri, name, path, params, known)
    raise ConfigError(f"no dataset {name!r}: {known}, or my_package.my_module:factory")
