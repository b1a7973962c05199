"""Manifests of earlier formats."""

from __future__ import annotations

import json
from pathlib import Path

from mlops_img.bundle.folder import MANIFEST, read_manifest


def test_manifest_of_format_2_is_read(portable: Path, tmp_path: Path) -> None:
    now = read_manifest(portable)
    content = json.loads((portable / MANIFEST).read_text())
    content["format"] = 2
    content["model"]["licence"] = "apache-2.0"
    del content["model"]["license"]
    content["preprocessing"]["grey"] = content["preprocessing"].pop("gray")
    statistics = content["drift"]["statistics"]
    statistics[statistics.index("color_balance")] = "colour_balance"
    (tmp_path / MANIFEST).write_text(json.dumps(content))

    earlier = read_manifest(tmp_path)

    assert earlier.model.license == "apache-2.0"
    assert earlier.preprocessing == now.preprocessing
    assert earlier.drift.statistics == now.drift.statistics
