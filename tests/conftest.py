"""What holds for every test: no network, and no cache of the user's is read or written."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PREFKIT_CACHE"] = tempfile.mkdtemp(prefix="prefkit-tests-")
