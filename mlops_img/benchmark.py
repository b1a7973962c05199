"""How fast a bundle's programs are here: `python -m mlops_img.benchmark bundle=bundles/latest`.

Prints a table, and writes it as JSON and as a figure beside the bundle.
"""

from __future__ import annotations

from mlops_img.cli import command
from mlops_img.config.commands import BenchmarkConfig


def benchmark(config: BenchmarkConfig) -> None:
    """Time every program of a bundle that runs on this machine.

    Raises:
        UserError: no bundle, or a damaged one.
    """
    from mlops_img.compression.latency import measure_bundle, show

    show(measure_bundle(config), config)


def main() -> None:
    """Run the command line."""
    command(benchmark, "benchmark")


if __name__ == "__main__":
    main()
