"""The audit command: its output, exit codes and settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_img import audit as audit_module
from mlops_img.audit import output_path, run, write_findings
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import FolderConfig
from mlops_img.config.rules import validate
from mlops_img.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError
from tests.helpers.paths import ROOT
from tests.helpers.photos import audit_folder


def test_command_prints_writes_json_and_exits_with_1_on_a_problem(root: Path) -> None:
    (root / "val/cat/bad.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "mlops_img.audit", "data=folder", f"data.root={root}"]
    before = set(root.parent.rglob("*"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_FAILED, "")
    assert f"{root / 'val/cat/bad.png'} (val, cat): not an image" in done.stdout
    report = root.parent / "photos.audit.json"
    assert set(root.parent.rglob("*")) - before == {report}  # no log, no output folder, nothing in the data
    findings = json.loads(report.read_text(encoding="utf-8"))
    assert findings["ok"] is False
    assert findings["unreadable"][0]["reason"] == "not an image"
    assert findings["splits"]["val"]["per_class"] == {"cat": 4, "dog": 3}


def test_command_exits_with_2_and_one_line_when_the_folder_is_missing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mlops_img.audit",
        "data=folder",
        f"data.root={tmp_path / 'nowhere'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USER_ERROR
    assert done.stdout == ""
    assert done.stderr.startswith("error: data.root: folder ")
    assert len(done.stderr.splitlines()) == 1


def test_run_returns_normally_for_a_clean_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = root.parent / "found.json"
    run(AuditConfig(data=FolderConfig(root=str(root)), output=str(output)))
    assert json.loads(output.read_text(encoding="utf-8"))["ok"] is True
    assert str(output) in capsys.readouterr().out


def test_run_exits_with_1_on_a_problem(root: Path) -> None:
    (root / "val/cat/bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as exit_info:
        run(AuditConfig(data=FolderConfig(root=str(root))))
    assert exit_info.value.code == EXIT_FAILED


def test_a_failed_write_keeps_the_old_findings(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.json"
    path.write_text("old findings")

    def disk_full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_module.os, "replace", disk_full)
    with pytest.raises(UserError, match=r"cannot write .*audit\.json: No space left on device"):
        write_findings(audit_folder(root), path)
    assert path.read_text() == "old findings"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["audit.json"]


def test_invalid_output_and_distance_are_rejected(root: Path) -> None:
    data = FolderConfig(root=str(root))
    with pytest.raises(UserError, match="is a folder"):
        output_path(AuditConfig(data=data, output=str(root)))
    with pytest.raises(UserError, match="does not exist"):
        output_path(AuditConfig(data=data, output=str(root / "nowhere/audit.json")))
    with pytest.raises(UserError, match="near_duplicate_bits=9: it must lie between 0 and 8"):
        validate(AuditConfig(data=data, near_duplicate_bits=9))
