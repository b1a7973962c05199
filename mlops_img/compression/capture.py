"""From a model to programs: `torch.export` for any machine, AOTInductor for this one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import Graph

from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.preprocessing.views import VIEWS, View, view_of

MIN_EXPORTED_BATCH = 2  # with a single image, its batch dimension would be taken for a constant


class ExportableModel(nn.Module):
    """A model as programs run it: it normalizes by itself, and gives its features beside the logits.

    Features are what the classifier takes, for timm's models; of any other they are the logits once more. With
    test-time augmentation the logits are averaged over the views of an image; the features are those of the image as
    it is.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        dtype: torch.dtype = torch.float32,
        views: Sequence[View] = VIEWS["none"],
    ) -> None:
        super().__init__()
        self.model = model.to(dtype).eval()
        self.preprocessing = preprocessing
        self.dtype = dtype
        self.views = views
        self.has_features = _gives_features(self.model, self._normalized(example_images(preprocessing)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 (n, 3, side, side) to float32 logits (n, classes) and features (n, d)."""
        normalized = self._normalized(images)
        if len(self.views) == 1:
            return self._outputs(normalized)
        # All views are one batch, so that the model is in the program once.
        logits, features = self._outputs(torch.cat([view_of(normalized, view) for view in self.views]))
        weights = logits.new_tensor([view.weight for view in self.views])
        by_view = logits.unflatten(0, (len(self.views), -1))
        return (by_view * weights.view(-1, 1, 1)).sum(0), features.unflatten(0, (len(self.views), -1))[0]

    def _outputs(self, normalized: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_features:
            logits = self.model(normalized).float()
            return logits, logits.clone()
        features, logits = _features_and_logits(self.model, normalized)
        return logits.float(), features.float()

    def _normalized(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images).to(self.dtype)


def example_images(preprocessing: Preprocessing, count: int = MIN_EXPORTED_BATCH) -> Tensor:
    """Return uint8 noise (count, 3, side, side), channels-last in memory as batches are."""
    side = preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return noise.permute(0, 3, 1, 2)


@torch.no_grad()
def capture(exportable: nn.Module, images: Tensor, max_batch: int) -> ExportedProgram:
    """Trace a model for batches of 1 to `max_batch` images."""
    batch = Dim("batch", min=1, max=max_batch)
    return torch.export.export(exportable, (images,), dynamic_shapes=({0: batch},))


def save_portable(program: ExportedProgram, path: Path) -> None:
    """Write a program that any machine with this version of PyTorch, or a newer one, can run."""
    for node in program.graph.nodes:
        for origin in ("stack_trace", "from_node"):  # paths of this machine are not published
            node.meta.pop(origin, None)
    images = program.example_inputs
    program.example_inputs = None  # they would be saved as a pickle
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No complete tensor found")  # of views; they are saved whole
            torch.export.save(program, path)
    finally:
        program.example_inputs = images


def compile_for_this_machine(program: ExportedProgram, path: Path, device: torch.device) -> None:
    """Compile a program by AOTInductor to machine code for this processor, or this GPU.

    Raises:
        RuntimeError: among others, if there is no C++ compiler.
    """
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    # Frozen weights are folded and packed at compile time. The number of threads is read at run time: the machine
    # that serves may have other cores, and more than one process.
    options = {"freezing": True, "cpp.dynamic_threads": True, "pre_grad_custom_pass": _pool_integers}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def _pool_integers(graph: Graph) -> None:
    """Let max pooling of int8 values pool the integers themselves, which gives the same values.

    PyTorch would call an operator without a C interface for it. A package with one runs in one thread at a time.
    """
    quantized = torch.ops.quantized_decomposed
    for node in graph.find_nodes(op="call_function", target=quantized.quantize_per_tensor.default):
        pool = node.args[0]
        if pool.target is not torch.ops.aten.max_pool2d.default or len(pool.users) > 1:
            continue
        values = pool.args[0]
        if values.target is quantized.dequantize_per_tensor.default and values.args[1:] == node.args[1:]:
            pool.replace_input_with(values, values.args[0])
            node.replace_all_uses_with(pool)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _gives_features(model: nn.Module, normalized: Tensor) -> bool:
    if not all(hasattr(model, name) for name in ("forward_features", "forward_head", "get_classifier")):
        return False
    with torch.no_grad():
        try:
            features, logits = _features_and_logits(model, normalized)
        except (TypeError, RuntimeError, AttributeError):
            return False
        return features.ndim == 2 and torch.equal(logits, model(normalized))


def _features_and_logits(model: nn.Module, normalized: Tensor) -> tuple[Tensor, Tensor]:
    features = model.forward_head(model.forward_features(normalized), pre_logits=True)  # type: ignore[operator]
    return features, model.get_classifier()(features)  # type: ignore[operator]
