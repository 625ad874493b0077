"""Human and AI feedback on answers: one row holds all answers that were compared (HelpSteer: adjacent rows do)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from statistics import fmean
from typing import Any, Literal

from prefkit.comparisons.formats.base import Format, has, is_dict, is_list, is_text
from prefkit.comparisons.prompts import ASSISTANT, HUMAN, transcript
from prefkit.comparisons.record import Comparison, Judgement, Message, Ratings, Text
from prefkit.comparisons.rows import TIE, A, B, Row, as_list, assistant, ranking, user
from prefkit.errors import RecordError
from prefkit.options import Options

# --- Anthropic HH-RLHF and Nectar: transcripts


def _hh(row: Row, options: Options) -> Iterator[Comparison]:
    if row.get("chosen") == row.get("rejected"):
        raise row.error("chosen equals rejected; there is no preference in an identical pair", "chosen")
    (context, chosen), (other, rejected) = transcript(row, "chosen"), transcript(row, "rejected")
    yield Comparison((context,) if context == other else (context, other), (chosen, rejected), A, **row.place)


def _is_hh(row: Mapping[str, Any]) -> bool:
    return set(row) == {"chosen", "rejected"} and all(
        isinstance(text, str) and text.startswith(HUMAN) for text in row.values()
    )


def _nectar(row: Row, options: Options) -> Iterator[Comparison]:
    prompt = row.text("prompt")
    answers = row.objects("answers")
    # The prompt ends with a space, which belongs to the answers: one space, not two, wherever it stands.
    space = " " if prompt.endswith(ASSISTANT + " ") else ""
    texts = tuple(
        space + answer.text("answer").removeprefix(" ") if space else answer.text("answer") for answer in answers
    )
    yield Comparison(
        (prompt.removesuffix(" ") if space else prompt,),
        texts,
        ranking([answer.number("rank") for answer in answers]),
        extra={**row.rest("prompt", "answers"), "models": [answer.name("model") for answer in answers]},
        **row.place,
    )


# --- SHP, Stack Exchange, PKU-SafeRLHF, WebGPT: two answers to a question


def _shp(row: Row, options: Options) -> Iterator[Comparison]:
    ratio = None if row.missing("score_ratio") else row.number("score_ratio")
    yield Comparison(
        (user(row.text("history")),),
        (assistant(row.text("human_ref_A")), assistant(row.text("human_ref_B"))),
        row.one_of("labels", {1: A, 0: B}),
        strength=ratio,
        id=row.name("post_id"),
        extra=row.rest("history", "human_ref_A", "human_ref_B", "labels", "score_ratio", "post_id"),
        **row.place,
    )


def _stack_exchange(row: Row, options: Options) -> Iterator[Comparison]:
    yield Comparison.pair(
        user(row.text("question")),
        assistant(row.text("response_j")),
        assistant(row.text("response_k")),
        id=row.name("qid"),
        extra=row.rest("question", "response_j", "response_k", "qid"),
        **row.place,
    )


_PKU_CRITERIA = {"better_response_id": "helpfulness", "safer_response_id": "harmlessness"}


def _pku(row: Row, options: Options) -> Iterator[Comparison | RecordError]:
    prompt = user(row.text("prompt"))
    answers = assistant(row.text("response_0")), assistant(row.text("response_1"))
    extra = row.rest("prompt", "response_0", "response_1", *_PKU_CRITERIA)
    for column, criterion in _PKU_CRITERIA.items():
        try:
            judgement = row.one_of(column, {0: A, 1: B})
        except RecordError as error:
            yield error
        else:
            yield Comparison((prompt,), answers, judgement, criterion=criterion, extra=extra, **row.place)


def _webgpt(row: Row, options: Options) -> Iterator[Comparison]:
    question = row["question"]
    text = row.inside("question").text("full_text") if isinstance(question, Mapping) else row.text("question")
    first, second = row.number("score_0"), row.number("score_1")
    if abs(first + second) > 1e-6:
        raise row.error(f"score_0 and score_1 must add up to 0, got {first:g} and {second:g}", "score_1")
    yield Comparison(
        (user(text),),
        (assistant(row.text("answer_0")), assistant(row.text("answer_1"))),
        A if first > 0 else B if first < 0 else TIE,
        strength=abs(first) or None,
        extra=row.rest("question", "answer_0", "answer_1", "score_0", "score_1"),
        **row.place,
    )


# --- Summary feedback


def _post(row: Row) -> str:
    """Subreddit, title, post, and the mark that asks for a summary: the layout of Stiennon et al. (2020)."""
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title")]
    head = "".join(f"{label}{row[name]}\n\n" for label, name in parts if not row.missing(name))
    if not row.missing("post"):
        return f"{head}POST: {row.text('post')}\n\nTL;DR:"
    return f"{head}ARTICLE: {row.text('article')}\n\nTL;DR:"


def _summary(text: str) -> str:
    """Summaries follow "TL;DR:" after one space, which some copies of the data have lost."""
    return text if text[:1].isspace() else f" {text}"


def _confidence(row: Row) -> float | None:
    """Distance from the middle of the scale from 1 (first much better) to 9 (second much better)."""
    return None if row.missing("confidence") else abs(row.number("confidence") - 5.0)


def _summaries(row: Row, options: Options) -> Iterator[Comparison]:
    info, summaries = row.inside("info"), row.objects("summaries")
    if len(summaries) != 2:
        raise row.error(f"needs two summaries, got {len(summaries)}", "summaries")
    policies = {f"policy_{index}": summary.get("policy") for index, summary in enumerate(summaries)}
    yield Comparison(
        (_post(info),),
        tuple(_summary(summary.text("text")) for summary in summaries),
        row.one_of("choice", {0: A, 1: B}),
        strength=_confidence(row.inside("extra")) if is_dict(row, "extra") else None,
        annotator=row.name("worker"),
        id=info.name("id"),
        extra={**row.rest("info", "summaries", "choice", "worker"), **policies},
        **row.place,
    )


def _flat_summaries(row: Row, options: Options) -> Iterator[Comparison]:
    yield Comparison(
        (_post(row),),
        (_summary(row.text("summary_0")), _summary(row.text("summary_1"))),
        row.one_of("choice", {0: A, 1: B}),
        strength=_confidence(row),
        annotator=row.name("worker"),
        id=row.name("post_id"),
        extra=row.rest("subreddit", "title", "post", "summary_0", "summary_1", "choice", "worker", "post_id"),
        **row.place,
    )


# --- UltraFeedback, distilabel, Orca pairs: answers with ratings

_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


class UltraFeedbackOptions(Options):
    """Options of `ultrafeedback`.

    Args:
        criterion: which rating compares the answers: "mean" of the aspects that were rated, "overall" (the critique's
            score), one aspect, or "each" (one comparison an aspect).
        system_prompts: keep each answer's own system prompt, which makes the comparisons joint.
    """

    criterion: Literal["mean", "overall", "each", "instruction_following", "honesty", "truthfulness", "helpfulness"] = (
        "mean"
    )
    system_prompts: bool = True


def _aspect(completion: Row, aspect: str) -> float | None:
    ratings = completion.get("annotations")
    if not isinstance(ratings, Mapping) or not isinstance(ratings.get(aspect), Mapping):
        return None
    rating = completion.inside("annotations").inside(aspect)
    return None if rating.missing("Rating") else rating.number("Rating")


def _score(completion: Row, criterion: str) -> float | None:
    if criterion in _ASPECTS:
        return _aspect(completion, criterion)
    rated = [rating for aspect in _ASPECTS if (rating := _aspect(completion, aspect)) is not None]
    if criterion == "mean":
        return fmean(rated) if rated else None
    if completion.missing("overall_score"):
        return None
    overall = completion.number("overall_score")
    if overall == 10 and rated and fmean(rated) <= 2:
        # Some revisions of the data store an overall score of 1 as 10.
        raise completion.error(f"10 contradicts the mean of the aspects, {fmean(rated):g} of 5", "overall_score")
    return overall


def _ultrafeedback(row: Row, options: UltraFeedbackOptions) -> Iterator[Comparison | RecordError]:
    question, completions = row.text("instruction"), row.objects("completions")
    criteria = _ASPECTS if options.criterion == "each" else (options.criterion,)
    for criterion in criteria:
        try:
            scored = [
                (completion, score)
                for completion in completions
                if (score := _score(completion, criterion)) is not None
            ]
            if len(scored) < 2:
                raise row.error(f"no judgement: fewer than two answers have a rating of '{criterion}'", "completions")
            prompts: tuple[Text, ...] = tuple(
                _with_system(completion, question) if options.system_prompts else user(question)
                for completion, _ in scored
            )
            yield Comparison(
                prompts[:1] if all(prompt == prompts[0] for prompt in prompts) else prompts,
                tuple(assistant(completion.text("response")) for completion, _ in scored),
                Ratings(tuple(score for _, score in scored)),
                criterion=criterion,
                extra={
                    **row.rest("instruction", "completions", "models"),
                    "models": [completion.name("model") for completion, _ in scored],
                },
                **row.place,
            )
        except RecordError as error:
            yield error


def _with_system(completion: Row, question: str) -> tuple[Message, ...]:
    system = completion.get("custom_system_prompt")
    return ({"role": "system", "content": system}, *user(question)) if system else user(question)


def _distilabel(row: Row, options: Options) -> Iterator[Comparison]:
    answers, ratings = row.list_of("generations"), row.list_of("ratings")
    if len(answers) != len(ratings):
        raise row.error(f"{len(ratings)} ratings for {len(answers)} generations", "ratings")
    numbered = Row({str(index): rating for index, rating in enumerate(ratings)}, row.source, row.line, "ratings.")
    rated = [index for index in range(len(answers)) if not numbered.missing(str(index))]
    if len(rated) < 2:
        raise row.error("no judgement: fewer than two generations have a rating", "ratings")
    column = next((name for name in ("instruction", "prompt", "input", "question") if name in row), "instruction")
    question = row.said(column)
    models = as_list(row.get("generation_models")) or []
    extra = row.rest(column, "generations", "ratings", "generation_models")
    if len(models) == len(answers):
        extra["models"] = [models[index] for index in rated]
    yield Comparison(
        (user(question) if isinstance(question, str) else question,),
        tuple(assistant(row.as_said(answers[index], f"generations[{index}]")) for index in rated),
        Ratings(tuple(numbered.number(str(index)) for index in rated)),
        extra=extra,
        **row.place,
    )


def _orca(row: Row, options: Options) -> Iterator[Comparison]:
    question = "input" if "input" in row else "question"
    system = () if row.missing("system") else ({"role": "system", "content": row["system"]},)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    # "swapped" says what was done to reach the chosen column; it is not to be done again.
    tie = False if "status" not in row else row.one_of("status", {"tie": True, "swapped": False, "unchanged": False})
    if chosen == rejected and not tie:
        raise row.error("chosen equals rejected; there is no preference in an identical pair", "chosen")
    ratings = as_list(row.get("rating"))
    strength = None
    if ratings is not None and len(ratings) == 2 and None not in ratings and not tie:
        strength = abs(float(ratings[0]) - float(ratings[1]))
    yield Comparison(
        ((*system, *user(row.text(question))),),
        (assistant(chosen), assistant(rejected)),
        TIE if tie else A,
        strength=strength,
        extra=row.rest("system", question, "chosen", "rejected"),
        **row.place,
    )


# --- HelpSteer

_HELPSTEER = ("helpfulness", "correctness", "coherence")
_TURN = re.compile(r"<extra_id_1>(\w+)\n")


class HelpSteerOptions(Options):
    """Options of `helpsteer`.

    Args:
        criterion: which rating compares the answers, or "each" (one comparison a criterion). Complexity and verbosity
            describe an answer; more of them is not better.
    """

    criterion: Literal["helpfulness", "correctness", "coherence", "each"] = "helpfulness"


def turns(prompt: str) -> tuple[Message, ...]:
    """A prompt whose turns are divided by "<extra_id_1>Role" lines; the first turn is the user's."""
    first, *rest = _TURN.split(prompt)
    roles = {"user": "user", "assistant": "assistant", "system": "system"}
    messages = [{"role": "user", "content": first}]
    messages += [
        {"role": roles.get(role.lower(), role.lower()), "content": text}
        for role, text in zip(rest[::2], rest[1::2], strict=True)
    ]
    return tuple(messages)


def _helpsteer_key(row: Row, options: Options) -> Hashable:
    return row.text("prompt")


def _helpsteer(rows: list[Row], options: HelpSteerOptions) -> Iterator[Comparison | RecordError]:
    first = rows[0]
    if len(rows) < 2:
        raise first.error("no judgement: the only answer to its prompt (answers to one prompt stand in adjacent rows)")
    prompt = turns(first.text("prompt"))
    for criterion in _HELPSTEER if options.criterion == "each" else (options.criterion,):
        yield Comparison(
            (prompt,),
            tuple(assistant(row.text("response")) for row in rows),
            Ratings(tuple(row.number(criterion) for row in rows)),
            criterion=criterion,
            extra={name: [row.get(name) for row in rows] for name in ("complexity", "verbosity") if name in first},
            **first.place,
        )


def _signed(row: Row, field: str) -> tuple[Judgement, float | None]:
    """-3 .. 3: negative is a win of the first answer, 0 a tie."""
    if row.missing(field):
        raise row.error("no judgement", field)
    number = row.number(field)
    if abs(number) > 3:
        raise row.error(f"must lie in -3 .. 3, got {number:g}", field)
    return (A if number < 0 else B if number > 0 else TIE), abs(number) or None


def _helpsteer2(row: Row, options: Options) -> Iterator[Comparison]:
    judgement, strength = _signed(row, "preference_strength")
    yield Comparison(
        (turns(row.text("prompt")),),
        (assistant(row.text("response_1")), assistant(row.text("response_2"))),
        judgement,
        strength=strength,
        rationale=row.name("preference_elaboration") or row.name("preference_statement"),
        extra=row.rest("prompt", "response_1", "response_2", "preference_strength", "preference_elaboration"),
        **row.place,
    )


class HelpSteer3Options(Options):
    """Options of `helpsteer3`.

    Args:
        individual: one comparison an annotator instead of the overall preference, which is an aggregate.
    """

    individual: bool = False


def _helpsteer3(row: Row, options: HelpSteer3Options) -> Iterator[Comparison | RecordError]:
    context = row.said("context")
    prompt = user(context) if isinstance(context, str) else context
    answers = assistant(row.text("response1")), assistant(row.text("response2"))
    extra = row.rest("context", "response1", "response2", "overall_preference", "individual_preference")
    if not options.individual:
        judgement, strength = _signed(row, "overall_preference")
        yield Comparison((prompt,), answers, judgement, strength=strength, extra=extra, **row.place)
        return
    for vote in row.objects("individual_preference"):
        try:
            judgement, strength = _signed(vote, "score")
        except RecordError as error:
            yield error
        else:
            yield Comparison(
                (prompt,),
                answers,
                judgement,
                strength=strength,
                rationale=vote.name("reasoning"),
                extra={**extra, **vote.rest("score", "reasoning")},
                **row.place,
            )


def _two_answers(row: Mapping[str, Any]) -> bool:
    return is_text(row, "chosen", "rejected") and ("input" in row or "question" in row)


FORMATS = (
    Format("hh_rlhf", '`chosen`, `rejected` only, both starting with "\\n\\nHuman:"', "chosen wins", _is_hh, _hh),
    Format(
        "nectar",
        "`prompt`, `answers` list with `answer`, `model`, `rank`",
        "rank 1 is best",
        lambda row: "prompt" in row and is_list(row, "answers"),
        _nectar,
    ),
    Format(
        "shp",
        "`history`, `human_ref_A`, `human_ref_B`, `labels`",
        "1: A, 0: B",
        has("history", "human_ref_A", "human_ref_B", "labels"),
        _shp,
    ),
    Format(
        "stack_exchange",
        "`question`, `response_j`, `response_k`",
        "j wins",
        has("response_j", "response_k"),
        _stack_exchange,
    ),
    Format(
        "pku_saferlhf",
        "`response_0`, `response_1`, `better_response_id`, `safer_response_id`",
        "0: first, 1: second, once for helpfulness and once for harmlessness",
        has("response_0", "response_1", "better_response_id", "safer_response_id"),
        _pku,
    ),
    Format(
        "webgpt",
        "`question`, `answer_0`, `answer_1`, `score_0`, `score_1`",
        "the higher score wins; 0: tie",
        has("question", "answer_0", "answer_1", "score_0", "score_1"),
        _webgpt,
    ),
    Format(
        "summaries",
        "`info`, `summaries`, `choice`",
        "0: first, 1: second",
        lambda row: is_dict(row, "info") and has("summaries", "choice")(row),
        _summaries,
    ),
    Format(
        "summaries_flat",
        "`post`, `summary_0`, `summary_1`, `choice`",
        "0: first, 1: second",
        has("post", "summary_0", "summary_1", "choice"),
        _flat_summaries,
    ),
    Format(
        "ultrafeedback",
        "`instruction`, `completions` with `annotations`",
        'ratings "1".."5" of four aspects, "N/A" unknown; or an overall score',
        lambda row: "instruction" in row and "labels" not in row and is_list(row, "completions"),
        _ultrafeedback,
        UltraFeedbackOptions,
    ),
    Format(
        "distilabel",
        "`generations` list, `ratings` list",
        "one rating an answer; null unknown",
        lambda row: is_list(row, "generations", "ratings"),
        _distilabel,
    ),
    Format(
        "orca_pairs",
        "`system`, `input` or `question`, `chosen`, `rejected`",
        'chosen wins, "swapped" is already done; status "tie": tie',
        lambda row: "system" in row and "instruction" not in row and "prompt" not in row and _two_answers(row),
        _orca,
    ),
    Format(
        "helpsteer",
        "`response`, `helpfulness`, `correctness`, `verbosity`",
        "ratings 0..4; adjacent rows with one prompt are compared",
        has("prompt", "response", "helpfulness", "correctness", "verbosity"),
        _helpsteer,
        HelpSteerOptions,
        key=_helpsteer_key,
    ),
    Format(
        "helpsteer2",
        "`response_1`, `response_2`, `preference_strength`",
        "-3..3, negative: first, 0: tie",
        has("prompt", "response_1", "response_2", "preference_strength"),
        _helpsteer2,
    ),
    Format(
        "helpsteer3",
        "`context`, `response1`, `response2`, `overall_preference`",
        "-3..3, negative: first, 0: tie",
        has("context", "response1", "response2", "overall_preference"),
        _helpsteer3,
        HelpSteer3Options,
    ),
)
