"""Instructions that can be checked, and prompts that add them: which instructions does a response obey?

A function makes, for a response, an instruction that it satisfies or one that it does not. Prompts with such
instructions order without a person's judgement: one response fits one prompt better than another (intra-sample), and
of two prompts one makes a pair's preference stronger (inter-sample).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from prefkit.comparisons.companions import Companion
from prefkit.comparisons.rationales import plain
from prefkit.comparisons.record import Comparison, Text
from prefkit.errors import OptionError, RecordError

InterMode: TypeAlias = Literal["difference", "pairwise"]
"""How a pair under two prompts is learned from: the difference of its two margins, or the stronger prompt alone."""

BETTER_CHOSEN, WORSE_CHOSEN, BETTER_REJECTED, WORSE_REJECTED = range(4)
"""Labels of intra-sample companions: which prompt, and which response of the pair."""

STRONG_CHOSEN, STRONG_REJECTED, WEAK_CHOSEN, WEAK_REJECTED = range(4)
"""Labels of inter-sample companions: whether the new prompt is the stronger one, and which response of the pair."""


@dataclass(frozen=True)
class InstructionFunction:
    """Makes instructions of one kind.

    Args:
        name: of the kind; two instructions of one kind may contradict each other.
        build: from a response, whether it shall be satisfied, and a source of randomness, to an instruction; None
            where there is none for this response.
        check: whether a response obeys an instruction that `build` made.
    """

    name: str
    build: Callable[[str, bool, random.Random], str | None]
    check: Callable[[str, str], bool]


class Instruction(NamedTuple):
    """An instruction and the function that made it."""

    function: InstructionFunction
    text: str

    def obeyed(self, response: str) -> bool:
        """Whether a response obeys it."""
        return self.function.check(self.text, response)


class IntraPair(NamedTuple):
    """One response under two prompts, of which it fits the first better."""

    better: Text
    worse: Text
    response: Text


class InterPair(NamedTuple):
    """A pair of responses under two prompts, of which the first speaks more strongly for the chosen one."""

    strong: Text
    weak: Text
    chosen: Text
    rejected: Text


def intra_valid(satisfied: Sequence[bool], better: Sequence[int], worse: Sequence[int]) -> tuple[bool, bool]:
    """Whether two sets of instructions order two prompts for a response, by each of two rules.

    Args:
        satisfied: whether the response obeys each instruction.
        better: places of the instructions of the better prompt.
        worse: places of those of the worse one.

    Returns:
        (a) all of the better prompt are obeyed and at least one of the worse is not; (b) at least one of the better is
        obeyed and none of the worse. Either makes a valid pair.

    Source: Multi-Level Aware Preference Learning, 2025 (arXiv 2505.12845).
    """
    first, second = [bool(satisfied[i]) for i in better], [bool(satisfied[i]) for i in worse]
    return all(first) and not all(second), any(first) and not any(second)


def inter_order(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Which of two prompts speaks more strongly for the chosen response.

    Args:
        first: instructions of the first prompt that the chosen and the rejected response obey.
        second: the same of the second prompt.

    Returns:
        The difference of the two margins, and its sign: 1 for the first prompt, -1 for the second, 0 for neither.

    Source: Multi-Level Aware Preference Learning, 2025 (arXiv 2505.12845).
    """
    difference = (first[0] - first[1]) - (second[0] - second[1])
    return difference, (difference > 0) - (difference < 0)


def add_instructions(prompt: Text, instructions: Iterable[str]) -> Text:
    """A prompt with instructions behind it: at the end of the last user turn, so that cutting a prompt's beginning
    spares them.

    Raises:
        RecordError: the messages hold no user turn.
    """
    said = "\n".join(instructions)
    if isinstance(prompt, str):
        # Behind the question, before the mark that opens the answer.
        mark = _OPENS_ANSWER.search(prompt)
        question, opening = (prompt[: mark.start()], mark.group()) if mark else (prompt, "\n")
        return f"{question.rstrip()}\n{said}{opening}"
    for place in reversed(range(len(prompt))):
        if prompt[place]["role"] == "user":
            message = {**prompt[place], "content": f"{prompt[place]['content']}\n{said}"}
            return (*prompt[:place], message, *prompt[place + 1 :])
    raise RecordError("instructions are added to a user turn, and there is none", field="prompt")


_OPENS_ANSWER = re.compile(r"\n\s*[A-Z]\w*:\s*\Z")


def intra_pair(
    prompt: Text, response: Text, functions: Sequence[InstructionFunction], k_range: tuple[int, int], rng: random.Random
) -> IntraPair:
    """Two prompts for a response: the instructions of the better one are all obeyed, the worse one breaks some.

    Both prompts use the same functions. Of those of the worse prompt a random part is kept as it is, which makes the
    instructions that differ hard to tell by their number.

    Args:
        prompt: what the response answers.
        response: the response.
        functions: kinds of instructions.
        k_range: least and largest number of instructions a prompt.
        rng: which functions, and which are broken.

    Raises:
        OptionError: there are fewer functions than instructions asked for, or two of one name.
        RecordError: too few functions apply to the response.
    """
    found = _choose(plain(response), functions, k_range, rng)
    broken = rng.sample(range(len(found)), rng.randint(1, len(found)))
    better = [good.text for good, _ in found]
    worse = [(bad if place in broken else good).text for place, (good, bad) in enumerate(found)]
    return IntraPair(add_instructions(prompt, better), add_instructions(prompt, worse), response)


def inter_pair(
    prompt: Text,
    chosen: Text,
    rejected: Text,
    functions: Sequence[InstructionFunction],
    k_range: tuple[int, int],
    rng: random.Random,
    *,
    keep_order: bool = False,
) -> InterPair | None:
    """A prompt with instructions from the chosen response, beside the original one.

    The original prompt adds no instructions: its margin is 0. That of the new one is the number of its instructions
    that the chosen response obeys, less the number that the rejected one does.

    Args:
        prompt: what the responses answer.
        chosen: the preferred response.
        rejected: the other one.
        functions: kinds of instructions.
        k_range: least and largest number of instructions.
        rng: which functions, and whether the chosen response obeys each.
        keep_order: let the chosen response obey every instruction, so that the preference is never weakened.

    Returns:
        None where the margins are equal: such a prompt says nothing.

    Raises:
        OptionError: there are fewer functions than instructions asked for, or two of one name.
        RecordError: too few functions apply to the chosen response.
    """
    found = _choose(plain(chosen), functions, k_range, rng)
    added = [good if keep_order or rng.random() < 0.5 else bad for good, bad in found]
    counts = [sum(instruction.obeyed(plain(text)) for instruction in added) for text in (chosen, rejected)]
    _, order = inter_order((counts[0], counts[1]), (0, 0))
    new = add_instructions(prompt, [instruction.text for instruction in added])
    if order == 0:
        return None
    return InterPair(new, prompt, chosen, rejected) if order > 0 else InterPair(prompt, new, chosen, rejected)


def build_intra_pairs(
    pairs: Iterable[tuple[Text, Text, Text]],
    functions: Sequence[InstructionFunction],
    k_range: tuple[int, int] = (1, 4),
    rng: random.Random | None = None,
) -> list[IntraPair]:
    """Intra-sample data from (prompt, chosen, rejected): one pair of prompts for each response; see `intra_pair`."""
    rng = rng or random.Random(0)
    return [intra_pair(prompt, y, functions, k_range, rng) for prompt, *both in pairs for y in both]


def build_inter_pairs(
    pairs: Iterable[tuple[Text, Text, Text]],
    functions: Sequence[InstructionFunction],
    k_range: tuple[int, int] = (1, 4),
    rng: random.Random | None = None,
    *,
    keep_order: bool = False,
) -> list[InterPair]:
    """Inter-sample data from (prompt, chosen, rejected), those of equal margins left out; see `inter_pair`."""
    rng = rng or random.Random(0)
    made = (inter_pair(*pair, functions, k_range, rng, keep_order=keep_order) for pair in pairs)
    return [pair for pair in made if pair is not None]


def _choose(
    response: str, functions: Sequence[InstructionFunction], k_range: tuple[int, int], rng: random.Random
) -> list[tuple[Instruction, Instruction]]:
    """Instructions of different functions that a response obeys, each with one that it does not."""
    least, most = k_range
    if not 1 <= least <= most:
        raise OptionError(f"k_range must be two numbers with 1 <= least <= most, got {k_range}")
    if len(functions) < most:
        raise OptionError(f"{most} instructions a prompt need as many functions, got {len(functions)}")
    if len({function.name for function in functions}) < len(functions):
        raise OptionError("instruction functions must have different names: two of one kind may contradict each other")
    count, found = rng.randint(least, most), list[tuple[Instruction, Instruction]]()
    for function in rng.sample(list(functions), len(functions)):
        texts = [function.build(response, satisfied, rng) for satisfied in (True, False)]
        if texts[0] is None or texts[1] is None:
            continue
        good, bad = (Instruction(function, str(text)) for text in texts)
        # What a function promises is checked: an instruction that says something else would be a wrong label.
        if good.obeyed(response) and not bad.obeyed(response):
            found.append((good, bad))
        if len(found) == count:
            return found
    if len(found) < least:
        raise RecordError(
            f"{len(found)} instruction functions apply to a response, {least} are needed", field="responses"
        )
    return found


def _seeded(*texts: Text) -> random.Random:
    """Randomness that is the same whenever the same texts are given."""
    return random.Random(hashlib.sha256("\0".join(map(plain, texts)).encode()).digest())


def intra_companions(
    comparison: Comparison,
    chosen: int,
    rejected: int,
    *,
    instructions: int = 4,
    functions: Sequence[InstructionFunction] | None = None,
    **_: Any,
) -> list[Companion]:
    """Both responses of a pair, each under a prompt that it fits better and one that it fits worse.

    Args:
        comparison: what was compared.
        chosen: place of the chosen response.
        rejected: place of the rejected one.
        instructions: largest number of instructions a prompt; which ones is drawn from a digest of the texts.
        functions: kinds of instructions; the library's own by default.

    Raises:
        RecordError: no function applies to a response.
    """
    found = []
    for place, labels in ((chosen, (BETTER_CHOSEN, WORSE_CHOSEN)), (rejected, (BETTER_REJECTED, WORSE_REJECTED))):
        prompt, response = comparison.prompt_of(place), comparison.responses[place]
        rng = _seeded("intra", prompt, response)
        made = intra_pair(prompt, response, functions or FUNCTIONS, (1, instructions), rng)
        found += [Companion(made.better, response, labels[0]), Companion(made.worse, response, labels[1])]
    return found


def inter_companions(
    comparison: Comparison,
    chosen: int,
    rejected: int,
    *,
    instructions: int = 4,
    inter_mode: InterMode = "difference",
    functions: Sequence[InstructionFunction] | None = None,
    **_: Any,
) -> list[Companion]:
    """Both responses of a pair under a prompt with instructions; none where these speak for both alike.

    The other prompt is the pair's own, whose scores need no companions.

    Args:
        comparison: what was compared.
        chosen: place of the chosen response.
        rejected: place of the rejected one.
        instructions: largest number of instructions; which ones is drawn from a digest of the texts.
        inter_mode: "pairwise" makes only prompts that keep the order of the pair.
        functions: kinds of instructions; the library's own by default.

    Raises:
        RecordError: no function applies to the chosen response.
    """
    prompt, better, worse = comparison.prompt_of(chosen), comparison.responses[chosen], comparison.responses[rejected]
    rng = _seeded("inter", prompt, better, worse)
    made = inter_pair(
        prompt, better, worse, functions or FUNCTIONS, (1, instructions), rng, keep_order=inter_mode == "pairwise"
    )
    if made is None:
        return []
    if made.weak == prompt:
        return [Companion(made.strong, better, STRONG_CHOSEN), Companion(made.strong, worse, STRONG_REJECTED)]
    return [Companion(made.weak, better, WEAK_CHOSEN), Companion(made.weak, worse, WEAK_REJECTED)]


# -- the library's own instructions ---------------------------------------------------------------------------------


def _counts(name: str, noun: str, count: Callable[[str], int]) -> InstructionFunction:
    """At least or at most so many of something, the bound lying just beside what the response has."""

    def build(response: str, satisfied: bool, rng: random.Random) -> str:
        own = count(response)
        if own > 0 and rng.random() < 0.5:
            return f"Use at most {own if satisfied else own - 1} {noun}."
        return f"Use at least {own if satisfied else own + 1} {noun}."

    def check(text: str, response: str) -> bool:
        bound = int(re.findall(r"\d+", text)[0])
        return count(response) <= bound if "at most" in text else count(response) >= bound

    return InstructionFunction(name, build, check)


def _yes_or_no(name: str, yes: str, no: str, holds: Callable[[str], bool]) -> InstructionFunction:
    """Something that a response does or does not."""

    def build(response: str, satisfied: bool, rng: random.Random) -> str:
        return yes if holds(response) == satisfied else no

    return InstructionFunction(name, build, lambda text, response: holds(response) == (text == yes))


def _words(response: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", response.lower())


def _keyword(response: str, satisfied: bool, rng: random.Random) -> str | None:
    words = sorted({word for word in _words(response) if len(word) > 3})
    if not words:
        return None
    return f'{"Use" if satisfied else "Do not use"} the word "{rng.choice(words)}".'


def _obeys_keyword(text: str, response: str) -> bool:
    return (text.split('"')[1] in _words(response)) == text.startswith("Use")


def _edge(name: str, verb: str, take: Callable[[list[str]], str]) -> InstructionFunction:
    def build(response: str, satisfied: bool, rng: random.Random) -> str | None:
        words = response.split()
        return f"{verb if satisfied else f'Do not {verb.lower()}'} with {json.dumps(take(words))}." if words else None

    def check(text: str, response: str) -> bool:
        words, said = response.split(), json.loads(text[text.index('"') : -1])
        return (bool(words) and take(words) == said) == (not text.startswith("Do not"))

    return InstructionFunction(name, build, check)


def _is_json(response: str) -> bool:
    try:
        json.loads(response)
    except json.JSONDecodeError:
        return False
    return True


FUNCTIONS: tuple[InstructionFunction, ...] = (
    _counts("words", "words", lambda response: len(response.split())),
    _counts("sentences", "sentences", lambda response: len(re.findall(r"[.!?]+(?=\s|$)", response))),
    _counts("paragraphs", "paragraphs", lambda response: len(re.findall(r"\S.*?(?=\n\s*\n|\Z)", response, re.S))),
    _counts("bullets", "bullet points", lambda response: len(re.findall(r"^\s*[-*] ", response, re.M))),
    InstructionFunction("keyword", _keyword, _obeys_keyword),
    _edge("start", "Start", lambda words: words[0]),
    _edge("end", "End", lambda words: words[-1]),
    _yes_or_no("lower case", "Use no capitals.", "Use capitals.", lambda response: response == response.lower()),
    _yes_or_no("commas", "Use no commas.", "Use commas.", lambda response: "," not in response),
    _yes_or_no("questions", "Ask no question.", "Ask a question.", lambda response: "?" not in response),
    _yes_or_no("json", "Answer in JSON.", "Do not answer in JSON.", _is_json),
    _yes_or_no("ascii", "Use only ASCII characters.", "Use a character beyond ASCII.", str.isascii),
)
"""Instructions on length, form and words, each of which a program can check."""
