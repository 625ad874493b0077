"""General preferences: embeddings whose skew-symmetric products are preferences, cycles among them.

A Bradley-Terry reward is one number a response, so preferences that it gives are transitive. Here a response is a
vector of 2k numbers, and i is preferred to j by

    s(i > j) = <R v_i, v_j> = sum_l (v_i[2l] v_j[2l+1] - v_i[2l+1] v_j[2l]),

which is antisymmetric by construction and can stand for any skew-symmetric table of scores. K responses need K
embeddings, not K^2 comparisons. Scores become log-odds when they are divided by the temperature tau.

Source of all: Zhang et al. 2024 (General Preference Modeling, arXiv 2410.02197). The sign is that of definition 4.3;
section 4.2 and the theorems of the paper write v_i^T R v_j, which is its negative.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError

LEARNED_START = -2.25
"""Where a learned temperature starts, as an argument of `learned_temperature`: at 0.1, as in the authors' code."""

TOLERANCE = 1e-6
"""By how much a table of scores may miss being skew-symmetric, relative to its largest entry."""


def check_dimension(dim: int) -> None:
    """Refuse sizes of embeddings that do not fall into pairs.

    Raises:
        OptionError: the size is odd or not positive.
    """
    if dim < 2 or dim % 2:
        raise OptionError(f"dim, the size of a preference embedding, must be even and at least 2, got {dim}")


def skew_operator(dim: int) -> Float[Tensor, "dim dim"]:
    """R, block-diagonal with blocks [[0, -1], [1, 0]].

    Raises:
        OptionError: the dimension is odd.
    """
    check_dimension(dim)
    block = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return torch.kron(torch.eye(dim // 2, dtype=block.dtype), block)


def gpm_score(
    first: Float[Tensor, "*batch dim"],
    second: Float[Tensor, "*batch dim"],
    eigenvalues: Float[Tensor, "*batch k"] | None = None,
) -> Float[Tensor, "*batch"]:
    """s(first > second), before it is divided by the temperature.

    Args:
        first: embeddings of the first responses, dim = 2k.
        second: embeddings of the second responses.
        eigenvalues: scale of each block, at least 0, of the prompt; 1 by default. See `gate`.

    Raises:
        OptionError: the dimension is odd, or sizes differ.

    Source: definition 4.3; the scale gate: section 4.3.
    """
    check_dimension(first.shape[-1])
    if first.shape[-1] != second.shape[-1]:
        raise OptionError(f"embeddings must be of one size, got {first.shape[-1]} and {second.shape[-1]}")
    blocks = first[..., 0::2] * second[..., 1::2] - first[..., 1::2] * second[..., 0::2]
    if eigenvalues is not None:
        if eigenvalues.shape[-1] != blocks.shape[-1]:
            raise OptionError(
                f"embeddings of {first.shape[-1]} need {blocks.shape[-1]} eigenvalues, got {eigenvalues.shape[-1]}"
            )
        blocks = blocks * eigenvalues
    return blocks.sum(-1)


def gate(logits: Float[Tensor, "*batch k"], scale: float = 1.0) -> Float[Tensor, "*batch k"]:
    """Eigenvalues of a prompt from the output of its head: scale * softmax.

    Args:
        logits: one a block.
        scale: sum of the eigenvalues; the authors' training code has k, their inference code 1.
    """
    return scale * torch.softmax(logits, dim=-1)


def gpm_loss(
    scores: Float[Tensor, "*batch"], *, tau: float | Tensor = 0.1, margin: Float[Tensor, "*batch"] | float = 0.0
) -> Float[Tensor, "*batch"]:
    """-log sigmoid((s - margin) / tau) of the preferred response's score.

    Args:
        scores: s(chosen > rejected).
        tau: temperature, greater than 0; the paper's beta.
        margin: by how much the score has to win; subtracted before the division.

    Raises:
        OptionError: the temperature is not positive.

    Source: eq. A.1 with hard labels.
    """
    return -F.logsigmoid((scores - margin) / _temperature(tau))


def gpm_soft_label_loss(
    scores: Float[Tensor, "*batch"], probabilities: Float[Tensor, "*batch"], *, tau: float | Tensor = 0.1
) -> Float[Tensor, "*batch"]:
    """-(P log sigmoid(s / tau) + (1 - P) log sigmoid(-s / tau)).

    Args:
        scores: s(i > j).
        probabilities: P, that i is preferred to j.
        tau: temperature, greater than 0.

    Raises:
        OptionError: the temperature is not positive, or a probability lies outside [0, 1].

    Source: eq. A.1.
    """
    check_probabilities(probabilities)
    odds = scores / _temperature(tau)
    return -(probabilities * F.logsigmoid(odds) + (1 - probabilities) * F.logsigmoid(-odds))


def gpm_regression_loss(
    scores: Float[Tensor, "*batch"], targets: Float[Tensor, "*batch"] | float = 10.0, *, tau: float | Tensor = 0.1
) -> Float[Tensor, "*batch"]:
    """(s / tau - target)^2 / 2.

    The authors' code has a constant target of 10, or with margins 5 sigmoid(margin) for two dimensions and margin / tau
    for more.

    Args:
        scores: s(chosen > rejected).
        targets: log-odds that the scores shall have.
        tau: temperature, greater than 0.

    Raises:
        OptionError: the temperature is not positive.

    Source: the authors' code.
    """
    return 0.5 * (scores / _temperature(tau) - targets) ** 2


def gpm_soft_regression_loss(
    scores: Float[Tensor, "*batch"], probabilities: Float[Tensor, "*batch"], *, tau: float | Tensor = 0.1
) -> Float[Tensor, "*batch"]:
    """(s / tau - logit P)^2: regression on the log-odds of a soft label.

    Args:
        scores: s(i > j).
        probabilities: P, that i is preferred to j, strictly between 0 and 1.
        tau: temperature, greater than 0.

    Raises:
        OptionError: the temperature is not positive, or a label is certain, so that its log-odds are infinite.

    Source: section A, below eq. A.1.
    """
    check_probabilities(probabilities)
    if bool(((probabilities == 0) | (probabilities == 1)).any()):
        raise OptionError(
            "regression needs probabilities strictly between 0 and 1: the log-odds of 0 and 1 are infinite"
        )
    return 2 * gpm_regression_loss(scores, torch.logit(probabilities), tau=tau)


def learned_temperature(parameter: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """max(softplus(t), 0.01); the authors' code starts t at -2.25, which is a temperature of 0.1."""
    return F.softplus(parameter).clamp(min=0.01)


# --- tables of scores


def check_table(table: Float[Tensor, "n n"]) -> None:
    """Refuse what is no table of scores.

    Raises:
        PrefkitError: it is not square, holds something that is no finite number, or is not skew-symmetric.
    """
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not len(table):
        raise PrefkitError(f"a table of scores must be square, got shape {tuple(table.shape)}")
    bad = (~torch.isfinite(table)).nonzero()
    if len(bad):
        i, j = bad[0].tolist()
        raise PrefkitError(f"score [{i}, {j}] must be a finite number, got {table[i, j].item()}")
    off = (table + table.T).abs()
    if bool((off > TOLERANCE * table.abs().max().clamp(min=1e-300)).any()):
        i, j = divmod(int(off.argmax()), len(table))
        raise PrefkitError(
            f"a table of scores must be skew-symmetric: entries [{i}, {j}] and [{j}, {i}] must sum to 0, got "
            f"{table[i, j].item():g} and {table[j, i].item():g}"
        )


def score_table(
    embeddings: Float[Tensor, "n dim"], eigenvalues: Float[Tensor, " k"] | None = None
) -> Float[Tensor, "n n"]:
    """s(i > j) of every two embeddings, as one product of matrices."""
    check_dimension(embeddings.shape[-1])
    return _turned(embeddings, eigenvalues) @ embeddings.T


def comparison_factors(
    embeddings: Float[Tensor, "*batch dim"],
    eigenvalues: Float[Tensor, "*batch k"] | None = None,
    *,
    tau: float | Tensor = 0.1,
) -> Float[Tensor, "*batch 2 dim"]:
    """Two vectors of each response: the first of i times the second of j is s(i > j) / tau.

    K responses are compared with one another, or with the mean of all, from K of them.

    Args:
        embeddings: one a response.
        eigenvalues: of each response's prompt.
        tau: temperature, greater than 0.

    Raises:
        OptionError: the temperature is not positive, or the dimension is odd.
    """
    check_dimension(embeddings.shape[-1])
    return torch.stack([_turned(embeddings, eigenvalues) / _temperature(tau), embeddings], dim=-2)


def embeddings_from_scores(table: Float[Tensor, "n n"]) -> Float[Tensor, "n dim"]:
    """Embeddings of dimension 2n whose scores are the table: v_i[2l] = (i = l), v_i[2l+1] = -P_il / 2.

    Raises:
        PrefkitError: the table is not skew-symmetric.

    Source: theorem 4.4, with the sign of definition 4.3.
    """
    check_table(table)
    return torch.stack([torch.eye(len(table), dtype=table.dtype, device=table.device), -table / 2], dim=2).flatten(1)


def block_embeddings(
    table: Float[Tensor, "n n"], dim: int | None = None
) -> tuple[Float[Tensor, "n dim"], Float[Tensor, " k"]]:
    """The spectral form: embeddings and eigenvalues, largest first, whose gated scores are the table.

    With fewer dimensions than rows it is the best approximation of that rank: how much of the table the first
    eigenvalue carries says how few dimensions would do.

    Args:
        table: skew-symmetric scores.
        dim: even dimension of the embeddings; the smallest that is exact for any table by default.

    Returns:
        `embeddings` with orthonormal columns, and one eigenvalue a block, at least 0.

    Raises:
        PrefkitError: the table is not skew-symmetric.
        OptionError: the dimension is odd or too large.

    Source: theorem 4.4 for even n, with the sign of definition 4.3.
    """
    check_table(table)
    most = len(table) // 2 * 2
    dim = most if dim is None else dim
    if not most:
        raise PrefkitError("one response has no preferences: a table needs at least 2 rows")
    check_dimension(dim)
    if dim > most:
        raise OptionError(f"a table of {len(table)} rows has at most {most} dimensions, got dim = {dim}")
    values, vectors = scipy.linalg.eigh(1j * table.detach().cpu().double().numpy())
    # A pair of eigenvalues +-i lambda is one block; vectors of positive ones suffice.
    top = np.argsort(-values, kind="stable")[: dim // 2]
    pairs = np.stack([vectors[:, top].imag, vectors[:, top].real], axis=2) * np.sqrt(2)
    found = torch.from_numpy(pairs.reshape(len(table), dim)).to(table)
    return found, torch.from_numpy(np.maximum(values[top], 0.0)).to(table)


class CandidateScores(NamedTuple):
    """What K candidates of one prompt make of one another.

    Args:
        table: S, log-odds that i is preferred to j.
        versus_policy: mean of S_ij over all candidates j, itself included.
        win_probability: mean of sigmoid(S_ij) over the same.
        rank: mean of S_ij - S_ji, by which candidates are ordered.
        best: the first candidate of the highest rank.
        worst: the first of the lowest.
    """

    table: Float[Tensor, "k k"]
    versus_policy: Float[Tensor, " k"]
    win_probability: Float[Tensor, " k"]
    rank: Float[Tensor, " k"]
    best: int
    worst: int


def candidate_scores(
    embeddings: Float[Tensor, "k dim"], *, tau: float = 0.1, eigenvalues: Float[Tensor, " blocks"] | None = None
) -> CandidateScores:
    """Scores of the candidates that a policy gave to one prompt.

    Args:
        embeddings: one a candidate.
        tau: temperature, greater than 0.
        eigenvalues: of the prompt.

    Raises:
        OptionError: the temperature is not positive, or the dimension is odd.
        PrefkitError: an embedding holds something that is no finite number.

    Source: eq. 5.2, which the authors' script doubles.
    """
    bad = (~torch.isfinite(embeddings)).nonzero()
    if len(bad):
        i, j = bad[0].tolist()
        raise PrefkitError(f"candidate {i}: entry {j} of its embedding must be a finite number")
    table = score_table(embeddings, eigenvalues) / _temperature(tau)
    # Rounding of the product must not make a candidate prefer itself.
    table = (table - table.T) / 2
    rank = (table - table.T).mean(1)
    return CandidateScores(
        table, table.mean(1), torch.sigmoid(table).mean(1), rank, _first(rank == rank.max()), _first(rank == rank.min())
    )


def scores_versus_candidates(
    embeddings: Float[Tensor, "k dim"], *, tau: float = 0.1, eigenvalues: Float[Tensor, " blocks"] | None = None
) -> Float[Tensor, " k"]:
    """`candidate_scores(...).versus_policy` at a cost that is linear in the number of candidates."""
    return _turned(embeddings, eigenvalues) @ embeddings.mean(0) / _temperature(tau)


def training_pair(scores: CandidateScores) -> tuple[int, int] | None:
    """Best and worst candidate, on which the authors train; None, with a warning, where all are tied.

    Raises:
        PrefkitError: there are fewer than two candidates.
    """
    if len(scores.rank) < 2:
        raise PrefkitError(f"a training pair needs at least 2 candidates, got {len(scores.rank)}")
    if bool((scores.rank == scores.rank[0]).all()):
        warnings.warn("all candidates of a prompt are tied: the prompt is left out", stacklevel=2)
        return None
    return scores.best, scores.worst


# --- policies of a table


def score_versus_policy(table: Float[Tensor, "n n"], policy: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """s(y > pi), the mean score of each response against those of a policy."""
    return table @ policy


def duality_gap(table: Float[Tensor, "n n"], policy: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """max_y s(y > pi) - min_y s(pi > y): 0 where nothing is preferred to the policy (the von Neumann winner).

    Raises:
        PrefkitError: the table is not skew-symmetric, or the policy is no distribution over its rows.
    """
    _check_policy(table, policy)
    against = score_versus_policy(table, policy)
    return against.max() - (-against).min()


def multiplicative_weights_step(
    table: Float[Tensor, "n n"], policy: Float[Tensor, " n"], *, eta: float
) -> Float[Tensor, " n"]:
    """The exact step of General Preference Optimization: pi'(y) ~ pi(y) exp(eta s(y > pi)).

    The average over T steps of eta ~ 1 / sqrt(T) approaches the von Neumann winner; the last step may keep cycling.

    Args:
        table: skew-symmetric scores.
        policy: probabilities.
        eta: size of the step, 1 / beta, greater than 0.

    Raises:
        OptionError: the step is not positive.
        PrefkitError: the table is not skew-symmetric, or the policy is no distribution over its rows.

    Source: eq. 5.3 with the exact normaliser; theorem 5.1.
    """
    if not eta > 0:
        raise OptionError(f"eta must be greater than 0, got {eta}")
    _check_policy(table, policy)
    return torch.softmax(policy.log() + eta * score_versus_policy(table, policy), dim=0)


def check_probabilities(probabilities: Tensor) -> None:
    """Refuse soft labels outside [0, 1].

    Raises:
        OptionError: names the first.
    """
    wrong = (~((probabilities >= 0) & (probabilities <= 1))).flatten().nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise OptionError(f"soft label {row} must lie in [0, 1], got {probabilities.flatten()[row].item()}")


def _check_policy(table: Tensor, policy: Tensor) -> None:
    check_table(table)
    if policy.shape != table.shape[:1]:
        raise PrefkitError(f"a policy over {len(table)} responses needs as many probabilities, got {len(policy)}")
    if bool((policy < 0).any()) or abs(float(policy.sum()) - 1) > 1e-6:
        raise PrefkitError(f"a policy must be probabilities with a sum of 1, got {policy.tolist()}")


def _first(where: Tensor) -> int:
    return int(where.nonzero()[0])


def _turned(embeddings: Tensor, eigenvalues: Tensor | None) -> Tensor:
    """R v of each embedding, its blocks scaled."""
    turned = torch.stack([-embeddings[..., 1::2], embeddings[..., 0::2]], dim=-1)
    return (turned if eigenvalues is None else turned * eigenvalues.unsqueeze(-1)).flatten(-2)


def _temperature(tau: float | Tensor) -> float | Tensor:
    if not isinstance(tau, Tensor) and not tau > 0:
        raise OptionError(f"tau must be greater than 0, got {tau}")
    return tau
