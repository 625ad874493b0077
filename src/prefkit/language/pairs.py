"""Prompt and response for models that read in both directions: two texts, joined as the model's tokenizer joins them.

An encoder of the BERT kind was trained on `[CLS] one [SEP] other [SEP]`, with the type of each token beside it, or on
the like of it with other marks. Its states of a prompt depend on the response, so a prompt cannot be shared: every
response is read with a copy of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkit.comparisons import Text
from prefkit.errors import OptionError
from prefkit.language.encoding import Encoder, EncodingOptions
from prefkit.objectives import Encoded, Inputs

_UNLIMITED = 10**9
"""Tokenizers that know no limit give a number beyond this."""


class Frame(NamedTuple):
    """What a tokenizer puts around and between texts: tokens, and the type of each.

    Args:
        before: in front of the first text.
        between: between two texts.
        after: behind the second text.
        alone: behind a single text.
        types: of the tokens before, of the first text, between, of the second text, and after.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    alone: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Look how it joins two texts.

        Raises:
            OptionError: it does not do so in one way.
        """

        def ids(text: str) -> list[int]:
            found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return found

        one, other = ids("a"), ids("b c")
        joined = tokenizer("a", "b c", return_token_type_ids=True)
        whole, types = list(joined["input_ids"]), list(joined["token_type_ids"])
        single = list(tokenizer("a")["input_ids"])
        start, second = _find(one, whole, 0), _find(other, whole, len(one))
        begun = _find(one, single, 0)
        if start is None or second is None or begun is None or whole[:start] != single[:begun]:
            raise OptionError(f"{type(tokenizer).__name__} does not join two texts in a way that can be followed")
        end, last = start + len(one), second + len(other)
        return cls(
            whole[:start],
            whole[end:second],
            whole[last:],
            single[begun + len(one) :],
            (types[:start], types[start], types[end:second], types[second], types[last:]),
        )

    @property
    def size(self) -> int:
        """Tokens that it adds to two texts."""
        return len(self.before) + len(self.between) + len(self.after)

    def pair(self, prompt: Sequence[int], response: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokens of two texts and their types."""
        before, first, between, second, after = self.types
        ids = [*self.before, *prompt, *self.between, *response, *self.after]
        return ids, [*before, *[first] * len(prompt), *between, *[second] * len(response), *after]

    def single(self, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokens of one text and their types."""
        ids = [*self.before, *prompt, *self.alone]
        return ids, [self.types[1]] * len(ids)


class PairEncoder(Encoder):
    """Turns prompt and response into tokens, each on its own; what stands around them is the frame's business.

    Few tokenizers of encoders have a chat template. Without one a prompt of one message is its text, and of several one
    line a message, `role: text`.

    Args:
        tokenizer: of the model.
        context: how many tokens the model reads; None for any number.
        options: how texts become tokens.

    Raises:
        OptionError: no room is left beside the frame.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: int | None, options: EncodingOptions | None = None
    ) -> None:
        most = int(tokenizer.model_max_length)
        limits = [limit for limit in (context, most) if limit is not None and limit < _UNLIMITED]
        super().__init__(tokenizer, min(limits) if limits else None, options)
        self.frame = Frame.of(tokenizer)
        if self.max_length is not None:
            # The limit of what is cut: the texts themselves.
            self.max_length -= self.frame.size
            if self.max_length < 2:
                raise OptionError(
                    f"encoding.max_length must leave room for two texts beside the {self.frame.size} tokens around "
                    f"them, got {self.max_length + self.frame.size}"
                )

    def _texts(self, prompt: Text, response: Text) -> tuple[str, str, bool]:
        if self.options.chat_template or self.tokenizer.chat_template:
            return super()._texts(prompt, response)
        return _spoken(prompt), _spoken(response), False

    def _prompt(self, text: str, templated: bool) -> list[int]:
        return self._ids(text)

    def _response(self, prompt: str, response: str, prompt_ids: list[int], templated: bool) -> list[int]:
        return self._ids(response)


class PairTrunk:
    """A model that reads in both directions, and how its states become one a response.

    Args:
        model: an encoder, or a sequence classifier of one.
        frame: how texts are joined.
        pad: the token of padding.
    """

    shared = False

    def __init__(self, model: PreTrainedModel, frame: Frame, pad: int) -> None:
        self.model, self.frame, self.pad = model, frame, pad
        self.typed = "token_type_ids" in inspect.signature(model.forward).parameters and any(
            isinstance(part, nn.Embedding) and "token_type" in name and part.num_embeddings > 1
            for name, part in model.named_modules()
        )

    def collate(self, encoded: Sequence[Encoded], prompts: bool) -> dict[str, Tensor]:
        """One padded row a response, and behind them, if wanted, one a prompt.

        Args:
            encoded: `prompt_ids` and `response_ids` of each comparison.
            prompts: also read the prompts alone.
        """
        rows: list[tuple[list[int], list[int]]] = []
        alone: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        lengths: list[int] = []
        for item in encoded:
            own, responses = item["prompt_ids"], item["response_ids"]
            for place, response in enumerate(responses):
                prompt = own[place if len(own) > 1 else 0]
                rows.append(self.frame.pair(prompt, response))
                lengths.append(len(response))
                if len(own) > 1 or not place:
                    alone.append(self.frame.single(prompt))
                owners.append(len(alone) - 1)
        packed = {"response_lengths": torch.tensor(lengths)}
        if prompts:
            packed["prompt_rows"] = torch.tensor(owners) + len(rows)
            rows += alone
        widths = torch.tensor([len(ids) for ids, _ in rows])
        packed["input_ids"] = _padded([ids for ids, _ in rows], self.pad)
        packed["attention_mask"] = (torch.arange(int(widths.max())) < widths[:, None]).long()
        if self.typed:
            packed["token_type_ids"] = _padded([types for _, types in rows], 0)
        return packed

    def arguments(self, inputs: Inputs) -> dict[str, Tensor]:
        """A batch as the model takes it."""
        return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs}

    def pooled(self, inputs: Inputs, pooling: str) -> tuple[Tensor, Tensor | None]:
        """The state of each response, and that of its prompt alone if the batch has the prompts, `[responses, dim]`."""
        model, mask = self.model.base_model, inputs["attention_mask"]
        states: Tensor = model(**self.arguments(inputs)).last_hidden_state
        match pooling:
            case "cls":
                found = states[:, 0]
            case "mean":
                shares = mask / mask.sum(1, keepdim=True)
                found = (states * shares.unsqueeze(-1).to(states)).sum(1)
            case _:
                found = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        count = len(inputs["response_lengths"])
        return found[:count], found[inputs["prompt_rows"]] if "prompt_rows" in inputs else None


def positions_of(model: PreTrainedModel) -> int | None:
    """How many tokens an encoder reads; None if it does not say.

    The positions of RoBERTa and its kin begin behind that of padding, and those before it are nobody's.
    """
    size: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    return size


def _spoken(text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)


def _find(part: list[int], whole: list[int], start: int) -> int | None:
    return next((at for at in range(start, len(whole) - len(part) + 1) if whole[at : at + len(part)] == part), None)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
