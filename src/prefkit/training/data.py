"""Training data: comparisons, encoded once, in memory-mapped files.

Comparisons are read as a stream, so a file larger than memory trains. What the objective takes from them (`targets`)
and what the scorer makes of them (encodings) are kept apart: another objective that looks at the same responses finds
their encodings, and the reference's scores of them, in the cache.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from prefkit.comparisons import Comparison, RecordError
from prefkit.errors import PrefkitError
from prefkit.objectives import Form, Scorer, Targets
from prefkit.training import processes
from prefkit.training.arrow import Rows, RowWriter
from prefkit.training.progress import counting
from prefkit.training.storage import logger, replacing, seal, sealed, sweep, unfinished
from prefkit.training.targets import (
    LARGE_MARGIN,
    SCHEMA,
    Accompany,
    PairingOptions,
    Refuse,
    Selection,
    Selector,
    collate_entries,
)

_FORMAT = "3"
"""Part of every cache key; changes with the layout of the files."""

_ENTRY = "_entry"
"""Column of the encodings that says which row of the entries they belong to."""

_DAY = 24 * 60 * 60.0


class Batch(TypedDict):
    """What the loop hands to the model and the objective."""

    inputs: dict[str, Tensor]
    targets: Targets
    ref_logps: Tensor | None
    ref_token_logps: Tensor | None


@dataclass
class TrainingData(Dataset[dict[str, Any]]):
    """Encoded comparisons with their targets.

    Args:
        encodings: one row a usable comparison, as the scorer encoded it, with its place in `entries`.
        entries: one row a comparison that the objective can use.
        form: what the objective compares.
        given: columns of `entries` that say something.
        key: digest of what was encoded and how; the reference's scores are kept under it.
        skipped: comparisons that were set aside, in this package and by the reader.
        annotators: names of the annotators, in the order of their indices.
        reference: the reference's scores, row by row; see `prefkit.training.reference`.
    """

    encodings: Rows
    entries: Rows
    form: Form
    given: tuple[str, ...]
    key: str
    skipped: int = 0
    annotators: tuple[str, ...] = ()
    reference: Rows | None = field(default=None)

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def content(self) -> str:
        """Digest of everything that the data say to an objective."""
        return digest(self.key, self.entries.path.name)

    def __getitem__(self, row: int) -> dict[str, Any]:
        encoded = self.encodings[row]
        entries = self.entries[encoded.pop(_ENTRY)]
        reference = self.reference[row] if self.reference is not None else None
        return {"place": row, "encoded": encoded, "entries": entries, "reference": reference}

    def where(self, row: int) -> str:
        """The place in the user's data that a row came from."""
        entries = self.entries[self.encodings[row][_ENTRY]]
        source, line = entries["source"], entries["line"]
        return f"row {row + 1}" if line is None else f"{source or 'line'}:{line}"

    def collate(self, scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Make a batch of rows.

        Without rows, which happens to a process when the last batch is smaller than the number of processes, the
        batch has something to score and no entry, so that the process takes part in the step and adds nothing.
        """
        scored = rows or [self[0]]
        entries = [row["entries"] for row in rows]
        batch = Batch(
            inputs=scorer.collate([row["encoded"] for row in scored]),
            targets=collate_entries(entries, [row["place"] for row in rows], self.form, self.given),
            ref_logps=None,
            ref_token_logps=None,
        )
        if self.reference is not None:
            batch["ref_logps"] = torch.tensor([x for row in scored for x in row["reference"]["logps"]])
            tokens = [x for row in scored for x in row["reference"]["tokens"] or ()]
            batch["ref_token_logps"] = torch.tensor(tokens) if tokens else None
        return batch

    def loader(self, scorer: Scorer, batches: Batches, workers: int = 0) -> DataLoader[Any]:
        """Batches of the data, in the order of `batches`."""
        return DataLoader(
            self,
            batch_sampler=batches,
            collate_fn=partial(self.collate, scorer),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )


class Batches(Sampler[list[int]]):
    """The rows of each batch of this process.

    The order depends on seed and epoch only. All processes together take the rows that one process with as many times
    the batch size would take, no row twice and none left out; the last batch is smaller.

    Args:
        rows: how many rows there are.
        size: rows a batch and process.
        seed: fixes the order; None keeps that of the data.
    """

    def __init__(self, rows: int, size: int, seed: int | None) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.epoch = 0
        self._rank, self._processes = processes.rank(), processes.count()

    def __len__(self) -> int:
        return math.ceil(self.rows / (self.size * self._processes))

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            order = torch.arange(self.rows)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.rows, generator=generator)
        together = self.size * self._processes
        for start in range(0, self.rows, together):
            yield order[start : start + together][self._rank :: self._processes].tolist()


def prepare(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    *,
    form: Form,
    needs: frozenset[str] = frozenset(),
    pairing: PairingOptions | None = None,
    accompany: Accompany | None = None,
    annotators: Sequence[str] = (),
    refuse: Refuse | None = None,
    cache: Path,
    skipped: Path | None = None,
    progress: bool = False,
) -> TrainingData:
    """Encode comparisons, or find their encodings in the cache.

    The comparisons are read twice: to find out what they are, and, if they are new, to encode them. In a run of
    several processes the first one does it and the others wait.

    Args:
        scorer: encodes responses.
        comparisons: can be iterated over again and again.
        form: what the objective compares.
        needs: what else the objective needs.
        pairing: how comparisons become pairs.
        accompany: further texts that are scored with each pair; see `Objective.accompany`.
        annotators: names that have an index already; those that the comparisons add come after them.
        refuse: raises an error for what the objective cannot use; see `Objective.refuse`.
        cache: where files are kept.
        skipped: file to which comparisons that are set aside are added, one JSON object a line with `source`,
            `line`, `field` and `problem`.
        progress: show a progress bar.

    Raises:
        PrefkitError: no comparison can be used; the message gives the first reason.
    """
    pairing = pairing or PairingOptions()

    def selecting() -> Selector:
        return Selector(form, needs, pairing, accompany, annotators, refuse)

    encodings, entries, given, key, count, names = processes.in_first(
        lambda: _prepare(scorer, comparisons, selecting, cache, skipped, progress)
    )
    return TrainingData(Rows(encodings), Rows(entries), form, given, key, count, names)


def _prepare(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    selecting: Callable[[], Selector],
    cache: Path,
    skipped: Path | None,
    progress: bool,
) -> tuple[Path, Path, tuple[str, ...], str, int, tuple[str, ...]]:
    if iter(comparisons) is comparisons:
        raise PrefkitError("comparisons are read more than once: give a list or load_comparisons(...), not a generator")
    selector = selecting()
    with _Aside(skipped) as aside:
        path, content, given = _write_entries(selector, comparisons, cache, aside, progress)
        if selector.joint and "joint" not in selector.needs:
            logger.warning(
                "some comparisons are of responses to different prompts, and only the responses are scored; objective "
                "jpo, or reward: joint_log_ratio, scores the prompts, too"
            )
        _check_margins(selector)
        entries = Rows(path)
        for bad in getattr(comparisons, "skipped", ()):
            aside.add(RecordError(bad.problem, field=bad.field, source=bad.source, line=bad.line))
        aside.check_left(len(entries))

        key = digest(_FORMAT, content, scorer.encoding_key())[:32]
        encodings, failures = cache / f"encodings-{key}.arrow", cache / f"failures-{key}.arrow"
        if sealed(encodings, "the encodings") is None or sealed(failures, "the reasons of failed encodings") is None:
            selections = selecting()(comparisons)
            chosen = (selection for selection in selections if isinstance(selection, Selection))
            _encode(scorer, counting(chosen, "encoding", len(entries), progress), encodings, failures)
        for failure in Rows(failures):
            row = entries[failure["row"]]
            aside.add(RecordError(failure["problem"], field=failure["field"], source=row["source"], line=row["line"]))
        aside.check_left(len(Rows(encodings)))
    return encodings, path, given, key, aside.count, tuple(selector.annotators)


def _check_margins(selector: Selector) -> None:
    """Warn of a reward model that is not calibrated: its margins must be log-odds."""
    if selector.large_margins > 0.05 * selector.margins:
        logger.warning(
            f"{selector.large_margins} of {selector.margins} reward margins exceed {LARGE_MARGIN:g} in absolute value; "
            "as log-odds that is near certainty: divide the field 'rewards' by a temperature fitted on held-out labels"
        )


def _write_entries(
    selector: Selector, comparisons: Iterable[Comparison], cache: Path, aside: _Aside, progress: bool
) -> tuple[Path, str, tuple[str, ...]]:
    """Write the entries of all comparisons that the objective can use.

    Returns:
        Their file, a digest of the responses that they look at, and the columns that say something.
    """
    content, responses = hashlib.sha256(), hashlib.sha256()
    given = [*_SAID[selector.form], *sorted(selector.needs & _ASKED)]
    said = {"weights": False, "probabilities": False}
    cache.mkdir(parents=True, exist_ok=True)
    sweep(cache, age=_DAY)
    temporary = unfinished(cache / "entries")
    try:
        with RowWriter(temporary, SCHEMA) as writer:
            for selection in counting(selector(comparisons), "reading", None, progress):
                if isinstance(selection, RecordError):
                    aside.add(selection)
                    continue
                chosen, entries = selection
                writer.append(entries)
                for name in said:
                    said[name] = said[name] or any(value != 1.0 for value in entries.get(name, ()))
                content.update(json.dumps(entries).encode())
                seen = (chosen.prompts, chosen.responses, chosen.steps, chosen.extra, chosen.annotator)
                responses.update(json.dumps(seen, default=repr).encode())
        path = cache / f"entries-{content.hexdigest()[:32]}.arrow"
        # The name says what is inside: a file of this name, which another run may be reading, is as good as this one.
        if sealed(path, "the entries") is None:
            with replacing(path) as place:
                temporary.replace(place)
            seal(path, {})
    finally:
        temporary.unlink(missing_ok=True)
    return path, responses.hexdigest(), (*given, *(name for name, something in said.items() if something))


_ASKED = frozenset({"strengths", "annotators", "margins", "ratings"})
"""Columns that entries have if the objective needs them."""

_SAID: dict[Form, tuple[str, ...]] = {"pairs": (), "lists": ("ranks",), "labels": ("labels",), "demonstrations": ()}
"""What entries of a form always say."""


def _encode(scorer: Scorer, selections: Iterable[Selection], encodings: Path, failures: Path) -> None:
    with (
        replacing(encodings) as good,
        replacing(failures) as bad,
        RowWriter(good) as encoded,
        RowWriter(bad, _FAILURES) as failed,
    ):
        for row, (comparison, _) in enumerate(selections):
            try:
                encoded.append({**scorer.encode(comparison), _ENTRY: row})
            except RecordError as error:
                failed.append({"row": row, "field": error.field, "problem": error.problem})
    for path in (encodings, failures):
        seal(path, {})


_FAILURES = pa.schema({"row": pa.int64(), "field": pa.string(), "problem": pa.string()})


class _Aside:
    """Comparisons that are set aside: counted, and written to a file if one is given."""

    def __init__(self, path: Path | None) -> None:
        self.count, self._path, self._first = 0, path, ""

    def add(self, error: RecordError) -> None:
        self.count += 1
        self._first = self._first or str(error)
        if self._file is not None:
            self._file.write(json.dumps(error.to_dict(), ensure_ascii=False) + "\n")

    def check_left(self, rows: int) -> None:
        """Complain if nothing is left to train on."""
        if rows == 0:
            why = f"{self.count} were set aside, the first because: {self._first}" if self.count else "there are none"
            raise PrefkitError(f"no comparison can be used: {why}")

    def __enter__(self) -> _Aside:
        self._file = self._path.open("a", encoding="utf-8") if self._path is not None else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self.count and self._first:
            logger.warning(f"{self.count} comparisons were set aside, the first because: {self._first}")


def digest(*parts: str) -> str:
    """One key of several."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
