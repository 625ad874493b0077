"""Comparisons with one known defect each, and what `advise` makes of them: the confusion table of the documentation.

Run `python -m tests.diagnostics.defects` to measure the table and write it into `docs/advice.md` again (20 seeds a
defect; a quarter of an hour on one core). `--seeds` takes fewer.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from prefkit.comparisons import Comparison, Winner
from prefkit.diagnostics import RULES, advise, audit_data, audit_model, rules_table
from prefkit.language import LanguageScorer, load_scorer
from prefkit.report import Table

PAGE = Path(__file__).parents[2] / "docs" / "advice.md"
PROMPTS, RESPONSES, JUDGES, PEOPLE = 60, 4, 3, 9
SCORED = 200

TALK = """
the people should have more time because work takes too much of it and children need their parents when they are young
while money helps it does not make anyone happy if there is no one at home who can listen to what happened in school or
on the street today some say that laws must change others believe families decide for themselves public schools could
open earlier cities might build parks trains run late and food costs less than before
"""
WORDS = tuple(TALK.split())


class World:
    """Responses of differing care: some words are spelt backwards, and whoever reads with care likes fewer of them.

    Args:
        seed: of everything.
        alike: responses to one prompt differ in a few words only.
        words: lowest and highest number of words.
    """

    def __init__(self, seed: int, *, alike: bool = False, words: tuple[int, int] = (14, 18)) -> None:
        self.generator = np.random.default_rng(seed)
        self.quality = np.empty((PROMPTS, RESPONSES))
        self.taste = self.generator.random((PROMPTS, RESPONSES))
        self.texts: list[list[str]] = []
        for prompt in range(PROMPTS):
            order = self.generator.permutation(RESPONSES)
            base = self._words(26)
            own = []
            for place, level in enumerate(order):
                self.quality[prompt, place] = -level
                spoilt, text = (int(level), list(base)) if alike else (None, self._words(*words))
                count = spoilt if spoilt is not None else round(level * len(text) / RESPONSES)
                for index in self.generator.choice(len(text), count, replace=False):
                    text[index] = text[index][::-1] + "q"
                own.append(" " + " ".join(text) + ".")
            self.texts.append(own)
        self.lengths = np.array([[len(text.split()) for text in own] for own in self.texts])

    def _words(self, low: int, high: int | None = None) -> list[str]:
        count = low if high is None else int(self.generator.integers(low, high + 1))
        return [WORDS[i] for i in self.generator.integers(len(WORDS), size=count)]

    def judged(
        self,
        prefers: Callable[[int, int, int, int], float],
        *,
        flips: float = 0.0,
        judges: int = JUDGES,
    ) -> list[Comparison]:
        """Every two responses of each prompt, judged by some people each.

        Args:
            prefers: from prompt, two responses and annotator to the probability that the first is preferred.
            flips: share of labels that are reported the wrong way round.
            judges: people a pair.
        """
        found = []
        for prompt in range(PROMPTS):
            for one, two in itertools.combinations(range(RESPONSES), 2):
                for person in self.generator.choice(PEOPLE, judges, replace=False):
                    first = self.generator.random() < prefers(prompt, one, two, int(person))
                    first ^= self.generator.random() < flips
                    sides = (one, two) if first else (two, one)
                    shown = sides if self.generator.random() < 0.5 else sides[::-1]
                    found.append(
                        Comparison(
                            (f"Question {prompt}:",),
                            tuple(self.texts[prompt][side] for side in shown),
                            Winner(shown.index(sides[0])),
                            annotator=f"person {person}",
                            source="generated",
                            line=len(found) + 1,
                        )
                    )
        return found

    def by_quality(self, prompt: int, one: int, two: int, person: int = 0) -> float:
        """A careful reader, who is sure."""
        return float(1 / (1 + np.exp(-5 * (self.quality[prompt, one] - self.quality[prompt, two]))))


def clean(seed: int) -> list[Comparison]:
    """No defect."""
    world = World(seed)
    return world.judged(world.by_quality)


def flipped(seed: int) -> list[Comparison]:
    """A quarter of the labels is wrong."""
    world = World(seed)
    return world.judged(world.by_quality, flips=0.25)


def grouped(seed: int) -> list[Comparison]:
    """Four of nine people go by something else than care."""
    world = World(seed)

    def prefers(prompt: int, one: int, two: int, person: int) -> float:
        if person < 5:
            return world.by_quality(prompt, one, two)
        return float(1 / (1 + np.exp(-30 * (world.taste[prompt, one] - world.taste[prompt, two]))))

    return world.judged(prefers)


def circular(seed: int) -> list[Comparison]:
    """Three kinds of responses beat each other in a circle; of one kind the better one wins."""
    world = World(seed)
    kinds = np.array([world.generator.permutation([0, 1, 2, 0]) for _ in range(PROMPTS)])

    def prefers(prompt: int, one: int, two: int, person: int) -> float:
        ahead = (kinds[prompt, two] - kinds[prompt, one]) % 3
        return world.by_quality(prompt, one, two) if ahead == 0 else 0.97 if ahead == 1 else 0.03

    return world.judged(prefers)


def alike(seed: int) -> list[Comparison]:
    """Responses to one prompt differ in a few words."""
    world = World(seed, alike=True)
    return world.judged(world.by_quality)


def lengthy(seed: int) -> list[Comparison]:
    """The longer response wins nine times of ten."""
    world = World(seed, words=(8, 30))

    def prefers(prompt: int, one: int, two: int, person: int) -> float:
        longer = int(world.lengths[prompt, one] - world.lengths[prompt, two])
        return 0.5 if longer == 0 else 0.97 if longer > 0 else 0.03

    return world.judged(prefers)


DEFECTS: Mapping[str, Callable[[int], list[Comparison]]] = {
    "flipped labels": flipped,
    "annotator groups": grouped,
    "circles": circular,
    "near-identical pairs": alike,
    "length bias": lengthy,
    "none": clean,
}
"""Generated data by the finding that is right about them."""


def named(comparisons: list[Comparison], scorer: LanguageScorer | None) -> list[str]:
    """The defects that `advise` names."""
    data = audit_data(comparisons)
    model = None if scorer is None else audit_model(scorer, comparisons, data=data, rows=SCORED, batch_size=32)
    return [advice.rule.finding for advice in advise(data, model) if advice.rule.defect]


def alone(comparisons: list[Comparison]) -> list[Comparison]:
    """One judgement a pair, and nobody named: noise has to be told from a model's states."""
    found = {tuple(sorted(c.responses)): c for c in comparisons}
    return [replace(c, annotator=None) for c in found.values()]


def confusion(seeds: int) -> Table:
    """How often which defect was named."""
    scorer = load_scorer("builtin").eval()
    findings = [rule.finding for rule in RULES if rule.defect]
    rows = []
    for truth, generate in DEFECTS.items():
        counts = dict.fromkeys([*findings, "none"], 0)
        for seed in range(seeds):
            found = named(generate(seed), scorer)
            for name in found or ["none"]:
                counts[name] += 1
        rows.append([truth, *counts.values()])
        print(rows[-1], flush=True)
    return Table(["generated with", *findings, "none"], rows, f"Named, of {seeds}")


def page(table: str) -> str:
    """The page with both tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    for mark, content in (("rules", rules_table().markdown()), ("confusion", table)):
        start, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        before, rest = text.split(start)
        _, after = rest.split(end)
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="only print the table")
    args = parser.parse_args()
    table = confusion(args.seeds)
    print(table.markdown())
    if not args.dry:
        PAGE.write_text(page(table.markdown()), encoding="utf-8")


if __name__ == "__main__":
    main()
