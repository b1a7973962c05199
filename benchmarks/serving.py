"""The service under load, beside the usual hand-made one and LitServe: real processes, real HTTP, the same photos.

    python benchmarks/serving.py --photos <folder of JPEGs> --rounds 3      # requests/s, latency, the model in a loop
    python benchmarks/serving.py --photos <...> --endurance                 # memory over 20,000 requests, overload

Without --photos, generated ones are sent.
The servers take turns; whose turn it is not is stopped, since some poll for work. Ours and LitServe serve the same
bundle, resnet18 in int8 at 224 px; the hand-made one runs the same net in fp32. The load comes from this process, on
the same machine. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import httpx
import torch
from load import closed_loop, open_loop, request
from photos import photo_folder
from results import FOLDER

import mlops_img
from mlops_img.core.files import write_json
from mlops_img.preprocessing.transforms import stack
from mlops_img.runs.provenance import hardware
from mlops_img.serving.settings import cores

HERE = Path(__file__).parent
CLIENTS = (1, 8, 32)
OURS, TEMPLATE = "mlops_img", "FastAPI, fp32"
LINE = "{server:28}{clients:>8}{rate:>9}{slowest:>8}{fastest:>8}{p50:>9}{p99:>9}{ratio:>8}{worst:>8}{goal:>6}"
HEAD = {"server": "", "clients": "clients", "rate": "req/s", "slowest": "min", "fastest": "max", "p50": "p50 ms"}
HEAD |= {"p99": "p99 ms", "ratio": "ours /", "worst": "worst", "goal": "goal"}
GOALS = {TEMPLATE: 4.0, "LitServe": 1.0, "LitServe, a worker a core": 1.0, "model and decoder in a loop": 0.8}


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
                if httpx.get(f"http://127.0.0.1:{port}{health}", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.02)
        assert process.poll() is None, f"{command} ended"
        yield Server(port, process, time.perf_counter() - start)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(2)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ours(port: int, bundle: Path, **environment: str) -> object:
    """Serve the bundle as `make serve` does."""
    serve = ("-m", "bentoml", "serve", "mlops_img.service:ImageClassifier", "--host", "127.0.0.1", "--port", str(port))
    return server(port, "/readyz", *serve, MLOPS_IMG_BUNDLE=str(bundle), BENTOML_DO_NOT_TRACK="True", **environment)


def make_bundle(folder: Path) -> Path:
    """Train resnet18 at 224 px for two steps, which speed does not depend on, and export it in int8."""
    run = ("debug=smoke", "data.image_size=224", "data.limit=400", "tracking=none", f"hydra.run.dir={folder}/run")
    export = (f"run={folder}/run", f"bundles={folder}/bundles", "quantize=static", "export.max_accuracy_drop=100")
    for arguments in (("mlops_img.train", *run, f"runs_dir={folder}"), ("mlops_img.export", *export)):
        subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)
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


def compare(bundle: Path, photos: list[Path], options: argparse.Namespace) -> dict[str, object]:
    """Let the servers take turns under each number of clients."""
    requests = [request("/predict", "image", photo) for photo in photos]
    contents = [photo.read_bytes() for photo in photos]
    model = mlops_img.load(bundle)
    lit, port = HERE / "peers" / "lit.py", options.port
    several = str(cores())
    with ExitStack() as stack_of_servers:
        start = stack_of_servers.enter_context
        servers: dict[str, Server] = {
            OURS: start(ours(port, bundle)),  # type: ignore[arg-type]
            TEMPLATE: start(server(port + 1, "/health", HERE / "peers" / "template.py", str(port + 1))),
            "LitServe": start(server(port + 2, "/health", lit, str(port + 2), bundle, "1", str(cores()))),
            "LitServe, a worker a core": start(server(port + 3, "/health", lit, str(port + 3), bundle, several, "1")),
        }
        taken: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
        loops: dict[int, list[float]] = {1: [], 16: []}
        for each in servers.values():
            with each.turn():
                pass
        for number in range(options.rounds + 1):
            for clients in CLIENTS:
                for name, each in servers.items():
                    with each.turn():
                        answers = closed_loop(each.port, requests, clients, options.seconds)
                    wrong = set(answers.statuses) - {200}
                    assert not wrong, f"{name}: {wrong}"
                    if number:  # the first turn warms up
                        figures = (answers.rate, answers.percentile(50), answers.percentile(99))
                        taken.setdefault((name, clients), []).append(figures)
            for batch, rates in loops.items():
                rates.append(loop(model, contents, options.seconds / 2, batch))
        ready = {name: round(each.ready_after, 1) for name, each in servers.items()}
    alone = max(median(rates[1:]) for rates in loops.values())
    rows = [_row(taken, name, clients) for clients in CLIENTS for name in servers]
    print(f"serving: n={options.rounds}, {hardware()['cpu']}, {hardware()['cores']} cores, {date.today()}")
    print(LINE.format(**HEAD))
    for row in rows:
        print(LINE.format(**row))
    share = max(row["rate"] for row in rows if row["server"] == OURS) / alone  # type: ignore[type-var, operator]
    print(f"model and decoder in a loop: {alone:.1f} images/s; ours reaches {share:.2f} of it; goal 0.8")
    print(f"seconds until ready, started one after the other: {ready}")
    return {"rows": rows, "loop": round(alone, 1), "share_of_loop": round(share, 3), "ready_seconds": ready}


def _row(taken: dict[tuple[str, int], list[tuple[float, float, float]]], name: str, clients: int) -> dict[str, object]:
    rates, p50s, p99s = (list(column) for column in zip(*taken[name, clients], strict=True))
    mine = [turn[0] for turn in taken[OURS, clients]]
    return {
        "server": name,
        "clients": clients,
        "rate": round(median(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
        "p50": round(median(p50s), 1),
        "p99": round(median(p99s), 1),
        "ratio": round(median(mine) / median(rates), 2),
        "worst": round(min(one / other for one, other in zip(mine, rates, strict=True)), 2),
        "goal": GOALS.get(name, "") if clients == max(CLIENTS) else "",
    }


def endurance(bundle: Path, photos: list[Path], options: argparse.Namespace) -> dict[str, object]:
    """Watch the memory over many requests, then ask four times as often as can be answered."""
    requests = [request("/predict", "image", photo) for photo in photos]
    memory: list[tuple[int, float]] = []
    with ours(options.port, bundle) as each:  # type: ignore[attr-defined]
        done = 0
        while done < options.requests:
            answers = closed_loop(each.port, requests, 8, 3600, most=options.requests // 40)
            assert set(answers.statuses) == {200}
            done += len(answers.statuses)
            memory.append((done, round(each.memory_mb(), 1)))
        rate = closed_loop(each.port, requests, 32, options.seconds).rate
        answers = open_loop(each.port, requests, 4 * rate, 2 * options.seconds)
    counts = {status: answers.statuses.count(status) for status in sorted(set(answers.statuses))}
    print(f"memory, MB: {memory[0][1]} after {memory[0][0]} requests, {memory[-1][1]} after {memory[-1][0]}")
    print(f"overload: {4 * rate:.0f} requests/s, 4 times what is sustained; answered {counts}")
    accepted, refused = (answers.percentile(99, accepted=way) for way in (True, False))
    usual = answers.percentile(50, accepted=False)
    print(f"accepted {answers.rate:.1f} a second, p99 {accepted:.0f} ms")
    print(f"refused p50 {usual:.0f} ms, p99 {refused:.0f} ms")
    overload = {
        "sustained": round(rate, 1),
        "asked": round(4 * rate, 1),
        "accepted": round(answers.rate, 1),
        "accepted_p99_ms": round(accepted, 1),
        "refused_p50_ms": round(usual, 1),
        "refused_p99_ms": round(refused, 1),
        "statuses": counts,
    }
    return {"memory_mb": memory, "overload": overload}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder with JPEGs, at any depth; without: generated")
    parser.add_argument("--bundle", type=Path, help="of resnet18 at 224 px; made anew without it")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender that count")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn")
    parser.add_argument("--requests", type=int, default=20_000, help="of the endurance run")
    parser.add_argument("--endurance", action="store_true", help="memory and overload instead of the comparison")
    parser.add_argument("--port", type=int, default=3700, help="the first of four")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, photo_folder(options.photos) as folder:
        photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:300]
        if not photos:
            parser.error(f"--photos {folder}: there is no JPEG")
        bundle = (options.bundle or make_bundle(Path(place))).resolve()
        found = (endurance if options.endurance else compare)(bundle, photos, options)
    if options.keep:
        content = {
            "date": str(date.today()),
            "rounds": options.rounds,
            "hardware": hardware(),
            "torch": torch.__version__,
        }
        write_json(FOLDER / f"serving{'_endurance' if options.endurance else ''}.json", content | found)


if __name__ == "__main__":
    main()
