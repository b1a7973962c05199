"""What is measured now and how long the rest will take: a bar on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean, median

from tqdm import tqdm

LINE_SECONDS = 5.0  # at least, between two plain lines


def seconds_left(taken: Mapping[str, Sequence[float]], left: Iterable[str]) -> float | None:
    """Estimate the seconds of the turns that are left from those that were measured.

    A turn is expected to take the median of the same contender's turns. A contender without one is expected to take
    the mean of the others.

    Args:
        taken: contender to the seconds of its turns so far.
        left: the contender of each turn that is left.

    Returns:
        None before the first measured turn.
    """
    typical = {label: median(seconds) for label, seconds in taken.items() if seconds}
    if not typical:
        return None
    usual = mean(typical.values())
    return sum(typical.get(label, usual) for label in left)


def duration(seconds: float) -> str:
    """Return a duration as people say it: 50 s, 4 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def stage(text: str) -> None:
    """Say on stderr what happens before turns can be taken."""
    tqdm.write(text, file=sys.stderr)


def say(text: str) -> None:
    """Print on stdout, clear of the bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def turns(title: str, contenders: Sequence[str], rounds: int, warmup: int = 0) -> Iterator[tuple[int, str]]:
    """Yield whose turn it is and show the progress; the time until the next request is the turn's.

    Args:
        title: of the benchmark and its case.
        contenders: take turns in this order, in each round.
        rounds: that count.
        warmup: rounds before those.

    Yields:
        The round, from 1 on, or 0 and less while warming up; and the contender.
    """
    order = [(number, label) for number in range(1 - warmup, rounds + 1) for label in contenders]
    taken: dict[str, list[float]] = {label: [] for label in contenders}
    terminal = sys.stderr.isatty()
    last_line = float("-inf")
    form = "{desc} |{bar:20}| {n_fmt} of {total_fmt} turns"
    with tqdm(total=len(order), bar_format=form, disable=not terminal, leave=False, dynamic_ncols=True) as bar:
        for place, (number, label) in enumerate(order):
            left = seconds_left(taken, (other for _, other in order[place:]))
            text = f"{title}: {f'round {number} of {rounds}' if number > 0 else 'warm-up'}, {label}, " + (
                "time left: known after the first turn" if left is None else f"about {duration(left)} left"
            )
            bar.set_description_str(text)
            start = time.perf_counter()
            if not terminal and start - last_line >= LINE_SECONDS:
                print(text, file=sys.stderr, flush=True)
                last_line = start
            yield number, label
            taken[label].append(time.perf_counter() - start)
            bar.update()
