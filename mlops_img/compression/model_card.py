"""The table of what compression came to, and the bundle's README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlops_img.bundle.manifest import Candidate, Manifest, Quality
from mlops_img.core.files import write_text
from mlops_img.core.text import markdown_table
from mlops_img.data.sources.split_origin import noted_splits
from mlops_img.evaluation.confidence import with_interval

TEMPLATES = Path(__file__).parent / "templates"
HEAD = ("", "top-1 (95 % interval)", "drop (95 % interval)", "cosine", "MB", "ms, 1 image", "images/s, 16", "")


def candidates_table(candidates: Sequence[Candidate]) -> str:
    """Return what was tried as a Markdown table; the drop is in points, positive is worse."""
    return markdown_table([HEAD, *(_row(candidate) for candidate in candidates)])


def write_model_card(folder: Path, manifest: Manifest) -> None:
    """Write README.md: what the model is, how good, how fast, where it came from."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("model_card.md.j2").render(
        manifest=manifest,
        table=candidates_table(manifest.candidates),
        splits=noted_splits(manifest.provenance["trained"]),
        with_interval=with_interval,
    )
    write_text(folder / "README.md", page)


def _row(candidate: Candidate) -> tuple[str, ...]:
    kept = len(candidate.kept_fp32)
    spared = f"{kept} layer{'s' if kept > 1 else ''} in fp32" if kept else ""
    note = "; ".join(filter(None, [spared, candidate.note]))
    if candidate.quality is None or candidate.top1_drop_interval is None:
        return (candidate.precision, *[""] * 6, note)
    low, high = candidate.top1_drop_interval
    return (
        candidate.precision,
        _top1(candidate.quality),
        f"{candidate.top1_drop:.2f} ({low:.2f} to {high:.2f})",
        f"{candidate.cosine:.4f}",
        f"{(candidate.bytes or 0) / 1e6:.1f}",
        f"{candidate.milliseconds:.2f}",
        f"{candidate.images_per_second:.0f}",
        note,
    )


def _top1(quality: Quality) -> str:
    """Return 0.9420 (0.8843 to 0.9717), as the drop beside it is written."""
    interval = quality.top1_interval
    return f"{quality.top1:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")
