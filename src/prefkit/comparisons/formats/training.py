"""Formats of training libraries: TRL, LLaMA-Factory, OpenRLHF, HALOs, tinker-cookbook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from prefkit.comparisons.formats.base import Format, has, is_dict, is_list, is_text
from prefkit.comparisons.prompts import has_turns, split_pair
from prefkit.comparisons.record import Comparison, Judgement, Label, StepLabels, Text, Winner
from prefkit.comparisons.rows import TIE, A, B, Row, as_list, assistant, is_messages, user
from prefkit.errors import OptionError, RecordError
from prefkit.options import Options

_BOOL = {True: True, False: False, "true": True, "false": False}
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_IMAGES = ("images", "image")


def _with_images(row: Row, texts: tuple[Text, ...]) -> tuple[Text, ...]:
    """Fill `{"type": "image"}` placeholders, in order, from the images column."""
    column = next((name for name in _IMAGES if row.get(name) is not None), None)
    if column is None:
        return texts
    given = as_list(row[column])
    images = [row[column]] if given is None else given
    parts = [
        part
        for text in texts
        if not isinstance(text, str)
        for message in text
        if isinstance(message["content"], list)
        for part in message["content"]
        if part.get("type") == "image"
    ]
    if not parts:
        return texts
    if len(parts) != len(images):
        raise row.error(f"{len(images)} images for {len(parts)} image placeholders", column)
    rest = iter(images)

    def filled(content: Any) -> Any:
        if not isinstance(content, list):
            return content
        return [{**part, "image": next(rest)} if part.get("type") == "image" else part for part in content]

    return tuple(
        text if isinstance(text, str) else tuple({**message, "content": filled(message["content"])} for message in text)
        for text in texts
    )


def read_pair(row: Row, prompt: str | None, chosen: str, rejected: str) -> Comparison:
    """A chosen and a rejected column, with the prompt apart or inside; equal scores beside them are a tie."""
    first, second = row.said(chosen), row.said(rejected)
    given = None
    # A prompt column may be null where the sides hold the prompt as turns; plain text says nothing about where it ends.
    if prompt is not None and prompt in row and (row[prompt] is not None or not has_turns(first)):
        given = row.said(prompt)
    prompts, responses = split_pair(row, given, first, second, (chosen, rejected))
    judgement, strength = A, None
    for better, worse in _SCORES:
        if not row.missing(better) and not row.missing(worse):
            strength = row.number(better) - row.number(worse)
            # A negative gap means that the scores and the chosen column contradict each other; the column decides.
            judgement, strength = (TIE, None) if strength == 0 else (A, strength if strength > 0 else None)
            break
    if strength is None and judgement is A and not row.missing("margin"):
        strength = row.number("margin")
        if strength < 0:
            raise row.error(f"must be at least 0, got {strength:g}", "margin")
    filled = _with_images(row, (*prompts, *responses))
    images = () if filled == (*prompts, *responses) else _IMAGES
    return Comparison(
        filled[: len(prompts)],
        filled[len(prompts) :],
        judgement,
        strength=strength,
        annotator=row.name("annotator"),
        id=row.name("id"),
        extra=row.rest(*(name for name in (prompt, chosen, rejected) if name), "annotator", "id", *images),
        **row.place,
    )


def _pair(row: Row, options: Options) -> Iterator[Comparison]:
    yield read_pair(row, "prompt", "chosen", "rejected")


DIFFICULTIES = ("easy", "medium", "hard")
"""Stages of published curricula, in their order."""


def _staged(row: Row, options: Options) -> Iterator[Comparison | RecordError]:
    for difficulty in DIFFICULTIES:
        if row.missing(difficulty):
            continue
        try:
            turns = row.inside(difficulty).objects("conversation")
            if [turn.get("role") for turn in turns] != ["user", "assistant"]:
                raise row.error("must be one turn of the user and one of the assistant", f"{difficulty}.conversation")
            question, answer = turns
            yield Comparison.pair(
                user(question.text("content")),
                assistant(answer.text("chosen_content")),
                assistant(answer.text("rejected_content")),
                extra={"difficulty": difficulty, **row.rest(*DIFFICULTIES)},
                **row.place,
            )
        except RecordError as error:
            yield error


def _binarized(row: Row, options: Options) -> Iterator[Comparison]:
    if "chosen_response" in row:
        yield read_pair(row, "instruction", "chosen_response", "rejected_response")
    else:
        yield read_pair(row, "prompt" if "prompt" in row else "instruction", "chosen", "rejected")


def _unpaired(row: Row, options: Options) -> Iterator[Comparison]:
    prompt, completion = row.said("prompt"), row.said("completion")
    if isinstance(prompt, str) and not isinstance(completion, str):
        prompt = user(prompt)
    elif isinstance(completion, str) and not isinstance(prompt, str):
        completion = assistant(completion)
    yield Comparison(
        (prompt,),
        (completion,),
        Label(row.one_of("label", _BOOL)),
        annotator=row.name("annotator"),
        id=row.name("id"),
        extra=row.rest("prompt", "completion", "label", "annotator", "id"),
        **row.place,
    )


class StepwiseOptions(Options):
    """Options of `trl_stepwise`.

    Args:
        separator: what joins the prompt and the steps; the file does not store it.
        scale: what numbers mean: "probability" that a step is right (0 wrong, 1 right), or "signed" (-1 wrong, 0
            neutral, 1 right). Needed for numbers only; true and false speak for themselves.
    """

    separator: str = "\n"
    scale: Literal["probability", "signed"] | None = None


def _stepwise(row: Row, options: StepwiseOptions) -> Iterator[Comparison]:
    steps, labels = row.list_of("completions"), row.list_of("labels")
    if len(steps) != len(labels):
        raise row.error(f"{len(labels)} labels for {len(steps)} completions", "labels")
    values: list[float | None] = []
    for index, label in enumerate(labels):
        if isinstance(label, bool):
            values.append(1.0 if label else -1.0)
        elif label is None:
            values.append(None)
        elif options.scale is None:
            raise OptionError(
                "trl_stepwise: labels are numbers, and the file does not say what 0 means; give the option scale: "
                "'probability' (0 is wrong, 1 is right) or 'signed' (-1 is wrong, 0 is neutral, 1 is right)"
            )
        else:
            number = row.nested({str(index): label}, "labels").number(str(index))
            values.append(2.0 * number - 1.0 if options.scale == "probability" else number)
    yield stepwise(row, row.text("prompt"), [str(step) for step in steps], values, options.separator)


def stepwise(row: Row, prompt: str, steps: list[str], values: list[float | None], separator: str) -> Comparison:
    """A solution with a label a step; the separator stands after the prompt and between the steps."""
    parts = tuple(step if index == len(steps) - 1 else step + separator for index, step in enumerate(steps))
    return Comparison(
        (prompt + separator,),
        ("".join(parts),),
        StepLabels(tuple(values)),
        steps=(parts,),
        id=row.name("id"),
        **row.place,
    )


# --- LLaMA-Factory


def _alpaca_context(row: Row) -> tuple[dict[str, Any], ...]:
    question = row.text("instruction")
    if not row.missing("input"):
        question += "\n" + row.text("input")
    messages = [] if row.missing("system") else [{"role": "system", "content": row["system"]}]
    for index, turn in enumerate(as_list(row.get("history")) or []):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise row.error("must be a pair of texts (user, assistant)", f"history[{index}]")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return (*messages, {"role": "user", "content": question})


_ALPACA = ("instruction", "input", "system", "history", "chosen", "rejected", "output", "kto_tag", "label")


def _alpaca(row: Row, options: Options) -> Iterator[Comparison]:
    prompt = _alpaca_context(row)
    more: dict[str, Any] = {"extra": row.rest(*_ALPACA), **row.place}
    answers = as_list(row.get("output"))
    if answers is not None:
        if len(answers) < 2:
            raise row.error(f"an output list holds the chosen and the rejected answer, got {len(answers)}", "output")
        texts = [row.as_said(answer, f"output[{index}]") for index, answer in enumerate(answers)]
        if all(text == texts[0] for text in texts):
            raise row.error("the answers are equal; there is no preference in them", "output")
        # The first answer is the best; two answers are a pair, more are read as best against the others.
        yield Comparison((prompt,), tuple(assistant(text) for text in texts), Winner(0), **more)
    elif "chosen" in row:
        chosen, rejected = row.text("chosen"), row.text("rejected")
        if chosen == rejected:
            raise row.error("chosen equals rejected; there is no preference in an identical pair", "chosen")
        yield Comparison.pair(prompt, assistant(chosen), assistant(rejected), **more)
    else:
        tag = "kto_tag" if "kto_tag" in row else "label"
        judgement = Label(row.one_of(tag, _BOOL))
        yield Comparison((prompt,), (assistant(row.text("output")),), judgement, **more)


def _is_alpaca(row: Mapping[str, Any]) -> bool:
    if "instruction" not in row:
        return False
    if "output" in row:
        listed = as_list(row["output"]) is not None
        return "chosen" not in row and (listed or "kto_tag" in row or isinstance(row.get("label"), bool))
    return is_text(row, "chosen", "rejected") and "prompt" not in row


_MEDIA = {"<image>": "images", "<video>": "videos", "<audio>": "audios"}


def _sharegpt(row: Row, options: Options) -> Iterator[Comparison]:
    turns = row.said("conversations")
    if isinstance(turns, str):
        raise row.error("must be a list of messages", "conversations")
    system = () if row.missing("system") else ({"role": "system", "content": row["system"]},)
    whole = "".join(str(message["content"]) for message in turns)
    for mark, column in _MEDIA.items():
        files = as_list(row.get(column)) or []
        if whole.count(mark) != len(files):
            raise row.error(f"{whole.count(mark)} {mark} marks for {len(files)} {column}", column)
    more: dict[str, Any] = {
        "extra": row.rest("conversations", "system", "chosen", "rejected", "kto_tag"),
        **row.place,
    }
    if "kto_tag" in row:
        judgement = Label(row.one_of("kto_tag", _BOOL))
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise row.error("must end with the answer that is judged", "conversations")
        yield Comparison(((*system, *turns[:-1]),), (turns[-1:],), judgement, **more)
        return
    body = turns[1:] if turns[0]["role"] == "system" else turns
    if len(body) % 2 == 0 or body[-1]["role"] not in ("user", "tool"):
        raise row.error("needs an odd number of turns that ends with a user turn", "conversations")
    chosen, rejected = row.said("chosen"), row.said("rejected")
    if chosen == rejected:
        raise row.error("chosen equals rejected; there is no preference in an identical pair", "chosen")
    yield Comparison.pair((*system, *turns), chosen, rejected, **more)


# --- OpenRLHF


class OpenRLHFOptions(Options):
    """Options of `openrlhf`: the names of the columns.

    Args:
        chosen_key: the better side (or the only one, with `label_key`).
        rejected_key: the worse side.
        prompt_key: the prompt; None where the sides hold it.
        label_key: a true/false column of unpaired data, with `prompt_key` and `chosen_key`.
        template: wraps a text prompt, with {} in its place, as in "User: {}\\nAssistant: ".
    """

    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    prompt_key: str | None = None
    label_key: str | None = None
    template: str | None = None


def _openrlhf(row: Row, options: OpenRLHFOptions) -> Iterator[Comparison]:
    if options.template is not None and options.prompt_key is not None:
        wrapped = options.template.replace("{}", row.text(options.prompt_key))
        row = Row({**row, options.prompt_key: wrapped}, row.source, row.line)
    if options.label_key is not None:
        if options.prompt_key is None:
            raise OptionError("openrlhf: label_key needs prompt_key (the prompt) and chosen_key (the answer)")
        fields = {"prompt": row.get(options.prompt_key), "completion": row.get(options.chosen_key)}
        yield from _unpaired(Row({**fields, "label": row.get(options.label_key)}, row.source, row.line), options)
        return
    yield read_pair(row, options.prompt_key, options.chosen_key, options.rejected_key)


# --- HALOs and tinker-cookbook


def _halos(row: Row, options: Options) -> Iterator[Comparison]:
    more: dict[str, Any] = {"id": row.name("prompt_id"), **row.place}
    if row.get("type") == "binary_feedback":
        label = Label(row.one_of("label", {1: True, 0: False, **_BOOL}))
        yield Comparison(
            (row.said("prompt"),),
            (row.said("output"),),
            label,
            extra=row.rest("prompt", "output", "label", "prompt_id"),
            **more,
        )
        return
    judgement: Judgement = row.one_of("label", {1: A, 0: B})
    strength = None
    if not row.missing("reward_A") and not row.missing("reward_B"):
        # Equal rewards are stored as a win of B.
        strength = abs(row.number("reward_A") - row.number("reward_B"))
        if strength == 0:
            judgement, strength = TIE, None
    yield Comparison(
        (row.said("prompt"),),
        (row.said("output_A"), row.said("output_B")),
        judgement,
        strength=strength,
        extra=row.rest("prompt", "output_A", "output_B", "label", "prompt_id"),
        **more,
    )


def _tinker(row: Row, options: Options) -> Iterator[Comparison]:
    pair = row.inside("comparison")
    yield Comparison(
        (pair.said("prompt_conversation"),),
        (pair.said("completion_A"), pair.said("completion_B")),
        row.one_of("label", {"a": A, "b": B, "tie": TIE}),
        extra=row.rest("comparison", "label"),
        **row.place,
    )


def _is_stepwise(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and is_list(row, "completions", "labels")


def _is_sharegpt(row: Mapping[str, Any]) -> bool:
    if not is_messages(as_list(row.get("conversations"))):
        return False
    return "kto_tag" in row or (is_messages(row.get("chosen")) and is_messages(row.get("rejected")))


def _is_binarized(row: Mapping[str, Any]) -> bool:
    if has("chosen_response", "rejected_response")(row):
        return True
    return has("chosen", "rejected")(row) and any(has(*names)(row) for names in _SCORES)


SPECIFIC = (
    Format(
        "curriculum",
        "`easy`, `medium`, `hard` objects with `conversation`",
        "the chosen_content column is better",
        lambda row: is_dict(row, *DIFFICULTIES) and all("conversation" in row[name] for name in DIFFICULTIES),
        _staged,
    ),
    Format(
        "trl_stepwise",
        "`prompt`, `completions` list, `labels` list",
        "true/false, or a number, per step",
        _is_stepwise,
        _stepwise,
        StepwiseOptions,
    ),
    Format(
        "halos",
        "`prompt_id`, `output_A`, `output_B`, `label`, `type`",
        "1: A, 0: B; equal rewards: tie",
        lambda row: (
            "prompt_id" in row and (has("output_A", "output_B", "label")(row) or row.get("type") == "binary_feedback")
        ),
        _halos,
    ),
    Format(
        "tinker",
        "`comparison` object, `label`",
        "A, B or Tie",
        lambda row: is_dict(row, "comparison") and "label" in row,
        _tinker,
    ),
    Format(
        "sharegpt",
        "`conversations` messages; `chosen` and `rejected` messages, or `kto_tag`",
        "chosen wins; `kto_tag` true is good",
        _is_sharegpt,
        _sharegpt,
    ),
)
GENERIC = (
    Format(
        "alpaca",
        "`instruction`, `chosen` text, `rejected` text; or `output` list; or `output` and `kto_tag`",
        "chosen wins; the first of `output` wins; `kto_tag` true is good",
        _is_alpaca,
        _alpaca,
        specific=False,
    ),
    Format(
        "binarized",
        "`chosen`, `rejected` and a score for each",
        "chosen wins; equal scores are a tie",
        _is_binarized,
        _binarized,
        specific=False,
    ),
    Format(
        "trl_unpaired",
        "`prompt`, `completion`, `label`",
        "true is good",
        has("prompt", "completion", "label"),
        _unpaired,
        specific=False,
    ),
    Format(
        "trl_preference",
        "`chosen`, `rejected`, with or without `prompt`",
        "chosen wins",
        has("chosen", "rejected"),
        _pair,
        specific=False,
    ),
    Format(
        "openrlhf",
        "any names, given by options; never detected",
        "chosen wins; the label is true for good",
        lambda row: False,
        _openrlhf,
        OpenRLHFOptions,
        specific=False,
    ),
)
