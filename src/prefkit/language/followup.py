"""Follow-ups: a response is good if a satisfied user is likelier to go on after it than a dissatisfied one.

The reward of a response is the log-likelihood that a causal language model gives to utterances of a satisfied user as
the next turn, less that of a dissatisfied user's. No preference labels are needed. Only differences between responses
to one prompt mean something: much of a follow-up's likelihood does not depend on what it follows.

Source: Zhang et al. 2024, Aligning Language Models Using Follow-up Likelihood as Reward Signal (arXiv 2409.13948). How
utterances and categories are aggregated is not certain there; here it is the mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.comparisons import Comparison, Message, Text, switched
from prefkit.errors import OptionError, PrefkitError, RecordError, unknown
from prefkit.language.scorer import LanguageScorer
from prefkit.objectives import score_all

Reduction = Literal["mean", "sum"]
"""Log-likelihood of a follow-up: a token, or summed."""

RoleFormat = Literal["user_followup", "switched"]
"""Who speaks the follow-up: the user after the conversation, or the assistant after the roles were switched, which is
what a model that was fine-tuned on feedback has learned."""


def mean_logps(
    token_logps: Float[Tensor, "followups time"],
    mask: Float[Tensor, "followups time"],
    reduction: Reduction = "mean",
) -> Float[Tensor, " followups"]:
    """Log-likelihood of each follow-up from those of its tokens, in nats.

    Args:
        token_logps: log-probability of each token; any number where the mask is 0.
        mask: 1 where there is a token, at least one in each row.
        reduction: "mean" divides by the number of tokens, or long follow-ups would dominate.

    Raises:
        OptionError: the reduction is unknown.
        PrefkitError: shapes differ, a row has no token, or a log-probability is positive or no finite number.
    """
    if token_logps.ndim != 2 or token_logps.shape != mask.shape:
        raise PrefkitError(
            f"tokens and mask must be of one shape, got {tuple(token_logps.shape)} and {tuple(mask.shape)}"
        )
    if reduction not in ("mean", "sum"):
        raise OptionError(unknown("reduction", reduction, ("mean", "sum")))
    present = mask > 0
    empty = (~present.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise PrefkitError(f"follow-up {empty[0]} has no token")
    wrong = (present & ~((token_logps <= 0) & torch.isfinite(token_logps))).nonzero().tolist()
    if wrong:
        row, place = wrong[0]
        raise PrefkitError(
            f"token {place} of follow-up {row} must have a finite log-probability of at most 0, got "
            f"{token_logps[row, place].item():g}"
        )
    total = token_logps.masked_fill(~present, 0.0).sum(1)
    return total if reduction == "sum" else total / present.sum(1)


class FollowupReward(NamedTuple):
    """Reward of a response in one category, and the log-likelihoods of the follow-ups that it is made of."""

    reward: Float[Tensor, ""]
    positive: Float[Tensor, " positive"]
    negative: Float[Tensor, " negative"]


def flr_reward(
    positive_token_logps: Float[Tensor, "positive time"],
    positive_mask: Float[Tensor, "positive time"],
    negative_token_logps: Float[Tensor, "negative time2"],
    negative_mask: Float[Tensor, "negative time2"],
    *,
    reduction: Reduction = "mean",
    sides: Literal["both", "positive", "negative"] = "both",
) -> FollowupReward:
    """Mean log-likelihood of positive follow-ups less that of negative ones.

    Args:
        positive_token_logps: log-probability of each token of a satisfied user's follow-ups.
        positive_mask: 1 where there is a token.
        negative_token_logps: the same of a dissatisfied user's.
        negative_mask: 1 where there is a token.
        reduction: see `mean_logps`.
        sides: take one of the two means only.

    Raises:
        OptionError: sides or reduction is unknown.
        PrefkitError: there is no follow-up on a side, or as `mean_logps`.
    """
    for side, logps in (("positive", positive_token_logps), ("negative", negative_token_logps)):
        if not len(logps):
            raise PrefkitError(f"there is no {side} follow-up")
    if sides not in ("both", "positive", "negative"):
        raise OptionError(unknown("sides", sides, ("both", "positive", "negative")))
    positive = mean_logps(positive_token_logps, positive_mask, reduction)
    negative = mean_logps(negative_token_logps, negative_mask, reduction)
    reward = {"both": positive.mean() - negative.mean(), "positive": positive.mean(), "negative": -negative.mean()}
    return FollowupReward(reward[sides], positive, negative)


def total_reward(
    category_rewards: Float[Tensor, "responses categories"], weights: Float[Tensor, " categories"] | None = None
) -> Float[Tensor, " responses"]:
    """Mean of the categories' rewards, by weight where weights are given.

    Raises:
        PrefkitError: there are no categories, or the weights are not one a category, at least 0 and not all 0.
    """
    if category_rewards.ndim != 2 or not category_rewards.shape[1]:
        raise PrefkitError(f"rewards must be [responses, categories], got {tuple(category_rewards.shape)}")
    if weights is None:
        return category_rewards.mean(1)
    if weights.shape != category_rewards.shape[1:] or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise PrefkitError(f"each category needs a weight of at least 0, not all of them 0, got {weights.tolist()}")
    return category_rewards @ weights / weights.sum()


def span_logps(
    logits: Float[Tensor, "time vocabulary"], ids: Int[Tensor, " tokens"], start: int
) -> Float[Tensor, " tokens"]:
    """Log-probability of the tokens that stand at `start` and after, from a model's logits for the whole sequence.

    What the logits at one place say is about the next token.

    Args:
        logits: the model's output.
        ids: the tokens.
        start: place of the first of them, at least 1.

    Raises:
        OptionError: the tokens do not lie in the sequence after its first token.
    """
    if start < 1 or start + len(ids) > len(logits) or not len(ids):
        raise OptionError(
            f"{len(ids)} tokens from place {start} do not lie in a sequence of {len(logits)} after its first token"
        )
    chosen = logits[start - 1 : start - 1 + len(ids)]
    return chosen.log_softmax(1).gather(1, ids[:, None]).squeeze(1)


def official_code_score(logits: Float[Tensor, "time vocabulary"], ids: Int[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """What the paper's released script computes, for comparison with it only; it is no likelihood.

    It is the mean of raw logits at one place, the first of the last `len(ids)`, at all the ids of the follow-up
    encoded alone.

    Args:
        logits: the model's output for the whole chat.
        ids: the follow-up encoded alone, with the begin token.

    Raises:
        OptionError: there are no ids, or more than places.

    Source: the authors' code.
    """
    if not 1 <= len(ids) <= len(logits):
        raise OptionError(f"the follow-up must have 1 to {len(logits)} tokens, got {len(ids)}")
    return logits[len(logits) - len(ids)][ids].mean()


def feedback_loss(token_logps: Float[Tensor, "batch time"], mask: Float[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """Negative log-likelihood of feedback a token, a mean over all tokens of the batch, in nats.

    Args:
        token_logps: log-probability of each token.
        mask: 1 where the token is part of feedback.

    Raises:
        PrefkitError: shapes differ, or there is no token of feedback.
    """
    if token_logps.shape != mask.shape or not bool((mask > 0).any()):
        raise PrefkitError(
            f"feedback needs tokens and a mask of one shape with a token in it, got {tuple(token_logps.shape)} and "
            f"{tuple(mask.shape)}"
        )
    present = mask > 0
    return -token_logps.masked_fill(~present, 0.0).sum() / present.sum()


@dataclass(frozen=True)
class FollowupBank:
    """Follow-up utterances of users, by category.

    Args:
        categories: for each category its "positive" and "negative" utterances, at least one each. An utterance that
            stands twice counts twice.

    Raises:
        OptionError: there is no category, a set is missing or empty, or something is no text.
    """

    categories: Mapping[str, Mapping[str, Sequence[str]]]

    def __post_init__(self) -> None:
        if not isinstance(self.categories, Mapping) or not self.categories:
            raise OptionError("a bank of follow-ups needs at least one category")
        for category, sides in self.categories.items():
            if not isinstance(sides, Mapping) or set(sides) != {"positive", "negative"}:
                raise OptionError(f"category '{category}' needs the sets 'positive' and 'negative', no others")
            for side, texts in sides.items():
                if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
                    raise OptionError(f"the {side} follow-ups of '{category}' must be a list with at least one entry")
                for place, text in enumerate(texts):
                    if not isinstance(text, str) or not text.strip():
                        raise OptionError(f"{side} follow-up {place} of '{category}' must be a text, got {text!r}")

    @classmethod
    def read(cls, file: Path) -> FollowupBank:
        """A bank from a JSON file: `{category: {"positive": [...], "negative": [...]}}`.

        Raises:
            OptionError: the file cannot be read, or as the class.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"{file}: {error.strerror}") from error
        except ValueError as error:
            raise OptionError(f"{file} is no JSON: {error}") from error
        try:
            return cls(found)
        except OptionError as error:
            raise OptionError(f"{file}: {error}") from error

    def texts(self) -> list[str]:
        """Every different utterance once, in order."""
        return list(dict.fromkeys(t for sides in self.categories.values() for texts in sides.values() for t in texts))


@dataclass(frozen=True)
class FollowupRewards:
    """Rewards of the responses of a comparison.

    Args:
        total: of each response.
        categories: of each response in each category.
    """

    total: list[float]
    categories: dict[str, list[float]]


class FollowupScorer:
    """Rewards responses by the likelihood of follow-ups; see the module.

    Args:
        scorer: a causal language model; it is put into evaluation mode.
        bank: the follow-ups; `DEFAULT_BANK` by default.
        role_format: see `RoleFormat`. A conversation without messages is taken as plain text, and the follow-up comes
            after it in a new paragraph.
        category_weights: weight of each category, 1 by default.
        reduction: see `mean_logps`.
        sides: see `flr_reward`.
        include_end: also score what ends the follow-up's turn.
        mode: "official_code" computes `official_code_score` instead of likelihoods, for comparison with it only.
        batch_size: follow-ups a forward pass, at least 1.

    Raises:
        OptionError: an option is unknown or out of range, or a weight belongs to no category.
    """

    def __init__(
        self,
        scorer: LanguageScorer,
        bank: FollowupBank | None = None,
        *,
        role_format: RoleFormat = "user_followup",
        category_weights: Mapping[str, float] | None = None,
        reduction: Reduction = "mean",
        sides: Literal["both", "positive", "negative"] = "both",
        include_end: bool = False,
        mode: Literal["likelihood", "official_code"] = "likelihood",
        batch_size: int = 16,
    ) -> None:
        if role_format not in ("user_followup", "switched"):
            raise OptionError(unknown("role_format", role_format, ("user_followup", "switched")))
        if mode not in ("likelihood", "official_code"):
            raise OptionError(unknown("mode", mode, ("likelihood", "official_code")))
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {batch_size}")
        self.scorer, self.bank = scorer.eval(), bank or DEFAULT_BANK
        weights = dict(category_weights or {})
        for name in weights:
            if name not in self.bank.categories:
                raise OptionError(unknown("category", name, self.bank.categories))
        self.weights = torch.tensor([float(weights.get(name, 1.0)) for name in self.bank.categories])
        self.role_format, self.reduction, self.sides = role_format, reduction, sides
        self.include_end, self.mode, self.batch_size = include_end, mode, batch_size

    def rewards(self, comparison: Comparison) -> FollowupRewards:
        """Rewards of all responses of a comparison, whose judgement is not looked at.

        Raises:
            RecordError: the conversation does not alternate between user and assistant, or is too long.
        """
        rows = [self._response(comparison, place) for place in range(len(comparison.responses))]
        table = torch.tensor(rows)
        columns = dict(zip(self.bank.categories, table.T.tolist(), strict=True))
        return FollowupRewards(total_reward(table, self.weights).tolist(), columns)

    def annotate(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError] | None = None
    ) -> Iterator[Comparison]:
        """The comparisons with `extra["rewards"]`, as objectives, mining and `evaluate` take a reward model's.

        Args:
            comparisons: read once, one at a time.
            skipped: where comparisons that cannot be scored are set aside; without it, the first of them is an error.
        """
        for comparison in comparisons:
            try:
                found = self.rewards(comparison)
            except RecordError as error:
                placed = error.at(comparison)
                if skipped is None:
                    raise placed from error
                skipped.append(placed)
                continue
            extra = {**comparison.extra, "rewards": found.total, "category_rewards": found.categories}
            yield replace(comparison, extra=extra)

    def _response(self, comparison: Comparison, place: int) -> list[float]:
        """Reward of one response in each category."""
        turns = conversation(comparison.prompt_of(place), comparison.responses[place])
        if self.mode == "official_code":
            scores = {text: self._released(turns, text) for text in self.bank.texts()}
            return [self._difference(scores, sides) for sides in self.bank.categories.values()]
        logps = followup_logps(
            self.scorer,
            turns,
            self.bank.texts(),
            role_format=self.role_format,
            include_end=self.include_end,
            batch_size=self.batch_size,
        )
        return [
            float(
                flr_reward(
                    *_padded([logps[text] for text in sides["positive"]]),
                    *_padded([logps[text] for text in sides["negative"]]),
                    reduction=self.reduction,
                    sides=self.sides,
                ).reward
            )
            for sides in self.bank.categories.values()
        ]

    def _difference(self, scores: Mapping[str, float], sides: Mapping[str, Sequence[str]]) -> float:
        good, bad = (fmean(scores[text] for text in sides[side]) for side in ("positive", "negative"))
        return {"both": good - bad, "positive": good, "negative": -bad}[self.sides]

    @torch.no_grad()
    def _released(self, turns: Text, text: str) -> float:
        before, role = context_turns(turns, self.role_format)
        span = self.scorer.encoder.span(before, text, role)
        row = torch.tensor([[*span.before, *span.tokens, *span.rest]], device=self.scorer.device)
        alone = torch.tensor(self.scorer.tokenizer(text)["input_ids"], device=self.scorer.device)
        return float(official_code_score(self.scorer.policy(input_ids=row, use_cache=False).logits[0].float(), alone))


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of one length, and where they hold something."""
    masks = [torch.ones_like(row) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(list(rows), batch_first=True), pad(masks, batch_first=True)


def conversation(prompt: Text, response: Text) -> Text:
    """Prompt and response as one conversation: messages if either is, else the text of both.

    Raises:
        RecordError: the response does not end with the assistant's turn, or roles do not alternate.
    """
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt + response
    before: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    after = ({"role": "assistant", "content": response},) if isinstance(response, str) else tuple(response)
    turns = (*before, *after)
    if not turns or turns[-1]["role"] != "assistant":
        raise RecordError("the conversation must end with the assistant's response", field="responses")
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    for one, other in pairwise(spoken):
        if one == other or {one, other} != {"user", "assistant"}:
            raise RecordError(f"user and assistant must take turns, got {one} before {other}", field="prompt")
    return turns


def followup_logps(
    scorer: LanguageScorer,
    turns: Text,
    followups: Sequence[str],
    *,
    role_format: RoleFormat = "user_followup",
    include_end: bool = False,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Log-probabilities (nats) of the tokens of each follow-up as the next turn of a conversation.

    A follow-up's tokens are those of the whole encoded chat that make up its text, so that a tokenizer that merges
    across the boundary is followed. Role tokens before it are context. The conversation is processed once.

    Args:
        scorer: the language model.
        turns: see `conversation`; messages or text.
        followups: the utterances.
        role_format: see `RoleFormat`; "switched" needs messages, and takes the last question and answer.
        include_end: also give what ends the turn.
        batch_size: follow-ups a forward pass.

    Raises:
        RecordError: the conversation with a follow-up is longer than the model's context, or cannot be switched.
        OptionError: messages were given and there is no chat template, or the tokenizer does not say where tokens
            stand.
    """
    before, role = context_turns(turns, role_format)
    found: dict[str, Tensor] = {}
    for start in range(0, len(followups), batch_size):
        texts = list(followups[start : start + batch_size])
        spans = [scorer.encoder.span(before, text, role) for text in texts]
        rows = [[*span.tokens, *(span.rest if include_end else [])] for span in spans]
        encoded = {"prompt_ids": [span.before for span in spans], "response_ids": rows}
        (scores,) = score_all(scorer, [encoded], batch_size=1)
        assert scores.tokens is not None
        for text, own in zip(texts, torch.split(scores.tokens.policy_logps, list(map(len, rows))), strict=True):
            found[text] = own
    return found


def context_turns(turns: Text, role_format: RoleFormat) -> tuple[Text, str]:
    """What stands before a follow-up, and the role that speaks it.

    Args:
        turns: see `conversation`. A first turn of the assistant is dropped: roles would not alternate.
        role_format: see `RoleFormat`.

    Raises:
        RecordError: the format is switched, and there is no question with an answer in messages.
    """
    if isinstance(turns, str):
        if role_format == "switched":
            raise RecordError("the switched format needs messages, a question and its answer", field="prompt")
        return turns + "\n\n", "user"
    spoken = [turn for turn in turns if turn["role"] != "system"]
    if role_format == "user_followup":
        first = spoken[0]
        kept = tuple(turn for turn in turns if turn is not first) if first["role"] == "assistant" else turns
        return kept, "user"
    if len(spoken) < 2:
        raise RecordError("the switched format needs a question and its answer", field="prompt")
    question, answer = spoken[-2:]
    return switched(question["content"], answer["content"]), "assistant"


def _category_bank(**pairs: tuple[Sequence[str], Sequence[str]]) -> FollowupBank:
    return FollowupBank({name: {"positive": good, "negative": bad} for name, (good, bad) in pairs.items()})


DEFAULT_BANK = _category_bank(
    understanding=(
        (
            "Yes, that is exactly what I was asking about.",
            "You got my point right away.",
            "Great, you see what I mean.",
            "That is just how I meant my question.",
            "You have understood my situation well.",
        ),
        (
            "No, that is not what I was asking about.",
            "You missed my point completely.",
            "I don't think you see what I mean.",
            "That is not how I meant my question.",
            "You have misunderstood my situation.",
        ),
    ),
    relevance=(
        (
            "That answers my question directly.",
            "Good, all of this matters for what I asked.",
            "Nice, you stayed on the topic.",
            "This is just the thing I was looking for.",
            "Everything in there is to the point.",
        ),
        (
            "That does not answer my question.",
            "Little of this matters for what I asked.",
            "Please stay on the topic.",
            "This is not the thing I was looking for.",
            "Most of it is beside the point.",
        ),
    ),
    correctness=(
        (
            "I checked it, and it is right.",
            "That agrees with what I know.",
            "Good, there is no mistake in it.",
            "Yes, these facts are correct.",
            "It worked just as you said.",
        ),
        (
            "I checked it, and it is wrong.",
            "That contradicts what I know.",
            "There is a mistake in it.",
            "No, these facts are not correct.",
            "It did not work as you said.",
        ),
    ),
    engagingness=(
        (
            "This is interesting, tell me more!",
            "I enjoy talking with you about this.",
            "What a lively answer, let us go on.",
            "Now I am curious about the rest.",
            "I could read this all day.",
        ),
        (
            "This is boring, let us stop here.",
            "I don't enjoy talking with you about this.",
            "What a dull answer, never mind.",
            "I have lost interest in the rest.",
            "I could hardly read to the end.",
        ),
    ),
    informativeness=(
        (
            "I learned a lot from that, thank you.",
            "The details are really useful.",
            "Now I know all that I need.",
            "That was a thorough explanation.",
            "You even covered what I had not thought of.",
        ),
        (
            "I learned nothing new from that.",
            "The details that I need are missing.",
            "I still don't know what to do.",
            "That was a shallow explanation.",
            "You left out the most important part.",
        ),
    ),
    following=(
        (
            "You did exactly as I told you.",
            "Perfect, that is the format I wanted.",
            "Thanks for keeping to all my instructions.",
            "Good, you met every condition.",
            "That is how I asked you to do it.",
        ),
        (
            "You did not do as I told you.",
            "That is not the format I wanted.",
            "You ignored some of my instructions.",
            "You did not meet my conditions.",
            "That is not how I asked you to do it.",
        ),
    ),
)
"""Follow-ups about six sides of helpfulness, five a side. The categories are the paper's, the wording is ours."""
