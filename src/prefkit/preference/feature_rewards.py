"""Reward models on features: a small network that is fitted to choices between pairs of feature vectors.

They follow the conventions of scikit-learn's estimators. Pairs are `X [pairs, 2, features]`; `y [pairs]` is the
probability that the first response is preferred: 1, 0, or a soft label between; without `y` it always is.

Source: Zhang et al. 2024, Leveraging Domain Knowledge for Efficient Reward Modelling (arXiv 2402.15473); voting and
losses: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080).
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import expit

from prefkit.errors import OptionError, PrefkitError, RecordError, unknown
from prefkit.objectives import PreferenceStrength, adaptive_margin_loss, preference_strength
from prefkit.objectives.agreement import Smoothed
from prefkit.objectives.noise import soft_labels
from prefkit.preference.network import Activation, FeedforwardReward

_FILE, _FORMAT = "feature_reward.json", 1


class FeatureRewardModel:
    """A feed-forward reward on features, fitted by the likelihood of Bradley-Terry choices.

    Args:
        layers: sizes of the hidden layers; none is a linear reward.
        activation: after the first layer; see `feedforward_scores`.
        inner_activation: after the layers between.
        output_activation: after the last layer; with a relu, rewards are flat where it is 0.
        context_features: how many of the last features describe a context (a criterion, a person), which both
            responses of a pair share; see `FeedforwardReward` and `with_contexts`.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        betas: of AdamW.
        epochs: passes over the pairs, at least 1.
        batch_size: pairs an update; None takes all at once.
        warmup: share of the updates over which the learning rate rises, in [0, 1).
        schedule: how it goes on: "constant" or "cosine" down to 0.
        clip: bound of the norm of the gradient; None for no bound.
        alpha: smoothing of labels, in [0, 0.5].
        smoothed: "all" labels, or those of "negative" margin.
        zero_start: start from weights of 0, for linear rewards only.
        feature_names: names of the features, for messages and `explain`.
        random_state: seed of the first weights and of the order of pairs.

    Attributes:
        network_: the fitted network.
        n_features_in_: number of features.
        classes_: `[0, 1]`, the outcomes in the order of the columns of `predict_proba`.
        losses_: mean training loss of each epoch, in nats.
    """

    network_: FeedforwardReward
    n_features_in_: int
    classes_: NDArray[np.int64]
    losses_: list[float]

    def __init__(
        self,
        layers: Sequence[int] = (),
        *,
        activation: Activation | None = "tanh",
        inner_activation: Activation | None = None,
        output_activation: Activation | None = None,
        context_features: int = 0,
        learning_rate: float = 0.05,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        epochs: int = 150,
        batch_size: int | None = None,
        warmup: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        clip: float | None = None,
        alpha: float = 0.0,
        smoothed: Smoothed = "all",
        zero_start: bool = False,
        feature_names: Sequence[str] | None = None,
        random_state: int = 0,
    ) -> None:
        self.layers, self.activation, self.inner_activation = layers, activation, inner_activation
        self.output_activation, self.context_features = output_activation, context_features
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.betas, self.epochs, self.batch_size, self.warmup = betas, epochs, batch_size, warmup
        self.schedule, self.clip, self.alpha, self.smoothed = schedule, clip, alpha, smoothed
        self.zero_start, self.feature_names, self.random_state = zero_start, feature_names, random_state

    # -- scikit-learn's conventions ---------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments as they were given."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor.

        Raises:
            OptionError: there is no such argument.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise OptionError(unknown("parameter", name, known))
            setattr(self, name, value)
        return self

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        margins: ArrayLike | None = None,
    ) -> Self:
        """Fit the reward to choices.

        Args:
            X: `[pairs, 2, features]`.
            y: `[pairs]`, probability that the first response is preferred; 1 by default.
            sample_weight: `[pairs]`, weight of each pair, at least 0.
            margins: `[pairs]`, by how much the preferred response has to be ahead, in log-odds; may be negative.

        Raises:
            OptionError: an option is out of range.
            RecordError: a number is not finite, or a label lies outside [0, 1]; names row and feature.
            PrefkitError: shapes do not fit together, or there are no pairs or features.
        """
        self._check_options()
        features = self._pairs(X)
        labels = _labels(y, len(features))
        constant = (features == features[:1, :1]).all((0, 1))
        if constant.any():
            names = ", ".join(self._name(int(place)) for place in np.flatnonzero(constant))
            warnings.warn(f"features that are constant say nothing about a choice: {names}", stacklevel=2)
        self.n_features_in_ = features.shape[2]
        if self.feature_names is not None and len(self.feature_names) != self.n_features_in_:
            raise OptionError(f"feature_names must name {self.n_features_in_} features, got {len(self.feature_names)}")
        self.classes_ = np.array([0, 1])
        generator = torch.Generator().manual_seed(self.random_state)
        self.network_ = self._network(self.n_features_in_, None if self.zero_start else generator)
        self._descend(
            torch.from_numpy(features).float(),
            torch.from_numpy(labels).float(),
            torch.from_numpy(_column(margins, labels, "margins", 0.0)).float(),
            torch.from_numpy(_column(sample_weight, labels, "sample_weight", 1.0)).float(),
            generator,
        )
        return self

    def reward(self, features: ArrayLike) -> NDArray[np.float64]:
        """Reward of single responses, in log-odds, `[n]`.

        Args:
            features: `[n, features]`.

        Raises:
            PrefkitError: the model is not fitted, or the features are others than those it was fitted to.
            RecordError: a feature is no finite number.
        """
        rows = np.ascontiguousarray(features, dtype=np.float64)
        if rows.ndim != 2:
            raise PrefkitError(f"rewards are of rows [n, features], got shape {rows.shape}")
        self._check_features(rows)
        with torch.no_grad():
            found: NDArray[np.float64] = self.network_(torch.from_numpy(rows).float()).double().numpy()
        return found

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Reward of the first response less that of the second, `[pairs]`: above 0 the first is preferred."""
        pairs = self._pairs(X)
        return self.reward(pairs[:, 0]) - self.reward(pairs[:, 1])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability that the second, and that the first response is preferred, `[pairs, 2]`."""
        difference = self.decision_function(X)
        return np.column_stack([expit(-difference), expit(difference)])

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """1 where the first response has the higher reward, 0 elsewhere, `[pairs]`."""
        return (self.decision_function(X) > 0).astype(np.int64)

    def score(self, X: ArrayLike, y: ArrayLike | None = None) -> float:
        """Share of choices that are predicted, equal rewards counting half.

        Args:
            X: `[pairs, 2, features]`.
            y: `[pairs]`, probability that the first response is preferred; a soft label counts for both sides.
        """
        difference = self.decision_function(X)
        return float((0.5 + np.sign(difference) * (_labels(y, len(difference)) - 0.5)).mean())

    def explain(self, features: ArrayLike | None = None) -> dict[str, float]:
        """What each feature is worth to the reward: its mean gradient, which of a linear reward is its weight.

        Args:
            features: `[n, features]`, where gradients are taken; a linear reward needs none.

        Raises:
            PrefkitError: the reward is not linear and no features are given, or as `reward`.
        """
        self._check_fitted()
        linear = not self.layers and self.output_activation is None and not self.context_features
        if features is None and not linear:
            raise PrefkitError("the gradients of a reward with hidden layers differ from place to place: give features")
        rows = np.zeros((1, self.n_features_in_)) if features is None else np.ascontiguousarray(features, np.float64)
        self._check_features(rows)
        inputs = torch.from_numpy(rows).float().requires_grad_()
        (gradient,) = torch.autograd.grad(self.network_(inputs).sum(), inputs)
        return {self._name(place): float(value) for place, value in enumerate(gradient.mean(0))}

    # -- folders ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and options (JSON) to a folder, which is made if it does not exist."""
        self._check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach() for name, p in self.network_.named_parameters()}, folder / "weights.safetensors")
        about = {"format": _FORMAT, "features": self.n_features_in_, "params": _plain(self.get_params())}
        (folder / _FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote. Nothing in it runs code.

        Raises:
            OptionError: it cannot be read, or its parts do not fit together.
        """
        try:
            about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            weights = load_file(folder / "weights.safetensors")
            if about["format"] != _FORMAT:
                raise OptionError(f"'{folder}' has format {about['format']}, this version knows {_FORMAT}")
            params = {**about["params"], "betas": tuple(about["params"]["betas"])}
            model = cls().set_params(**params)
            model._check_options()
            model.n_features_in_, model.classes_, model.losses_ = int(about["features"]), np.array([0, 1]), []
            model.network_ = model._network(model.n_features_in_, None)
            model.network_.load_state_dict(weights)
        except OptionError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise OptionError(f"the feature reward model '{folder}' cannot be read: {error}") from error
        return model

    @staticmethod
    def is_saved(folder: Path) -> bool:
        """Whether a folder holds such a model."""
        return (folder / _FILE).is_file()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _network(self, features: int, generator: torch.Generator | None) -> FeedforwardReward:
        return FeedforwardReward(
            features,
            self.layers,
            activation=self.activation,
            inner_activation=self.inner_activation,
            output_activation=self.output_activation,
            context_features=self.context_features,
            generator=generator,
        )

    def _descend(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        margins: torch.Tensor,
        weights: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        optimiser = torch.optim.AdamW(
            self.network_.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, betas=self.betas
        )
        size = self.batch_size or len(labels)
        updates = self.epochs * math.ceil(len(labels) / size)
        rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: self._rate(step, updates))
        self.losses_ = []
        for _ in range(self.epochs):
            total = 0.0
            order = torch.randperm(len(labels), generator=generator)
            for batch in torch.split(order, size):
                losses = self._losses(features[batch], labels[batch], margins[batch])
                loss = (losses * weights[batch]).mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(self.network_.parameters(), self.clip)
                optimiser.step()
                rates.step()
                total += loss.item() * len(batch)
            self.losses_.append(total / len(labels))

    def _losses(self, features: torch.Tensor, labels: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
        """Loss of each pair; the margin stands on the side of the likelier label."""
        first, second = self.network_(features).unbind(1)
        likelier = labels >= 0.5
        chosen, rejected = torch.where(likelier, first, second), torch.where(likelier, second, first)
        how: dict[str, Any] = {"alpha": self.alpha, "smoothed": self.smoothed}
        losses = adaptive_margin_loss(chosen, rejected, margins, **how)
        if bool(((labels == 0) | (labels == 1)).all()):
            return losses
        sure = torch.maximum(labels, 1 - labels)
        return soft_labels(losses, adaptive_margin_loss(rejected, chosen, -margins, **how), sure)

    def _rate(self, step: int, updates: int) -> float:
        rising = self.warmup * updates
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(updates - rising, 1)))

    def _pairs(self, X: ArrayLike) -> NDArray[np.float64]:
        pairs = np.ascontiguousarray(X, dtype=np.float64)
        if pairs.ndim != 3 or pairs.shape[1] != 2 or 0 in pairs.shape:
            raise PrefkitError(f"pairs must be [pairs, 2, features], at least one, got shape {pairs.shape}")
        bad = np.argwhere(~np.isfinite(pairs))
        if len(bad):
            row, side, place = bad[0]
            raise RecordError(
                f"feature of response {side} must be a finite number, got {pairs[row, side, place]}",
                field=self._name(int(place)),
                source="X",
                line=int(row) + 1,
            )
        return pairs

    def _check_features(self, rows: NDArray[np.float64]) -> None:
        self._check_fitted()
        if rows.shape[-1] != self.n_features_in_:
            raise PrefkitError(f"the model was fitted to {self.n_features_in_} features, got {rows.shape[-1]}")
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            raise RecordError(
                f"must be a finite number, got {rows[tuple(bad[0])]}",
                field=self._name(int(bad[0][-1])),
                source="X",
                line=int(bad[0][0]) + 1,
            )

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise PrefkitError("the model is not fitted yet: call fit first")

    def _name(self, place: int) -> str:
        named = self.feature_names is not None and place < len(self.feature_names)
        return str(self.feature_names[place]) if named and self.feature_names is not None else f"feature {place}"

    def _check_options(self) -> None:
        checks: dict[str, tuple[bool, str]] = {
            "learning_rate": (self.learning_rate > 0, "greater than 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1, or None"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "schedule": (self.schedule in ("constant", "cosine"), "constant or cosine"),
            "clip": (self.clip is None or self.clip > 0, "greater than 0, or None"),
            "alpha": (0 <= self.alpha <= 0.5, "in [0, 0.5]"),
            "zero_start": (not (self.zero_start and self.layers), "False with hidden layers, which would stay at 0"),
            "smoothed": (self.smoothed in ("all", "negative"), "all or negative"),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise OptionError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        if self.output_activation == "relu":
            warnings.warn("after a relu all rewards below 0 are equal and have no gradient", stacklevel=3)


def with_contexts(features: ArrayLike, contexts: ArrayLike) -> NDArray[np.float64]:
    """Features of pairs or of single responses followed by those of their contexts.

    Args:
        features: `[pairs, 2, features]`, or `[n, features]`.
        contexts: `[pairs, context_features]`, or `[n, context_features]`; both responses of a pair get the same.

    Raises:
        PrefkitError: they do not belong together.
    """
    rows, context = np.asarray(features, dtype=np.float64), np.asarray(contexts, dtype=np.float64)
    if rows.ndim not in (2, 3) or context.ndim != 2 or len(rows) != len(context):
        raise PrefkitError(f"each pair or response needs one context, got shapes {rows.shape} and {context.shape}")
    if rows.ndim == 3:
        context = np.repeat(context[:, None], rows.shape[1], axis=1)
    return np.concatenate([rows, context], axis=-1)


def vote_strength(
    model: FeatureRewardModel,
    X: ArrayLike,
    y: ArrayLike | None = None,
    *,
    members: int = 10,
    folds: int | None = None,
    normalise: bool = False,
    random_state: int = 0,
) -> PreferenceStrength:
    """The strength of each pair by a vote of reward models that differ in order and first weights.

    Args:
        model: what each member is a copy of. Without folds let it see the data once or twice: models that have
            memorised the labels agree with all of them, the wrong ones included.
        X: `[pairs, 2, features]`.
        y: `[pairs]`, probability that the first response is preferred, 0.5 counting as preferred; 1 by default.
        members: number of models, at least 1.
        folds: score each pair by models that were not trained on it, in so many folds.
        normalise: see `preference_strength`.
        random_state: seed of members and folds.

    Raises:
        OptionError: members or folds is out of range.
    """
    pairs = np.asarray(X, dtype=np.float64)
    labels = _labels(y, len(pairs))
    if members < 1 or (folds is not None and not 2 <= folds <= len(labels)):
        raise OptionError(f"members must be at least 1 and folds from 2 to {len(labels)}, got {members} and {folds}")
    signs = np.where(labels >= 0.5, 1.0, -1.0)
    ahead = np.empty((members, len(labels)))
    for member in range(members):
        seed = random_state * 1_000_003 + member
        own = type(model)(**model.get_params()).set_params(random_state=seed)
        parts = np.random.default_rng([seed, 1]).permutation(len(labels)) % (folds or 1)
        for fold in range(folds or 1):
            held = parts == fold
            train = np.ones(len(labels), bool) if folds is None else ~held
            own.fit(pairs[train], labels[train])
            ahead[member, held] = signs[held] * own.decision_function(pairs[held])
    scores = torch.from_numpy(ahead)
    return preference_strength(scores, torch.zeros_like(scores), normalise=normalise)


def _labels(y: ArrayLike | None, pairs: int) -> NDArray[np.float64]:
    labels = np.ones(pairs) if y is None else np.asarray(y, dtype=np.float64)
    if labels.shape != (pairs,):
        raise PrefkitError(f"each pair needs one label: got shape {labels.shape} for {pairs} pairs")
    bad = np.flatnonzero(~((labels >= 0) & (labels <= 1)))
    if len(bad):
        raise RecordError(
            f"must be the probability that the first response is preferred, 1 or 0 or between, got {labels[bad[0]]:g}",
            field="y",
            source="y",
            line=int(bad[0]) + 1,
        )
    return labels


def _column(values: ArrayLike | None, labels: NDArray[np.float64], name: str, default: float) -> NDArray[np.float64]:
    if values is None:
        return np.full(len(labels), default)
    column = np.asarray(values, dtype=np.float64)
    if column.shape != labels.shape:
        raise PrefkitError(f"{name} must hold one number a pair, {len(labels)}, got shape {column.shape}")
    low = 0.0 if name == "sample_weight" else -math.inf
    bad = np.flatnonzero(~np.isfinite(column) | (column < low))
    if len(bad):
        raise RecordError(f"must be a finite number, got {column[bad[0]]:g}", field=name, source=name, line=bad[0] + 1)
    return column


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    lists = {name: list(value) for name, value in params.items() if isinstance(value, list | tuple)}
    return {**params, **lists}
