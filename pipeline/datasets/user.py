"""A user's own dataset: `my_package.my_module:factory?size=3` calls `factory(size="3")`.

What it returns is a `Dataset`, or anything with `__len__` and `__getitem__(id)`, the torch way. An item is an array or
a Pillow image, a dict of them, or a pair of one of these and a label.
"""

from __future__ import annotations

import inspect

from pipeline.datasets.base import Dataset
from pipeline.datasets.user_items import ItemDataset
from pipeline.datasets.user_reader import checked
from pipeline.user_code import calling, imported, said
from schemas.errors import ConfigError, DistillogError

_READER = ("read", "labels", "num_samples", "fields")
"""What tells a `Dataset` from a thing with items."""


def user_dataset(uri: str, module: str, name: str, params: dict[str, str], known: str) -> Dataset:
    """Calls the factory with the URI's parameters, as text.

    Raises ConfigError, whatever the factory raises, but OSError where it does, DataUnavailable without enough memory.
    """
    factory = imported("dataset", f"{module}:{name}", known)
    try:
        with calling(f"dataset {uri}: {name}"):
            inspect.signature(factory).bind(**params)
    except TypeError as error:
        raise ConfigError(f"dataset {uri}: {name}() does not take these parameters: {error}") from error
    except ValueError:
        pass  # a built-in function that does not tell its parameters
    try:
        with calling(f"dataset {uri}: {name}()"):
            made = factory(**params)
            if all(hasattr(made, part) for part in _READER):
                return checked(uri, made)
            if hasattr(made, "__len__") and hasattr(made, "__getitem__"):
                return ItemDataset(uri, made)
        raise ConfigError(f"dataset {uri}: {name}() gave a {type(made).__name__} without __len__ and __getitem__")
    except (OSError, DistillogError):
        raise
    except Exception as error:
        raise ConfigError(f"dataset {uri}: {name}() failed: {said(error)}") from error
