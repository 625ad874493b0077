"""Rewards from a server, such as `prefkit serve` starts one."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, PrefkitError, RecordError

TOKEN = "PREFKIT_TOKEN"
"""Environment variable with the token that servers ask for and clients send."""


def is_address(model: str) -> bool:
    """Whether a model is named by the address of a server."""
    return model.startswith(("http://", "https://"))


class RemoteReward:
    """Rewards of comparisons from a server, as `prefkit.diagnostics.Scored` takes them.

    Args:
        address: of the server, such as `http://127.0.0.1:8000`.
        batch_size: comparisons a request.
        timeout: seconds until a request is given up.
        patience: seconds in which a server that is busy is asked again.
        token: that the server asks for; by default that of the environment variable `PREFKIT_TOKEN`, if there is one.

    Raises:
        OptionError: the address is none of HTTP.
    """

    def __init__(
        self,
        address: str,
        *,
        batch_size: int = 16,
        timeout: float = 60.0,
        patience: float = 60.0,
        token: str | None = None,
    ) -> None:
        if not is_address(address):
            raise OptionError(f"the address of a server must begin with http:// or https://, got '{address}'")
        self.address, self.batch_size, self.timeout, self.patience = address.rstrip("/"), batch_size, timeout, patience
        self._token = token if token is not None else os.environ.get(TOKEN)

    def __call__(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError]
    ) -> Iterator[tuple[Comparison, list[float]]]:
        """Each comparison with a reward a response; those that the server cannot score are set aside.

        Raises:
            PrefkitError: the server cannot be reached, or what it answers are no rewards.
        """
        rows = iter(comparisons)
        while batch := list(islice(rows, self.batch_size)):
            answer = self._ask(batch)
            refused = answer.get("problems")
            if refused is not None:
                problems = {each["record"]: each for each in refused}
                for place, problem in sorted(problems.items()):
                    where = {"source": batch[place].source, "line": batch[place].line}
                    skipped.append(RecordError(problem["problem"], field=problem.get("field"), **where))
                batch = [each for place, each in enumerate(batch) if place not in problems]
                answer = self._ask(batch) if batch else {"rewards": []}
            rewards = answer.get("rewards")
            if not isinstance(rewards, list) or [len(own) for own in rewards] != [len(c.responses) for c in batch]:
                raise PrefkitError(f"{self.address} answered without one reward a response: {str(answer)[:200]}")
            yield from zip(batch, rewards, strict=True)

    def _ask(self, batch: list[Comparison]) -> dict[str, Any]:
        records: list[dict[str, Any]] = []
        for comparison in batch:
            if comparison.joint:
                raise RecordError(
                    "a server scores responses to one prompt",
                    field="prompts",
                    source=comparison.source,
                    line=comparison.line,
                )
            person = {"annotator": comparison.annotator} if comparison.annotator is not None else {}
            records.append({"prompt": comparison.prompts[0], "responses": comparison.responses, **person})
        request = urllib.request.Request(
            f"{self.address}/rewards",
            data=json.dumps({"records": records}).encode(),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._token}"} if self._token else {}),
        )
        until = time.monotonic() + self.patience
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _object(response.read())
            except urllib.error.HTTPError as error:
                answer = _object(error.read())
                if error.code == 422 and answer.get("problems"):
                    return answer
                if error.code != 503 or time.monotonic() > until:
                    raise PrefkitError(
                        f"{self.address} answered {error.code}: {answer.get('error', error.reason)}"
                    ) from error
                time.sleep(0.2)
            except (OSError, TimeoutError) as error:
                raise PrefkitError(f"{self.address} cannot be reached: {error}") from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"error": body[:200].decode(errors="replace")}
