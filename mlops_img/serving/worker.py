"""Loading the model into a worker process."""

from __future__ import annotations

import torch

from mlops_img.bundle.predictor import load
from mlops_img.registry.locate import local_bundle
from mlops_img.serving import libtiff, telemetry
from mlops_img.serving.engine import Engine
from mlops_img.serving.settings import read_tokens
from mlops_img.serving.state import State


def load_engine(state: State) -> Engine:
    """Load the bundle, which `find_bundle` has checked, and set this process up for it."""
    telemetry.log_as_json()
    libtiff.silence()
    state.tokens = read_tokens(state.settings)
    torch.set_num_threads(state.settings.threads)
    predictor = load(local_bundle(state.settings.bundle), device=state.settings.device)
    return Engine(predictor, state.settings)
