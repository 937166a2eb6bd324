"""Settings that must hold before any test module is imported."""

from __future__ import annotations

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    # without a GPU the kernels run in Triton's interpreter, which must be known before they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
