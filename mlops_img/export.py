"""Make a bundle of a run: `python -m mlops_img.export run=runs/latest quantize=static`.

Compresses the run's best weights, measures what that costs and gains, and writes bundles/<name>-<version>.
"""

from __future__ import annotations

from mlops_img.cli import command
from mlops_img.config.export import ExportConfig


def export(config: ExportConfig) -> None:
    """Export as configured.

    Raises:
        UserError: no such run, a setting that cannot be, or accuracy that falls too far.
    """
    from mlops_img.compression.workflow import export_run

    export_run(config)


def main() -> None:
    """Run the command line."""
    command(export, "export")


if __name__ == "__main__":
    main()
