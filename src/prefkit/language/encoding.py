"""Encoding: from the texts of a comparison to tokens, with an exact boundary between prompt and response.

A response's tokens are what the tokenizer adds to the prompt's own tokens when it reads both together. Where a token
would straddle the boundary (the two texts merge into it), prompt and response are encoded apart, and the event is
counted.

A joint comparison asks which of two prompts with their responses is better. An encoder that was told to scores its
prompts with the responses: everything after the first token, which nothing predicts, counts as the response.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from prefkit.comparisons import Comparison, Message, Text
from prefkit.errors import OptionError, RecordError
from prefkit.options import Options

_ANCHOR = "\n"
"""Text before a response that is encoded apart, so that a tokenizer adds nothing to its beginning."""


class EncodingOptions(Options):
    """How texts become tokens.

    Args:
        max_length: tokens of prompt and response together; the model's context by default.
        too_long: what happens to a longer one. `skip` sets the comparison aside and reports it; `truncate_prompt` drops
            the beginning of the prompt; `truncate_response` drops the end of the response; `truncate_both` drops the
            beginning of the prompt down to `max_prompt_length`, then the end of the response, see `truncated_lengths`.
        max_prompt_length: tokens of the prompt that `truncate_both` keeps.
        append_eos: end plain-text responses with the end-of-sequence token. Messages end as their template says.
        chat_template: a Jinja template that replaces the tokenizer's own.
        template_options: variables for the chat template.
    """

    max_length: int | None = Field(None, ge=2)
    too_long: Literal["skip", "truncate_prompt", "truncate_response", "truncate_both"] = "skip"
    max_prompt_length: int | None = Field(None, ge=1)
    append_eos: bool = True
    chat_template: str | None = None
    template_options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if (self.max_prompt_length is None) == (self.too_long == "truncate_both"):
            raise ValueError("`too_long: truncate_both` and max_prompt_length go together: give both or neither")
        return self


class Lengths(NamedTuple):
    """Tokens of a prompt and of a response."""

    prompt: int
    response: int


class Span(NamedTuple):
    """Tokens of a conversation, parted around the text of its last turn."""

    before: list[int]
    tokens: list[int]
    rest: list[int]


def truncated_lengths(prompt_length: int, response_length: int, *, max_length: int, max_prompt_length: int) -> Lengths:
    """How much is kept of a prompt and a response that are too long together.

    The prompt is cut to `max_prompt_length` if the two exceed `max_length`; if they still do, the response is cut to
    what that leaves, `max_length - max_prompt_length`, however long the prompt is.

    Args:
        prompt_length: tokens of the prompt.
        response_length: tokens of this response, its end included; each side of a pair is cut by its own length.
        max_length: tokens of both together.
        max_prompt_length: tokens of a prompt that was cut.

    Raises:
        OptionError: the prompt leaves no room for a response.

    Source: Bansal et al. 2024 (JPO, arXiv 2404.00530), the authors' trainer.
    """
    _check_room(max_prompt_length, max_length)
    if prompt_length + response_length > max_length:
        prompt_length = min(prompt_length, max_prompt_length)
    if prompt_length + response_length > max_length:
        response_length = min(response_length, max_length - max_prompt_length)
    return Lengths(prompt_length, response_length)


def _check_room(max_prompt_length: int, max_length: int) -> None:
    if max_prompt_length >= max_length:
        raise OptionError(
            f"max_prompt_length must be less than max_length, so that a response fits: got {max_prompt_length} and "
            f"{max_length}"
        )


class Encoder:
    """Turns the texts of comparisons into tokens.

    Args:
        tokenizer: the model's tokenizer.
        context: tokens that the model can read at most; None if it has no bound.
        options: see `EncodingOptions`.

    Attributes:
        merged_boundaries: responses whose first characters the tokenizer would have merged with the prompt.
        truncated: comparisons that were cut to fit.
        joint: score the prompts of joint comparisons with their responses.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: int | None, options: EncodingOptions | None = None
    ) -> None:
        self.tokenizer, self.options = tokenizer, options or EncodingOptions()
        asked = self.options.max_length
        if asked is not None and context is not None and asked > context:
            raise OptionError(
                f"encoding.max_length must be at most the model's context of {context} tokens, got {asked}"
            )
        self.max_length = asked or context
        if self.options.max_prompt_length is not None and self.max_length is not None:
            _check_room(self.options.max_prompt_length, self.max_length)
        self.joint = False
        self.merged_boundaries = self.truncated = 0
        self._begin = self._begin_tokens()
        self._anchor = self._ids(_ANCHOR)

    def encode(self, comparison: Comparison, *, steps: bool = False) -> dict[str, Any]:
        """Tokens of one comparison.

        Args:
            comparison: what to encode.
            steps: also say which step of its response each token belongs to.

        Returns:
            `prompt_ids`, one list of tokens a prompt (one, or one a response), and `response_ids`, one list a response:
            the tokens that are scored; with `steps` also `step_ids`, one list a response: a token belongs to the step
            in which its text begins, spaces aside; what ends a response (the end token, the end of a chat turn) to the
            last step; what a template puts before the first step, or a response without steps, to none (-1).

        Raises:
            RecordError: a side has no tokens or is longer than the context, or steps do not make up their response.
            OptionError: messages were given and there is no chat template.
        """
        texts = [
            self._texts(comparison.prompt_of(index), response) for index, response in enumerate(comparison.responses)
        ]
        if not comparison.joint and len({prompt for prompt, _, _ in texts}) > 1:
            raise RecordError("the chat template renders the prompt differently for each response", field="prompt")
        # Responses share their prompt, as a rule: it is encoded once.
        known = {(prompt, templated): self._prompt(prompt, templated) for prompt, _, templated in texts}
        prompts = [known[prompt, templated] for prompt, _, templated in texts]
        responses = [
            self._response(prompt, response, prompt_ids, templated)
            for (prompt, response, templated), prompt_ids in zip(texts, prompts, strict=True)
        ]
        for index, tokens in enumerate(responses):
            if not tokens:
                raise RecordError(f"response {index} encodes to no tokens", field="responses")
        step_ids = [
            self._steps(comparison, place, texts[place], responses[place]) for place in range(len(texts) * steps)
        ]
        prompts = self._fit(prompts if comparison.joint else prompts[:1], responses)
        step_ids = [own[: len(tokens)] for own, tokens in zip(step_ids, responses, strict=False)]
        if self.joint and comparison.joint:
            responses = [prompt[1:] + response for prompt, response in zip(prompts, responses, strict=True)]
            step_ids = [[-1] * (len(prompt) - 1) + own for prompt, own in zip(prompts, step_ids, strict=False)]
            prompts = [prompt[:1] for prompt in prompts]
        encoded = {"prompt_ids": prompts, "response_ids": responses}
        return encoded | {"step_ids": step_ids} if steps else encoded

    def key(self) -> str:
        """A digest of everything that decides the tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        facts = [
            vocabulary,
            self.options.model_dump_json(),
            str(self.tokenizer.chat_template),
            str(self.max_length),
            str(self._begin),
            f"joint {self.joint}",
        ]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()

    def prompt_tokens(self, prompt: Text) -> list[int]:
        """Tokens of a prompt alone, as they stand before a response (for sampling)."""
        text, templated = (prompt, False) if isinstance(prompt, str) else (self._render(_messages(prompt), True), True)
        return self._prompt(text, templated)

    def span(self, before: Text, text: str, role: str = "user") -> Span:
        """Tokens of a text as the next turn of a conversation, found in the tokens of the whole.

        Args:
            before: messages, or text that `text` follows immediately.
            text: the next turn; in messages one of `role`.
            role: who speaks it.

        Returns:
            What stands before it (for messages with the marks of its role), its own tokens (those that hold some of
            its characters), and what follows it.

        Raises:
            RecordError: the template changes the text, or the whole is longer than the context.
            OptionError: messages were given without a chat template, or the tokenizer does not say where tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise OptionError(f"{type(self.tokenizer).__name__} does not say where tokens stand: take a fast one")
        own = text.strip()
        templated = not isinstance(before, str)
        whole = self._render([*before, {"role": role, "content": own}], False) if templated else f"{before}{own}"
        start = whole.rfind(own)
        if start < 0:
            raise RecordError("the chat template changes the text of a turn", field="prompt")
        found = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = found["input_ids"], found["offset_mapping"]
        held = [place for place, (low, high) in enumerate(offsets) if low < start + len(own) and high > start]
        begin = [] if templated else self._begin
        if not held or not (begin or held[0]):
            raise RecordError("a text needs tokens, and one before them that predicts the first", field="prompt")
        if self.max_length is not None and len(begin) + len(ids) > self.max_length:
            raise RecordError(
                f"the conversation has {len(begin) + len(ids)} tokens, the context holds {self.max_length}",
                field="prompt",
            )
        first, last = held[0], held[-1] + 1
        return Span([*begin, *ids[:first]], ids[first:last], ids[last:])

    def _texts(self, prompt: Text, response: Text) -> tuple[str, str, bool]:
        """Prompt text, response text, and whether a chat template made them."""
        if isinstance(prompt, str) and isinstance(response, str):
            return prompt, response, False
        before = _messages(prompt) if prompt else []
        after = _messages(response, role="assistant")
        whole = self._render([*before, *after], open_turn=False)
        for open_turn in (True, False):
            start = self._render(before, open_turn) if before else ""
            if whole.startswith(start):
                return start, whole[len(start) :], True
        raise RecordError("the chat template changes the prompt when a response follows it", field="prompt")

    def _render(self, messages: list[Message], open_turn: bool) -> str:
        if not (self.options.chat_template or self.tokenizer.chat_template):
            raise OptionError(
                "the data hold messages but the tokenizer has no chat template; set encoding.chat_template or give text"
            )
        continued = open_turn and messages[-1]["role"] == "assistant"
        text: str = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self.options.chat_template,
            tokenize=False,
            add_generation_prompt=open_turn and not continued,
            continue_final_message=continued,
            **self.options.template_options,
        )
        return text

    def _prompt(self, text: str, templated: bool) -> list[int]:
        tokens = self._ids(text) if templated else [*self._begin, *self._ids(text)]
        if not tokens:
            # Something has to predict the first response token.
            start = (
                self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            )
            if start is None:
                raise RecordError(
                    "the prompt encodes to no tokens and the tokenizer has no token to begin with", field="prompt"
                )
            return [start]
        return tokens

    def _response(self, prompt: str, response: str, prompt_ids: list[int], templated: bool) -> list[int]:
        lead = 0 if templated else len(self._begin)
        own = prompt_ids[lead:] if prompt else []
        whole = self._ids(prompt + response)
        if whole[: len(own)] == own:
            tokens = whole[len(own) :]
        else:
            self.merged_boundaries += 1
            anchored = self._ids(_ANCHOR + response)
            cut = len(self._anchor)
            tokens = anchored[cut:] if anchored[:cut] == self._anchor else self._ids(response)
        end = self.tokenizer.eos_token_id
        if not templated and self.options.append_eos and end is not None and tokens[-1:] != [end]:
            tokens = [*tokens, end]
        return tokens

    def _steps(self, comparison: Comparison, place: int, texts: tuple[str, str, bool], tokens: list[int]) -> list[int]:
        """The step of each token of a response."""
        steps = comparison.steps[place] if comparison.steps is not None else None
        if steps is None:
            return [-1] * len(tokens)
        prompt, response, _ = texts
        text = "".join(steps)
        begin = found = response.find(text) if text.strip() else -1
        if found < 0 and text.strip():
            # A template may strip what it is given.
            found = response.find(text.strip())
            begin = found - (len(text) - len(text.lstrip()))
        if found < 0:
            raise RecordError(
                f"the steps of response {place}, one after the other, are not the response", field="steps"
            )
        ends = [begin + end for end in accumulate(map(len, steps))]
        return [
            -1 if start < found else min(bisect_right(ends, start), len(steps) - 1)
            for start in self._starts(prompt, response, tokens)
        ]

    def _starts(self, prompt: str, response: str, tokens: list[int]) -> list[int]:
        """Where in the response the text of each of its tokens begins."""
        for text in (prompt + response, _ANCHOR + response, response):
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids, offsets = found["input_ids"], found["offset_mapping"]
            # All tokens are of the text, or all but the end token.
            for count in (len(tokens), len(tokens) - 1):
                if count > 0 and ids[-count:] == tokens[:count]:
                    outside = len(text) - len(response)
                    starts = [_first_sign(text, begin, end) - outside for begin, end in offsets[-count:]]
                    return starts if count == len(tokens) else [*starts, len(response)]
        raise RecordError("the tokens of a response cannot be found in its text", field="responses")

    def _fit(self, prompts: list[list[int]], responses: list[list[int]]) -> list[list[int]]:
        """The prompts, cut where the options say so; responses are cut in place."""
        bound = self.max_length
        if bound is None:
            return prompts
        fitted = []
        cut = False
        for index, prompt in enumerate(prompts):
            mine = responses if len(prompts) == 1 else responses[index : index + 1]
            longest = max(map(len, mine))
            if len(prompt) + longest <= bound:
                fitted.append(prompt)
                continue
            cut = True
            policy = self.options.too_long
            if policy == "truncate_prompt" and longest < bound:
                fitted.append(prompt[len(prompt) - (bound - longest) :])
            elif policy == "truncate_response" and len(prompt) < bound:
                for response in mine:
                    del response[bound - len(prompt) :]
                fitted.append(prompt)
            elif self.options.max_prompt_length is not None:
                most = self.options.max_prompt_length
                kept = truncated_lengths(len(prompt), longest, max_length=bound, max_prompt_length=most)
                for response in mine:
                    del response[kept.response :]
                fitted.append(prompt[len(prompt) - kept.prompt :])
            elif len(prompt) >= bound:
                raise RecordError(f"the prompt has {len(prompt)} tokens, the context holds {bound}", field="prompt")
            else:
                raise RecordError(
                    f"prompt ({len(prompt)}) and response ({longest}) exceed the context of {bound} tokens",
                    field="responses",
                )
        self.truncated += cut
        same = len(responses) > 1 and all(response == responses[0] for response in responses)
        if cut and same and all(prompt == fitted[0] for prompt in fitted):
            raise RecordError("the responses are equal after truncation", field="responses")
        return fitted

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _begin_tokens(self) -> list[int]:
        """What the tokenizer puts before a text of its own accord."""
        plain, special = self._ids("a"), self.tokenizer("a")["input_ids"]
        for start in range(len(special) - len(plain) + 1):
            if special[start : start + len(plain)] == plain:
                return list(special[:start])
        return []


def _first_sign(text: str, begin: int, end: int) -> int:
    """Where the first character of a stretch of text is that is no space.

    Some tokenizers count the space before a word to the token's place, others do not.
    """
    own = text[begin:end]
    return begin + len(own) - len(own.lstrip()) if own.strip() else begin


def _messages(text: Text, role: str = "user") -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest token that the tokenizer can give."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    return max(vocabulary.values()) + 1
