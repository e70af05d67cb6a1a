"""The benchmarks are imported from the repository, as `python -m benchmarks` imports them."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT))
