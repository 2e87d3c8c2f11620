"""Start the benchmarks from anywhere: python bench/run.py [options]."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
runpy.run_module("bench", run_name="__main__")
