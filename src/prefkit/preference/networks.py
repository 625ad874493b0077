"""Networks: rewards and preference embeddings that are nonlinear in features, fitted by gradient descent.

Both take options by name as well: a name then has a vector of its own where features have a first layer.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.objectives import adaptive_margin_loss
from prefkit.objectives.agreement import Smoothed
from prefkit.preference.descent import Schedule, batches, minimise_by_gradient, seeded, seeded_region
from prefkit.preference.estimator import PreferenceModel, check_positive, check_width
from prefkit.preference.feedforward import Activation, Activations, Feedforward
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
    check_options_differ,
    check_some_preference,
    coded,
    codes_among,
    margins_of,
    options_of,
    outcomes_of,
    pairs_of,
    weights_of,
)

LEARNED_START = -2.25
"""Where a learned temperature starts, as an argument of `learned_temperature`; the authors' code."""


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
    activation: Activation | None
    dropout: float
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    epochs: int
    batch_size: int | None
    warmup: float = 0.0
    schedule: Schedule = "constant"
    clip: float | None = None
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

    @abstractmethod
    def _losses(self, odds: Tensor, outcomes: Tensor, margins: Tensor | None) -> Tensor:
        """The loss of each row from its log-odds."""

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        prompts: ArrayLike | None = None,
        margins: ArrayLike | None = None,
        **given: Any,
    ) -> Self:
        """Fit to comparisons; see `PreferenceModel`.

        Args:
            X: comparisons.
            y: outcomes.
            sample_weight: weight of each row.
            prompts: `[n, p]`, features of the prompt of each row, for a model that reads them.
            margins: `[n]`, by how much the option that is likelier to be preferred has to be ahead, in log-odds; may
                be negative. For reward networks.
            given: nothing else.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: a parameter is out of range.
        """
        self.check_parameters()
        array = pairs_of(X, self._feature_names())
        outcomes, weights = outcomes_of(y, len(array)), weights_of(sample_weight, len(array))
        shifts = margins_of(margins, len(array))
        check_some_preference(outcomes, weights)
        self._check_data(array)
        for name in ("items_", "n_features_in_"):
            self.__dict__.pop(name, None)
        if array.ndim == 2:
            items = coded(array)
            self.items_ = items.names
            options = torch.from_numpy(items.codes)
        else:
            options = torch.from_numpy(array).float()
            self.n_features_in_ = array.shape[2]
        contexts = prompts_of(prompts, len(array))
        self.n_prompt_features_ = None if contexts is None else contexts.shape[1]
        self.classes_ = np.array([0.0, 1.0])
        self.module_ = seeded(self._made, self.seed).to(self.device)
        options = options.to(self.device)
        target = torch.from_numpy(outcomes).float().to(self.device)
        weighed = np.flatnonzero(weights)
        weight = torch.from_numpy(weights / weights[weighed].mean()).float().to(self.device)
        kept = torch.from_numpy(weighed).to(self.device)
        shift = None if shifts is None else torch.from_numpy(shifts).float().to(self.device)
        given_prompts = None if contexts is None else contexts.to(self.device)

        def loss(batch: Tensor) -> Tensor:
            rows = kept[batch]
            odds = self.module_(options[rows], None if given_prompts is None else given_prompts[rows])
            losses = self._losses(odds, target[rows], None if shift is None else shift[rows])
            return (losses * weight[rows]).mean()

        self.module_.train()
        parameters = {"params": list(self.module_.parameters()), "lr": self.learning_rate}
        self.loss_curve_ = minimise_by_gradient(
            [{**parameters, "weight_decay": self.weight_decay}],
            loss,
            len(kept),
            steps=self.epochs * batches(len(kept), self.batch_size),
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            betas=self.betas,
            warmup=self.warmup,
            schedule=self.schedule,
            clip=self.clip,
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

    @property
    def _activations(self) -> Activations:
        return Activations(self.activation, self.activation)

    def _check_data(self, array: NDArray[Any]) -> None:
        if array.ndim == 3:
            check_options_differ(array[:, 0] != array[:, 1])

    def check_parameters(self) -> None:
        """See `PreferenceModel`."""
        self._activations.check()
        check_positive("learning_rate", self.learning_rate)
        check_positive("weight_decay", self.weight_decay, zero=True)
        checks = {
            "hidden": (all(width >= 1 for width in self.hidden), "widths of at least 1"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1, or None"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "schedule": (self.schedule in ("constant", "cosine"), "constant or cosine"),
            "clip": (self.clip is None or self.clip > 0, "greater than 0, or None"),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise OptionError(f"{name} must be {wanted}, got {getattr(self, name)!r}")


class RewardNetwork(NetworkModel):
    """P(i is preferred to j) = sigmoid(r_i - r_j), r a network: Bradley-Terry with rewards that need not be linear.

    Args:
        hidden: widths of the hidden layers; none is a linear reward.
        activation: after the first layer: "sigmoid", "tanh", "relu" or "gelu"; None for none.
        inner_activation: after the layers between the first and the last; "same" as the first, or None, which is what
            the authors' code of domain rewards has.
        output_activation: after the last layer; with a relu, rewards are flat where it is 0.
        dropout: share of hidden units that are dropped; see `sample_decisions`.
        context_features: how many of the last features describe a context (a criterion, a person), which both options
            of a row share; see `with_contexts`. The reward then has a further term, y U z, of the other features y and
            the context z; U starts from 0.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        betas: of AdamW.
        epochs: passes over the rows.
        batch_size: rows an update; None for all.
        warmup: share of the updates over which the learning rate rises, in [0, 1).
        schedule: how it goes on: "constant" or "cosine" down to 0.
        clip: bound of the norm of the gradient; None for no bound.
        alpha: smoothing of labels, in [0, 0.5].
        smoothed: "all" labels, or those of "negative" margin.
        zero_start: start from weights of 0, for linear rewards only.
        feature_names: names of the features, for messages and `explain`.
        seed: of the weights, the shuffling and the dropout.
        device: where it is computed.

    Source: contexts: Pitis et al. 2024 (arXiv 2407.14916); margins and smoothing: Wang et al. 2024 (Secrets of RLHF in
        Large Language Models Part II, arXiv 2401.06080), section 2.5.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (32,),
        activation: Activation | None = "tanh",
        inner_activation: Activation | Literal["same"] | None = "same",
        output_activation: Activation | None = None,
        dropout: float = 0.0,
        context_features: int = 0,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epochs: int = 300,
        batch_size: int | None = None,
        warmup: float = 0.0,
        schedule: Schedule = "constant",
        clip: float | None = None,
        alpha: float = 0.0,
        smoothed: Smoothed = "all",
        zero_start: bool = False,
        feature_names: Sequence[str] | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.inner_activation = inner_activation
        self.output_activation = output_activation
        self.dropout = dropout
        self.context_features = context_features
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.epochs = epochs
        self.batch_size = batch_size
        self.warmup = warmup
        self.schedule = schedule
        self.clip = clip
        self.alpha = alpha
        self.smoothed = smoothed
        self.zero_start = zero_start
        self.feature_names = feature_names
        self.seed = seed
        self.device = device

    def strengths(self, X: Any) -> Floats:
        """`[n, k]`, the reward of every option of every row; see `prefkit.preference.BradleyTerry.strengths`."""
        check_is_fitted(self)
        array = options_of(X, names=self._feature_names())
        check_width(self, array)
        with torch.no_grad():
            rewards = self._module.rewards(self._encoded(array))
        return np.asarray(rewards.double().cpu().numpy())

    def reward(self, options: Any) -> Floats:
        """`[n]`, the reward of single options, in log-odds.

        Args:
            options: `[n, d]` features, or `[n]` names.
        """
        found: Floats = self.strengths(_alone(options))[:, 0]
        return found

    def explain(self, features: ArrayLike | None = None) -> dict[str, float]:
        """What each feature is worth to the reward: its mean gradient, which of a linear reward is its weight.

        Args:
            features: `[n, d]`, where gradients are taken; a linear reward needs none.

        Raises:
            OptionError: the reward is not linear and no features are given, or it is one of names.
        """
        check_is_fitted(self)
        if hasattr(self, "items_"):
            raise OptionError("the model was fitted to names of options: no feature explains their rewards")
        linear = not self.hidden and self.output_activation is None and not self.context_features
        if features is None and not linear:
            raise OptionError("the gradients of a reward that is not linear differ from place to place: give features")
        array = options_of(_alone(np.zeros((1, self.n_features_in_)) if features is None else features))
        check_width(self, array)
        inputs = self._encoded(array)[:, 0].requires_grad_()
        (gradient,) = torch.autograd.grad(self._module.rewards(inputs).sum(), inputs)
        names = self._feature_names() or [f"feature {place}" for place in range(self.n_features_in_)]
        return dict(zip(names, gradient.mean(0).tolist(), strict=True))

    @property
    def _activations(self) -> Activations:
        inner = self.activation if self.inner_activation == "same" else self.inner_activation
        return Activations(self.activation, inner, self.output_activation)

    @property
    def _module(self) -> _RewardModule:
        assert isinstance(self.module_, _RewardModule)
        return self.module_

    def _losses(self, odds: Tensor, outcomes: Tensor, margins: Tensor | None) -> Tensor:
        # The margin stands on the side of the likelier label; smoothing and a soft label both take from its share.
        margins = torch.zeros_like(odds) if margins is None else margins
        likelier = outcomes >= 0.5
        unsure = torch.where(likelier, 1 - outcomes, outcomes)
        smoothing = self.alpha * (margins < 0) if self.smoothed == "negative" else self.alpha
        ahead = torch.where(likelier, odds, -odds)
        alpha = unsure + smoothing * (1 - 2 * unsure)
        return adaptive_margin_loss(ahead, torch.zeros_like(ahead), margins, alpha=alpha)

    def check_parameters(self) -> None:
        """See `PreferenceModel`."""
        super().check_parameters()
        if not 0 <= self.alpha <= 0.5:
            raise OptionError(f"alpha must be in [0, 0.5], got {self.alpha}")
        if self.smoothed not in ("all", "negative"):
            raise OptionError(f"smoothed must be all or negative, got {self.smoothed!r}")
        if self.zero_start and self.hidden:
            raise OptionError("zero_start must be False with hidden layers, which would stay at 0")
        if self.output_activation == "relu":
            warnings.warn("after a relu all rewards below 0 are equal and have no gradient", stacklevel=3)

    def _check_data(self, array: NDArray[Any]) -> None:
        super()._check_data(array)
        names, width = self._feature_names(), array.shape[2] if array.ndim == 3 else 0
        if names is not None and len(names) != width:
            raise OptionError(f"feature_names must name {width} features, got {len(names)}")
        if self.context_features and not 0 < self.context_features < width:
            raise OptionError(f"context_features must be less than the {width} features, got {self.context_features}")
        constant = np.flatnonzero((array == array[:1, :1]).all(axis=(0, 1))).tolist() if width else []
        if constant:
            shown = ", ".join(str(names[place] if names else place) for place in constant)
            warnings.warn(f"features that are constant say nothing about a choice: {shown}", stacklevel=3)

    def _build(self, inputs: int, *, named: bool, prompt_features: int | None) -> nn.Module:
        if prompt_features is not None:
            raise OptionError(
                "a reward is no function of the prompt here: add the prompt's features to those of options"
            )
        body = Feedforward(inputs, self.hidden, 1, activations=self._activations, dropout=self.dropout, named=named)
        module = _RewardModule(body, inputs - self.context_features, self.context_features)
        if self.zero_start:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        return module


class GeneralPreference(NetworkModel):
    """P(i is preferred to j) = sigmoid(<R v_i, v_j> / tau), v a network: preferences that may be cyclic.

    Args:
        dim: size of the embeddings, even; 2 can hold one cycle, more can hold more.
        hidden: widths of the hidden layers.
        activation: after each of them: "sigmoid", "tanh", "relu" or "gelu"; None for none.
        dropout: share of hidden units that are dropped.
        normalise: embeddings of length 1 (the paper's default).
        gate: scale each block by the prompt, for which `fit` and predictions need `prompts`.
        gate_scale: sum of the scales of all blocks; None for their number.
        tau: temperature, or "learned".
        loss: "logistic", or "regression" on log-odds of `target`.
        target: log-odds of a preference, for `loss="regression"`.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        epochs: passes over the rows.
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
        activation: Activation | None = "tanh",
        dropout: float = 0.0,
        normalise: bool = True,
        gate: bool = False,
        gate_scale: float | None = 1.0,
        tau: float | Literal["learned"] = 0.1,
        loss: Literal["logistic", "regression"] = "logistic",
        target: float = 10.0,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        epochs: int = 300,
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
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.device = device

    @property
    def tau_(self) -> float:
        """The temperature, learned or given."""
        return float(self._module.temperature().detach())

    def embed(self, options: Any) -> Floats:
        """`[n, dim]`, embeddings of single options.

        Args:
            options: `[n, d]` features, or `[n]` names.
        """
        check_is_fitted(self)
        array = options_of(_alone(options))
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

    def check_parameters(self) -> None:
        """See `PreferenceModel`."""
        super().check_parameters()
        check_dimension(self.dim)
        if self.tau != "learned":
            check_positive("tau", self.tau)
        if self.loss not in ("logistic", "regression"):
            raise OptionError(unknown("loss", str(self.loss), ("logistic", "regression")))

    def _losses(self, odds: Tensor, outcomes: Tensor, margins: Tensor | None) -> Tensor:
        if margins is not None:
            raise OptionError("margins are for reward networks")
        if self.loss == "logistic":
            return gpm_soft_label_loss(odds, outcomes, tau=1.0)
        # The target is that of a certain preference, and 0 that of a tie.
        return gpm_regression_loss(odds, self.target * (2 * outcomes - 1), tau=1.0)

    def _build(self, inputs: int, *, named: bool, prompt_features: int | None) -> nn.Module:
        if self.gate and prompt_features is None:
            raise OptionError("gate=True needs prompts, the features of each row's prompt")
        if not self.gate and prompt_features is not None:
            raise OptionError("prompts are read by the gate only: set gate=True")
        body = Feedforward(
            inputs, self.hidden, self.dim, activations=self._activations, dropout=self.dropout, named=named
        )
        head = None if prompt_features is None else nn.Linear(prompt_features, self.dim // 2, bias=False)
        scale = self.dim / 2 if self.gate_scale is None else self.gate_scale
        return _GeneralModule(body, head, scale, self.normalise, None if self.tau == "learned" else self.tau)


class _RewardModule(nn.Module):
    def __init__(self, body: Feedforward, own_features: int, context_features: int) -> None:
        super().__init__()
        self.body, self.own_features = body, own_features
        self.bilinear = nn.Parameter(torch.zeros(own_features, context_features)) if context_features else None

    def rewards(self, options: Tensor) -> Tensor:
        """The reward of each option."""
        found: Tensor = self.body(options).squeeze(-1)
        if self.bilinear is None:
            return found
        own, context = options[..., : self.own_features], options[..., self.own_features :]
        return found + ((own @ self.bilinear) * context).sum(-1)

    def forward(self, options: Tensor, prompts: Tensor | None) -> Tensor:
        """Log-odds of the first of two options."""
        first, second = self.rewards(options).unbind(1)
        return first - second


class _GeneralModule(nn.Module):
    def __init__(
        self, body: Feedforward, head: nn.Linear | None, gate_scale: float, normalise: bool, tau: float | None
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


def with_contexts(features: ArrayLike, contexts: ArrayLike) -> Floats:
    """Features of pairs or of single options followed by those of their contexts.

    Args:
        features: `[n, 2, d]`, or `[n, d]`.
        contexts: `[n, context_features]`; both options of a pair get the same.

    Raises:
        PrefkitError: they do not belong together.
    """
    rows, context = np.asarray(features, dtype=np.float64), np.asarray(contexts, dtype=np.float64)
    if rows.ndim not in (2, 3) or context.ndim != 2 or len(rows) != len(context):
        raise PrefkitError(f"each pair or option needs one context, got shapes {rows.shape} and {context.shape}")
    if rows.ndim == 3:
        context = np.repeat(context[:, None], rows.shape[1], axis=1)
    return np.concatenate([rows, context], axis=-1)


def _alone(options: Any) -> Any:
    """Single options, features or names, as rows of one option."""
    return [[option] for option in options] if np.ndim(options) == 1 else np.asarray(options)[:, None]
