"""Populations that disagree: an ideal point for every person, mixed from a few prototypes that all share."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.preference.descent import minimise_by_gradient, seeded
from prefkit.preference.estimator import PreferenceModel, check_positive, check_width
from prefkit.preference.ideal_points import (
    angle_logits,
    check_mixture,
    distance_score,
    hardened,
    hinge_loss,
    logistic_loss,
    mix_prompt_points,
    mixture_weights,
    prototype_bound_loss,
    smooth_hinge_loss,
)
from prefkit.preference.inputs import Floats, check_some_preference, options_of, outcomes_of, pairs_of, weights_of
from prefkit.preference.networks import check_options_differ, prompts_of

Variant: TypeAlias = Literal["A", "B"]
Mixing: TypeAlias = Literal["f(Pw)", "f(P)w", "Pw", "|f(P)|w"]
Score: TypeAlias = Literal["dist", "dist_normalization", "angle", "norm"]
Loss: TypeAlias = Literal["hinge", "smooth_hinge", "logistic"]

CHOICES: Mapping[str, Sequence[str]] = {
    "variant": ("A", "B"),
    "mixing": ("f(Pw)", "f(P)w", "Pw", "|f(P)|w"),
    "score": ("dist", "dist_normalization", "angle", "norm"),
    "loss": ("hinge", "smooth_hinge", "logistic"),
}

LOG_SCALE = float(np.log(1 / 0.07))
"""Where the logarithm of the factor of cosines starts."""

PROJECTOR = re.compile(
    r"mlp(?P<layers>\d+)(-(?P<activation>relu|gelu|tanh))?(-dropout(?P<dropout>\d+))?(-(?P<more>residual|batchnorm|nobias))?"
)


class Projector(nn.Module):
    """`mlpN-act-dropoutX[-residual|-batchnorm|-nobias]`: N hidden layers as wide as the output, then a linear one.

    Args:
        form: as above; X are the digits behind the point, so that dropout5 drops one half.
        inputs: width of the input.
        outputs: width of the output.

    Raises:
        OptionError: the form is unknown, or a residual projector changes the width.
    """

    def __init__(self, form: str, inputs: int, outputs: int) -> None:
        super().__init__()
        found = PROJECTOR.fullmatch(form)
        if found is None:
            raise OptionError(
                f"projector must have the form mlpN-act-dropoutX, with -residual, -batchnorm or -nobias behind it, "
                f"such as 'mlp2-relu-dropout0-residual' or 'mlp0', got '{form}'"
            )
        more = found["more"]
        self.residual = more == "residual"
        if self.residual and inputs != outputs:
            raise OptionError(f"a residual projector keeps the width: got {inputs} features and width {outputs}")
        activation = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[found["activation"] or "relu"]
        layers: list[nn.Module] = []
        width = inputs
        for _ in range(int(found["layers"])):
            layers.append(nn.Linear(width, outputs, bias=more != "nobias"))
            if more == "batchnorm":
                layers.append(nn.BatchNorm1d(outputs))
            layers += [nn.Dropout(float(f"0.{found['dropout'] or 0}")), activation()]
            width = outputs
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs, bias=more != "nobias"))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs]` to `[n, outputs]`."""
        found: Tensor = self.layers(x)
        if self.residual:
            found = found + x
        return found


class IdealSpace(nn.Module):
    """Projector, prototypes and factor of cosines: all that people share; see `IdealPoints` for what the options mean.

    Args:
        inputs: number of features of an option.
        prototypes: K.
        prompt_features: number of features of a prompt, where prototypes are functions of it (variant B).
        mixing: how a person's point is made of the prototypes.
        score: what of an option and a point is compared.
        projector: see `Projector`.
        width: of the latent space; None for the number of features.

    Raises:
        OptionError: the projector has an unknown form.
    """

    def __init__(
        self,
        inputs: int,
        prototypes: int,
        *,
        prompt_features: int | None = None,
        mixing: Mixing = "f(Pw)",
        score: Score = "dist",
        projector: str = "mlp0",
        width: int | None = None,
    ) -> None:
        super().__init__()
        width = width or inputs
        self.mixing, self.kind = mixing, score
        self.project = Projector(projector, inputs, width)
        if prompt_features is not None:
            own = [Projector(projector, prompt_features, width) for _ in range(prototypes)]
            self.of_prompt: nn.ModuleList | None = nn.ModuleList(own)
        else:
            self.of_prompt = None
            size = width if mixing == "Pw" and score != "norm" else inputs
            self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, size), dim=1))
        self.log_scale = nn.Parameter(torch.tensor(LOG_SCALE)) if score == "angle" else None

    def points(self, weights: Tensor, prompts: Tensor | None) -> Tensor:
        """`[n, width]`, ideal points for weights `[n, K]` of the prototypes, and in variant B for prompts."""
        if self.of_prompt is not None:
            return mix_prompt_points(weights, torch.stack([own(prompts) for own in self.of_prompt], dim=1))
        mixed: Tensor = self.prototypes
        if self.mixing in ("f(P)w", "|f(P)|w") and self.kind != "norm":
            mixed = self.project(mixed)
        if self.mixing == "|f(P)|w":
            mixed = F.normalize(mixed, dim=-1)
        mixed = weights @ mixed
        return self.project(mixed) if self.mixing == "f(Pw)" and self.kind != "norm" else mixed

    def forward(self, left: Tensor, right: Tensor, points: Tensor) -> Tensor:
        """Scores `[n]`: negative where the left option is preferred."""
        match self.kind:
            case "norm":
                return _length(self.project(left - points)) - _length(self.project(right - points))
            case "angle":
                assert self.log_scale is not None
                logits = angle_logits(self.project(left), self.project(right), points, self.log_scale)
                return logits[..., 1] - logits[..., 0]
        normalise = self.kind == "dist_normalization"
        return distance_score(self.project(left), self.project(right), points, normalise=normalise)

    def reward(self, options: Tensor, points: Tensor) -> Tensor:
        """Rewards `[n]` whose differences are the scores, with the sign turned round."""
        match self.kind:
            case "norm":
                return -_length(self.project(options - points))
            case "angle":
                assert self.log_scale is not None
                return angle_logits(self.project(options), self.project(options), points, self.log_scale)[..., 0]
        projected, where = self.project(options), points
        if self.kind == "dist_normalization":
            projected, where = F.normalize(projected, dim=-1), F.normalize(where, dim=-1)
        return -_length(projected - where)


def _length(vectors: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return found


class IdealPoints(PreferenceModel):
    """What is nearer to a person's ideal point is preferred; ideal points are mixtures of shared prototypes.

    In variant A an option is prompt and response together, and prototypes are points. In variant B it is the response
    alone, and prototypes are functions of the prompt, so that `fit` and predictions take `prompts`.

    Args:
        prototypes: K; 1 is one taste for all.
        variant: "A" or "B".
        mixing: how a point is made in variant A: "f(Pw)" projects the mixture, "f(P)w" mixes projections, "Pw" has
            prototypes behind the projection, "|f(P)|w" mixes projections of length 1.
        score_type: "dist" compares distances, "dist_normalization" those on the unit sphere, "angle" cosines, "norm"
            the projected differences (variant A; prototypes then lie before the projection). None takes "dist" for A
            and "angle" for B.
        loss: "hinge", "smooth_hinge" or "logistic" (which is the cross-entropy of two logits, for angles). None takes
            "hinge" for A and "logistic" for B. Only "logistic" makes `predict_proba` a likelihood that was fitted.
        margin: of the hinges.
        gamma: width of the smooth hinge.
        projector: see `Projector`; "mlp0" is linear.
        width: of the latent space; None for the number of features.
        temperature: of the softmax of a person's weights.
        partition: predict by each person's largest weight alone.
        balance: let every person count alike, however many comparisons each made.
        bound: largest norm of ideal points that costs nothing; None for no bound.
        bound_weight: cost beyond it.
        learning_rate: of the projectors.
        prototype_rate: of the prototypes.
        annotator_rate: of the people's weights.
        scale_rate: of the factor of cosines.
        weight_decay: of the projectors.
        steps: updates.
        batch_size: rows an update; None for all.
        seed: of weights and shuffling.
        device: where it is computed.

    Attributes:
        annotators_: the people, in the order of `mixtures_`.
        mixtures_: `[people, K]`, weights of the prototypes.
        n_features_in_: number of features.
        n_prompt_features_: number of features of prompts, in variant B.
        loss_curve_: loss of each update.

    Source: Chen et al. 2024 (PAL, arXiv 2406.08469). The defaults of rates and projector are this library's, for
        features; the authors' for OPT-350M are projector "mlp2-relu-dropout0-residual", rates 1e-4, 5e-3, 5e-3 and 0.1.
    """

    def __init__(
        self,
        *,
        prototypes: int = 2,
        variant: Variant = "A",
        mixing: Mixing = "f(Pw)",
        score_type: Score | None = None,
        loss: Loss | None = None,
        margin: float = 1.0,
        gamma: float = 5.0,
        projector: str = "mlp0",
        width: int | None = None,
        temperature: float = 1.0,
        partition: bool = False,
        balance: bool = False,
        bound: float | None = None,
        bound_weight: float = 1.0,
        learning_rate: float = 0.01,
        prototype_rate: float = 0.02,
        annotator_rate: float = 0.05,
        scale_rate: float = 0.1,
        weight_decay: float = 0.0,
        steps: int = 250,
        batch_size: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.prototypes = prototypes
        self.variant = variant
        self.mixing = mixing
        self.score_type = score_type
        self.loss = loss
        self.margin = margin
        self.gamma = gamma
        self.projector = projector
        self.width = width
        self.temperature = temperature
        self.partition = partition
        self.balance = balance
        self.bound = bound
        self.bound_weight = bound_weight
        self.learning_rate = learning_rate
        self.prototype_rate = prototype_rate
        self.annotator_rate = annotator_rate
        self.scale_rate = scale_rate
        self.weight_decay = weight_decay
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.device = device

    module_: _Population
    annotators_: NDArray[Any]
    mixtures_: Floats
    n_features_in_: int
    n_prompt_features_: int | None
    loss_curve_: list[float]

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        annotators: Sequence[Hashable] | None = None,
        prompts: ArrayLike | None = None,
        **given: Any,
    ) -> Self:
        """Fit to comparisons of features; see `PreferenceModel`.

        Args:
            X: `[n, 2, d]`.
            y: outcomes.
            sample_weight: weight of each row.
            annotators: who judged each row.
            prompts: `[n, p]`, features of the prompts, for variant B.
            given: nothing else.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: a parameter is out of range.
        """
        self._check_parameters()
        array, target, weight = self._data(X, y, sample_weight)
        if annotators is None:
            raise PrefkitError("ideal points belong to people: give annotators, who judged each row")
        people, codes = self._people(annotators, weight)
        if len(people) == 1 and self.prototypes > 1:
            raise OptionError(
                f"all comparisons are by one annotator, {people[0]!r}: {self.prototypes} prototypes cannot be told "
                "apart, set prototypes=1"
            )
        contexts = self._prompts(prompts, len(array))
        self.n_features_in_ = array.shape[2]
        self.classes_ = np.array([0.0, 1.0])
        self.n_prompt_features_ = None if contexts is None else contexts.shape[1]
        self.module_ = seeded(lambda: self._build(len(people)), self.seed).to(self.device)
        shared, logits = self._shared, self._logits
        groups: list[dict[str, Any]] = [
            {"params": list(shared.project.parameters()), "lr": self.learning_rate, "weight_decay": self.weight_decay},
            {"params": [logits], "lr": self.annotator_rate},
        ]
        if shared.of_prompt is not None:
            groups[0]["params"] += list(shared.of_prompt.parameters())
        else:
            groups.append({"params": [shared.prototypes], "lr": self.prototype_rate})
        if shared.log_scale is not None:
            groups.append({"params": [shared.log_scale], "lr": self.scale_rate})
        self.module_.train()
        self.loss_curve_ = self._descend(
            groups, logits, array, target, weight, codes, contexts, self.steps, self.batch_size, self.seed
        )
        self.module_.eval()
        self.annotators_ = people
        self.mixtures_ = self._mixed(logits)
        return self

    def fit_annotators(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        annotators: Sequence[Hashable],
        prompts: ArrayLike | None = None,
        steps: int = 150,
        learning_rate: float = 0.1,
        start: Literal["zero", "normal"] = "zero",
        seed: int = 0,
    ) -> Self:
        """Learn the mixtures of new people from a few comparisons each; everything else stays as it is.

        Args:
            X: `[n, 2, d]`.
            y: outcomes.
            sample_weight: weight of each row.
            annotators: who judged each row; those that are known already get a new mixture.
            prompts: see `fit`.
            steps: updates.
            learning_rate: of AdamW.
            start: "zero" begins at equal weights, "normal" at random ones (the authors' code).
            seed: of random ones.

        Returns:
            The model, which now knows these people too.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: an option is out of range.
        """
        check_is_fitted(self)
        check_positive("learning_rate", learning_rate)
        check_positive("steps", steps)
        if start not in ("zero", "normal"):
            raise OptionError(unknown("start", str(start), ("zero", "normal")))
        array, target, weight = self._data(X, y, sample_weight)
        check_width(self, array)
        people, codes = self._people(annotators, weight)
        logits = torch.zeros(len(people), self.prototypes)
        if start == "normal":
            logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        logits = logits.to(self.device).requires_grad_()
        contexts = self._prompts(prompts, len(array))
        groups = [{"params": [logits], "lr": learning_rate}]
        self._descend(groups, logits, array, target, weight, codes, contexts, steps, None, seed)
        new = set(people.tolist())
        kept = np.array([person not in new for person in self.annotators_.tolist()], dtype=bool)
        self.mixtures_ = np.concatenate([self.mixtures_[kept], self._mixed(logits)])
        self.annotators_ = _names([*self.annotators_[kept].tolist(), *people.tolist()])
        return self

    def decision_function(
        self,
        X: Any,
        *,
        annotators: Sequence[Hashable] | None = None,
        weights: ArrayLike | None = None,
        prompts: ArrayLike | None = None,
        **given: Any,
    ) -> Floats:
        """`[n]`, how much nearer the first option is to the ideal point.

        Args:
            X: `[n, 2, d]`.
            annotators: who judges each row; by default the mean mixture of all people.
            weights: `[K]` or `[n, K]`, a mixture of one's own instead.
            prompts: features of the prompts, for variant B.
            given: nothing else.

        Raises:
            PrefkitError: an annotator is unknown.
            OptionError: the weights are not on the simplex.
        """
        array = torch.from_numpy(self._options(X)).float().to(self.device)
        points = self._ideal(len(array), annotators, weights, prompts)
        with torch.no_grad():
            scores = self._shared(array[:, 0], array[:, 1], points)
        return -np.asarray(scores.double().cpu().numpy())

    def decisions(self, X: Any, *, prompts: ArrayLike | None = None) -> Floats:
        """`[people, n]`, what each of the people of `annotators_` makes of the comparisons.

        With `infer_context` they predict a new person of whom little is known: as somebody like them, each as likely as
        the new person's judgements make it.

        Args:
            X: `[n, 2, d]`.
            prompts: see `decision_function`.
        """
        check_is_fitted(self)
        return np.stack([self.decision_function(X, weights=own, prompts=prompts) for own in self.mixtures_])

    def predict_log_proba(self, X: Any, **given: Any) -> Floats:
        """See `PreferenceModel`."""
        odds = torch.from_numpy(self.decision_function(X, **given))
        return torch.stack([F.logsigmoid(-odds), F.logsigmoid(odds)], dim=1).numpy()

    def reward(
        self,
        options: ArrayLike,
        *,
        annotators: Sequence[Hashable] | None = None,
        weights: ArrayLike | None = None,
        prompts: ArrayLike | None = None,
    ) -> Floats:
        """`[n]`, a reward of single options for a fixed mixture, for the training of policies.

        Args:
            options: `[n, d]` features.
            annotators: see `decision_function`, as are the others.
            weights: see `decision_function`.
            prompts: see `decision_function`.
        """
        check_is_fitted(self)
        array = options_of(np.asarray(options)[:, None])
        check_width(self, array)
        points = self._ideal(len(array), annotators, weights, prompts)
        with torch.no_grad():
            found = self._shared.reward(torch.from_numpy(array[:, 0]).float().to(self.device), points)
        return np.asarray(found.double().cpu().numpy())

    def mixture(self, annotators: Sequence[Hashable] | None, n: int) -> Floats:
        """`[n, K]`, weights of the prototypes for people, or the mean of all people.

        Raises:
            PrefkitError: one is unknown, or there are more or fewer than rows.
        """
        check_is_fitted(self)
        if annotators is None:
            return np.broadcast_to(self.mixtures_.mean(axis=0), (n, self.prototypes))
        if len(annotators) != n:
            raise PrefkitError(f"annotators must name who judged each row ({n} rows), got {len(annotators)}")
        places = {person: place for place, person in enumerate(self.annotators_.tolist())}
        for row, person in enumerate(annotators):
            if person not in places:
                raise PrefkitError(
                    f"row {row}: annotator {person!r} is unknown to the model; teach it a few comparisons with "
                    "fit_annotators, or leave annotators out for the mean of all people"
                )
        found: Floats = self.mixtures_[[places[person] for person in annotators]]
        return found

    def restore_module(self, weights: Mapping[str, Tensor]) -> None:
        """Build the network again, with weights that were saved.

        Args:
            weights: the network's state.

        Raises:
            RuntimeError: they are those of another network.
        """
        self.module_ = self._build(len(weights["logits"])).to(self.device)
        self.module_.load_state_dict(dict(weights))
        self.module_.eval()

    # --- inside

    @property
    def _score_type(self) -> Score:
        return self.score_type or ("dist" if self.variant == "A" else "angle")

    @property
    def _loss(self) -> Loss:
        return self.loss or ("hinge" if self.variant == "A" else "logistic")

    @property
    def _shared(self) -> IdealSpace:
        return self.module_.shared

    @property
    def _logits(self) -> nn.Parameter:
        return self.module_.logits

    def _build(self, people: int) -> _Population:
        shared = IdealSpace(
            self.n_features_in_,
            self.prototypes,
            prompt_features=self.n_prompt_features_,
            mixing=self.mixing,
            score=self._score_type,
            projector=self.projector,
            width=self.width,
        )
        return _Population(shared, people, self.prototypes)

    def _data(
        self, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None
    ) -> tuple[NDArray[Any], Floats, Floats]:
        array = pairs_of(X)
        if array.ndim == 2:
            raise OptionError("ideal points lie among features: X must be [n, 2, d], got names of options")
        check_options_differ(array)
        outcomes, weights = outcomes_of(y, len(array)), weights_of(sample_weight, len(array))
        check_some_preference(outcomes, weights)
        return array, outcomes, weights

    def _people(self, annotators: Sequence[Hashable], weights: Floats) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Names of people, and the place of each row's among them."""
        if len(annotators) != len(weights):
            raise PrefkitError(
                f"annotators must name who judged each row ({len(weights)} rows), got {len(annotators)} names"
            )
        places: dict[Hashable, int] = {}
        for row, person in enumerate(annotators):
            if person is None or person != person:
                raise PrefkitError(f"row {row}: the annotator is missing")
            places.setdefault(person, len(places))
        codes = np.array([places[person] for person in annotators])
        counts = np.bincount(codes, weights)
        if not counts.all():
            raise PrefkitError(f"annotator {list(places)[int(counts.argmin())]!r} has no judgement of positive weight")
        return _names(list(places)), codes

    def _prompts(self, prompts: ArrayLike | None, n: int) -> Tensor | None:
        contexts = prompts_of(prompts, n)
        if contexts is None and self.variant == "B":
            raise OptionError("variant B needs prompts, the features of each row's prompt")
        if contexts is not None and self.variant == "A":
            raise OptionError("variant A reads no prompts: options are prompt and response together")
        return None if contexts is None else contexts.to(self.device)

    def _ideal(
        self, n: int, annotators: Sequence[Hashable] | None, weights: ArrayLike | None, prompts: ArrayLike | None
    ) -> Tensor:
        if weights is not None and annotators is not None:
            raise OptionError("give annotators or weights, not both")
        given = self.mixture(annotators, n) if weights is None else np.asarray(weights, dtype=np.float64)
        if given.shape[-1] != self.prototypes:
            raise OptionError(f"a mixture needs {self.prototypes} weights, got {given.shape[-1]}")
        mixture = torch.from_numpy(np.array(np.broadcast_to(given, (n, self.prototypes)))).float().to(self.device)
        check_mixture(mixture)
        if self.partition:
            mixture = hardened(mixture)
        with torch.no_grad():
            return self._shared.points(mixture, self._prompts(prompts, n))

    def _mixed(self, logits: Tensor) -> Floats:
        found = mixture_weights(logits.detach(), temperature=self.temperature).double()
        return np.asarray((found / found.sum(dim=1, keepdim=True)).cpu().numpy())

    def _descend(
        self,
        groups: Sequence[dict[str, Any]],
        logits: Tensor,
        array: NDArray[Any],
        target: Floats,
        weight: Floats,
        codes: NDArray[np.int64],
        contexts: Tensor | None,
        steps: int,
        batch_size: int | None,
        seed: int,
    ) -> list[float]:
        """Minimise the loss in the parameters of the groups."""
        if self.balance:
            weight = weight / np.bincount(codes, weight)[codes]
        options = torch.from_numpy(array).float().to(self.device)
        outcomes, shares = (torch.from_numpy(x).float().to(self.device) for x in (target, weight))
        people = torch.from_numpy(codes).to(self.device)
        shared = self._shared

        def loss(rows: Tensor) -> Tensor:
            mixture = mixture_weights(logits[people[rows]], temperature=self.temperature)
            points = shared.points(mixture, None if contexts is None else contexts[rows])
            scores = shared(options[rows, 0], options[rows, 1], points)
            right = torch.ones_like(scores)
            # A batch may hold rows of weight 0 only.
            share = shares[rows] / shares[rows].sum().clamp_min(torch.finfo(shares.dtype).tiny)
            losses = outcomes[rows] * self._pair_loss(scores, -right)
            losses = losses + (1 - outcomes[rows]) * self._pair_loss(scores, right)
            total = (share * losses).sum()
            if self.bound is None:
                return total
            return total + prototype_bound_loss(points, upper_bound=self.bound, weight=self.bound_weight)

        return minimise_by_gradient(
            groups, loss, len(array), steps=steps, batch_size=batch_size, seed=seed, device=self.device
        )

    def _pair_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        match self._loss:
            case "hinge":
                return hinge_loss(scores, labels, margin=self.margin)
            case "smooth_hinge":
                return smooth_hinge_loss(scores, labels, margin=self.margin, gamma=self.gamma)
        return logistic_loss(scores, labels)

    def _check_parameters(self) -> None:
        if self.prototypes < 1:
            raise OptionError(f"prototypes must be at least 1, got {self.prototypes}")
        for name, known in CHOICES.items():
            given = getattr(self, name if name != "score" else "score_type")
            if given not in known and not (given is None and name in ("score", "loss")):
                raise OptionError(unknown(name, str(given), known))
        if self.variant == "B" and (self._score_type == "norm" or self.mixing != "f(Pw)"):
            raise OptionError("score_type='norm' and mixing are of variant A")
        for rate in (
            "learning_rate",
            "prototype_rate",
            "annotator_rate",
            "scale_rate",
            "temperature",
            "gamma",
            "steps",
        ):
            check_positive(rate, getattr(self, rate))
        check_positive("weight_decay", self.weight_decay, zero=True)


class _Population(nn.Module):
    """What all share, and the logits of each person's weights."""

    def __init__(self, shared: IdealSpace, people: int, prototypes: int) -> None:
        super().__init__()
        self.shared = shared
        self.logits = nn.Parameter(torch.randn(people, prototypes))


def _names(people: Sequence[Any]) -> NDArray[Any]:
    found = np.empty(len(people), dtype=object)
    found[:] = people
    return found


class HeldOut(NamedTuple):
    """Held-out figures of a number of prototypes.

    Args:
        prototypes: K.
        log_likelihood: mean over held-out comparisons, in nats.
        accuracy: on the same.
        behind: by how much less likely they are than under the best number, a mean over people.
        standard_error: of that, over people.
    """

    prototypes: int
    log_likelihood: float
    accuracy: float
    behind: float
    standard_error: float


def choose_prototypes(
    model: IdealPoints,
    X: Any,
    y: ArrayLike | None = None,
    *,
    annotators: Sequence[Hashable],
    prompts: ArrayLike | None = None,
    candidates: Sequence[int] = (1, 2, 3, 4),
    folds: int = 5,
    seed: int = 0,
) -> tuple[int, list[HeldOut]]:
    """The number of prototypes under which held-out comparisons of the same people are most likely.

    Each person's comparisons are dealt into folds; those of a person who made one are always trained on. More
    prototypes than there are tastes hardly change the held-out likelihood, so the smallest number is taken that falls
    behind the best by less than one standard error of the difference, over people.

    Args:
        model: with every other parameter set; `loss="logistic"` makes its probabilities likelihoods.
        X: `[n, 2, d]`.
        y: outcomes.
        annotators: who judged each row.
        prompts: see `IdealPoints.fit`.
        candidates: numbers to try.
        folds: at least 2.
        seed: of the folds.

    Returns:
        The number, and the figures of all.

    Raises:
        OptionError: there are no candidates, or fewer than 2 folds.
        PrefkitError: nobody made two comparisons.
    """
    if not candidates or folds < 2:
        raise OptionError(f"there must be candidates and at least 2 folds, got {list(candidates)} and {folds}")
    array = pairs_of(X)
    n = len(array)
    outcomes = outcomes_of(y, n)
    people = _names(list(annotators))
    contexts = None if prompts is None else np.asarray(prompts)
    if len(people) != n:
        raise PrefkitError(f"annotators must name who judged each row ({n} rows), got {len(people)} names")
    fold = _dealt(people, folds, seed)
    counts, found = sorted(set(candidates)), []
    for count in counts:
        terms, right = np.full(n, np.nan), np.full(n, np.nan)
        for held in range(folds):
            test, rest = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
            if not len(test):
                continue
            fitted = clone(model).set_params(prototypes=count)
            own: dict[str, Any] = {} if contexts is None else {"prompts": contexts[rest]}
            fitted.fit(array[rest], outcomes[rest], annotators=people[rest].tolist(), **own)
            own = {} if contexts is None else {"prompts": contexts[test]}
            log_p = fitted.predict_log_proba(array[test], annotators=people[test].tolist(), **own)
            terms[test] = outcomes[test] * log_p[:, 1] + (1 - outcomes[test]) * log_p[:, 0]
            right[test] = 0.5 + np.sign(log_p[:, 1] - log_p[:, 0]) * (outcomes[test] - 0.5)
        found.append((terms, right))
    tested = fold >= 0
    best = max((terms for terms, _ in found), key=lambda terms: float(terms[tested].mean()))
    members = [np.flatnonzero(tested & (people == person)) for person in dict.fromkeys(people[tested].tolist())]
    figures = []
    for count, (terms, right) in zip(counts, found, strict=True):
        gaps = np.array([(best[rows] - terms[rows]).mean() for rows in members])
        error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else 0.0
        likelihood, accuracy = float(terms[tested].mean()), float(right[tested].mean())
        figures.append(HeldOut(count, likelihood, accuracy, float(gaps.mean()), error))
    return next(each.prototypes for each in figures if each.behind <= each.standard_error), figures


def _dealt(people: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row; -1 for rows of people with no other."""
    rng = np.random.default_rng(seed)
    fold = np.full(len(people), -1)
    rows_of: dict[Hashable, list[int]] = {}
    for row, person in enumerate(people.tolist()):
        rows_of.setdefault(person, []).append(row)
    for rows in rows_of.values():
        if len(rows) > 1:
            fold[rng.permutation(rows)] = (np.arange(len(rows)) + rng.integers(folds)) % folds
    if (fold < 0).all():
        raise PrefkitError("no annotator made two comparisons, so that none can be held out")
    return fold
