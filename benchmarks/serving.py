"""The service under load, beside the usual hand-made one and LitServe: real processes, real HTTP, the same photos.

    python benchmarks/serving.py --photos <folder of JPEGs> --rounds 3      # requests/s, latency, the model in a loop
    python benchmarks/serving.py --photos <...> --endurance                 # memory over 20,000 requests, overload

Without --photos, generated ones are sent.
The servers take turns; whose turn it is not is stopped, since some poll for work. Ours and LitServe serve the same
bundle, resnet18 in int8 at 224 px; the hand-made one runs the same net in fp32. The load comes from this process, on
the same machine. Needs the extra `serve` and, for its clients, uvloop of the extra `bench`.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import torch
from harness import Benchmark, Contender, Figures, options_of, positive, rate_rows, require, run_benchmark
from load import closed_loop, open_loop, request
from photos import GENERATED, add_photos, photo_folder
from progress import stage, turns

import mlops_img
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import stack
from mlops_img.serving.settings import cores

HERE = Path(__file__).parent
CLIENTS = (1, 8, 32)
OURS, TEMPLATE = "mlops_img", "FastAPI, fp32"
LOOP = "decoder and model in a loop, without a server"
GOALS = {TEMPLATE: 4.0, "LitServe": 1.0, "LitServe, a worker a core": 1.0, LOOP: 0.8}


@dataclass(frozen=True)
class Server:
    """A server that runs: its port, its process, and the seconds until it answered."""

    port: int
    process: subprocess.Popen[bytes]
    ready_after: float

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run while the block lasts, and stop it, by SIGSTOP, until its next turn."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def memory_mb(self) -> float:
        """Return the resident memory of the process and all that it started, in MB."""
        pids, total = [self.process.pid], 0
        while pids:
            pid = pids.pop()
            try:
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        return total / 1024


@contextmanager
def server(port: int, health: str, *command: str | Path, **environment: str) -> Iterator[Server]:
    """Start a server, and end it and all that it started with the block."""
    start = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([sys.executable, *map(str, command)], env={**os.environ, **environment}, **quiet)  # type: ignore[call-overload]
    try:
        while process.poll() is None:
            try:
                with urlopen(f"http://127.0.0.1:{port}{health}", timeout=5):
                    break
            except (OSError, HTTPException):  # not listening yet, or not ready
                time.sleep(0.02)
        if process.poll() is not None:
            raise UserError(f"{' '.join(map(str, command))} ended before it answered: start it by hand to see why")
        yield Server(port, process, time.perf_counter() - start)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(2)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ours(port: int, bundle: Path, **environment: str) -> AbstractContextManager[Server]:
    """Serve the bundle as `make serve` does."""
    serve = ("-m", "bentoml", "serve", "mlops_img.service:ImageClassifier", "--host", "127.0.0.1", "--port", str(port))
    return server(port, "/readyz", *serve, MLOPS_IMG_BUNDLE=str(bundle), BENTOML_DO_NOT_TRACK="True", **environment)


def make_bundle(folder: Path) -> Path:
    """Train resnet18 at 224 px for two steps, which speed does not depend on, and export it in int8."""
    short_run = ("debug=smoke", "data.image_size=224", "data.limit=400", "tracking=none", f"hydra.run.dir={folder}/run")
    export = (f"run={folder}/run", f"bundles={folder}/bundles", "quantize=static", "export.max_accuracy_drop=100")
    for arguments in (("mlops_img.train", *short_run, f"runs_dir={folder}"), ("mlops_img.export", *export)):
        stage(f"serving: making a bundle: {arguments[0]}")
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f"no bundle could be made: {arguments[0]} failed: {(done.stderr.strip() or '?').splitlines()[-1]}"
            )
    return folder / "bundles" / "latest"


def loop(model: mlops_img.Predictor, photos: list[bytes], seconds: float, batch: int) -> float:
    """Return the images/s of the decoder and the model alone, one after the other, without a server."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        pixels = stack([model.prepare(photos[(done + place) % len(photos)]) for place in range(batch)])
        with torch.inference_mode():
            model.interpret(model.run(pixels)[0])
        done += batch
    return done / (time.perf_counter() - start)


def compare(bundle: Path, photos: list[Path], options: argparse.Namespace, benchmark: Benchmark) -> None:
    """Let the servers take turns under each number of clients."""
    requests = [request("/predict", "image", photo) for photo in photos]
    contents = [photo.read_bytes() for photo in photos]
    model = mlops_img.load(bundle)
    taken: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    batches = {f"{LOOP}, batches of {batch}": batch for batch in (1, 16)}
    loops: dict[str, list[float]] = {label: [] for label in batches}
    with ExitStack() as running:
        servers = benchmark.prepare(contenders(bundle, options.port, running))
        for each in servers.values():
            with each.turn():
                pass
        order = [f"{name}, {clients} clients" for clients in CLIENTS for name in servers]
        places = dict(zip(order, ((name, clients) for clients in CLIENTS for name in servers), strict=True))
        for number, label in turns("serving", [*order, *loops], options.rounds, warmup=1):
            if label in loops:
                rate = loop(model, contents, options.seconds / 2, batches[label])
                if number > 0:
                    loops[label].append(rate)
                continue
            name, clients = places[label]
            with servers[name].turn():
                answers = closed_loop(servers[name].port, requests, clients, options.seconds)
            wrong = set(answers.statuses) - {200}
            assert not wrong, f"{name}: {wrong}"
            if number > 0:
                figures = (answers.rate, answers.percentile(50), answers.percentile(99))
                taken.setdefault((name, clients), []).append(figures)
        ready: list[tuple[str, Figures]] = [
            (name, {"ready_seconds": round(each.ready_after, 1)}) for name, each in servers.items()
        ]
    for clients in CLIENTS:
        benchmark.add({"clients": clients}, rows(taken, clients, list(servers)))
    alone = max(median(rates) for rates in loops.values())
    best = max(median(turn[0] for turn in taken[OURS, clients]) for clients in CLIENTS)
    share = {"images_per_second": round(alone, 1), "ratio": round(best / alone, 3), "goal": GOALS[LOOP]}
    benchmark.add({"part": "without a server"}, [(LOOP, share)])
    benchmark.add({"part": "start, one after the other"}, ready)


def contenders(bundle: Path, port: int, running: ExitStack) -> list[Contender[Server]]:
    """Return the servers, each on a port of its own, that end with `running`."""
    lit, several = HERE / "peers" / "lit.py", str(cores())

    def start(number: int, *command: str | Path) -> Server:
        at = port + number
        return running.enter_context(server(at, "/health", command[0], str(at), *command[1:]))

    return [
        Contender(OURS, lambda: running.enter_context(ours(port, bundle))),
        Contender(TEMPLATE, lambda: start(1, HERE / "peers" / "template.py")),
        Contender("LitServe", lambda: start(2, lit, bundle, "1", several), ("litserve",)),
        Contender("LitServe, a worker a core", lambda: start(3, lit, bundle, several, "1"), ("litserve",)),
    ]


def rows(
    taken: dict[tuple[str, int], list[tuple[float, float, float]]], clients: int, names: list[str]
) -> list[tuple[str, Figures]]:
    """Return the figures of each server under so many clients; goals are set for the largest number."""
    rates = {name: [turn[0] for turn in taken[name, clients]] for name in names}
    found = rate_rows("requests_per_second", rates, GOALS if clients == max(CLIENTS) else {})
    return [
        (name, {**figures, "p50_ms": _median(taken[name, clients], 1), "p99_ms": _median(taken[name, clients], 2)})
        for name, figures in found
    ]


def _median(turns_taken: list[tuple[float, float, float]], place: int) -> float:
    return round(median(turn[place] for turn in turns_taken), 1)


def endurance(bundle: Path, photos: list[Path], options: argparse.Namespace, benchmark: Benchmark) -> None:
    """Watch the memory over many requests, then ask four times as often as can be answered."""
    requests = [request("/predict", "image", photo) for photo in photos]
    memory: list[tuple[str, Figures]] = []
    part = max(1, options.requests // 40)
    stage("serving_endurance: starting the server")
    with ours(options.port, bundle) as each:
        done = 0
        for _ in turns("serving_endurance", [f"{part} requests"], rounds=-(-options.requests // part)):
            answers = closed_loop(each.port, requests, 8, 3600, most=part)
            assert set(answers.statuses) == {200}
            done += len(answers.statuses)
            memory.append((OURS, {"requests": done, "memory_mb": round(each.memory_mb(), 1)}))
            if done >= options.requests:
                break
        stage(f"serving_endurance: overload, about {3 * options.seconds:.0f} s left")
        rate = closed_loop(each.port, requests, 32, options.seconds).rate
        answers = open_loop(each.port, requests, 4 * rate, 2 * options.seconds)
    overload: dict[str, int | float | None] = {
        "sustained_per_second": round(rate, 1),
        "asked_per_second": round(4 * rate, 1),
        "accepted_per_second": round(answers.rate, 1),
        "accepted_p99_ms": round(answers.percentile(99), 1),
        "refused_p50_ms": finite(answers.percentile(50, accepted=False)),
        "refused_p99_ms": finite(answers.percentile(99, accepted=False)),
    }
    for status in sorted(set(answers.statuses)):
        overload[f"status_{status}"] = answers.statuses.count(status)
    benchmark.add({"part": "memory", "clients": 8}, memory)
    benchmark.add({"part": "overload"}, [(OURS, overload)])


def finite(milliseconds: float) -> float | None:
    """Return it rounded; None where no request was answered so."""
    return None if math.isnan(milliseconds) else round(milliseconds, 1)


def main() -> None:
    parser = options_of(__doc__, rounds=3)
    add_photos(parser)
    parser.add_argument("--bundle", type=Path, help="of resnet18 at 224 px; made anew without it")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn (8)")
    parser.add_argument("--requests", type=positive, default=20_000, help="of the endurance run (20000)")
    parser.add_argument("--endurance", action="store_true", help="memory and overload instead of the comparison")
    parser.add_argument("--port", type=int, default=3700, help="the first of four (3700)")
    options = parser.parse_args()
    name, rounds = ("serving_endurance", 1) if options.endurance else ("serving", options.rounds)
    require(name, "uvloop", "bentoml")
    with tempfile.TemporaryDirectory() as place, photo_folder(options.photos) as folder:
        photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:300]
        if not photos:
            raise UserError(f"--photos {folder}: there is no JPEG")
        settings = {
            "model": "resnet18",
            "image_size": 224,
            "photos": len(photos),
            "generated_photos": options.photos is None,
            "seconds_per_turn": options.seconds,
        }
        benchmark = Benchmark(name, rounds=rounds, settings=settings)
        if options.photos is None:
            benchmark.skip("real photos", GENERATED)
        bundle = (options.bundle or make_bundle(Path(place))).resolve()
        (endurance if options.endurance else compare)(bundle, photos, options, benchmark)
        benchmark.finish(kept=options.keep)


if __name__ == "__main__":
    run_benchmark("serving", main)
