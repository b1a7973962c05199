"""Predict many images: `python -m mlops_img.predict bundle=bundles/latest input=photos output=predictions`.

Writes parts of a fixed range of rows into the output folder, with the most probable classes of each image or the reason
why it cannot be read. The same command goes on after an interruption; several processes share the parts by num_shards=
and shard=.
"""

from __future__ import annotations

from mlops_img.cli import command
from mlops_img.config.predict import PredictConfig


def predict(config: PredictConfig) -> None:
    """Predict as configured.

    Raises:
        UserError: no such input or model, or an output that was begun with something else.
        StoppedOnRequest: SIGTERM or Ctrl-C; the parts that are written are kept.
    """
    from mlops_img.prediction.workflow import predict_images

    predict_images(config)


def main() -> None:
    """Run the command line."""
    command(predict, "predict")


if __name__ == "__main__":
    main()
