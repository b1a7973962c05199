"""Batch prediction of a folder of photos, beside calls of `predict` of the same bundle.

    python benchmarks/batch_prediction.py --photos <folder of class folders of JPEGs> --rounds 5

Without --photos, generated ones are read. The bundle, resnet18 in int8 at 224 px, is loaded before. Ours lists nothing
and loads nothing in a turn, but it writes its parts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from harness import Benchmark, Turn, options_of, run_benchmark
from photos import GENERATED, add_photos, photo_folder
from serving import make_bundle

import mlops_img
from mlops_img.config.predict import PredictConfig, PredictDataConfig
from mlops_img.core.interrupts import StopRequest
from mlops_img.errors import UserError
from mlops_img.prediction.output import PartFiles
from mlops_img.prediction.workflow import open_job

WORKERS = (0, 1, 2)
ONE_BY_ONE, ALL_AT_ONCE = "model.predict([path]) for each path", "model.predict(paths)"


def ours(bundle: Path, photos: Path, workers: int, place: Path) -> Turn:
    config = PredictConfig(
        input=str(photos),
        output=str(place / f"workers-{workers}"),
        bundle=str(bundle),
        format="csv",
        data=PredictDataConfig(workers=workers),
    )
    job, turns = open_job(config), count()

    def turn() -> None:
        folder = place / f"workers-{workers}-{next(turns)}"
        folder.mkdir()
        written = replace(job, files=PartFiles(folder, "csv"))
        written.compute(range(job.plan.parts), StopRequest(""))

    return turn


def one_by_one(model: mlops_img.Predictor, paths: Sequence[Path]) -> Turn:
    def turn() -> None:
        for path in paths:
            model.predict([path])

    return turn


def all_at_once(model: mlops_img.Predictor, paths: Sequence[Path]) -> Turn:
    def turn() -> None:
        model.predict(paths)

    return turn


def main() -> None:
    parser = options_of(__doc__, rounds=5)
    add_photos(parser)
    parser.add_argument("--bundle", type=Path, help="of resnet18 at 224 px; made anew without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, photo_folder(options.photos) as photos:
        place = Path(temporary)
        paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not paths:
            raise UserError(f"--photos {photos}: there is no JPEG")
        settings = {
            "model": "resnet18",
            "precision": "int8",
            "image_size": 224,
            "photos": len(paths),
            "generated_photos": not options.photos,
        }
        benchmark = Benchmark("batch_prediction", rounds=options.rounds, settings=settings)
        if options.photos is None:
            benchmark.skip("real photos", GENERATED)
        bundle = (options.bundle or make_bundle(place)).resolve()
        model = mlops_img.load(bundle)
        peers = {ONE_BY_ONE: one_by_one(model, paths), ALL_AT_ONCE: all_at_once(model, paths)}
        for workers in WORKERS:
            contenders = {"mlops_img.predict": ours(bundle, photos, workers, place), **peers}
            benchmark.compare(contenders, len(paths), warmup=1, goals={}, case={"workers": workers})
        benchmark.finish(kept=options.keep)


if __name__ == "__main__":
    run_benchmark("batch_prediction", main)
