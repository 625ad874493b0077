"""What gathering requests is worth to `prefkit serve`: many clients at once, with and without it, in turns.

    python scripts/serving_throughput.py MODEL [--clients 64] [--requests 512] [--repeats 3]

MODEL is a folder of a reward model. Each request asks for the reward of one response to a prompt of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import socket
import statistics
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from rich.console import Console

from prefkit.assets import comparisons_path
from prefkit.recipes.rewarding import load_rewards
from prefkit.recipes.serving import RewardServer, ServingOptions
from prefkit.report import Table


def rate(model: str, bodies: list[bytes], clients: int, batch_size: int) -> float:
    """Requests a second."""
    options = ServingOptions(batch_size=batch_size, wait=0.005 if batch_size > 1 else 0.0, waiting=clients)
    server = RewardServer(load_rewards(model, batch_size=batch_size), model=model, options=options)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    web = uvicorn.Server(uvicorn.Config(server.app, port=port, log_level="warning"))
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)

    def ask(body: bytes) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/rewards", data=body, timeout=60) as response:
            json.loads(response.read())

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, bodies[:clients]))
        begun = time.perf_counter()
        list(pool.map(ask, bodies))
        seconds = time.perf_counter() - begun
    web.should_exit = True
    thread.join()
    server.batcher.close()
    return len(bodies) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with gzip.open(comparisons_path("train"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(given.requests), strict=False)]
    bodies = [
        json.dumps({"records": [{"prompt": row["prompt"], "responses": [row["chosen"]]}]}).encode() for row in rows
    ]
    pairs = [[rate(given.model, bodies, given.clients, size) for size in (1, 16)] for _ in range(given.repeats)]
    ratios = [both / single for single, both in pairs]
    Console().print(
        Table(
            ["clients", "one by one, requests/s", "gathered, requests/s", "ratio, median (runs)"],
            [
                [
                    given.clients,
                    round(statistics.median(single for single, _ in pairs)),
                    round(statistics.median(both for _, both in pairs)),
                    f"{statistics.median(ratios):.2f}x ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                ]
            ],
            f"prefkit serve {given.model}, {len(bodies)} requests",
        )
    )


if __name__ == "__main__":
    main()
