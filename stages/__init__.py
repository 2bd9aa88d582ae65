"""The pipeline. Python runs this file before the others, and before it spends seconds on importing torch."""

import hashlib
import os
from pathlib import Path

# Threads that wait for each other spin for a moment and then sleep. By default GNU's OpenMP spins for long, which costs
# most of the speed beside another busy process (docs/performance.md). It reads this when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# The sha256 of each module as it was when Python began: what is edited later is not what runs (common/inputs.py)
CODE = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.rglob("*.py"))}
