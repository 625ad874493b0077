"""Feedback of scorers: labels of image pairs from a model instead of people, and the win rate between two models.

An image scorer is any function from images and captions to numbers; larger is better. `clip_scorer` reads one of the
CLIP family, such as PickScore, from a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from prefkit.comparisons import Comparison, Ranking, Winner
from prefkit.diagnostics import Interval, bootstrap_difference, bootstrap_interval
from prefkit.diffusion.embedding import clip_pixels
from prefkit.diffusion.images import caption_of, content_of, read_image, to_tensor
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import flipped
from prefkit.report import Table

ImageScorer: TypeAlias = Callable[[Float[Tensor, "n 3 height width"], Sequence[str]], Float[Tensor, " n"]]
"""How good images in [-1, 1] are for their captions; larger is better."""


def clip_scorer(path: str, *, device: str = "cpu") -> ImageScorer:
    """Cosine similarity of image and caption under a CLIP model, without its scale of logits.

    Args:
        path: folder or hub name of a CLIP model with its tokenizer; PickScore is one.
        device: where it computes.

    Raises:
        OptionError: it cannot be loaded.
    """
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(path).to(device).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"the scorer '{path}' cannot be loaded: {str(error).splitlines()[0]}") from error
    side = int(model.config.vision_config.image_size)
    longest = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def score(images: Tensor, captions: Sequence[str]) -> Tensor:
        pixels = clip_pixels(images, side)
        tokens = tokenizer(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        seen = model.vision_model(pixel_values=pixels.to(device)).pooler_output
        read = model.text_model(**{name: value.to(device) for name, value in tokens.items()}).pooler_output
        pair = normalize(model.visual_projection(seen), dim=1), normalize(model.text_projection(read), dim=1)
        return (pair[0] * pair[1]).sum(1).cpu()

    return score


def make_scorer(name: str, *, device: str = "cpu") -> ImageScorer:
    """A scorer by its name on the command line: `clip:FOLDER`.

    Raises:
        OptionError: the name is none, or the scorer cannot be loaded.
    """
    kind, found, path = name.partition(":")
    if kind != "clip" or not found or not path:
        raise OptionError(f"a scorer is named clip:FOLDER (a CLIP model, such as PickScore), got '{name}'")
    return clip_scorer(path, device=device)


@dataclass
class Rescored:
    """Comparisons judged by a scorer instead of people, each with the scores as its `rewards`.

    The raw images are scored, once, however often the comparisons are read. Ties of people are left as they are.

    Args:
        comparisons: of images.
        scorer: scores them.
        order: `score`: the larger score is the better image. `label`: people's judgement stays, and the scores are
            only added.
        side: height and width at which the scorer sees the images.

    Attributes:
        skipped: what could not be read, or scored.
    """

    comparisons: Iterable[Comparison]
    scorer: ImageScorer
    order: Literal["score", "label"] = "score"
    side: int = 224
    skipped: list[RecordError] = field(default_factory=list)
    _scores: dict[int, tuple[float, ...]] | None = None

    def __iter__(self) -> Iterator[Comparison]:
        known = self._known()
        for place, comparison in enumerate(self.comparisons):
            if place not in known:
                continue
            scores = known[place]
            judged = replace(comparison, extra={**comparison.extra, "rewards": list(scores)})
            if self.order == "score" and not _tied(comparison):
                best = max(range(len(scores)), key=lambda index: (scores[index], index))
                judged = replace(judged, judgement=Winner(best), strength=None)
            yield judged

    @property
    def score_range(self) -> tuple[float, float]:
        """Least and greatest score of the data.

        Raises:
            PrefkitError: all scores are equal, or nothing could be scored.
        """
        values = [score for scores in self._known().values() for score in scores]
        if not values or min(values) == max(values):
            raise PrefkitError("the scorer tells no images apart: all scores are equal, or no image could be scored")
        return min(values), max(values)

    def _known(self) -> dict[int, tuple[float, ...]]:
        if self._scores is None:
            self._scores = {}
            for place, comparison in enumerate(self.comparisons):
                try:
                    self._scores[place] = self._score(comparison)
                except RecordError as error:
                    self.skipped.append(error.at(comparison))
            self.skipped += getattr(self.comparisons, "skipped", ())
        return self._scores

    def _score(self, comparison: Comparison) -> tuple[float, ...]:
        folder = Path(comparison.source).parent if comparison.source else None
        images = []
        for place, response in enumerate(comparison.responses):
            name = f"responses[{place}]"
            content = read_image(content_of(response, name), folder=folder, field=name)
            images.append(to_tensor(content, (self.side, self.side), 3))
        captions = [caption_of(comparison.prompt_of(place)) for place in range(len(images))]
        scores = self.scorer(torch.stack(images), captions)
        if not bool(torch.isfinite(scores).all()):
            raise RecordError(f"the scorer gives no finite number: {scores.tolist()}", field="responses")
        return tuple(scores.tolist())


@dataclass(frozen=True)
class Exchanged:
    """Comparisons with their judgements turned round, to train a negative model.

    Args:
        comparisons: pairs.
    """

    comparisons: Iterable[Comparison]

    def __iter__(self) -> Iterator[Comparison]:
        for comparison in self.comparisons:
            yield flipped(comparison)

    @property
    def skipped(self) -> Any:
        """What the comparisons' reader has set aside."""
        return getattr(self.comparisons, "skipped", ())


def _tied(comparison: Comparison) -> bool:
    return isinstance(comparison.judgement, Ranking) and len(set(comparison.judgement.ranks)) == 1


@dataclass(frozen=True)
class WinRate:
    """How often one model's image is better than another's, by a scorer.

    Args:
        rate: share of the images that the first model wins, ties counting half, with its interval over captions.
        gain: mean score of the first model less that of the second, with its interval.
        scores: `[2, n]`, the scores of both.
        captions: of the images.
    """

    rate: Interval
    gain: Interval
    scores: np.ndarray[Any, np.dtype[np.float64]]
    captions: tuple[str, ...]

    def table(self, title: str) -> Table:
        """Both figures."""
        return Table(["figure", "value"], [["win rate", self.rate], ["gain in score", self.gain]], title)


def win_rate_of(
    scorer: ImageScorer,
    images: Float[Tensor, "n 3 height width"],
    others: Float[Tensor, "n 3 height width"],
    captions: Sequence[str],
) -> WinRate:
    """Compare the images of two models for the same captions.

    Args:
        scorer: judges.
        images: the first model's, in [-1, 1].
        others: the second model's, for the same captions and seeds.
        captions: of each image; images of one caption are resampled together.

    Raises:
        OptionError: the numbers differ.
    """
    if not len(images) == len(others) == len(captions):
        raise OptionError(f"each caption needs an image of either model, got {len(images)} and {len(others)}")
    scores = np.array([scorer(each, captions).double().tolist() for each in (images, others)])
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    clusters = np.array([places[caption] for caption in captions])
    wins = (scores[0] > scores[1]) + 0.5 * (scores[0] == scores[1])
    return WinRate(
        bootstrap_interval(wins, clusters=clusters),
        bootstrap_difference(scores[1], scores[0], clusters=clusters),
        scores,
        tuple(captions),
    )
