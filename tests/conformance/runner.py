"""The runner: reads a file of vectors, calls its adapter, asks for gradients and compares.

Lists of numbers become tensors (float64, or int64 and bool where all entries are), other values stay as they are. An
adapter returns what it computed by the vectors' names; three names it may leave to the runner:

- `loss`: the mean of `losses`;
- `grad_NAME`, NAME an input: the gradient of the loss (`loss`, or the only scalar that has one) in that input.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Adapter = Callable[[dict[str, Any]], Mapping[str, Any]]

RELATIVE, ABSOLUTE = 1e-7, 1e-9
"""Tolerances; an adapter's `TOLERANCES` gives a function a wider relative one, saying why."""


@dataclass(frozen=True)
class Outcome:
    function: str
    cases: int
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.function}: {self.problem or f'ok ({self.cases} cases)'}"


def run(file: Path) -> list[Outcome]:
    """One outcome a function of a file of vectors."""
    vectors = json.loads(file.read_text())
    slug = vectors["slug"]
    name = f"{__package__}.{slug.replace('-', '_')}"
    try:
        module = importlib.import_module(name)
        adapters, tolerances = module.FUNCTIONS, getattr(module, "TOLERANCES", {})
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        adapters, tolerances = {}, {}
    return [
        Outcome(
            f"{slug}.{function['name']}",
            len(function["cases"]),
            _first_problem(
                adapters.get(function["name"]), function["cases"], tolerances.get(function["name"], RELATIVE)
            ),
        )
        for function in vectors["functions"]
    ]


def _first_problem(adapter: Adapter | None, cases: list[dict[str, Any]], relative: float) -> str | None:
    if adapter is None:
        return "FAILED: no adapter"
    for index, case in enumerate(cases):
        try:
            problem = check(adapter, case["inputs"], case["expected"], relative)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            return f"FAILED: case {index}: {problem}"
    return None


def check(adapter: Adapter, inputs: Mapping[str, Any], expected: Mapping[str, Any], relative: float) -> str | None:
    """What is wrong with an adapter's outputs, if anything."""
    gradients = {name.removeprefix("grad_") for name in expected if name.startswith("grad_")}
    tensors = {name: tensor_of(value) for name, value in inputs.items()}
    for name, tensor in tensors.items():
        if name in gradients and isinstance(tensor, torch.Tensor):
            tensors[name] = tensor = tensor.double()
        if gradients and isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.requires_grad_()

    outputs = dict(adapter(tensors))
    if "losses" in outputs and "loss" in expected:
        outputs.setdefault("loss", outputs["losses"].mean())
    asked = [name for name in sorted(gradients) if name in tensors and f"grad_{name}" not in outputs]
    if asked:
        found = torch.autograd.grad(_objective(outputs), [tensors[name] for name in asked], materialize_grads=True)
        outputs |= {f"grad_{name}": gradient for name, gradient in zip(asked, found, strict=True)}

    for name, value in expected.items():
        if name not in outputs:
            return f"no output '{name}'"
        if problem := difference(value, outputs[name], relative):
            return f"{name}{problem}"
    return None


def _objective(outputs: Mapping[str, Any]) -> torch.Tensor:
    if "loss" in outputs:
        return outputs["loss"]
    scalars = [
        value
        for value in outputs.values()
        if isinstance(value, torch.Tensor) and value.ndim == 0 and value.requires_grad
    ]
    if len(scalars) != 1:
        raise ValueError(f"gradients of what? no output 'loss', and {len(scalars)} scalars with a gradient")
    return scalars[0]


def tensor_of(value: Any) -> Any:
    """Lists of numbers as tensors; other lists and mappings with their entries converted; the rest as it is."""
    if isinstance(value, Mapping):
        return {name: tensor_of(inner) for name, inner in value.items()}
    if not isinstance(value, list):
        return value
    kinds, shapes = _kinds(value), _shape(value)
    if shapes is None or not kinds <= {bool, int, float}:
        return [tensor_of(inner) for inner in value]
    dtype = torch.bool if kinds == {bool} else torch.int64 if kinds == {int} else torch.float64
    return torch.tensor(value, dtype=dtype)


def _kinds(value: Any) -> set[type]:
    return set().union(*map(_kinds, value)) if isinstance(value, list) else {type(value)}


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a nested list; None if it is ragged."""
    if not isinstance(value, list):
        return ()
    inner = {_shape(entry) for entry in value} or {()}
    only = inner.pop()
    return None if inner or only is None else (len(value), *only)


def difference(expected: Any, actual: Any, relative: float) -> str | None:
    """Where two values differ first, and how; None where they agree."""
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().tolist()
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or set(actual) != set(expected):
            return f": expected the names {sorted(expected)}, got {actual!r}"
        pairs: Any = ((f".{name}", expected[name], actual[name]) for name in expected)
    elif isinstance(expected, list):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return f": expected {len(expected)} values, got {actual!r}"
        pairs = ((f"[{index}]", one, two) for index, (one, two) in enumerate(zip(expected, actual, strict=True)))
    elif isinstance(expected, float) or (isinstance(expected, int) and isinstance(actual, float)):
        near = isinstance(actual, int | float) and (
            math.isclose(actual, expected, rel_tol=relative, abs_tol=ABSOLUTE)
            or (math.isnan(actual) and math.isnan(expected))
        )
        return None if near else f": expected {expected!r}, got {actual!r}"
    else:
        return None if actual == expected else f": expected {expected!r}, got {actual!r}"
    return next((place + problem for place, one, two in pairs if (problem := difference(one, two, relative))), None)
