"""Saved preference models: a folder of safetensors and JSON, from which nothing can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from prefkit.errors import PrefkitError, unknown
from prefkit.preference.leaderboard import Records
from prefkit.preference.linear import BradleyTerry, PlackettLuce, Thurstone
from prefkit.preference.networks import GeneralPreference, RewardNetwork
from prefkit.preference.population import IdealPoints
from prefkit.preference.wrappers import Calibrated, Ensemble

MODELS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(BradleyTerry, Thurstone, PlackettLuce, RewardNetwork, GeneralPreference, IdealPoints),
        *(Ensemble, Calibrated),
    )
}
"""Models that can be saved, by the name that their folder bears."""

SETTINGS, WEIGHTS = "preference.json", "preference.safetensors"

_SPARSE = ("data", "indices", "indptr")


def save_preference_model(model: Any, folder: str | Path) -> Path:
    """Write a fitted model.

    Args:
        model: one of `MODELS`.
        folder: where to; it is made if it does not exist.

    Returns:
        The folder.

    Raises:
        PrefkitError: the model, or a name of an item or a person, cannot be saved.
    """
    check_is_fitted(model)
    kind = type(model).__name__
    if kind not in MODELS:
        raise PrefkitError(unknown("kind of preference model", kind, MODELS))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        name: _part(value, folder / name) if type(value).__name__ in MODELS else _plain(value)
        for name, value in model.get_params(deep=False).items()
    }
    tensors: dict[str, Tensor] = {}
    attributes: dict[str, Any] = {}
    for name, value in vars(model).items():
        if name in parameters:
            continue
        if isinstance(value, nn.Module):
            tensors |= {f"{name}/{inner}": tensor for inner, tensor in value.state_dict().items()}
        elif isinstance(value, Records):
            tensors |= {f"{name}/{inner}": torch.from_numpy(column) for inner, column in value._asdict().items()}
        elif sp.issparse(value):
            tensors |= {f"{name}/{inner}": torch.from_numpy(getattr(value, inner)) for inner in _SPARSE}
        elif isinstance(value, list) and value and type(value[0]).__name__ in MODELS:
            attributes[name] = [_part(member, folder / f"{name}{place}") for place, member in enumerate(value)]
        elif type(value).__name__ in MODELS:
            attributes[name] = _part(value, folder / name)
        elif isinstance(value, np.ndarray) and name not in ("items_", "annotators_"):
            tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        else:
            attributes[name] = _plain(value)
    written = {"kind": kind, "parameters": parameters, "attributes": attributes}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def load_preference_model(folder: str | Path) -> Any:
    """Read what `save_preference_model` wrote.

    Args:
        folder: where it lies.

    Returns:
        The fitted model, on the device of its settings.

    Raises:
        PrefkitError: it is no folder of a preference model, or it is damaged.
    """
    folder = Path(folder)
    try:
        written = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        kind = written["kind"]
        if kind not in MODELS:
            raise PrefkitError(f"{folder / SETTINGS}: {unknown('kind of preference model', str(kind), MODELS)}")
        return _restored(MODELS[kind], written, tensors, folder)
    except OSError as error:
        raise PrefkitError(f"{folder} holds no preference model: {error}") from error
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise PrefkitError(f"{folder}: the preference model is damaged: {error}") from error


def _restored(kind: type[Any], written: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path) -> Any:
    def inner(value: Any) -> Any:
        if isinstance(value, dict) and "part" in value:
            # The name of a folder inside this one, and no path out of it.
            return load_preference_model(folder / Path(value["part"]).name)
        return value

    given = {name: inner(value) for name, value in written["parameters"].items()}
    model = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    for name, value in written["attributes"].items():
        if name in ("items_", "annotators_"):
            names = np.empty(len(value), dtype=object)
            names[:] = value
            setattr(model, name, names)
        else:
            setattr(model, name, [inner(each) for each in value] if isinstance(value, list) else inner(value))
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, slash, rest = name.partition("/")
        if slash:
            groups.setdefault(head, {})[rest] = tensor
        else:
            setattr(model, name, tensor.numpy())
    for name, group in groups.items():
        if name == "module_":
            model.restore_module(group)
        elif set(group) == set(_SPARSE):
            parts = tuple(group[part].numpy() for part in _SPARSE)
            setattr(model, name, sp.csr_array(parts, shape=(len(parts[2]) - 1,) * 2))
        else:
            setattr(model, name, Records(**{part: tensor.numpy() for part, tensor in group.items()}))
    return model


def _part(model: Any, folder: Path) -> dict[str, str]:
    """A model inside another one: fitted ones are written to a folder of their own."""
    if hasattr(model, "classes_") or hasattr(model, "coef_"):
        save_preference_model(model, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"kind": type(model).__name__, "parameters": _plain(model.get_params(deep=False)), "attributes": {}}
        save_file({}, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return {"part": folder.name}


def _plain(value: Any) -> Any:
    """The value as JSON holds it."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise PrefkitError(f"{value!r} cannot be saved: names of items and people must be text or numbers")
