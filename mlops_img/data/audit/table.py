"""Format the findings of an audit as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlops_img.core.text import shortened_list, text_table
from mlops_img.data.audit.findings import Duplicates, Findings, ImageRef, Range, SplitFindings
from mlops_img.data.sources.left_out import describe_left_out
from mlops_img.data.sources.split_origin import describe_splits

# Limits of the terminal output; the JSON file has everything.
MAX_CLASSES = 30
MAX_EXAMPLES = 10
MAX_IMAGES_OF_A_GROUP = 4
# Report an imbalance from this ratio of the largest class to the smallest.
NOTABLE_IMBALANCE = 3.0
# Images of more than 8 bits that use a smaller fraction of their range than this are black or have little contrast.
# 12-bit data in 16-bit files use slightly less than this.
NOTABLE_RANGE = 1 / 16


def findings_table(findings: Findings) -> str:
    """Return the counts, the sizes, the problems (training refuses or skips these), the remarks and the verdict."""
    total = sum(split.images for split in findings.splits.values())
    problems, remarks = _problems(findings), _remarks(findings)
    origins = describe_splits(findings.origins, {name: split.images for name, split in findings.splits.items()})
    parts = [
        f"{findings.root} ({findings.source}): {_count(total, 'image')}, {_count(len(findings.classes), 'class')}"
        + (f"\n{origins}" if origins else ""),
        _class_table(findings),
        _size_table(findings.splits),
    ]
    if problems:
        parts.append("PROBLEMS: training refuses or skips these, or its result is misleading\n" + "\n".join(problems))
    if remarks:
        parts.append("REMARKS\n" + "\n".join(remarks))
    parts.append("Problems found: fix them before training." if problems else "No problems found.")
    return "\n\n".join(parts)


def _class_table(findings: Findings) -> str:
    splits = findings.splits
    totals = {name: sum(split.per_class[name] for split in splits.values()) for name in findings.classes}
    rows = [
        [name, *(f"{split.per_class[name]:,}" for split in splits.values()), f"{totals[name]:,}"]
        for name in findings.classes
    ]
    if len(rows) > MAX_CLASSES:
        by_size = sorted(rows, key=lambda row: totals[row[0]])
        half = MAX_CLASSES // 2
        left_out = ["...", *("" for _ in splits), f"{len(rows) - 2 * half} more"]
        rows = [*by_size[:half], left_out, *by_size[-half:]]
    rows.append(["all", *(f"{split.images:,}" for split in splits.values()), f"{sum(totals.values()):,}"])
    ratios = ["-" if split.imbalance is None else f"{split.imbalance:.1f}" for split in splits.values()]
    rows.append(["largest/smallest", *ratios, ""])
    return text_table([["class", *splits, "total"], *rows])


def _size_table(splits: Mapping[str, SplitFindings]) -> str:
    header = ["split", "width (min/median/max)", "height", "formats", "modes", "smallest image"]
    rows = [
        [
            name,
            _range(split.width),
            _range(split.height),
            _frequencies(split.formats),
            _frequencies(split.modes),
            split.smallest or "-",
        ]
        for name, split in splits.items()
    ]
    return text_table([header, *rows], left=range(len(header)))


def _problems(findings: Findings) -> list[str]:
    missing = [f"class {name!r} has no image in {split}" for name, split in findings.missing_classes]
    unreadable = [f"{_image_text(one.image)}: {one.reason}" for one in findings.unreadable]
    return [
        *_listed("reasons why training does not start", findings.refusals),
        *_listed("classes missing from a split", missing),
        *_listed("unreadable images", unreadable),
        *_groups("the same image in several splits (leakage)", findings.leaks()),
    ]


def _remarks(findings: Findings) -> list[str]:
    def chosen(condition: Callable[[Duplicates], bool]) -> list[Duplicates]:
        return [group for group in findings.duplicates if condition(group)]

    lines = [
        *_groups(
            "the same image with different labels",
            chosen(lambda group: group.kind != "near" and group.labels_differ),
        ),
        *_groups(
            "the same image more than once in a split",
            chosen(lambda group: group.kind != "near" and not group.crosses_splits),
        ),
        *_groups(
            "near duplicates in several splits",
            chosen(lambda group: group.kind == "near" and group.crosses_splits),
        ),
        *_groups(
            "near duplicates with different labels",
            chosen(lambda group: group.kind == "near" and group.labels_differ),
        ),
        *_groups(
            "near duplicates within a split",
            chosen(lambda group: group.kind == "near" and not group.crosses_splits),
        ),
    ]
    for name, split in findings.splits.items():
        if split.imbalance is not None and split.imbalance >= NOTABLE_IMBALANCE:
            largest = max(split.per_class, key=lambda one: split.per_class[one])
            smallest = min(split.per_class, key=lambda one: split.per_class[one])
            hint = " (loss.class_weights=balanced may help)" if name == "train" else ""
            lines.append(
                f"  imbalance in {name}: {split.per_class[largest]:,} of {largest!r}, "
                f"{split.per_class[smallest]:,} of {smallest!r}{hint}"
            )
    lines += [f"  left out, {phrase}" for phrase in describe_left_out(findings.left_out)]
    deep = findings.deep
    if deep and deep.sixteen_bit == "declared" and deep.used < NOTABLE_RANGE:
        lines.append(
            f"  low contrast: {_count(deep.images, 'image')} of 16 bits per channel, which use {100 * deep.used:.1f} % "
            "of their range, as 12-bit data in 16-bit files do (data.sixteen_bit=range increases the contrast)"
        )
    lines += _listed(
        "images with too little detail for the search for near duplicates (exact duplicates are found)",
        [_image_text(image) for image in findings.too_plain],
    )
    return lines


def _groups(title: str, groups: Sequence[Duplicates]) -> list[str]:
    return _listed(title, [_group(group) for group in groups])


def _group(group: Duplicates) -> str:
    # First one image of each split and class, so that shortening the list does not hide why the group is reported.
    firsts = {(image.split, image.label): image for image in reversed(group.images)}.values()
    shown = sorted(group.images, key=lambda image: not any(image is first for first in firsts))
    sign = {"bytes": " = ", "pixels": " = ", "near": " ~ "}[group.kind]
    note = " [equal pixels, different files]" if group.kind == "pixels" else ""
    return shortened_list([_image_text(image) for image in shown], MAX_IMAGES_OF_A_GROUP, separator=sign) + note


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    lines = [f"  {title}: {len(items):,}", *(f"    {item}" for item in items[:MAX_EXAMPLES])]
    if len(items) > MAX_EXAMPLES:
        lines.append(f"    ... and {len(items) - MAX_EXAMPLES:,} more")
    return lines


def _image_text(image: ImageRef) -> str:
    return f"{image.path} ({image.split}, {image.label})"


def _range(values: Range | None) -> str:
    return f"{values.min} / {values.median:g} / {values.max}" if values else "-"


def _frequencies(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "-"


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
