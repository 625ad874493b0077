"""Networks: rewards and preference embeddings that are nonlinear in features, fitted by gradient descent.

Both take options by name as well: a name then has a vector of its own where features have a first layer.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.preference.estimator import PreferenceModel, check_positive, check_width
from prefkit.preference.general import (
    CandidateScores,
    candidate_scores,
    check_dimension,
    gate,
    gpm_regression_loss,
    gpm_score,
    gpm_soft_label_loss,
    learned_temperature,
)
from prefkit.preference.inputs import (
    Floats,
    check_some_preference,
    coded,
    codes_among,
    options_of,
    outcomes_of,
    pairs_of,
    weights_of,
)

Activation: TypeAlias = Literal["tanh", "relu", "gelu"]

Network = TypeVar("Network", bound=nn.Module)

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}

LEARNED_START = -2.25
"""Where a learned temperature starts, as an argument of `learned_temperature`; the authors' code."""


def perceptron(
    inputs: int, hidden: Sequence[int], outputs: int, activation: str, dropout: float, *, named: bool, bias: bool = True
) -> nn.Sequential:
    """Layers from features, or from the codes of names, to outputs."""
    if activation not in ACTIVATIONS:
        raise OptionError(unknown("activation", str(activation), ACTIVATIONS))
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for place, (width, following) in enumerate(itertools.pairwise(widths)):
        if place:
            layers += [ACTIVATIONS[activation]()] + [nn.Dropout(dropout)] * (dropout > 0)
        layers.append(nn.Embedding(width, following) if named and not place else nn.Linear(width, following, bias=bias))
    return nn.Sequential(*layers)


def minimise_by_gradient(
    groups: Sequence[dict[str, Any]],
    loss: Callable[[Tensor], Tensor],
    rows: int,
    *,
    steps: int,
    batch_size: int | None,
    seed: int,
    device: str,
) -> list[float]:
    """Adam on the mean loss of rows, in batches that go through shuffled passes, or on all rows at once.

    Args:
        groups: parameters and their learning rates, as optimisers take them.
        loss: from the indices of rows to a scalar.
        rows: number of rows.
        steps: updates.
        batch_size: rows an update; None for all.
        seed: of the shuffling.
        device: where the rows lie.

    Returns:
        The loss of each update.
    """
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    everything = torch.arange(rows, device=device)

    def batches() -> Iterator[Tensor]:
        while True:
            if batch_size is None or batch_size >= rows:
                yield everything
            else:
                order = torch.randperm(rows, generator=generator).to(device)
                yield from order[: rows // batch_size * batch_size].view(-1, batch_size)

    history = []
    for _, batch in zip(range(steps), batches(), strict=False):
        optimiser.zero_grad()
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()
        history.append(float(value.detach()))
    if history and not np.isfinite(history[-1]):
        raise PrefkitError("the fit diverged: its loss is not finite; lower learning_rate")
    return history


class NetworkModel(PreferenceModel):
    """What networks on comparisons share.

    Attributes:
        module_: the network.
        loss_curve_: loss of each update.
        items_: names, where the options are named.
        n_features_in_: number of features, where they are not.
        n_prompt_features_: number of features of prompts; None without them.
    """

    hidden: Sequence[int]
    activation: Activation
    dropout: float
    learning_rate: float
    weight_decay: float
    steps: int
    batch_size: int | None
    seed: int
    device: str
    module_: nn.Module
    loss_curve_: list[float]
    items_: NDArray[Any]
    n_features_in_: int
    n_prompt_features_: int | None

    @abstractmethod
    def _build(self, inputs: int, *, named: bool, prompt_features: int | None) -> nn.Module:
        """The network, freshly initialised; it takes options `[n, 2, ...]` and prompts, and gives log-odds `[n]`."""

    def _losses(self, odds: Tensor, outcomes: Tensor) -> Tensor:
        """The loss of each row from its log-odds."""
        return gpm_soft_label_loss(odds, outcomes, tau=1.0)

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        prompts: ArrayLike | None = None,
        **given: Any,
    ) -> Self:
        """Fit to comparisons; see `PreferenceModel`.

        Args:
            X: comparisons.
            y: outcomes.
            sample_weight: weight of each row.
            prompts: `[n, p]`, features of the prompt of each row, for a model that reads them.
            given: nothing else.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: a parameter is out of range.
        """
        self._check_parameters()
        array = pairs_of(X)
        outcomes, weights = outcomes_of(y, len(array)), weights_of(sample_weight, len(array))
        check_some_preference(outcomes, weights)
        named = array.ndim == 2
        for name in ("items_", "n_features_in_"):
            self.__dict__.pop(name, None)
        if named:
            items = coded(array)
            self.items_ = items.names
            options = torch.from_numpy(items.codes)
        else:
            check_options_differ(array)
            options = torch.from_numpy(array).float()
            self.n_features_in_ = array.shape[2]
        contexts = prompts_of(prompts, len(array))
        self.n_prompt_features_ = None if contexts is None else contexts.shape[1]
        self.classes_ = np.array([0.0, 1.0])
        self.module_ = seeded(self._made, self.seed).to(self.device)
        options = options.to(self.device)
        target = torch.from_numpy(outcomes).float().to(self.device)
        weight = torch.from_numpy(weights / weights.mean()).float().to(self.device)
        given_prompts = None if contexts is None else contexts.to(self.device)

        def loss(rows: Tensor) -> Tensor:
            odds = self.module_(options[rows], None if given_prompts is None else given_prompts[rows])
            return (self._losses(odds, target[rows]) * weight[rows]).mean()

        self.module_.train()
        parameters = {"params": list(self.module_.parameters()), "lr": self.learning_rate}
        with seeded_region(self.seed + 1):  # dropout draws from the global generator
            self.loss_curve_ = minimise_by_gradient(
                [{**parameters, "weight_decay": self.weight_decay}],
                loss,
                len(array),
                steps=self.steps,
                batch_size=self.batch_size,
                seed=self.seed,
                device=self.device,
            )
        self.module_.eval()
        return self

    def decision_function(self, X: Any, *, prompts: ArrayLike | None = None, **given: Any) -> Floats:
        """`[n]`, log-odds that the first option is preferred.

        Args:
            X: comparisons.
            prompts: features of the prompts, for a model that was fitted with them.
            given: nothing else.
        """
        options = self._encoded(self._options(X))
        with torch.no_grad():
            odds = self.module_(options, self._contexts(prompts, len(options)))
        return np.asarray(odds.double().cpu().numpy())

    def predict_log_proba(self, X: Any, **given: Any) -> Floats:
        """See `PreferenceModel`."""
        odds = torch.from_numpy(self.decision_function(X, **given))
        return torch.stack([F.logsigmoid(-odds), F.logsigmoid(odds)], dim=1).numpy()

    def sample_decisions(self, X: Any, samples: int = 20, *, seed: int = 0, prompts: ArrayLike | None = None) -> Floats:
        """`[samples, n]`, log-odds with dropout left on: how much they vary is a measure of what is not known.

        Args:
            X: comparisons.
            samples: passes.
            seed: of the dropout.
            prompts: see `decision_function`.

        Raises:
            OptionError: the model has no dropout.

        Source: Gal and Ghahramani 2016, Dropout as a Bayesian approximation.
        """
        check_is_fitted(self)
        if not self.dropout:
            raise OptionError("the model has no dropout, so that all samples would be the same: set dropout above 0")
        self.module_.train()
        try:
            with seeded_region(seed):
                return np.stack([self.decision_function(X, prompts=prompts) for _ in range(samples)])
        finally:
            self.module_.eval()

    def restore_module(self, weights: Mapping[str, Tensor]) -> None:
        """Build the network again, with weights that were saved.

        Args:
            weights: the network's state.

        Raises:
            RuntimeError: they are those of another network.
        """
        self.module_ = self._made().to(self.device)
        self.module_.load_state_dict(dict(weights))
        self.module_.eval()

    def _made(self) -> nn.Module:
        named = hasattr(self, "items_")
        inputs = len(self.items_) if named else self.n_features_in_
        return self._build(inputs, named=named, prompt_features=self.n_prompt_features_)

    def _encoded(self, array: NDArray[Any]) -> Tensor:
        if array.dtype != np.float64:
            return torch.from_numpy(codes_among(array, self.items_)).to(self.device)
        return torch.from_numpy(array).float().to(self.device)

    def _contexts(self, prompts: ArrayLike | None, n: int) -> Tensor | None:
        contexts = prompts_of(prompts, n)
        if contexts is not None and not getattr(self, "gate", False):
            raise OptionError("the model was fitted without prompts")
        return None if contexts is None else contexts.to(self.device)

    def _check_parameters(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_positive("weight_decay", self.weight_decay, zero=True)
        check_positive("steps", self.steps)
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout must lie in [0, 1), got {self.dropout}")
        if any(width < 1 for width in self.hidden):
            raise OptionError(f"hidden must be widths of at least 1, got {list(self.hidden)}")


class RewardNetwork(NetworkModel):
    """P(i is preferred to j) = sigmoid(r_i - r_j), r a network: Bradley-Terry with rewards that are not linear.

    Args:
        hidden: widths of the hidden layers.
        activation: "tanh", "relu" or "gelu".
        dropout: share of hidden units that are dropped; see `sample_decisions`.
        learning_rate: of Adam.
        weight_decay: of AdamW.
        steps: updates.
        batch_size: rows an update; None for all.
        seed: of the weights, the shuffling and the dropout.
        device: where it is computed.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (32,),
        activation: Activation = "tanh",
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        steps: int = 300,
        batch_size: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.device = device

    def strengths(self, X: Any) -> Floats:
        """`[n, k]`, the reward of every option of every row; see `prefkit.preference.BradleyTerry.strengths`."""
        check_is_fitted(self)
        array = options_of(X)
        check_width(self, array)
        with torch.no_grad():
            rewards: Tensor = self.module_.body(self._encoded(array))  # type: ignore[operator]  # of _RewardModule
        return np.asarray(rewards.squeeze(-1).double().cpu().numpy())

    def _build(self, inputs: int, *, named: bool, prompt_features: int | None) -> nn.Module:
        if prompt_features is not None:
            raise OptionError(
                "a reward is no function of the prompt here: add the prompt's features to those of options"
            )
        return _RewardModule(perceptron(inputs, self.hidden, 1, self.activation, self.dropout, named=named))


class GeneralPreference(NetworkModel):
    """P(i is preferred to j) = sigmoid(<R v_i, v_j> / tau), v a network: preferences that may be cyclic.

    Args:
        dim: size of the embeddings, even; 2 can hold one cycle, more can hold more.
        hidden: widths of the hidden layers.
        activation: "tanh", "relu" or "gelu".
        dropout: share of hidden units that are dropped.
        normalise: embeddings of length 1 (the paper's default).
        gate: scale each block by the prompt, for which `fit` and predictions need `prompts`.
        gate_scale: sum of the scales of all blocks; None for their number.
        tau: temperature, or "learned".
        loss: "logistic", or "regression" on log-odds of `target`.
        target: log-odds of a preference, for `loss="regression"`.
        learning_rate: of Adam.
        weight_decay: of AdamW.
        steps: updates.
        batch_size: rows an update; None for all.
        seed: of the weights, the shuffling and the dropout.
        device: where it is computed.

    Source: Zhang et al. 2024 (General Preference Modeling, arXiv 2410.02197); tau and the use of norms from there.
    """

    def __init__(
        self,
        *,
        dim: int = 6,
        hidden: Sequence[int] = (32,),
        activation: Activation = "tanh",
        dropout: float = 0.0,
        normalise: bool = True,
        gate: bool = False,
        gate_scale: float | None = 1.0,
        tau: float | Literal["learned"] = 0.1,
        loss: Literal["logistic", "regression"] = "logistic",
        target: float = 10.0,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        steps: int = 300,
        batch_size: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.dim = dim
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.normalise = normalise
        self.gate = gate
        self.gate_scale = gate_scale
        self.tau = tau
        self.loss = loss
        self.target = target
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.device = device

    @property
    def tau_(self) -> float:
        """The temperature, learned or given."""
        return float(self._module.temperature())

    def embed(self, options: Any) -> Floats:
        """`[n, dim]`, embeddings of single options.

        Args:
            options: `[n, d]` features, or `[n]` names.
        """
        check_is_fitted(self)
        array = options_of([[option] for option in options] if np.ndim(options) == 1 else np.asarray(options)[:, None])
        check_width(self, array)
        with torch.no_grad():
            found = self._module.embed(self._encoded(array)[:, 0])
        return np.asarray(found.double().cpu().numpy())

    def eigenvalues(self, prompts: ArrayLike) -> Floats:
        """`[n, dim / 2]`, the scale of each block for each prompt.

        Args:
            prompts: `[n, p]`, features of the prompts.

        Raises:
            OptionError: the model has no gate.
        """
        check_is_fitted(self)
        contexts = self._contexts(prompts, len(np.asarray(prompts)))
        with torch.no_grad():
            found = self._module.eigenvalues(contexts)
        if found is None:
            raise OptionError("the model has no gate: set gate=True")
        return np.asarray(found.double().cpu().numpy())

    def candidates(self, options: Any, prompt: ArrayLike | None = None) -> CandidateScores:
        """What K candidates of one prompt make of one another, from K embeddings.

        Args:
            options: `[k, d]` features, or `[k]` names.
            prompt: `[p]`, features of the prompt, for a model with a gate.
        """
        eigenvalues = None if prompt is None else torch.from_numpy(self.eigenvalues(np.asarray(prompt)[None])[0])
        if eigenvalues is None and self.gate:
            raise OptionError("the model has a gate: give the features of the prompt")
        return candidate_scores(torch.from_numpy(self.embed(options)), tau=self.tau_, eigenvalues=eigenvalues)

    @property
    def _module(self) -> _GeneralModule:
        check_is_fitted(self)
        assert isinstance(self.module_, _GeneralModule)
        return self.module_

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_dimension(self.dim)
        if self.tau != "learned":
            check_positive("tau", self.tau)
        if self.loss not in ("logistic", "regression"):
            raise OptionError(unknown("loss", str(self.loss), ("logistic", "regression")))

    def _losses(self, odds: Tensor, outcomes: Tensor) -> Tensor:
        if self.loss == "logistic":
            return super()._losses(odds, outcomes)
        # The target is that of a certain preference, and 0 that of a tie.
        return gpm_regression_loss(odds, self.target * (2 * outcomes - 1), tau=1.0)

    def _build(self, inputs: int, *, named: bool, prompt_features: int | None) -> nn.Module:
        if self.gate and prompt_features is None:
            raise OptionError("gate=True needs prompts, the features of each row's prompt")
        if not self.gate and prompt_features is not None:
            raise OptionError("prompts are read by the gate only: set gate=True")
        body = perceptron(inputs, self.hidden, self.dim, self.activation, self.dropout, named=named)
        head = None if prompt_features is None else nn.Linear(prompt_features, self.dim // 2, bias=False)
        scale = self.dim / 2 if self.gate_scale is None else self.gate_scale
        return _GeneralModule(body, head, scale, self.normalise, None if self.tau == "learned" else self.tau)


class _RewardModule(nn.Module):
    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, options: Tensor, prompts: Tensor | None) -> Tensor:
        """Log-odds of the first of two options."""
        first, second = self.body(options).squeeze(-1).unbind(1)
        odds: Tensor = first - second
        return odds


class _GeneralModule(nn.Module):
    def __init__(
        self, body: nn.Sequential, head: nn.Linear | None, gate_scale: float, normalise: bool, tau: float | None
    ) -> None:
        super().__init__()
        self.body, self.head, self.gate_scale, self.normalise, self.tau = body, head, gate_scale, normalise, tau
        self.raw_tau = nn.Parameter(torch.tensor(LEARNED_START)) if tau is None else None

    def temperature(self) -> Tensor:
        """The divisor of scores."""
        return torch.tensor(self.tau) if self.raw_tau is None else learned_temperature(self.raw_tau)

    def embed(self, options: Tensor) -> Tensor:
        """Embeddings of options."""
        found: Tensor = self.body(options)
        return F.normalize(found, dim=-1) if self.normalise else found

    def eigenvalues(self, prompts: Tensor | None) -> Tensor | None:
        """Scales of the blocks."""
        return None if self.head is None or prompts is None else gate(self.head(prompts), self.gate_scale)

    def forward(self, options: Tensor, prompts: Tensor | None) -> Tensor:
        """Log-odds of the first of two options."""
        if self.head is not None and prompts is None:
            raise OptionError("the model has a gate: give prompts, the features of each row's prompt")
        first, second = self.embed(options).unbind(1)
        return gpm_score(first, second, self.eigenvalues(prompts)) / self.temperature().to(first.device)


def prompts_of(prompts: ArrayLike | None, n: int) -> Tensor | None:
    """Features of prompts as a tensor.

    Raises:
        PrefkitError: they are not `[n, p]` finite numbers; names the row.
    """
    if prompts is None:
        return None
    array = np.asarray(prompts, dtype=np.float64)
    if array.ndim != 2 or len(array) != n:
        raise PrefkitError(f"prompts must be features of each row's prompt, [{n}, p], got shape {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = bad[0]
        raise PrefkitError(f"row {row}, prompt feature {column} must be a finite number, got {array[row, column]}")
    return torch.from_numpy(array).float()


def check_options_differ(array: NDArray[Any]) -> None:
    """Refuse features that never differ between the two options.

    Raises:
        PrefkitError: they do not.
    """
    if not (array[:, 0] != array[:, 1]).any():
        raise PrefkitError("both options have the same features in every comparison: nothing can be learned of them")


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """A network whose weights are fixed by a seed, which leaves the global generator as it was."""
    with seeded_region(seed):
        return make()


@contextmanager
def seeded_region(seed: int) -> Iterator[None]:
    """A region in which the global generators of torch start from a seed; they are put back behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
