"""Set before anything imports torch: one thread per test process, no network, no display, shapes checked."""

from __future__ import annotations

import os

import jaxtyping
from hypothesis import HealthCheck, settings

# xdist runs one process per core: more threads than that only wait for each other, and sums keep one order.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that wants a download fails at once
os.environ["MPLBACKEND"] = "Agg"
os.environ["COLUMNS"] = "160"  # rich and typer wrap messages at the terminal's width
os.environ["NO_COLOR"] = "1"

# Every shape annotation of the package is checked at run time, in tests only.
jaxtyping.install_import_hook("segdistill", "typecheck.check")

# Property tests: "suite" draws the same few inputs in every run, "long" draws many new ones (hours, other seeds).
CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
settings.register_profile("suite", derandomize=True, max_examples=25, deadline=20_000, database=None,
                          suppress_health_check=CHECKS)  # fmt: skip
settings.register_profile(
    "long",
    max_examples=int(os.environ.get("SEGDISTILL_EXAMPLES", "3000")),
    deadline=60_000,
    print_blob=True,
    suppress_health_check=CHECKS,
)
settings.load_profile(os.environ.get("SEGDISTILL_HYPOTHESIS", "suite"))

# The shared run with the tests' image cache, data sets in their official form and the command line; imported below the
# hook above.
pytest_plugins = ["tiny_runs", "official_files", "command_line"]
