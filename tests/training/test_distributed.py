"""Steps of several ranks against those of a single process: losses, gradients, validation, and what they agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.core.distributed import World
from mlops_img.data.division import DividedBatches, Division, divide
from mlops_img.data.sampler import ShuffledBatchSampler
from mlops_img.errors import UserError
from mlops_img.training.setup import check_trainable, set_up
from tests.helpers import ranks
from tests.helpers.shapes import write_shapes

SIZES = (2, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank of 1, 2 and 4 measured."""
    folder = tmp_path_factory.mktemp("ranks")
    roots = []
    for name in ("whole", "damaged", "empty"):
        root = folder / name
        for split, count in (("train", 8), ("val", 7)):
            write_shapes(root / split, count, seed=len(split))
        if name != "whole":
            for path in sorted((root / "train").glob("*/*.jpg"))[:: 3 if name == "damaged" else 1]:
                path.write_bytes(f"no image: {path}".encode())
        roots.append(str(root))
    torch.set_num_threads(1)
    results = {1: [ranks.everything(World(), *roots)]}
    for size in SIZES:
        results[size] = ranks.on_ranks(size, ranks.everything, folder / str(size), *roots)
    return results


@pytest.mark.parametrize("size", SIZES)
def test_losses_do_not_depend_on_the_number_of_ranks(found: Any, size: int) -> None:
    one, several = found[1][0]["slices"], found[size][0]["slices"]
    assert several.losses == pytest.approx(one.losses, abs=2e-6)
    assert several.rates == one.rates


@pytest.mark.parametrize("size", SIZES)
def test_whole_forward_passes_see_what_a_single_process_sees(found: Any, size: int) -> None:
    one, several = found[1][0]["parts"], found[size][0]["parts"]
    assert several.losses[0] == one.losses[0], "mixup, erasing, dropout and batch norm included"
    assert several.losses[1] == pytest.approx(one.losses[1], abs=2e-6)
    for gradient, wanted in zip(several.gradients, one.gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_weights_of_classes_and_skipped_images_count_over_all_ranks(found: Any, size: int) -> None:
    assert found[size][0]["weighted"].losses == pytest.approx(found[1][0]["weighted"].losses, abs=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_have_the_same_weights_and_losses_and_two_trainings_are_equal(found: Any, size: int) -> None:
    for name in ("slices", "parts", "weighted"):
        first = found[size][0][name]
        for other in (found[size][rank][name] for rank in range(1, size)):
            assert other.losses == first.losses
            assert all(map(torch.equal, other.weights, first.weights))
    once, again = (found[size][0][name] for name in ("slices", "slices again"))
    assert once.losses == again.losses
    assert all(map(torch.equal, once.weights, again.weights))


@pytest.mark.parametrize("size", SIZES)
def test_validation_has_each_image_once_and_the_bits_of_a_single_process(found: Any, size: int) -> None:
    logits, rows, _ = found[1][0]["validation"]
    several, several_rows, _ = found[size][0]["validation"]
    assert several_rows.tolist() == rows.tolist() == list(range(21))
    assert torch.equal(several, logits)


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_evaluate_with_the_statistics_of_rank_0(found: Any, size: int) -> None:
    first = found[size][0]["validation"][2]
    assert first
    for rank in range(1, size):
        assert all(map(torch.equal, found[size][rank]["validation"][2], first))


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_stop_when_one_is_asked_to(found: Any, size: int) -> None:
    assert {rank["stopped"] for rank in found[size]} == {2}


@pytest.mark.parametrize("size", SIZES)
def test_a_loss_that_is_not_finite_ends_all_ranks_and_names_the_images_of_the_rank_that_had_it(
    found: Any, size: int
) -> None:
    (step, rows), *others = (rank["not finite"] for rank in found[size])
    whole_step, whole = found[1][0]["not finite"]
    assert step == whole_step == 2
    assert all(other == (step, rows) for other in others)
    slice_of = 5 // (8 // size)
    assert rows == whole[slice_of * (8 // size) : (slice_of + 1) * (8 // size)]


@pytest.mark.parametrize("size", SIZES)
def test_too_few_images_are_an_error_of_all_ranks(found: Any, size: int) -> None:
    assert {"fewer than 2 images of a batch can be decoded" in rank["too few"] for rank in found[size]} == {True}


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_with_other_data_is_named_by_rank_0(found: Any, size: int) -> None:
    first, *others = (rank["other data"] for rank in found[size])
    assert first.startswith(f"rank {size - 1}: other images, labels or classes than rank 0 has")
    assert set(others) == {""}


@pytest.mark.parametrize(("size", "accumulate"), [(2, 4), (4, 4), (2, 1), (4, 2)])
def test_ranks_divide_the_images_of_every_step(size: int, accumulate: int) -> None:
    whole = ShuffledBatchSampler(50, 4, per_epoch=8, seed=0, start=accumulate, stop=4 * accumulate)
    division = [divide(World(rank, size), 4, accumulate) for rank in range(size)]
    dealt = [DividedBatches(whole, one, accumulate) for one in division]
    assert division[0].sliced == (accumulate % size > 0)
    assert all(len(batches) == len(list(batches)) for batches in dealt)
    by_step = [list(batches) for batches in dealt]
    steps = len(whole) // accumulate
    wanted = list(whole)
    for step in range(steps):
        of_single = [row for batch in wanted[step * accumulate : (step + 1) * accumulate] for row in batch.rows]
        per_rank = len(by_step[0]) // steps
        of_ranks = [
            row
            for batches in by_step
            for batch in batches[step * per_rank : (step + 1) * per_rank]
            for row in batch.rows
        ]
        assert sorted(of_ranks) == sorted(of_single)


def test_number_of_ranks_that_divides_nothing_is_refused_with_the_nearest_that_do() -> None:
    with pytest.raises(UserError, match="Start 2 or 4, or change"):
        divide(World(0, 3), 64, 2)
    with pytest.raises(UserError, match="Start 64, or change"):
        divide(World(0, 65), 64, 1)


def test_batch_norm_over_all_ranks_needs_cuda(shared_shapes: Path) -> None:
    config = ranks.config_of(str(shared_shapes), "test_resnet", 8, 1, train={"sync_batchnorm": True})
    with pytest.raises(UserError, match=r"train\.sync_batchnorm=true needs CUDA"):
        set_up(config)


def test_two_processes_for_a_batch_of_two_leave_batch_norm_one_image(shared_shapes: Path) -> None:
    config = ranks.config_of(str(shared_shapes), "test_resnet", 2, 1)
    config.data.image_size = 16  # at which the last layers see one pixel
    model = set_up(config).state.model
    with pytest.raises(UserError, match=r"train\.batch_size=2: batch norm in test_resnet.*Use train.batch_size=4"):
        check_trainable(model, config, Division(World(0, 2), sliced=True))
    check_trainable(model, config, Division())
