"""What holds for every test: no network, no cache of the user's is read or written, and cores are shared fairly."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Workers that run side by side share the cores: with a thread a core each, they would wait for one another.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ["PREFKIT_CACHE"] = tempfile.mkdtemp(prefix="prefkit-tests-")
