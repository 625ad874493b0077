"""Heads of reward models: from hidden states of responses to rewards, or to log-odds between two responses.

A head is told the state of each response, and what else it asks for: the state at the end of its prompt, and who
judges. A new kind is a module derived from `Head`, its options, and one entry in `HEADS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, FiniteFloat, field_validator
from torch import Tensor, nn

from prefkit.errors import OptionError
from prefkit.options import Options
from prefkit.preference import IdealSpace, comparison_factors, gate, learned_temperature, mixture_weights
from prefkit.preference.general import LEARNED_START, check_dimension
from prefkit.preference.ideal_points import hardened, mix_prompt_points
from prefkit.preference.population import Mixing, Score


class HeadInputs(NamedTuple):
    """What a head reads of a batch.

    Args:
        states: hidden state of each response.
        groups: which comparison each response belongs to, counted from 0, non-decreasing.
        prompts: hidden state at the end of each response's prompt; None unless the head reads prompts.
        people: who judges each response, a place in `Head.people`, or -1 for somebody else; None unless the head
            asks.
    """

    states: Float[Tensor, "responses dim"]
    groups: Int[Tensor, " responses"]
    prompts: Float[Tensor, "responses dim"] | None = None
    people: Int[Tensor, " responses"] | None = None


class HeadScores(NamedTuple):
    """What a head makes of a batch.

    Args:
        rewards: of each response, in log-odds; of a head that compares, the mean log-odds against all responses of
            the comparison, itself included.
        factors: of a head that compares; see `prefkit.objectives.ResponseScores.factors`.
        members: the same of each head of an ensemble.
    """

    rewards: Float[Tensor, " responses"]
    factors: Float[Tensor, "responses 2 dim"] | None = None
    members: tuple[HeadScores, ...] = ()


class _HeadOptions(Options):
    """What the options of all heads share."""

    learning_rate: FiniteFloat | None = Field(
        None, gt=0, description="of the head's weights; training.learning_rate by default"
    )
    seed: int = Field(0, description="of the first weights")


class ScalarHeadOptions(_HeadOptions):
    """A linear reward, w . h, without a bias, which would cancel in every comparison."""

    kind: Literal["scalar"] = "scalar"


class MlpHeadOptions(_HeadOptions):
    """A reward with a hidden layer: Linear, activation, Linear."""

    kind: Literal["mlp"] = "mlp"
    hidden: int | None = Field(None, ge=1, description="width of the hidden layer; that of the states by default")
    activation: Literal["relu", "gelu", "tanh"] = Field("relu", description="between the two layers")
    dropout: FiniteFloat = Field(0.0, ge=0, lt=1, description="share of hidden units that are dropped in training")


class GeneralHeadOptions(_HeadOptions):
    """Preference embeddings, which can stand for cycles; see `prefkit.preference.general`."""

    kind: Literal["general"] = "general"
    dim: int = Field(6, description="size of the embeddings, even; 2 can hold one cycle, more can hold more")
    gate: bool = Field(True, description="scale each block by what the state at the prompt's end says")
    gate_scale: FiniteFloat | None = Field(1.0, gt=0, description="sum of the scales; None for the number of blocks")
    normalise: bool = Field(True, description="embeddings of length 1")
    tau: FiniteFloat | Literal["learned"] = Field(0.1, description="temperature by which scores are divided")

    @field_validator("dim")
    @classmethod
    def _even(cls, value: int) -> int:
        try:
            check_dimension(value)
        except OptionError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("tau")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and not value > 0:
            raise ValueError(f"must be greater than 0, or 'learned', got {value}")
        return value


class IdealPointsHeadOptions(_HeadOptions):
    """Ideal points of people who disagree; see `prefkit.preference.IdealPoints`."""

    kind: Literal["ideal_points"] = "ideal_points"
    prototypes: int = Field(2, ge=1, description="K; 1 is one taste for all")
    variant: Literal["A", "B"] = Field("A", description="prototypes are points (A), or functions of the prompt (B)")
    mixing: Mixing = Field("f(Pw)", description="how a point is made of prototypes, in variant A")
    score: Score | None = Field(None, description="`dist` for variant A and `angle` for B by default")
    projector: str = Field("mlp2-relu-dropout0-residual", description="hidden states to the space of ideal points")
    width: int | None = Field(None, ge=1, description="of that space; that of the states by default")
    temperature: FiniteFloat = Field(1.0, gt=0, description="of the softmax of a person's weights")
    partition: bool = Field(False, description="measure with each person's largest weight alone")
    learning_rate: FiniteFloat | None = Field(1e-4, gt=0, description="of the projectors")
    weight_decay: FiniteFloat = Field(0.01, ge=0, description="of the projectors")
    prototype_rate: FiniteFloat = Field(5e-3, gt=0, description="learning rate of the prototypes")
    annotator_rate: FiniteFloat = Field(5e-3, gt=0, description="learning rate of the people's weights")
    scale_rate: FiniteFloat = Field(0.1, gt=0, description="learning rate of the factor of cosines")


HeadOptions: TypeAlias = Annotated[
    ScalarHeadOptions | MlpHeadOptions | GeneralHeadOptions | IdealPointsHeadOptions, Field(discriminator="kind")
]
"""Options of any head."""

Groups: TypeAlias = list[tuple[Mapping[str, float], list[nn.Parameter]]]


class Head(nn.Module):
    """What all heads share.

    Args:
        width: size of the hidden states.

    Attributes:
        kind: name in configurations.
        options: what it was made from.
        reads_prompts: whether it asks for the states of prompts.
        compares: whether it gives log-odds between responses instead of a reward of each.
        people: names of the people that it knows; None if it does not ask who judges.
    """

    kind: ClassVar[str]
    options: Any  # of its own type
    reads_prompts: bool = False
    compares: bool = False
    people: tuple[str, ...] | None = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """What it makes of a batch."""
        raise NotImplementedError

    def meet(self, people: Sequence[str]) -> None:
        """Make room for people that are not known yet."""

    def weight_groups(self) -> Groups:
        """Its weights, where the optimizer is to treat them differently from the backbone's."""
        return []


class _Optioned(Head):
    """A head with options, of which the learning rate goes to all weights."""

    def __init__(self, width: int, options: Any) -> None:
        super().__init__(width)
        self.options = options

    def weight_groups(self) -> Groups:
        """See `Head`."""
        rate = self.options.learning_rate
        return [] if rate is None else [({"lr": rate}, list(self.parameters()))]


class ScalarHead(_Optioned):
    """w . h, from 0: training begins at indifference.

    Args:
        width: size of the hidden states.
        options: see `ScalarHeadOptions`.
        weight: w, instead of 0.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback (arXiv 2009.01325).
    """

    kind = "scalar"

    def __init__(
        self, width: int, options: ScalarHeadOptions | None = None, weight: Float[Tensor, " dim"] | None = None
    ) -> None:
        super().__init__(width, options or ScalarHeadOptions())
        self.weight = nn.Parameter(torch.zeros(width) if weight is None else weight.detach().float().clone())

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """See `Head`."""
        return HeadScores(inputs.states @ self.weight)


class OwnHead(Head):
    """The head that a sequence classifier brings along; its weights are the classifier's.

    Args:
        width: size of the hidden states.
        layer: the classifier's last layer; None where its logits are given in the place of states.
    """

    kind = "own"

    def __init__(self, width: int, layer: nn.Module | None = None) -> None:
        super().__init__(width)
        # No submodule: the weights are saved and trained with the classifier.
        self._layer = (layer,)

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """See `Head`."""
        (layer,) = self._layer
        found = inputs.states if layer is None else layer(inputs.states.to(next(layer.parameters()).dtype))
        return HeadScores(found.squeeze(-1).float())


class MlpHead(_Optioned):
    """v . act(W h + b) + c.

    Source: Qwen team 2025 (WorldPM, arXiv 2505.10527), the head of the released models.
    """

    kind = "mlp"

    def __init__(self, width: int, options: MlpHeadOptions) -> None:
        super().__init__(width, options)
        activation = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[options.activation]
        hidden = options.hidden or width
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), activation(), nn.Dropout(options.dropout), nn.Linear(hidden, 1)
        )

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """See `Head`."""
        return HeadScores(self.layers(inputs.states).squeeze(-1))


class GeneralHead(_Optioned):
    """<R v_i, D(x) v_j> / tau: log-odds that may be cyclic, from one embedding a response.

    Source: Zhang et al. 2024 (General Preference Modeling, arXiv 2410.02197), definition 4.3 and section 4.3; the first
        weights are those of the authors' code.
    """

    kind = "general"
    compares = True

    def __init__(self, width: int, options: GeneralHeadOptions) -> None:
        super().__init__(width, options)
        self.reads_prompts = options.gate
        self.embedding = _small(nn.Linear(width, options.dim, bias=False))
        self.gate = _small(nn.Linear(width, options.dim // 2, bias=False)) if options.gate else None
        self.raw_tau = nn.Parameter(torch.tensor(LEARNED_START)) if options.tau == "learned" else None

    @property
    def tau(self) -> Tensor | float:
        """The temperature."""
        return float(self.options.tau) if self.raw_tau is None else learned_temperature(self.raw_tau)

    def embed(self, states: Float[Tensor, "responses dim"]) -> Float[Tensor, "responses embedding"]:
        """Preference embeddings of responses."""
        found: Tensor = self.embedding(states)
        return F.normalize(found, dim=-1) if self.options.normalise else found

    def eigenvalues(self, prompts: Float[Tensor, "responses dim"] | None) -> Float[Tensor, "responses k"] | None:
        """The scale of each block; None without a gate."""
        if self.gate is None or prompts is None:
            return None
        scale = self.options.gate_scale or self.options.dim / 2
        return gate(self.gate(prompts), scale)

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """See `Head`."""
        factors = comparison_factors(self.embed(inputs.states), self.eigenvalues(inputs.prompts), tau=self.tau)
        return HeadScores(mean_odds(factors, inputs.groups), factors)


def mean_odds(
    factors: Float[Tensor, "responses 2 dim"], groups: Int[Tensor, " responses"]
) -> Float[Tensor, " responses"]:
    """Mean log-odds of each response against all of its group, itself included, at a cost linear in their number.

    Args:
        factors: see `prefkit.objectives.ResponseScores.factors`.
        groups: the group of each response, counted from 0.
    """
    turned, plain = factors.unbind(1)
    counts = torch.bincount(groups)
    sums = plain.new_zeros(len(counts), plain.shape[1]).index_add(0, groups, plain)
    return (turned * (sums / counts[:, None])[groups]).sum(1)


class IdealPointsHead(Head):
    """-|f(h) - a_u|, or a cosine: what is nearer to the ideal point of the person who judges is better.

    People who are not known, and nobody in particular, are judged by the mean of all people's weights.

    Source: Chen et al. 2024 (PAL, arXiv 2406.08469); rates and projector are those of the authors' code.
    """

    kind = "ideal_points"

    def __init__(self, width: int, options: IdealPointsHeadOptions, people: Sequence[str] = ()) -> None:
        super().__init__(width)
        self.options = options
        self.reads_prompts = options.variant == "B"
        score: Score = options.score or ("dist" if options.variant == "A" else "angle")
        if options.variant == "B" and (score == "norm" or options.mixing != "f(Pw)"):
            raise OptionError("model.head: `score: norm` and `mixing` are of `variant: A`")
        self.space = IdealSpace(
            width,
            options.prototypes,
            prompt_features=width if options.variant == "B" else None,
            mixing=options.mixing,
            score=score,
            projector=options.projector,
            width=options.width,
        )
        self.logits = nn.Parameter(torch.zeros(0, options.prototypes))
        self.people: tuple[str, ...] = ()
        self._tastes_frozen = False
        self.meet(people)

    def meet(self, people: Sequence[str]) -> None:
        """See `Head`: new people begin at random weights, as in the authors' code."""
        new = tuple(name for name in dict.fromkeys(people) if name not in set(self.people))
        generator = torch.Generator().manual_seed(self.options.seed + len(self.people))
        drawn = torch.randn(len(new), self.options.prototypes, generator=generator)
        self.people += new
        self.logits = nn.Parameter(torch.cat([self.logits.detach(), drawn.to(self.logits)]))

    def freeze_tastes(self) -> None:
        """Train nothing but people's weights, at the rate of training: a new person needs few comparisons then."""
        self.requires_grad_(False)
        self.logits.requires_grad_(True)
        self._tastes_frozen = True

    def mixtures(self, people: Int[Tensor, " responses"] | None, responses: int) -> Float[Tensor, "responses k"]:
        """Weights of the prototypes for people by their place; the mean of all for -1."""
        known = mixture_weights(self.logits, temperature=self.options.temperature)
        k = self.options.prototypes
        mean = known.mean(0) if len(known) else known.new_full((k,), 1 / k)
        every = torch.cat([known, mean[None]])
        # The last row, which is -1, too.
        found = every[torch.full((responses,), -1, device=every.device) if people is None else people]
        return hardened(found) if self.options.partition and not self.training else found

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """See `Head`."""
        weights = self.mixtures(inputs.people, len(inputs.states))
        if self.space.of_prompt is not None:
            places = torch.stack([own(inputs.prompts) for own in self.space.of_prompt], dim=1)
            points = mix_prompt_points(weights, places)
        else:
            points = self.space.points(weights, None)
        return HeadScores(self.space.reward(inputs.states, points))

    def weight_groups(self) -> Groups:
        """See `Head`."""
        if self._tastes_frozen:
            return []
        options, space = self.options, self.space
        projectors = list(space.project.parameters())
        if space.of_prompt is not None:
            projectors += list(space.of_prompt.parameters())
        own = {"weight_decay": options.weight_decay}
        groups: Groups = [
            (own if options.learning_rate is None else {**own, "lr": options.learning_rate}, projectors),
            ({"lr": options.annotator_rate, "weight_decay": 0.0}, [self.logits]),
        ]
        if space.of_prompt is None:
            groups.append(({"lr": options.prototype_rate, "weight_decay": 0.0}, [space.prototypes]))
        if space.log_scale is not None:
            groups.append(({"lr": options.scale_rate, "weight_decay": 0.0}, [space.log_scale]))
        return groups


class EnsembleHead(Head):
    """Several heads of one kind, whose rewards, or log-odds, are averaged.

    Args:
        heads: its members, at least 2.
    """

    kind = "ensemble"

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__(heads[0].width)
        self.heads = nn.ModuleList(heads)
        self.options = heads[0].options
        self.reads_prompts, self.compares = heads[0].reads_prompts, heads[0].compares
        self.people = heads[0].people

    def meet(self, people: Sequence[str]) -> None:
        """See `Head`."""
        for head in self._heads:
            head.meet(people)
        self.people = self._heads[0].people

    def forward(self, inputs: HeadInputs) -> HeadScores:
        """See `Head`."""
        found = tuple(head(inputs) for head in self._heads)
        rewards = torch.stack([each.rewards for each in found]).mean(0)
        factors = [each.factors for each in found if each.factors is not None]
        if not factors:
            return HeadScores(rewards, None, found)
        # The mean of products is the product of the vectors put together.
        turned = torch.cat([each[:, 0] for each in factors], dim=1) / len(factors)
        joined = torch.stack([turned, torch.cat([each[:, 1] for each in factors], dim=1)], dim=1)
        return HeadScores(rewards, joined, found)

    def weight_groups(self) -> Groups:
        """See `Head`."""
        return [group for head in self._heads for group in head.weight_groups()]

    @property
    def _heads(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]


HEADS: Mapping[str, type[Any]] = {kind.kind: kind for kind in (ScalarHead, MlpHead, GeneralHead, IdealPointsHead)}
"""Heads by name."""


def make_head(options: HeadOptions, width: int) -> Head:
    """A new head, whose first weights its seed decides.

    Args:
        options: which head.
        width: size of the hidden states.

    Raises:
        OptionError: an option does not fit the width or another option.
    """
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        made: Head = HEADS[options.kind](width, options)
    return made


def make_ensemble(options: HeadOptions, width: int, members: int) -> EnsembleHead:
    """New heads, each with a seed of its own.

    Args:
        options: of the first of them.
        width: size of the hidden states.
        members: how many, at least 2.

    Raises:
        OptionError: there are fewer than 2, or see `make_head`.
    """
    if members < 2:
        raise OptionError(f"an ensemble has at least 2 members, got {members}")
    seeded = (options.model_copy(update={"seed": options.seed + number}) for number in range(members))
    return EnsembleHead([make_head(each, width) for each in seeded])


def _small(layer: nn.Linear) -> nn.Linear:
    nn.init.normal_(layer.weight, std=1 / (layer.in_features + 1))
    return layer
