"""Write the tables of the documentation from the result files.

    python benchmarks/tables.py            # rewrite what stands between <!-- table: NAME --> and <!-- end --> in docs/
    python benchmarks/tables.py --check    # say which tables are not as generated; exit code 1 if there are any

NAME is that of a benchmark. There is one table for each machine, the newest result first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from itertools import zip_longest
from pathlib import Path
from statistics import mean
from textwrap import fill

from harness import Figures, Parser, title
from records import FOLDER, Case, Result, read_all
from scipy.stats import sem, t

from mlops_img.core.files import write_text
from mlops_img.errors import EXIT_OK, EXIT_USER_ERROR, UserError, did_you_mean

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^<!-- table: (?P<name>.*?) -->\n(?P<body>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- table: (.*?) -->$", re.MULTILINE)
RANGE = "(slowest to fastest)"
RATIO = "ours / theirs (worst turn)"

Line = Sequence[object]


def generate(text: str, folder: Path = FOLDER) -> str:
    """Return a document with its tables as the result files in this folder have them.

    Raises:
        UserError: a marker names no table, or has no end.
    """
    names = MARKER.findall(text)
    for name in names:
        if name not in TABLES:
            raise UserError(f"<!-- table: {name} -->: there is no such table.{did_you_mean(name, TABLES)}")
    blocks = list(BLOCK.finditer(text))
    if [block["name"] for block in blocks] != names:
        raise UserError("a <!-- table: ... --> has no <!-- end --> on a line of its own: add it")
    return BLOCK.sub(
        lambda block: f"<!-- table: {block['name']} -->\n\n{tables(block['name'], folder)}\n<!-- end -->", text
    )


def tables(name: str, folder: Path) -> str:
    """Return the tables of a benchmark: for each machine a caption, and what the benchmark has to show."""
    results = read_all(name, folder)
    if not results:
        return "Not measured yet.\n"
    return "\n".join(f"{caption(result)}\n\n{TABLES[name](result)}" for result in results)


def caption(result: Result) -> str:
    """Return the machine, the date, n, the settings and what was left out."""
    n = "one run" if result.rounds == 1 else f"n = {result.rounds}"
    settings = {key: value for key, value in result.settings.items() if value is not None and value is not False}
    parts = [f"{result.machine.describe()}; {result.date}; {n}", title("", settings).removeprefix(", ")]
    parts += [f"left out: {what} ({why})" for what, why in result.skipped.items()]
    return fill("; ".join(parts) + ":", width=120, break_long_words=False, break_on_hyphens=False)


def table(head: Line, lines: Sequence[Line]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, rule, *lines))


def ratio(value: float | None) -> str:
    """Return a ratio with two decimals, 5 rounded up."""
    if value is None:
        return ""
    return str(Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP))


def number(value: float | None) -> str:
    """Return a figure as the file has it."""
    return "" if value is None else str(value)


def rate(figures: Figures, unit: str) -> str:
    """Return a median rate with its slowest and fastest turn."""
    return f"{number(figures[unit])} ({number(figures['slowest'])} to {number(figures['fastest'])})"


def against(figures: Figures) -> str:
    """Return the ratio with the worst turn's."""
    return f"{ratio(figures['ratio'])} ({ratio(figures['worst_ratio'])})"


def lines_of(case: Case, unit: str) -> list[list[object]]:
    """Return contender, rate, ratio and goal; ours, which is compared with the others, has no ratio."""
    lines: list[list[object]] = []
    for place, row in enumerate(case.rows):
        compared = [against(row.figures), number(row.figures["goal"])] if place else ["", ""]
        lines.append([row.contender, rate(row.figures, unit), *compared])
    return lines


def train_loop(result: Result) -> str:
    """Return one line for each contender."""
    return table(["", f"images/s {RANGE}", RATIO, "goal"], lines_of(result.cases[0], "images_per_second"))


def input_pipeline(result: Result) -> str:
    """Return one line for each contender and number of workers."""
    lines = [
        [line[0], case.settings["workers"], *line[1:]]
        for case in result.cases
        for line in lines_of(case, "images_per_second")
    ]
    return table(["", "workers", f"images/s {RANGE}", RATIO, "goal"], lines)


def compression(result: Result) -> str:
    """Return a table with a column for each model and batch, and one of the ratios."""
    head = ["", *(f"{case.settings['model']}, batch {case.settings['batch']}" for case in result.cases)]
    names = list(dict.fromkeys(row.contender for case in result.cases for row in case.rows))
    found = [{row.contender: row.figures for row in case.rows} for case in result.cases]
    speeds = [
        [name, *(rate(case[name], "images_per_second") if name in case else "" for case in found)] for name in names
    ]
    ratios = []
    for name in names[1:]:
        cells = []
        for case in found:
            goal = case[name]["goal"] if name in case else None
            cells.append(against(case[name]) + (f", goal {goal}" if goal else "") if name in case else "")
        ratios.append([name, *cells])
    return f"Images/s {RANGE}:\n\n{table(head, speeds)}\n{names[0]} / theirs (worst turn):\n\n{table(head, ratios)}"


def compression_models(result: Result) -> str:
    """Return a line for each model: images/s, cosine of the logits to fp32, seconds that the export took."""
    names = list(dict.fromkeys(row.contender for case in result.cases for row in case.rows))
    lines = []
    for case in result.cases:
        found = {row.contender: row.figures for row in case.rows}
        lines.append([case.settings["model"], *(exported(found.get(name)) for name in names)])
    return table(["", *names], lines)


def exported(figures: Figures | None) -> str:
    """Return images/s, and in brackets cosine and seconds."""
    if figures is None:
        return "does not export"
    if "cosine" not in figures:
        return number(figures["images_per_second"])
    return f"{figures['images_per_second']} ({figures['cosine']:.4f}, {figures['export_seconds']} s)"


def serving(result: Result) -> str:
    """Return a line for each server and number of clients, the model alone, and the seconds until ready."""
    lines: list[Line] = []
    starts: list[Line] = []
    for case in result.cases:
        if "clients" in case.settings:
            for row, line in zip(case.rows, lines_of(case, "requests_per_second"), strict=True):
                latency = [number(row.figures["p50_ms"]), number(row.figures["p99_ms"])]
                lines.append([line[0], case.settings["clients"], line[1], *latency, *line[2:]])
            continue
        for row in case.rows:
            if "ready_seconds" in row.figures:
                starts.append([row.contender, number(row.figures["ready_seconds"])])
            else:
                alone = [number(row.figures["images_per_second"]), "", "", ratio(row.figures["ratio"])]
                lines.append([row.contender, "", *alone, number(row.figures["goal"])])
    head = ["", "clients", f"requests/s {RANGE}", "p50 ms", "p99 ms", RATIO, "goal"]
    return f"{table(head, lines)}\n{table(['', 'seconds until ready'], starts)}"


def serving_endurance(result: Result) -> str:
    """Return the memory at five points of the run, and what became of the requests when there were too many."""
    memory, overload = (case.rows for case in result.cases)
    last = len(memory) - 1
    points = sorted({0, *((last + 1) * quarter // 4 - 1 for quarter in (1, 2, 3)), last} - {-1})
    lines = [[memory[at].figures["requests"], memory[at].figures["memory_mb"]] for at in points]
    parts = [[name.replace("_", " "), number(value)] for name, value in overload[0].figures.items()]
    return f"{table(['requests', 'memory, MB'], lines)}\n{table(['overload', ''], parts)}"


def finetune(result: Result) -> str:
    """Return the means over the seeds, with the lowest and the highest."""
    names = list(dict.fromkeys(row.contender for case in result.cases for row in case.rows))
    lines = []
    for name in names:
        runs = [row.figures for case in result.cases for row in case.rows if row.contender == name]
        shares = [spread([run[key] for run in runs], 3) for key in ("val_top1", "test_top1")]
        seconds = [spread([run[key] for run in runs], 0) for key in ("processor_seconds", "seconds")]
        lines.append([name, len(runs), *shares, *seconds])
    return table(["", "n", "validation top-1", "test top-1", "processor seconds", "seconds"], lines)


def finetune_minutes(result: Result) -> str:
    """Return the table of `finetune`, and one of the mean validation top-1 over time."""
    rows = [row for case in result.cases for row in case.rows]
    points = [name for name in rows[0].figures if name.startswith("val_top1_at_")]
    lines: list[Line] = []
    for contender in dict.fromkeys(row.contender for row in rows):
        runs = [row.figures for row in rows if row.contender == contender]
        known = [[run[point] for run in runs if run[point] is not None] for point in points]
        lines.append([contender, *(f"{mean(map(float, shares)):.3f}" if shares else "" for shares in known)])  # type: ignore[arg-type]
    head = ["validation top-1 after", *(f"{int(re.sub(r'[^0-9]', '', point[8:])):,} s" for point in points)]
    return f"{finetune(result)}\n{table(head, lines)}"


def time_to_accuracy(result: Result) -> str:
    """Return for each recipe the means over the seeds, and the differences to the recipe as it is, seed by seed."""
    parts = []
    for recipe in dict.fromkeys(case.settings["recipe"] for case in result.cases):
        cases = [
            {row.contender: row.figures for row in case.rows}
            for case in result.cases
            if case.settings["recipe"] == recipe
        ]
        base, lines = next(iter(cases[0])), []
        for name in dict.fromkeys(name for case in cases for name in case):
            runs = [case[name] for case in cases if name in case]
            shares = [spread([run[key] for run in runs], 4) for key in ("val_top1", "test_top1")]
            seconds = [spread([run[key] for run in runs], 0) for key in ("processor_seconds", "seconds")]
            pairs = [(case[name], case[base]) for case in cases if name in case and base in case and name != base]
            gains = [
                100 * (float(with_it["test_top1"] or 0) - float(plain["test_top1"] or 0)) for with_it, plain in pairs
            ]
            lines.append([f"`{name}`" if name != base else name, len(runs), *shares, points_gained(gains), *seconds])
        head = [
            "",
            "n",
            "validation top-1",
            "test top-1",
            "gain on test, points (95 % interval)",
            "processor seconds",
            "seconds",
        ]
        parts.append(f"`{recipe}`:\n\n{table(head, lines)}")
    return "\n".join(parts)


def points_gained(gains: Sequence[float]) -> str:
    """Return the mean of differences that belong together in pairs, with the interval of Student's t."""
    if len(gains) < 2:
        return "".join(f"{gain:+.2f}" for gain in gains)
    middle, error = mean(gains), sem(gains)
    half = error * t.ppf(0.975, len(gains) - 1)
    return f"{middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f})"


def spread(values: Sequence[float | None], digits: int) -> str:
    """Return the mean, and the lowest and highest in brackets."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


TABLES: dict[str, Callable[[Result], str]] = {
    "train_loop": train_loop,
    "input_pipeline": input_pipeline,
    "batch_prediction": input_pipeline,
    "compression": compression,
    "compression_models": compression_models,
    "serving": serving,
    "serving_endurance": serving_endurance,
    "finetune": finetune,
    "finetune_minutes": finetune_minutes,
    "time_to_accuracy": time_to_accuracy,
}


def differing(text: str, generated: str) -> list[str]:
    """Return the names of the tables that differ, each with the first line that does."""
    found = []
    for old, new in zip(BLOCK.finditer(text), BLOCK.finditer(generated), strict=True):
        if old["body"] != new["body"]:
            pairs = zip_longest(old["body"].splitlines(True), new["body"].splitlines(True), fillvalue="")
            was, wanted = next(pair for pair in pairs if pair[0] != pair[1])
            found.append(f"{old['name']}: {was.rstrip()!r} should be {wanted.rstrip()!r}")
    return found


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "documents", type=Path, nargs="*", help="Markdown files; without: all of docs/ that have tables"
    )
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder of the result files")
    options = parser.parse_args()
    wrong = False
    for path in options.documents or sorted(DOCS.glob("*.md")):
        try:
            text = path.read_text(encoding="utf-8")
            generated = generate(text, options.results)
        except (OSError, UserError) as error:
            print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            return EXIT_USER_ERROR
        if text == generated:
            continue
        if options.check:
            wrong = True
            for line in differing(text, generated):
                print(f"{path}: table {line}: run python benchmarks/tables.py", file=sys.stderr)
        else:
            write_text(path, generated)
            print(f"{path}: tables written")
    return 1 if wrong else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
