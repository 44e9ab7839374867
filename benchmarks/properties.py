"""The property tests for longer than CI runs them: fresh inputs, other seeds, until the time is over.

    python benchmarks/properties.py --minutes 60 --seed 0

Each round runs every property test with ``--examples`` new inputs drawn from one seed, the next round from the next
seed. A failure ends it: pytest prints the smallest input that fails, and the same ``--seed`` finds it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = ("tests/test_properties.py", "tests/test_damage_properties.py", "tests/data/test_properties.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=100)
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    environment = os.environ | {"SEGDISTILL_HYPOTHESIS": "long", "SEGDISTILL_EXAMPLES": str(options.examples)}
    end, seed = time.monotonic() + 60 * options.minutes, options.seed
    while time.monotonic() < end:
        began = time.monotonic()
        words = [sys.executable, "-m", "pytest", "-q", "-n", "0", f"--hypothesis-seed={seed}", *TESTS]
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}\nseed {seed}")
        print(f"seed {seed}: {done.stdout.strip().splitlines()[-1]}, {time.monotonic() - began:.0f} s", flush=True)
        seed += 1
    print(f"seeds {options.seed} to {seed - 1}, {options.examples} inputs per test and seed: no failure")


if __name__ == "__main__":
    main()
