"""How fast photos become training batches: our loader beside torchvision's ImageFolder in a DataLoader.

    python benchmarks/input_pipeline.py --photos <a folder of class folders of JPEGs>    # without: generated ones

Both cut random resized crops of 224 px with mirror images, in batches of 32; torchvision's v2 transforms
end in normalised floats, as its documentation has it, and ours in uint8, which is normalised on the device
(that time is counted too). Runs with 0 and with 2 workers, in turns, and compares the evaluation images. Then the same
with data.cache=resized, which was filled before: the second epoch of a run and later ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import Benchmark, Turn, options_of, run_benchmark
from photos import GENERATED, add_photos, photo_folder
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import FolderConfig
from mlops_img.data.augment import ImageAugment
from mlops_img.data.loader import Decode, make_loader
from mlops_img.data.pixel_cache import cached_decode
from mlops_img.data.sampler import ShuffledBatchSampler
from mlops_img.data.sources.base import ImageSet, read_file
from mlops_img.data.sources.folder import Folder
from mlops_img.errors import UserError
from mlops_img.models.build import IMAGENET_MEAN, IMAGENET_STD
from mlops_img.preprocessing.decode import decode_rgb
from mlops_img.preprocessing.transforms import Preprocessing

SIDE, RESIZED, BATCH = 224, 256, 32
EPOCHS = 4  # in each turn: ours reads on over their ends, as in a run, and DataLoader starts its workers anew
PREPROCESSING = Preprocessing(SIDE, SIDE / RESIZED, IMAGENET_MEAN, IMAGENET_STD)
OURS, CACHED, PEER = "mlops_img", "mlops_img data.cache=resized", "torchvision ImageFolder + v2"
GOAL, CACHED_GOAL = 1.5, 3.0


def ours(images: ImageSet, workers: int, decode: Decode) -> Turn:
    augment = ImageAugment(AugmentConfig(), PREPROCESSING)
    per_epoch = len(images) // BATCH
    turns = iter(range(10**9))

    def turn() -> None:
        start = next(turns) * EPOCHS * per_epoch
        plans = ShuffledBatchSampler(
            len(images), BATCH, per_epoch, seed=0, start=start, stop=start + EPOCHS * per_epoch
        )
        for batch in make_loader(images, augment, plans, decode=decode, workers=workers):
            PREPROCESSING.normalize(batch.images)

    return turn


def torchvision_folder(photos: Path, workers: int) -> Turn:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    loader = DataLoader(
        ImageFolder(photos, transform), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers
    )

    def turn() -> None:
        for _ in range(EPOCHS):
            for _ in loader:
                pass

    return turn


def compare_evaluation_images(images: ImageSet) -> None:
    """Print how far our evaluation images are from torchvision's, in levels of 255."""
    reference = v2.Compose([v2.Resize(RESIZED), v2.CenterCrop(SIDE), v2.PILToTensor()])
    largest, differing = 0, 0.0
    for path in images.paths:
        with Image.open(path) as photo:
            theirs = reference(photo.convert("RGB")).int()
        difference = (PREPROCESSING.crop(decode_rgb(read_file(path))).int() - theirs).abs()
        largest = max(largest, int(difference.max()))
        differing += float((difference > 0).float().mean()) / len(images)
    print(f"evaluation images: at most {largest} of 255 levels apart, {differing:.1%} of the values differ")


def compare(photos: Path, benchmark: Benchmark) -> None:
    images = Folder(FolderConfig(root=str(photos))).table().splits["train"]
    benchmark.settings["photos"] = len(images)
    if len(images) < BATCH:
        raise UserError(f"--photos {photos}: {len(images)} images to train on, fewer than a batch of {BATCH}")
    compare_evaluation_images(images)
    count = EPOCHS * (len(images) // BATCH) * BATCH
    cached = cached_decode(FolderConfig(root=str(photos), cache="resized"), AugmentConfig(), PREPROCESSING, SIDE)
    for name, decode, goal in ((OURS, decode_rgb, GOAL), (CACHED, cached, CACHED_GOAL)):
        for workers in (0, 2):
            contenders = {name: ours(images, workers, decode), PEER: torchvision_folder(photos, workers)}
            benchmark.compare(contenders, count, warmup=1, goals={PEER: goal}, case={"workers": workers})


def main() -> None:
    parser = options_of(__doc__, rounds=5)
    add_photos(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"image_size": SIDE, "batch": BATCH, "epochs_per_turn": EPOCHS, "generated_photos": not options.photos}
    with photo_folder(options.photos) as photos, TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        benchmark = Benchmark("input_pipeline", rounds=options.rounds, settings=settings)
        if options.photos is None:
            benchmark.skip("real photos", GENERATED)
        compare(photos, benchmark)
        benchmark.finish(kept=options.keep)


if __name__ == "__main__":
    run_benchmark("input_pipeline", main)
