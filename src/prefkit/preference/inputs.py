"""Inputs of the estimators: what was compared, what came of it, and what is wrong with either.

A comparison of two options is a row: two names (items) or two vectors (features). The outcome is the probability that
the first one is preferred: 1, 0, one half for a tie, or anything between for a soft label.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.errors import PrefkitError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

SHAPES = (
    "X must hold one comparison a row: names of two options, [n, 2], or features of two options, [n, 2, d] "
    "(for rankings any number of options)"
)


@dataclass(frozen=True)
class Items:
    """Options by name.

    Args:
        codes: `[n, k]`, places in `names`; -1 where a ranking is shorter.
        names: each name once, sorted where they can be.
    """

    codes: Codes
    names: NDArray[Any]


def options_of(X: Any, *, ragged: bool = False, names: Sequence[str] | None = None) -> NDArray[Any]:
    """Comparisons as an array: `[n, k]` of names or `[n, k, d]` of finite numbers.

    Args:
        X: names or features, as nested lists, arrays or frames.
        ragged: rankings may differ in length; shorter ones are filled with None.
        names: of the features, for messages.

    Raises:
        PrefkitError: there are none, sizes differ, or a number is missing; names the row.
    """
    if ragged and not isinstance(X, np.ndarray):
        rows = [list(row) for row in X]
        if rows and all(not np.ndim(option) for row in rows for option in row):
            width = max(map(len, rows))
            return _names(np.array([row + [None] * (width - len(row)) for row in rows], dtype=object), ragged)
    try:
        array = np.asarray(X)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.size == 0 or (array.dtype == object and array.ndim == 2 and np.ndim(array[0, 0])) or array.ndim < 2:
        _explain(X, array)
    if array.ndim == 2:
        if array.dtype.kind == "f":
            raise PrefkitError(f"{SHAPES}; got an array [{len(array)}, {array.shape[1]}] of floats, which are no names")
        return _names(array, ragged)
    if array.ndim != 3:
        raise PrefkitError(f"{SHAPES}; got shape {array.shape}")
    try:
        features = array.astype(np.float64)
    except (TypeError, ValueError):
        raise PrefkitError(f"{SHAPES}; got features that are no numbers") from None
    finite = np.isfinite(features)
    if not finite.all():
        row, side, column = np.argwhere(~finite)[0]
        value = features[row, side, column]
        name = column if names is None or column >= len(names) else names[column]
        raise PrefkitError(f"row {row}, option {side}, feature {name} must be a finite number, got {value}")
    return features


def pairs_of(X: Any, names: Sequence[str] | None = None) -> NDArray[Any]:
    """`options_of` for comparisons of two.

    Args:
        X: comparisons.
        names: of the features, for messages.

    Raises:
        PrefkitError: see `options_of`; or a row does not compare two options, or compares an option with itself.
    """
    array = options_of(X, names=names)
    if array.shape[1] != 2:
        raise PrefkitError(f"a row must compare two options, got {array.shape[1]}; PlackettLuce takes rankings of more")
    if array.ndim == 2:
        same = np.flatnonzero(array[:, 0] == array[:, 1])
        if len(same):
            raise PrefkitError(f"row {same[0]} compares {array[same[0]].tolist()[0]!r} with itself")
    return array


def coded(names: NDArray[Any]) -> Items:
    """Names as places in the list of all names."""
    if names.dtype.kind in "iub":
        known, codes = np.unique(names, return_inverse=True)
        return Items(codes.reshape(names.shape), known)
    # A dictionary is several times faster than sorting as many strings.
    places: dict[Any, int] = {}
    flat = names.ravel().tolist()
    codes = np.fromiter((-1 if name is None else places.setdefault(name, len(places)) for name in flat), np.int64)
    order = list(places)
    with suppress(TypeError):  # names of several types stay in the order in which they came
        order.sort()
    moved = np.empty(len(order) + 1, dtype=np.int64)
    moved[[places[name] for name in order]] = np.arange(len(order))
    moved[-1] = -1
    found = np.empty(len(order), dtype=object)
    found[:] = order
    return Items(moved[codes].reshape(names.shape), found)


def codes_among(names: NDArray[Any], known: NDArray[Any]) -> Codes:
    """Places of names among those that a model was fitted to; -1 where a ranking is shorter.

    Raises:
        PrefkitError: a name was not seen in fitting.
    """
    places = {name: place for place, name in enumerate(known.tolist())}
    try:
        codes = [-1 if name is None else places[name] for name in names.ravel().tolist()]
    except KeyError as error:
        row = int(np.argwhere(names == error.args[0])[0][0])
        raise PrefkitError(f"row {row}: {error.args[0]!r} was in no comparison that the model was fitted to") from None
    return np.array(codes, dtype=np.int64).reshape(names.shape)


def outcomes_of(y: ArrayLike | None, n: int) -> Floats:
    """The probability that the first of two options is preferred, in each row; 1 by default.

    Raises:
        PrefkitError: there are more or fewer than rows, or one does not lie in [0, 1].
    """
    if y is None:
        return np.ones(n)
    array = _column(y, "y", n)
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1)))
    if len(wrong):
        row = wrong[0]
        raise PrefkitError(
            f"row {row}: y must be the probability that the first option is preferred (1, 0, or 0.5 for a tie), got "
            f"{array[row]}"
        )
    return array


def weights_of(sample_weight: ArrayLike | None, n: int) -> Floats:
    """The weight of each row; 1 by default.

    Raises:
        PrefkitError: there are more or fewer than rows, one is negative or not finite, or all are 0.
    """
    if sample_weight is None:
        return np.ones(n)
    array = _column(sample_weight, "sample_weight", n)
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(wrong):
        raise PrefkitError(
            f"row {wrong[0]}: sample_weight must be a finite number of at least 0, got {array[wrong[0]]}"
        )
    if not array.any():
        raise PrefkitError("sample_weight is 0 in every row")
    return array


def margins_of(margins: ArrayLike | None, n: int) -> Floats | None:
    """The margin of each row, if there are any.

    Raises:
        PrefkitError: there are more or fewer than rows, or one is not finite.
    """
    if margins is None:
        return None
    array = _column(margins, "margins", n)
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise PrefkitError(f"row {wrong[0]}: margins must be finite numbers, got {array[wrong[0]]}")
    return array


def total_by(codes: Codes, values: Floats, n: int) -> Floats:
    """`[n]`, the sum of the values of each code."""
    return np.bincount(codes.ravel(), values.ravel(), n).astype(np.float64, copy=False)


def check_some_preference(outcomes: Floats, weights: Floats) -> None:
    """Refuse comparisons of which none says anything.

    Raises:
        PrefkitError: all are ties.
    """
    if not (weights[outcomes != 0.5] > 0).any():
        raise PrefkitError(f"all {len(outcomes)} comparisons are ties (y = 0.5): nothing is preferred")


def check_features(differences: Floats, ridge: float) -> None:
    """Refuse features whose coefficients the comparisons say nothing about.

    Args:
        differences: `[n, d]`, first less second option.
        ridge: with a penalty every coefficient is determined.

    Raises:
        PrefkitError: a feature never differs, or features depend on one another; names them.
    """
    if ridge > 0:
        return
    constant = np.flatnonzero(~differences.any(axis=0))
    if len(constant):
        raise PrefkitError(
            f"feature{_plural(constant)} the same in both options of every comparison, so nothing can be "
            "learned of it: leave it out, or set ridge above 0"
        )
    scale = np.abs(differences).max(axis=0)
    triangle = np.linalg.qr(differences / scale, mode="r") if len(differences) >= len(scale) else differences / scale
    values = np.linalg.svd(triangle, compute_uv=True)
    rank = int((values.S[0] * 1e-10 < values.S).sum())
    if rank < len(scale):
        involved = np.flatnonzero((np.abs(values.Vh[rank:]) > 1e-6).any(axis=0))
        raise PrefkitError(
            f"{len(scale)} features have rank {rank} in the differences of {len(differences)} comparisons: "
            f"feature{_plural(involved, 'depend on one another')}; leave some out, or set ridge above 0"
        )


def _plural(columns: NDArray[np.int64], verb: str = "") -> str:
    shown = ", ".join(map(str, columns[:8])) + (", ..." if len(columns) > 8 else "")
    return (f"s {shown} " if len(columns) > 1 else f" {shown} ") + (verb or ("are" if len(columns) > 1 else "is"))


def _column(values: ArrayLike, name: str, n: int) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise PrefkitError(f"{name} must be numbers, one a row") from None
    if array.shape != (n,):
        raise PrefkitError(f"{name} must be one number a row ({n} rows), got shape {array.shape}")
    return array


_NOTHING = np.array(None, dtype=object)


def _names(array: NDArray[Any], ragged: bool) -> NDArray[Any]:
    if array.dtype == object:
        missing = (array == _NOTHING) | (array != array)  # what differs from itself is nan
        if ragged:
            array = array.copy()
            array[missing] = None
        elif missing.any():
            row, side = np.argwhere(missing)[0]
            raise PrefkitError(f"row {row}, option {side}: the name is missing")
    return array


def _explain(X: Any, array: NDArray[Any]) -> None:
    """Say what is wrong with something that is no array of comparisons."""
    rows: Sequence[Any] = [] if not hasattr(X, "__len__") else list(X)
    if not len(rows):
        raise PrefkitError(f"{SHAPES}; got none")
    sizes = [[np.shape(option) for option in row] if isinstance(row, Sequence | np.ndarray) else None for row in rows]
    for place, found in enumerate(sizes):
        if found != sizes[0]:
            if found and sizes[0] and len(found) == len(sizes[0]):
                raise PrefkitError(
                    f"row {place}: its options have features of shapes {found}, and those of row 0 {sizes[0]}; all "
                    "must be of one size"
                )
            raise PrefkitError(f"{SHAPES}; row {place} is {rows[place]!r:.80}")
    if sizes[0] is not None and len(set(sizes[0])) > 1:
        raise PrefkitError(f"row 0: its options have features of different shapes, {sizes[0]}; all must be of one size")
    raise PrefkitError(f"{SHAPES}; got shape {array.shape}")
