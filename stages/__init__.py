"""The pipeline. Python runs this file before the others, and before it spends seconds on importing torch."""

import hashlib
import os
from pathlib import Path

# Threads that wait for each other sleep instead of spinning: beside another busy process, spinning costs most of the
# speed (docs/performance.md). OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The sha256 of each module as it was when Python began: what is edited later is not what runs (common/inputs.py)
CODE = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.rglob("*.py"))}
