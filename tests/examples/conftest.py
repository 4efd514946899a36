"""The demo's modules lie beside demo.py, outside the distribution."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
