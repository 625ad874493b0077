"""The reference cache: what the frozen reference says of every response, computed once and kept on disk.

The scores belong to the reference's weights and precision, and to the encoded data. The next run, and any other
objective that looks at the same responses, finds them; a file that is not as it was written is computed again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from prefkit.errors import OptionError
from prefkit.objectives import Scorer
from prefkit.training import processes
from prefkit.training.arrow import Rows, RowWriter
from prefkit.training.data import TrainingData, digest
from prefkit.training.progress import counting
from prefkit.training.storage import replacing, seal, sealed, unfinished

_SCHEMA = pa.schema({"logps": pa.list_(pa.float32()), "tokens": pa.list_(pa.float32())})


def reference_scores(
    scorer: Scorer,
    data: TrainingData,
    *,
    cache: Path,
    batch_size: int,
    tokens: bool = False,
    progress: bool = False,
) -> Rows:
    """The reference's log-probabilities of all responses of the data, in nats.

    The processes of a run share the work.

    Args:
        scorer: scores under the reference.
        data: what to score.
        cache: where the scores are kept.
        batch_size: comparisons a forward pass.
        tokens: keep those of single tokens too.
        progress: show a progress bar.

    Returns:
        One row a row of the data: `logps`, one a response, and `tokens`, those of all its responses one after the
        other, or null.

    Raises:
        OptionError: tokens are asked for and the scorer has none.
    """
    name = digest("reference", data.key, scorer.reference_key(), str(tokens))[:32]
    path = cache / f"reference-{name}.arrow"
    known = processes.in_first(lambda: (sealed(path, "the reference's scores") or {}).get("rows") == len(data))
    if not known:
        # Two runs may be computing the same scores at the same time.
        attempt = processes.in_first(lambda: unfinished(path))
        part = _part(attempt, processes.rank())
        with RowWriter(part, _SCHEMA) as writer:
            for row in _own_scores(scorer, data, batch_size, tokens, progress):
                writer.append(row)
        processes.wait()
        processes.in_first(lambda: _join(path, attempt, len(data), batch_size))
        part.unlink()
    return Rows(path)


def _own_scores(
    scorer: Scorer, data: TrainingData, batch_size: int, tokens: bool, progress: bool
) -> Iterator[dict[str, Any]]:
    """The scores of every batch whose turn is this process's."""
    starts = range(processes.rank() * batch_size, len(data), processes.count() * batch_size)
    with frozen(scorer):
        for start in counting(starts, "reference", len(starts), progress):
            rows = [data[row] for row in range(start, min(start + batch_size, len(data)))]
            responses = [row["entries"]["responses"] for row in rows]
            batch = scorer.collate([row["encoded"] for row in rows])
            inputs = {name: tensor.to(scorer.device) for name, tensor in batch.items()}
            scores = scorer.reference(inputs)
            if tokens and scores.tokens is None:
                raise OptionError("the objective needs scores of single tokens, which this model does not give")
            logps = iter(scores.policy_logps.float().tolist())
            lengths = iter(scores.lengths.tolist())
            single = iter(scores.tokens.policy_logps.float().tolist() if scores.tokens is not None else ())
            for count in responses:
                read = sum(islice(lengths, count))
                yield {"logps": list(islice(logps, count)), "tokens": list(islice(single, read)) if tokens else None}


@contextlib.contextmanager
def frozen(scorer: Scorer) -> Iterator[None]:
    """No gradients, no dropout."""
    module = scorer if isinstance(scorer, nn.Module) else nn.Module()
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _join(path: Path, attempt: Path, rows: int, batch_size: int) -> None:
    """Put the batches of all processes into their order, in one file."""
    parts = [iter(Rows(_part(attempt, rank))) for rank in range(processes.count())]
    with replacing(path) as temporary, RowWriter(temporary, _SCHEMA) as writer:
        for number in range(math.ceil(rows / batch_size)):
            for row in islice(parts[number % len(parts)], batch_size):
                writer.append(row)
    seal(path, {"rows": rows})


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}.{rank}{path.suffix}")
