"""Preference at the level of tokens: TDPO's sequential divergence, and masks that choose the tokens that count.

With r_t the log-ratio of policy to reference at a response token and D_t = KL(reference, policy) over the vocabulary
there, a response's reward is a masked sum of both. The difference of two rewards is what a pairwise link takes.

Sources: Zeng et al. 2024 (TDPO, arXiv 2404.11999); Christopoulou et al. 2024 (SparsePO, arXiv 2410.05102).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor, nn

from prefkit.errors import OptionError, unknown
from prefkit.objectives.links import logistic
from prefkit.objectives.parts import Part, Stateful
from prefkit.objectives.scorer import HasLayers
from prefkit.objectives.scores import TokenScores
from prefkit.options import Options

logger = logging.getLogger("prefkit")

Side = Literal["chosen", "rejected"]
Mask = Float[Tensor, "batch length"]
MaskKind = Literal["simple_all", "simple_last", "ml_all", "ml_last", "random", "binary_all", "binary_last"]
Activation = Literal["relu", "resc", "none"]
ActivationKind = Literal["mlp", "attn", "resid", "logits", "uniform"]
MaskMode = Literal["common", "independent"]

IGNORED = -100


# -- terms and losses of padded arrays --------------------------------------------------------------------------------


def token_terms(
    policy_logits: Float[Tensor, "batch length vocabulary"],
    ref_logits: Float[Tensor, "batch length vocabulary"],
    labels: Int[Tensor, "batch length"],
) -> tuple[Mask, Mask, Mask]:
    """Log-probability, log-ratio to the reference and divergence at each token; 0 where the label is -100.

    Args:
        policy_logits: place t predicts label t.
        ref_logits: the reference's; no gradient reaches it.
        labels: the tokens; -100 outside the response.

    Raises:
        OptionError: logits and labels differ in length, or logits have no vocabulary.
    """
    for name, logits in (("policy_logits", policy_logits), ("ref_logits", ref_logits)):
        if logits.ndim != 3:
            raise OptionError(
                f"{name} must be logits [batch, length, vocabulary], got {tuple(logits.shape)}; the divergence needs "
                "the whole distribution, log-probabilities of the tokens are not enough"
            )
        if logits.shape[:2] != labels.shape:
            raise OptionError(
                f"{name} and labels must have one batch size and length, got {tuple(logits.shape[:2])} and "
                f"{tuple(labels.shape)}"
            )
    mask = labels != IGNORED
    policy, reference = policy_logits.log_softmax(2), ref_logits.detach().log_softmax(2)
    targets = labels.masked_fill(~mask, 0)[:, :, None]
    logps, ref_logps = (side.gather(2, targets).squeeze(2) * mask for side in (policy, reference))
    return logps, logps - ref_logps, (reference.exp() * (reference - policy)).sum(2) * mask


def tdpo_sequence_terms(
    policy_logits: Float[Tensor, "batch length vocabulary"],
    ref_logits: Float[Tensor, "batch length vocabulary"],
    labels: Int[Tensor, "batch length"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Sums over each response of log-ratios, of divergences, and of log-probabilities.

    Args:
        policy_logits: place t predicts token t + 1, as a model gives them.
        ref_logits: the reference's.
        labels: the tokens, not shifted; -100 outside the response.

    Raises:
        OptionError: see `token_terms`; a row has no response token.
    """
    if policy_logits.shape[:2] != labels.shape or ref_logits.shape[:2] != labels.shape:
        raise OptionError(
            "policy_logits, ref_logits and labels must have one batch size and length, got "
            f"{tuple(policy_logits.shape[:2])}, {tuple(ref_logits.shape[:2])} and {tuple(labels.shape)}"
        )
    logps, ratios, divergences = token_terms(policy_logits[:, :-1], ref_logits[:, :-1], labels[:, 1:])
    _check_response(labels[:, 1:] != IGNORED, logps)
    return ratios.sum(1), divergences.sum(1), logps.sum(1)


def tdpo_loss(
    chosen_margins: Float[Tensor, " batch"],
    rejected_margins: Float[Tensor, " batch"],
    chosen_kls: Float[Tensor, " batch"],
    rejected_kls: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    variant: Literal["tdpo1", "tdpo2"] = "tdpo1",
) -> Float[Tensor, " batch"]:
    """Token-level DPO. With m and K the sums of log-ratios and of divergences of a response:

    - `tdpo1`: -log sigmoid(beta [(m_w - m_l) - (K_l - K_w)])
    - `tdpo2`: -log sigmoid(beta [(m_w - m_l) - alpha (K_l - K_w)]), without gradient through K_w.

    Args:
        chosen_margins: m of the chosen responses, in nats.
        rejected_margins: m of the rejected ones.
        chosen_kls: K of the chosen responses, in nats, at least 0.
        rejected_kls: K of the rejected ones.
        beta: temperature.
        alpha: weight of the divergences in `tdpo2`.
        variant: which of the two.

    Raises:
        OptionError: the variant is unknown.

    Source: Zeng et al. 2024 (TDPO, arXiv 2404.11999), eq. 16 and 17.
    """
    if variant not in ("tdpo1", "tdpo2"):
        raise OptionError(unknown("variant", str(variant), ("tdpo1", "tdpo2")))
    difference = rejected_kls - chosen_kls if variant == "tdpo1" else alpha * (rejected_kls - chosen_kls.detach())
    return logistic(chosen_margins - rejected_margins - difference, beta=beta)


def tdpo_rewards(
    margins: Float[Tensor, " batch"], kls: Float[Tensor, " batch"], *, beta: float = 0.1
) -> Float[Tensor, " batch"]:
    """Implicit rewards to report, beta (m + K), detached; arguments as in `tdpo_loss`."""
    return beta * (margins + kls).detach()


def sparsepo_loss(
    chosen_ratios: Mask,
    chosen_kls: Mask,
    chosen_reward_mask: Mask,
    chosen_kl_mask: Mask | None,
    chosen_response_mask: Mask,
    rejected_ratios: Mask,
    rejected_kls: Mask,
    rejected_reward_mask: Mask,
    rejected_kl_mask: Mask | None,
    rejected_response_mask: Mask,
    *,
    beta: float = 0.1,
    l1_reward: float = 0.0,
    l1_kl: float = 0.0,
    mask_mode: MaskMode = "common",
    mask_on_reward: bool = True,
    mask_on_kl: bool = True,
) -> Float[Tensor, " batch"]:
    """The masked objective: -log sigmoid(beta (u - delta)) + L1. Masks of ones give TDPO1.

    u is the difference of the sums of m_u r over both responses, delta that of m_d D, the other way round. L1 is
    `l1_reward` times the sums of m_u plus `l1_kl` times those of m_d; each is halved where one mask is both.

    Args:
        chosen_ratios: r of each token, in nats.
        chosen_kls: D of each token, in nats.
        chosen_reward_mask: m_u.
        chosen_kl_mask: m_d; not read where one common mask is both.
        chosen_response_mask: 1 at response tokens; the two sides may differ in length.
        rejected_ratios: as for the chosen responses, and so are the next ones.
        rejected_kls: see above.
        rejected_reward_mask: see above.
        rejected_kl_mask: see above.
        rejected_response_mask: see above.
        beta: temperature.
        l1_reward: weight of the norm of m_u, which makes it sparse.
        l1_kl: weight of the norm of m_d.
        mask_mode: one mask for both, or two.
        mask_on_reward: False weighs every log-ratio 1.
        mask_on_kl: False weighs every divergence 1.

    Raises:
        OptionError: neither is masked, a weight is negative, a mask has another shape or a value that is no weight, or
            a row has no response token.

    Source: Christopoulou et al. 2024 (SparsePO, arXiv 2410.05102) and the authors' code, which stores the divergence
    with the opposite sign.
    """
    masking = Masking.parse(
        {
            "l1_reward": l1_reward,
            "l1_kl": l1_kl,
            "mask_mode": mask_mode,
            "mask_on_reward": mask_on_reward,
            "mask_on_kl": mask_on_kl,
        }
    )
    rewards, norms = [], []
    for name, ratios, kls, m_u, m_d, response in (
        ("chosen", chosen_ratios, chosen_kls, chosen_reward_mask, chosen_kl_mask, chosen_response_mask),
        ("rejected", rejected_ratios, rejected_kls, rejected_reward_mask, rejected_kl_mask, rejected_response_mask),
    ):
        own = _check_response(response, ratios)
        other = m_u if mask_mode == "common" or m_d is None else m_d
        for kind, mask in (("reward", m_u), ("kl", other)):
            if mask.shape != own.shape:
                raise OptionError(
                    f"{name}_{kind}_mask must have the shape of the response mask, {tuple(own.shape)}, got "
                    f"{tuple(mask.shape)}"
                )
            if not bool((mask.detach() >= 0).all()):
                raise OptionError(f"{name}_{kind}_mask must hold no negative value and no NaN")
        terms, norm = masking.apply(ratios * own, kls * own, m_u * own, other * own)
        rewards.append(terms.sum(1))
        norms.append(norm.sum(1))
    return logistic(rewards[0] - rewards[1], beta=beta) + norms[0] + norms[1]


def _check_response(response: Tensor, like: Tensor) -> Tensor:
    """The mask of the response as numbers."""
    empty = (response.sum(1) == 0).nonzero()
    if len(empty):
        raise OptionError(f"row {int(empty[0])} has no response token")
    return response.to(like.dtype)


# -- masks ------------------------------------------------------------------------------------------------------------


class Masking(Options):
    """What masks act on, and what they cost."""

    l1_reward: FiniteFloat = Field(0.0, ge=0, description="weight of the norm of the mask of log-ratios")
    l1_kl: FiniteFloat = Field(0.0, ge=0, description="weight of the norm of the mask of divergences")
    mask_mode: MaskMode = Field("common", description="one mask for both, or two")
    mask_on_reward: bool = Field(True, description="False weighs every log-ratio 1")
    mask_on_kl: bool = Field(True, description="False weighs every divergence 1")

    @model_validator(mode="after")
    def _some(self) -> Masking:
        if not (self.mask_on_reward or self.mask_on_kl):
            raise ValueError("mask_on_reward and mask_on_kl are both off; use dpo or tdpo1, which have no mask")
        return self

    def apply(self, ratios: Tensor, kls: Tensor, m_u: Tensor, m_d: Tensor) -> tuple[Tensor, Tensor]:
        """The reward of each token, and what its masks cost."""
        rewards = (m_u * ratios if self.mask_on_reward else ratios) + (m_d * kls if self.mask_on_kl else kls)
        share = 0.5 if self.mask_mode == "common" else 1.0
        return rewards, share * (self.l1_reward * m_u.abs() + self.l1_kl * m_d.abs())


def activation_mask(
    activations: Mapping[ActivationKind, Sequence[Float[Tensor, "batch length dim"]]],
    response_mask: Bool[Tensor, "batch length"] | Float[Tensor, "batch length"],
    *,
    kinds: Sequence[ActivationKind] | None = None,
    mapping: Literal["mean", "sigmoid"] = "mean",
) -> Mask:
    """MaPO's mask, from the reference's activations; in [0, 1] at response tokens and 0 elsewhere, without gradient.

    Each activation is averaged over its features and rescaled so that the response's tokens reach from 0 to 1; then the
    activations of a kind are averaged, then the kinds. (The z-score that the paper takes before is undone by the
    rescaling.) Where all tokens of a response are alike, or there is only one, all of them count 1.

    Args:
        activations: by kind ("mlp", "attn", "resid", "logits"), at the places that predict the tokens.
        response_mask: 1 at response tokens.
        kinds: those to use, all that are given by default; "uniform" needs none and counts every token 1.
        mapping: average the activations, or their sigmoid.

    Raises:
        OptionError: a kind is unknown or not given, a shape differs, or a row has no response token.

    Source: Christopoulou et al. 2024 (SparsePO, arXiv 2410.05102), section 3.
    """
    kinds = tuple(activations) if kinds is None else tuple(kinds)
    for kind in kinds:
        if kind not in get_args(ActivationKind):
            raise OptionError(unknown("kind of activation", str(kind), get_args(ActivationKind)))
        if kind != "uniform" and not activations.get(kind):
            raise OptionError(
                f"no activations of kind '{kind}' are given; there are: {', '.join(activations) or 'none'}"
            )
    if mapping not in ("mean", "sigmoid"):
        raise OptionError(unknown("mapping", str(mapping), ("mean", "sigmoid")))
    if not kinds:
        raise OptionError("at least one kind of activation is needed")
    own = response_mask.bool()
    numbers = _check_response(own, next((group[0] for group in activations.values() if group), torch.zeros(())))
    found = []
    for kind in kinds:
        if kind == "uniform":
            found.append(numbers)
            continue
        for activation in activations[kind]:
            if activation.shape[:2] != own.shape:
                raise OptionError(
                    f"activations of kind '{kind}' must be of shape {tuple(own.shape)} and features, got "
                    f"{tuple(activation.shape)}"
                )
        means = torch.stack([_over_features(activation[own], mapping) for activation in activations[kind]], dim=1)
        rescaled = rescale(means, own.nonzero()[:, 0], len(own)).mean(1)
        found.append(numbers.masked_scatter(own, rescaled))
    return torch.stack(found).mean(0).detach()


def _over_features(activation: Tensor, mapping: Literal["mean", "sigmoid"]) -> Tensor:
    return (activation.sigmoid() if mapping == "sigmoid" else activation).mean(-1)


def rescale(
    values: Float[Tensor, "tokens k"], response: Int[Tensor, " tokens"], responses: int
) -> Float[Tensor, "tokens k"]:
    """Values stretched to reach from 0 to 1 within each response; 1 where all of a response are alike.

    Args:
        values: of each token.
        response: which response it belongs to.
        responses: how many there are.
    """
    index = response[:, None].expand_as(values)
    ends = values.new_zeros(responses, values.shape[1])
    low, high = (ends.scatter_reduce(0, index, values, how, include_self=False) for how in ("amin", "amax"))
    low, span = low[response], (high - low)[response]
    return torch.where(span > 0, (values - low) / span.masked_fill(span == 0, 1.0), 1.0)


def sparsity(mask: Mask, response_mask: Bool[Tensor, "batch length"] | Float[Tensor, "batch length"]) -> Mask:
    """Percentage of response tokens whose mask is exactly 0, one a row.

    Args:
        mask: of each token.
        response_mask: 1 at response tokens.
    """
    own = response_mask.bool()
    return 100.0 * ((mask == 0) & own).sum(1) / own.sum(1)


class LearnedMask(nn.Module):
    """A mask that is learned with the policy, from the reference's hidden states; exact zeros come from ReLU.

    `simple_all` weighs a token by ReLU(sum_l v_l a_l) with a_l = ReLU(w_l . LayerNorm(h_l) + b_l) of layer l; all
    layers have one LayerNorm. `simple_last` is ReLU(w . h + b) of the last layer. `ml_all`, `ml_last` have a layer of
    200 units instead of w. `binary_all`, `binary_last` are 1 where the simple one is positive; they take no gradient.
    `random` is uniform in [0, 1), drawn anew each time. The last three are ablations.

    Biases begin at 0.5 and v at 1 / layers, so that no mask is dead from the start.

    Args:
        kind: see above.
        layers: how many layers are read.
        width: size of their states.
        dropout: of masks in training.
        layer_activation: after each layer: ReLU, rescaling to [0, 1] within a response, or nothing.
        mixer_activation: after the sum over layers.
        seed: of the initial weights.

    Raises:
        OptionError: the kind is unknown.

    Source: Christopoulou et al. 2024 (SparsePO, arXiv 2410.05102), section 3, and the authors' code.
    """

    HIDDEN = 200

    def __init__(
        self,
        kind: MaskKind,
        layers: int,
        width: int,
        *,
        dropout: float = 0.01,
        layer_activation: Activation = "relu",
        mixer_activation: Activation = "relu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in get_args(MaskKind):
            raise OptionError(unknown("kind of mask", str(kind), get_args(MaskKind)))
        self.kind, self.layer_activation, self.mixer_activation = kind, layer_activation, mixer_activation
        self.count = layers if kind.endswith("_all") else 1
        self.dropout = nn.Dropout(dropout)
        self.weights, self.norm, self.mixer = nn.ParameterList(), None, None
        if kind == "random":
            return
        generator = torch.Generator().manual_seed(seed)
        sizes = (width, self.HIDDEN) if kind.startswith("ml") else (width,)
        for size, after in zip(sizes, (*sizes[1:], 1), strict=True):
            weight = 0.02 * torch.randn(self.count, after, size, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.weights.append(nn.Parameter(torch.full((self.count, after), 0.5 if after == 1 else 0.0)))
        if kind in ("simple_all", "binary_all"):
            self.norm = nn.LayerNorm(width)
        if self.count > 1 or kind.endswith("_all"):
            self.mixer = nn.Parameter(torch.full((self.count,), 1.0 / self.count))
        # A sign has no gradient: these stay as they are, and no optimizer looks at them.
        self.requires_grad_(not kind.startswith("binary"))

    def forward(
        self, layers: Float[Tensor, "tokens layers dim"], response: Int[Tensor, " tokens"], responses: int
    ) -> Float[Tensor, " tokens"]:
        """The mask of each token.

        Args:
            layers: the reference's states that predict the token, of every layer but the embeddings.
            response: which response each token belongs to.
            responses: how many there are.
        """
        if self.kind == "random":
            return torch.rand(len(layers), dtype=layers.dtype, device=layers.device)
        x = layers[:, -self.count :]
        if self.norm is not None:
            x = self.norm(x)
        for place in range(0, len(self.weights), 2):
            if place:
                x = self.dropout(x)
            x = torch.einsum("tld,lod->tlo", x, self.weights[place]) + self.weights[place + 1]
        mask = self.dropout(self._activated(x.squeeze(2), self.layer_activation, response, responses))
        if self.mixer is not None:
            mixed = (mask @ self.mixer)[:, None]
            mask = self.dropout(self._activated(mixed, self.mixer_activation, response, responses))
        single: Tensor = mask[:, 0]
        return (single > 0).to(single.dtype) if self.kind.startswith("binary") else single

    @staticmethod
    def _activated(x: Tensor, kind: Activation, response: Tensor, responses: int) -> Tensor:
        match kind:
            case "relu":
                return F.relu(x)
            case "resc":
                return rescale(x, response, responses)
            case _:
                return x


# -- parts ------------------------------------------------------------------------------------------------------------

TOKEN_FIELDS = ("policy_logps", "tokens", "side")


class Tdpo(Stateful):
    """TDPO's reward of a response: m + alpha K, without gradient through the chosen one's K if so asked.

    Figures: `chosen_position_kl`, `rejected_position_kl`, the sums K in nats.
    """

    def __init__(self, alpha: float = 1.0, stop_gradient: bool = False) -> None:
        super().__init__()
        self.alpha, self.stop_gradient = alpha, stop_gradient

    def forward(
        self, policy_logps: Float[Tensor, " batch"], tokens: TokenScores, side: Side
    ) -> Float[Tensor, " batch"]:
        """The reward of each response."""
        ratios, kls = _ratios_and_kls(tokens)
        margins, totals = tokens.total(ratios, len(policy_logps)), tokens.total(kls, len(policy_logps))
        self.figures[f"{side}_position_kl"] = totals.detach()
        return margins + self.alpha * (totals.detach() if self.stop_gradient and side == "chosen" else totals)


class Tdpo2Options(Options):
    """Options of `tdpo2`."""

    alpha: FiniteFloat = Field(0.5, ge=0, description="weight of the divergences")


class Tdpo2(Tdpo):
    """TDPO2's reward; see `Tdpo`."""

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__(alpha, stop_gradient=True)


class Masked(Stateful, ABC):
    """A reward whose tokens are masked. Figures, of each side: the sum of divergences, and the mask's sparsity.

    Args:
        masking: what masks act on, and what they cost.
    """

    def __init__(self, masking: Masking) -> None:
        super().__init__()
        self.masking = masking
        self._norms: dict[str, Tensor] = {}

    @abstractmethod
    def masks(self, tokens: TokenScores, responses: int) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """The masks of log-ratios and of divergences, one value a token, for training and to be looked at.

        Args:
            tokens: with the reference's layers.
            responses: how many responses they belong to.
        """

    def forward(
        self, policy_logps: Float[Tensor, " batch"], tokens: TokenScores, side: Side
    ) -> Float[Tensor, " batch"]:
        """The reward of each response."""
        rows = len(policy_logps)
        ratios, kls = _ratios_and_kls(tokens)
        m_u, m_d = self.masks(tokens, rows)
        rewards, norms = self.masking.apply(ratios, kls, m_u, m_d)
        self._norms[side] = tokens.total(norms, rows)
        zeros = (m_u.detach() == 0).to(ratios.dtype)
        ones = torch.ones_like(zeros)
        self.figures[f"{side}_position_kl"] = tokens.total(kls.detach(), rows)
        self.figures[f"{side}_sparsity"] = 100 * tokens.total(zeros, rows) / tokens.total(ones, rows)
        return tokens.total(rewards, rows)

    def token_figures(self, tokens: TokenScores, responses: int) -> dict[str, Float[Tensor, " tokens"]]:
        """The masks; see `Stateful.token_figures`."""
        m_u, m_d = self.masks(tokens, responses)
        if self.masking.mask_mode == "common":
            return {"mask": m_u}
        return {"mask of log-ratios": m_u, "mask of divergences": m_d}

    def charge(self) -> Tensor | None:
        """What the masks of both sides cost, `[batch]`."""
        norms, self._norms = self._norms, {}
        return sum(norms.values(), torch.zeros(())) if norms else None


class SparseOptions(Masking):
    """Options of `sparse`; defaults are those of the authors' code."""

    mask: MaskKind = Field("simple_all", description="how masks come from the reference's states")
    dropout: FiniteFloat = Field(0.01, ge=0, lt=1, description="of masks in training")
    layer_activation: Activation = Field("relu", description="after each layer")
    mixer_activation: Activation = Field("relu", description="after the sum over layers")
    mask_learning_rate: FiniteFloat | None = Field(
        None, gt=0, description="of the masks; that of the policy by default"
    )
    mask_weight_decay: FiniteFloat = Field(0.01, ge=0, description="of the masks")
    seed: int = Field(0, ge=0, description="of the masks' first weights")


class SparseReward(Masked):
    """SparsePO's reward: masks are learned with the policy, from the reference's states."""

    def __init__(self, **options: Any) -> None:
        self.options = SparseOptions.parse(options, "sparse")
        super().__init__(self.options)
        self.learned = nn.ModuleList()
        rate = {} if self.options.mask_learning_rate is None else {"lr": self.options.mask_learning_rate}
        self.group = {**rate, "weight_decay": self.options.mask_weight_decay}
        self._warned = False

    def equip(self, scorer: object) -> None:
        """See `Stateful.equip`."""
        if not isinstance(scorer, HasLayers):
            raise OptionError(
                f"reward 'sparse' reads the reference's layers, which {type(scorer).__name__} cannot give"
            )
        self.build(scorer.ref_depth, scorer.ref_width)

    def build(self, layers: int, width: int) -> None:
        """Make the masks.

        Args:
            layers: of the reference.
            width: size of its states.
        """
        options = self.options
        self.learned = nn.ModuleList(
            LearnedMask(
                options.mask,
                layers,
                width,
                dropout=options.dropout,
                layer_activation=options.layer_activation,
                mixer_activation=options.mixer_activation,
                seed=options.seed + number,
            )
            for number in range(1 if options.mask_mode == "common" else 2)
        )

    def masks(self, tokens: TokenScores, responses: int) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """See `Masked.masks`."""
        if not len(self.learned):
            raise OptionError("reward 'sparse' has no masks yet: fit makes them, or build(layers, width)")
        found = [mask(_layers(tokens), tokens.response, responses) for mask in self.learned]
        return found[0], found[-1]

    def advance(self, step: int) -> None:
        """See `Stateful.advance`; warns once of masks that are 0 everywhere, which take no gradient."""
        shares = [figure for name, figure in self.figures.items() if name.endswith("sparsity") and len(figure)]
        if shares and not self._warned and bool((torch.cat(shares) == 100).all()):
            logger.warning(f"the mask is 0 at every token of step {step}: nothing is learned any more; lower l1_reward")
            self._warned = True


class ActivationOptions(Options):
    """Options of `activations`."""

    kinds: tuple[Literal["resid", "uniform"], ...] = Field(("resid",), min_length=1, description="activations to use")
    mapping: Literal["mean", "sigmoid"] = Field("mean", description="average activations, or their sigmoid")
    mask_on_reward: bool = Field(True, description="False weighs every log-ratio 1")
    mask_on_kl: bool = Field(True, description="False weighs every divergence 1")


class ActivationReward(Masked):
    """MaPO's reward: masks come from the reference's activations, here what each of its layers gives on."""

    def __init__(self, **options: Any) -> None:
        self.options = ActivationOptions.parse(options, "activations")
        on = {"mask_on_reward": self.options.mask_on_reward, "mask_on_kl": self.options.mask_on_kl}
        super().__init__(Masking.parse(on, "activations"))

    def masks(self, tokens: TokenScores, responses: int) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """See `Masked.masks`."""
        found = [
            torch.ones_like(tokens.policy_logps)
            if kind == "uniform"
            else rescale(_over_features(_layers(tokens), self.options.mapping), tokens.response, responses).mean(1)
            for kind in self.options.kinds
        ]
        mask = torch.stack(found).mean(0).detach()
        return mask, mask


def _ratios_and_kls(tokens: TokenScores) -> tuple[Tensor, Tensor]:
    if tokens.kl is None or tokens.ref_logps is None:
        raise OptionError(
            "the divergence needs the reference's whole distribution at each token; log-probabilities that were "
            "computed beforehand are not enough"
        )
    return tokens.policy_logps - tokens.ref_logps, tokens.kl


def _layers(tokens: TokenScores) -> Tensor:
    if tokens.layers is None:
        raise OptionError("masks need the reference's hidden states of every layer, which these scores lack")
    return tokens.layers


_KL, _LAYERS = frozenset({"token_kl"}), frozenset({"token_kl", "layers"})

TOKEN_REWARDS = (
    Part("tdpo1", Tdpo, TOKEN_FIELDS, requires=_KL),
    Part("tdpo2", Tdpo2, TOKEN_FIELDS, Tdpo2Options, requires=_KL),
    Part("sparse", SparseReward, TOKEN_FIELDS, SparseOptions, requires=_LAYERS),
    Part("activations", ActivationReward, TOKEN_FIELDS, ActivationOptions, requires=_LAYERS),
)
