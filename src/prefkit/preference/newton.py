"""Newton's method for convex likelihoods of comparisons: exact where few parameters are fitted, by conjugate gradients
where there are many, since the curvature of comparisons of many items is sparse."""

from __future__ import annotations

import warnings
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, cg, splu
from sklearn.exceptions import ConvergenceWarning

from prefkit.preference.inputs import Floats

DENSE = 1500
"""Up to this number of parameters, curvatures are dense matrices."""

Matrix: TypeAlias = "Floats | sp.csr_array"


class Expansion(NamedTuple):
    """A function around a point, to second order."""

    value: float
    gradient: Floats
    curvature: Matrix


class Likelihood(Protocol):
    """A convex negative log-likelihood.

    Attributes:
        free: number of leading parameters of which only differences matter, so that their mean is set to 0; 0 where
            all are determined.
    """

    @property
    def free(self) -> int:
        """See the class."""

    def expand(self, theta: Floats) -> Expansion:
        """The function and its derivatives; the value is infinite outside its domain."""


class Optimum(NamedTuple):
    """Where the search ended."""

    theta: Floats
    expansion: Expansion
    iterations: int
    converged: bool


def minimise(likelihood: Likelihood, start: Floats, *, max_iter: int = 100, tol: float = 1e-9) -> Optimum:
    """The minimum of a convex function.

    Args:
        likelihood: the function.
        start: first point, inside its domain.
        max_iter: Newton steps.
        tol: it ends with a full step no entry of which exceeds tol (1 + largest parameter). The error left is then of
            the order of its square where the system is solved exactly.
    """
    theta, expansion = start, likelihood.expand(start)
    for iteration in range(1, max_iter + 1):
        step = solve(expansion.curvature, -expansion.gradient, likelihood.free)
        slope = float(expansion.gradient @ step)
        # Rounding of a sum of many terms must not make the last steps seem to fail.
        slack = 1e-12 * abs(expansion.value)
        size, there = 1.0, likelihood.expand(theta + step)
        while not there.value <= expansion.value + 1e-4 * size * slope + slack:
            size /= 2
            if size < 1e-10:
                return Optimum(theta, expansion, iteration, bool(np.abs(step).max() <= 1e-5))
            there = likelihood.expand(theta + size * step)
        theta, expansion = theta + size * step, there
        if size == 1.0 and np.abs(step).max() <= tol * (1 + np.abs(theta).max()):
            return Optimum(theta, expansion, iteration, True)
    return Optimum(theta, expansion, max_iter, False)


def warn_unless_converged(optimum: Optimum) -> None:
    """Say that the coefficients are not those of the optimum."""
    if not optimum.converged:
        warnings.warn(
            f"the fit did not converge in {optimum.iterations} steps; raise max_iter or ridge",
            ConvergenceWarning,
            stacklevel=3,
        )


def solve(curvature: Matrix, right: Floats, free: int) -> Floats:
    """curvature^-1 right; on the subspace in which the first `free` entries sum to 0."""
    if not isinstance(curvature, np.ndarray):
        return _solve_sparse(curvature, right, free)
    lifted = _lifted(curvature, free)
    try:
        found: Floats = scipy.linalg.cho_solve(scipy.linalg.cho_factor(lifted), right)
    except scipy.linalg.LinAlgError:
        found = np.asarray(
            np.linalg.lstsq(lifted, right, rcond=None)[0], dtype=np.float64
        )  # a plateau; the line search shortens the step
    return _centred(found, free)


def inverse(curvature: Matrix, free: int) -> Floats:
    """The covariance of parameters with this information; the first `free` of them sum to 0.

    It is a dense matrix: 10,000 parameters take 0.8 GB, and some more while it is computed.
    """
    dense = curvature if isinstance(curvature, np.ndarray) else curvature.toarray()
    found = scipy.linalg.inv(_lifted(dense, free))
    if free:
        # What was lifted is the direction in which all move together, and goes again.
        for axis in (0, 1):
            part = found[:free] if axis == 0 else found[:, :free]
            part -= part.mean(axis=axis, keepdims=True)
    symmetric: Floats = (found + found.T) / 2
    return symmetric


def _lifted(curvature: Floats, free: int) -> Floats:
    """The curvature, with some in the direction in which all free parameters move together."""
    if not free:
        return curvature
    lifted = curvature.copy()
    lifted[:free, :free] += np.trace(curvature[:free, :free]) / free**2
    return lifted


def _centred(theta: Floats, free: int) -> Floats:
    if free:
        theta = theta.copy()
        theta[:free] -= theta[:free].mean()
    return theta


def _solve_sparse(curvature: sp.csr_array, right: Floats, free: int) -> Floats:
    right = _centred(right, free)
    diagonal = curvature.diagonal()
    scale = 1 / np.where(diagonal > 0, diagonal, 1.0)
    size = len(right)
    precondition = LinearOperator((size, size), matvec=lambda v: scale * v, dtype=np.float64)
    found, failed = cg(curvature, right, rtol=1e-6, maxiter=200, M=precondition)
    # Near the optimum the gradient is mostly rounding, of which a good part cannot be solved for.
    if failed and np.linalg.norm(curvature @ found - right) > 1e-2 * np.linalg.norm(right):
        # Long chains of comparisons: slow for conjugate gradients, but then a factorisation stays sparse. One free
        # parameter is held, which makes the matrix regular.
        kept = slice(1, None) if free else slice(None)
        found = np.zeros(size)
        found[kept] = splu(curvature.tocsc()[kept, kept]).solve(right[kept])
    return _centred(found, free)
