"""The scorer: what loops, selection and diagnostics ask of a domain.

They know no domain. A domain (language, diffusion, ...) implements `Scorer`; training, checkpoints, the reference
cache and every measurement then work for it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefkit.comparisons import Comparison
from prefkit.errors import RecordError
from prefkit.objectives.scores import ResponseScores, TokenScores

Encoded = Mapping[str, Any]
"""The responses of one comparison, encoded by a domain: a flat mapping of names to numbers, bytes and (nested) lists of
them that Arrow can hold. It says everything that scoring needs; the judgement is kept beside it by the caller."""

Inputs = Mapping[str, Tensor]
"""A collated batch as the scorer's forward pass takes it: tensors only, so that it moves between devices and
processes."""


SCORED = frozenset(
    {
        *("tokens", "states", "predictors", "layers", "token_kl", "temporal_residual", "steps", "joint"),
        *("rewards", "separate_rewards", "views"),
    }
)
"""What objectives need that only a scorer can give; see `Objective.needs`."""


@dataclass
class TemporalResidual:
    """How a scorer mixes the policy's own one-step-ahead predictions into its inputs; see `objectives.intuitive`.

    Args:
        rate: share of the prediction's embedding, the paper's lambda; 0 leaves the inputs as they are.
        sampler: which token is predicted: the best one, the second best ("topk"), or one sampled at temperature 0.7
            ("nucleus").
        seed: fixes what is sampled.
    """

    rate: float = 0.0
    sampler: Literal["greedy", "topk", "nucleus"] = "greedy"
    seed: int = 0
    _generator: torch.Generator | None = None

    def begin(self, rate: float, seed: int) -> None:
        """Take the rate and the seed of the update that begins."""
        self.rate, self.seed, self._generator = rate, seed, None

    def choose(self, logits: Float[Tensor, "tokens vocabulary"]) -> Int[Tensor, " tokens"]:
        """The predicted token at each place."""
        if self.sampler == "greedy":
            return logits.argmax(1)
        if self.sampler == "topk":
            return logits.topk(min(2, logits.shape[1])).indices[:, -1]
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self.seed)
        return torch.multinomial((logits / 0.7).softmax(1), 1, generator=self._generator).squeeze(1)


@runtime_checkable
class Scorer(Protocol):
    """How good is each response? A domain's answer, with the model that is being trained inside.

    A scorer is a `torch.nn.Module`: its forward pass takes `Inputs` and gives `ResponseScores` (without the
    reference's), so that DDP and FSDP2 can wrap it. `reference` scores under the frozen reference (a second model,
    or the policy without its adapter).
    """

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    def provide(self, needs: frozenset[str]) -> None:
        """Give what an objective needs of the scorer from now on, see `SCORED`; called before anything is encoded.

        A scorer that gives "states" has `width`, one that gives "layers" has `ref_width` and `ref_depth` (see
        `HasStates`, `HasLayers`), and one that gives "temporal_residual" has `residual` (`MixesInputs`).

        Raises:
            OptionError: this scorer cannot give it.
        """
        ...

    def encode(self, comparison: Comparison) -> Encoded:
        """Encode the responses of one comparison, once.

        Raises:
            RecordError: the comparison cannot be encoded (empty response, longer than the context, ...).
        """
        ...

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pack encoded comparisons into one forward pass. Responses keep their order: comparison by comparison."""
        ...

    def __call__(self, inputs: Inputs) -> ResponseScores:
        """Score a batch under the policy, with gradients."""
        ...

    def reference(self, inputs: Inputs) -> ResponseScores:
        """Score a batch under the frozen reference, without gradients."""
        ...

    def encoding_key(self) -> str:
        """A digest of everything that decides how comparisons are encoded (tokenizer, template, lengths, ...)."""
        ...

    def refresh_reference(self, *, keep: bool = False) -> None:
        """Make the policy, as it is now, the frozen reference from now on.

        Args:
            keep: only make sure that the reference that there is outlives the training of the policy.
        """
        ...

    def reference_key(self) -> str:
        """A digest of the reference's weights and numeric precision."""
        ...

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained model to a folder that the domain's own libraries load.

        Args:
            folder: where to write.
            state: the module's full state, where this process holds only a shard of it.
        """
        ...


@runtime_checkable
class HasStates(Protocol):
    """A scorer whose tokens have hidden states of a known size."""

    width: int


@runtime_checkable
class HasLayers(Protocol):
    """A scorer that reads every layer of the reference, of a known number and size."""

    ref_width: int
    ref_depth: int


@runtime_checkable
class MixesInputs(Protocol):
    """A scorer that mixes the policy's predictions into its inputs, as `residual` says."""

    residual: TemporalResidual


@runtime_checkable
class DrawsNoise(Protocol):
    """A scorer that draws something at random in every forward pass, on which policy and reference are compared.

    The reference cannot be scored beforehand, so the forward pass gives both scores. The draws of an update follow from
    its number, so that a run which is resumed has the same.
    """

    def use_reference(self, wanted: bool) -> None:
        """Give the reference's scores with the policy's from now on, or not; before training begins."""
        ...

    def begin(self, step: int) -> None:
        """An update of the model begins; `step` were made before it."""
        ...


@runtime_checkable
class KnowsPeople(Protocol):
    """A scorer that scores responses for the person who judges them.

    What it encodes says who that is. Each comparison that it is trained on then has to name its annotator.
    """

    @property
    def reads_people(self) -> bool:
        """Whether it asks who judges."""
        ...

    def meet(self, people: Sequence[str]) -> None:
        """Make room for people that are not known yet, before training; the others stay as they are."""
        ...


@runtime_checkable
class HasMembers(Protocol):
    """A scorer that is an ensemble. In training each member has its own random weights of the rows."""

    @property
    def members(self) -> int:
        """How many; 0 for none."""
        ...


@runtime_checkable
class GroupsWeights(Protocol):
    """A scorer some of whose weights the optimizer treats in a way of their own."""

    def weight_groups(self) -> list[tuple[Mapping[str, float], list[nn.Parameter]]]:
        """These weights in groups, and how each is to be treated ("lr", "weight_decay")."""
        ...


def encode_all(
    scorer: Scorer, comparisons: Iterable[Comparison], skipped: list[RecordError] | None = None
) -> Iterator[tuple[Comparison, Encoded]]:
    """Comparisons with their encodings, in their order.

    Args:
        scorer: encodes them.
        comparisons: read once.
        skipped: where those that cannot be encoded are set aside; without it, the first of them is an error.

    Raises:
        RecordError: a comparison cannot be encoded; the error says where it stands.
    """
    for comparison in comparisons:
        try:
            yield comparison, scorer.encode(comparison)
        except RecordError as error:
            placed = error.at(comparison)
            if skipped is None:
                raise placed from error
            skipped.append(placed)


def score_all(
    scorer: Scorer, encoded: Iterable[Encoded], *, batch_size: int, reference: bool = False
) -> Iterator[ResponseScores]:
    """Score comparisons without gradients, a batch at a time, in their order.

    Args:
        scorer: scores the responses; put it into evaluation mode first.
        encoded: comparisons as the scorer encoded them.
        batch_size: comparisons a forward pass.
        reference: score under the reference instead of the policy.

    Yields:
        The scores of one batch, on the CPU, in float32.
    """
    forward = scorer.reference if reference else scorer
    rows = iter(encoded)
    while batch := list(islice(rows, batch_size)):
        inputs = {name: tensor.to(scorer.device) for name, tensor in scorer.collate(batch).items()}
        with torch.no_grad():
            scores = forward(inputs)
        tokens = scores.tokens
        yield ResponseScores(
            scores.policy_logps.float().cpu(),
            scores.lengths.cpu(),
            tokens=tokens and TokenScores(tokens.policy_logps.float().cpu(), tokens.response.cpu()),
            factors=None if scores.factors is None else scores.factors.float().cpu(),
            members=None if scores.members is None else scores.members.float().cpu(),
        )


def moving(module: nn.Module) -> list[str]:
    """Names of what changes in training: weights that take gradients, and buffers that are saved.

    Args:
        module: a scorer, or its model. A weight that stands in two places is named once.
    """
    saved = module.state_dict(keep_vars=True)
    weights = [name for name, weight in module.named_parameters() if weight.requires_grad]
    return weights + [name for name, tensor in saved.items() if not isinstance(tensor, nn.Parameter)]
