"""The schema of a bundle's manifest.json.

`Manifest.model_json_schema()` documents it as JSON Schema. Nothing here needs PyTorch.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

# 2: Quality.top1_interval. 3: license, gray and color_balance in American spelling. 4: tta. Older ones are still read.
FORMAT = 4

# What a program computes in, e.g. fp32, bf16, int8-dynamic, int8-static. The exporter defines the names
# (`mlops_img.compression.forms`); they are parts of file names.
PRECISION_PATTERN = "^[a-z0-9][a-z0-9-]*$"
PrecisionName = Annotated[str, Field(pattern=PRECISION_PATTERN)]


def _inside(name: str) -> str:
    """Let no manifest name a file elsewhere, which would then be read, fetched to or served."""
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name!r} leads out of the bundle")
    return name


FileName = Annotated[str, AfterValidator(_inside)]
# Before format 3 it was spelled colour_balance.
StatisticName = Annotated[str, BeforeValidator(lambda name: "color_balance" if name == "colour_balance" else name)]


class Record(BaseModel):
    """A part of the manifest: no key more, none less."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelInfo(Record):
    """Which model it is.

    Attributes:
        name: timm's name, or the import path of a class of one's own.
        options: keyword arguments that it was built with.
        weights: what its training started from: none, hub, or the name of a file.
        license: of those weights, if timm has it.
        parameters: how many weights it has.
        macs: multiply-accumulates for one image.
    """

    name: str
    options: dict[str, Any]
    weights: str
    license: str | None = Field(validation_alias=AliasChoices("license", "licence"))  # licence: before format 3
    parameters: int
    macs: int


class PreprocessingInfo(Record):
    """What `mlops_img.preprocessing.transforms.Preprocessing` is made of."""

    image_size: int = Field(gt=0)
    crop_pct: float = Field(gt=0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    gray: bool = Field(validation_alias=AliasChoices("gray", "grey"))  # grey: before format 3
    sixteen_bit: Literal["declared", "range"] = "declared"  # missing in bundles of earlier versions


class CompiledFor(Record):
    """The only machines that a compiled program runs on.

    Attributes:
        device: cpu or cuda.
        capability: what the processor must have, e.g. avx512_vnni, or the GPU's compute capability, e.g. sm_90.
        torch: the version of PyTorch.
    """

    device: Literal["cpu", "cuda"]
    capability: list[str]
    torch: str


class Program(Record):
    """One executable form of the model: uint8 (n, 3, h, w) to logits (n, classes) and features (n, d).

    Attributes:
        precision: what it computes in.
        file: its path in the bundle.
        compiled_for: of an AOTInductor package; None for a portable `torch.export` program.
        max_batch: the most images that it takes at once.
        min_batch: fewer are filled up to so many, because that is faster on the machine it was compiled for.
    """

    precision: PrecisionName
    file: FileName
    compiled_for: CompiledFor | None
    max_batch: int = Field(ge=1)
    min_batch: int = Field(default=1, ge=1)


class Quality(Record):
    """How well a program predicts the images that it was measured on.

    Attributes:
        split: which split of the data.
        n: how many images.
        top1, top5, f1_macro, loss, ece: as in a run's summary; ece before temperature scaling.
        top1_interval: of top1, 95 %; None in bundles of format 1.

    Metrics of plugins are extra attributes: numbers, or None where a metric is not finite.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    split: str
    n: int
    top1: float
    top1_interval: tuple[float, float] | None = None
    top5: float
    f1_macro: float
    loss: float
    ece: float


class Candidate(Record):
    """A way of compressing that was tried, and what it came to.

    Attributes:
        precision: what was tried.
        quality: None if it could not be built.
        top1_drop: of the fp32 model's top-1, in points (percent of the images).
        top1_drop_interval: its 95 % interval by a paired bootstrap over the images.
        cosine: between its logits and the fp32 model's, mean over the images.
        bytes: of its program.
        milliseconds: median time for one image.
        images_per_second: at batch size 16.
        seconds: that it took to build.
        kept_fp32: names of the layers that were too sensitive and stayed in fp32.
        note: why it was not built or not chosen, or a remark.
    """

    precision: PrecisionName
    quality: Quality | None = None
    top1_drop: float | None = None
    top1_drop_interval: tuple[float, float] | None = None
    cosine: float | None = None
    bytes: int | None = None
    milliseconds: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    kept_fp32: list[str] = []
    note: str = ""


class Pruning(Record):
    """What structured pruning took away.

    Attributes:
        target: share of the multiply-accumulates that was to go.
        macs_before, macs_after: for one image.
        parameters_before, parameters_after: weights.
        before, after: the quality of the fp32 model.
        epochs: of the fine-tuning that followed.
    """

    target: float
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    before: Quality
    after: Quality
    epochs: int


class TestTimeAugmentation(Record):
    """The views of an image over whose logits the programs average.

    Attributes:
        views: flip or flip+shift; see `mlops_img.preprocessing.views`.
        without: the quality of the fp32 model on the image as it is.
    """

    views: str
    without: Quality


class DriftReference(Record):
    """The reference that drift is measured against; `mlops_img.monitoring.reference` writes the file.

    Attributes:
        file: its path in the bundle.
        images: how many it is based on.
        sample: for how many of them it has a row.
        features: length of a feature vector.
        statistics: names of the measures of the pixels.
        quantiles: which ones are kept, within 0 and 1.
    """

    file: FileName
    images: int
    sample: int
    features: int
    statistics: list[StatisticName]
    quantiles: list[float]


class Sample(Record):
    """An image for people to try: its file in the bundle, and its label."""

    file: FileName
    label: str


class File(Record):
    """A file of the bundle: its size, and the sha256 of its bytes in hexadecimal."""

    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Record):
    """manifest.json.

    Attributes:
        format: version of this schema.
        name, version: of the bundle; its folder is <name>-<version>.
        created: ISO 8601, UTC.
        model: which model it is.
        classes: names, in the order of the logits.
        preprocessing: from an image to the pixels that the programs take.
        tta: test-time augmentation, which is part of the programs; None in most.
        temperature: the logits are divided by it before the softmax.
        precision: of the chosen program.
        programs: the one to use first, then what to fall back to.
        candidates: everything that was tried.
        pruning: None where nothing was pruned.
        before, after: the fp32 model and the chosen program on the validation split.
        test: the evaluation of the run on its test split, before compression; empty where it has none.
        drift: what drift is later measured against.
        samples: image files for people to try.
        provenance: of the run that it was made from, and of the export.
        files: every other file of the bundle by its path.
    """

    format: int
    name: str
    version: str
    created: str
    model: ModelInfo
    classes: list[str] = Field(min_length=2)
    preprocessing: PreprocessingInfo
    tta: TestTimeAugmentation | None = None  # missing before format 4
    temperature: float = Field(gt=0)
    precision: PrecisionName
    programs: list[Program] = Field(min_length=1)
    candidates: list[Candidate]
    pruning: Pruning | None
    before: Quality
    after: Quality
    test: dict[str, float | tuple[float, float]]
    drift: DriftReference
    samples: list[Sample]
    provenance: dict[str, Any]
    files: dict[FileName, File]

    def named_files(self) -> set[str]:
        """Return the files that its parts name, all of which are to be among `files`."""
        return {self.drift.file, *(one.file for one in self.programs), *(one.file for one in self.samples)}
