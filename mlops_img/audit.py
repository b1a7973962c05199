"""Look through a data set before training: `python -m mlops_img.audit data=folder data.root=photos`.

Every image of every split is read and decoded once. A table is printed, all findings are written to a JSON
file: counts and sizes; unreadable files; exact and near duplicates, with those that cross splits (leakage)
and those with different labels; classes missing from a split; imbalance. Where training stops at the first
problem, the audit continues and lists all.

Exit codes: 0, nothing is wrong; 1, something is that training refuses or skips (unreadable images, a class
missing from a split, one class only, a class too small to be split) or that makes its result mislead (one
image in several splits, as equal files or with equal pixels); 2, the data set cannot be listed at all or the
findings cannot be written. Near duplicates, duplicates within a split and imbalance do not change the exit
code, nor do data.allow_leakage and the like: the audit reports what is there.
"""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

from mlops_img.cli import command
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import DataConfig
from mlops_img.core.files import write_json
from mlops_img.data.audit.findings import Findings, collect_findings
from mlops_img.data.audit.scan import inspect_images
from mlops_img.data.audit.table import findings_table
from mlops_img.data.duplicates import ContentIndex
from mlops_img.data.sources.base import Table
from mlops_img.data.sources.registry import open_source
from mlops_img.data.splits import with_all_splits
from mlops_img.errors import EXIT_FAILED, UserError


def audit(config: AuditConfig) -> Findings:
    """Read every image of the data set and return what was found.

    Raises:
        UserError: the data are missing or malformed, or a key is out of range.
    """
    table, refusals = _split_if_possible(open_source(config.data).table(), config.data)
    if len(table.classes) < 2:
        refusals.append(f"there is only the class {table.classes[0]!r}: a classifier needs two at least{table.hint}")
    pictures = [
        inspect_images(images, config.data.workers, sixteen_bit=config.data.sixteen_bit, title=f"scanning {split}")
        for split, images in table.splits.items()
    ]
    return collect_findings(
        table,
        list(chain.from_iterable(pictures)),
        source=config.data.source,
        root=config.data.root,
        near_duplicate_bits=config.near_duplicate_bits,
        sixteen_bit=config.data.sixteen_bit,
        refusals=refusals,
    )


def _split_if_possible(table: Table, config: DataConfig) -> tuple[Table, list[str]]:
    """Return the splits that training would see; or those given, and why there can be no others."""
    try:
        return with_all_splits(table, config, ContentIndex(config.root)), []
    except UserError as error:
        return table, [str(error)]
    except OSError as error:  # splitting compares the files, and one cannot be opened
        return table, [f"cannot be split: {error.filename}: {error.strerror}"]


def write_findings(findings: Findings, path: Path) -> None:
    """Write the findings as JSON; a file that is there is replaced at once or stays as it is.

    Raises:
        UserError: `path` cannot be written.
    """
    try:
        write_json(path, findings.as_dict())
    except OSError as error:
        raise UserError(f"output: cannot write {path}: {error.strerror}. Name another file with output=...") from None


def output_path(config: AuditConfig) -> Path:
    """Return where the findings go: `config.output`, or `<root>.audit.json` beside the data, or else here.

    Not inside, because the data may be tracked by their checksum (data.dvc).

    Raises:
        UserError: the folder does not exist or is not writable; raised before the scan, which may take an hour.
    """
    if config.output is None:
        root = Path(config.data.root).expanduser().resolve()
        path = root.with_name(f"{root.name or 'root'}.audit.json")
        return path if os.access(path.parent, os.W_OK) else Path(path.name)
    path = Path(config.output).expanduser()
    if path.is_dir():
        raise UserError(f"output: {path} is a folder. Name a file, e.g. output={path / 'audit.json'}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"output: folder {path.parent} does not exist or cannot be written. Name another file")
    return path


def run(config: AuditConfig) -> None:
    """Audit, print, write; exit with `EXIT_FAILED` if there are problems."""
    path = output_path(config)
    findings = audit(config)
    write_findings(findings, path)
    print(f"{findings_table(findings)}\nAll findings: {path}")
    if not findings.ok:
        raise SystemExit(EXIT_FAILED)


def main() -> None:
    """Run the command line."""
    command(run, "audit")


if __name__ == "__main__":
    main()
