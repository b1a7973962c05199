"""The service's settings: what they are by themselves, and what is said of a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_img.errors import UserError
from mlops_img.serving import settings as settings_module
from mlops_img.serving.settings import Settings, cores, read_settings, read_tokens


def test_defaults_let_anybody_ask_the_latest_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "cores", lambda: 1)
    assert read_settings({"PATH": "/bin", "HOME": "/"}) == Settings()
    assert read_tokens(Settings()) == ()


def test_each_variable_sets_its_own() -> None:
    given = {
        "MLOPS_IMG_BUNDLE": "gs://bucket/folder",
        "MLOPS_IMG_DEVICE": "cuda:1",
        "MLOPS_IMG_WORKERS": "2",
        "MLOPS_IMG_THREADS": "3",
        "MLOPS_IMG_TOKENS": " one, two,",
        "MLOPS_IMG_TOKENS_FILE": "tokens.txt",
        "MLOPS_IMG_MAX_BYTES": "1000",
        "MLOPS_IMG_MAX_PIXELS": "2000",
        "MLOPS_IMG_MAX_IMAGES": "4",
        "MLOPS_IMG_QUEUE": "5",
        "MLOPS_IMG_TIMEOUT": "2.5",
        "MLOPS_IMG_KEEP_ALIVE": "7.5",
        "MLOPS_IMG_MAX_BATCH": "6",
    }
    assert read_settings(given) == Settings(
        "gs://bucket/folder", "cuda:1", 2, 3, ("one", "two"), "tokens.txt", 1000, 2000, 4, 5, 2.5, 7.5, 6
    )


@pytest.mark.parametrize(
    ("device", "machine", "workers", "threads"),
    [("cpu", 1, 1, 1), ("cpu", 2, 2, 1), ("cpu", 12, 4, 3), ("cuda", 12, 1, 12), ("cuda:1", 12, 1, 12)],
)
def test_workers_and_threads_suit_the_machine(
    monkeypatch: pytest.MonkeyPatch, device: str, machine: int, workers: int, threads: int
) -> None:
    monkeypatch.setattr(settings_module, "cores", lambda: machine)
    found = read_settings({"MLOPS_IMG_DEVICE": device})
    assert (found.workers, found.threads) == (workers, threads)


def test_threads_share_the_cores_among_the_workers_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "cores", lambda: 8)
    assert read_settings({"MLOPS_IMG_WORKERS": "3"}).threads == 2
    assert read_settings({"MLOPS_IMG_WORKERS": "16"}).threads == 1
    assert read_settings({"MLOPS_IMG_WORKERS": "3", "MLOPS_IMG_THREADS": "5"}).threads == 5


def test_only_the_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cores() == 2


@pytest.mark.parametrize(
    "name",
    ["WORKERS", "THREADS", "MAX_BYTES", "MAX_PIXELS", "MAX_IMAGES", "QUEUE", "MAX_BATCH", "TIMEOUT", "KEEP_ALIVE"],
)
@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1e400", "9" * 20, "nan"])
def test_a_number_that_cannot_be_is_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^MLOPS_IMG_{name}={value}: it must be a (whole )?number above 0$"):
        read_settings({f"MLOPS_IMG_{name}": value})


def test_only_the_timeout_may_have_a_fraction() -> None:
    assert read_settings({"MLOPS_IMG_TIMEOUT": "0.5"}).timeout == 0.5
    with pytest.raises(UserError, match=r"MLOPS_IMG_QUEUE=0\.5: it must be a whole number"):
        read_settings({"MLOPS_IMG_QUEUE": "0.5"})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("MLOPS_IMG_TOKEN", "MLOPS_IMG_TOKENS"),
        ("MLOPS_IMG_MAXBYTES", "MLOPS_IMG_MAX_BYTES"),
        ("MLOPS_IMG_bundle", "MLOPS_IMG_BUNDLE"),
    ],
)
def test_a_misspelt_variable_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UserError, match=rf"^{wrong}: there is no such setting. Did you mean '{right}'\?$"):
        read_settings({wrong: "1"})


def test_a_request_may_not_bring_more_images_than_the_queue_holds() -> None:
    with pytest.raises(UserError, match="MLOPS_IMG_MAX_IMAGES=32 is more than MLOPS_IMG_QUEUE=8 lets in"):
        read_settings({"MLOPS_IMG_QUEUE": "8"})
    assert read_settings({"MLOPS_IMG_QUEUE": "8", "MLOPS_IMG_MAX_IMAGES": "8"}).max_images == 8


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_empty_tokens_are_not_taken_for_none(value: str) -> None:
    with pytest.raises(UserError, match="MLOPS_IMG_TOKENS is empty"):
        read_settings({"MLOPS_IMG_TOKENS": value})


def test_tokens_come_from_the_environment_and_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# of the phone app\nphone-1\n\n   \n  indented  \n  # of nobody now: old\nlast", encoding="utf-8")
    assert read_tokens(Settings(tokens=("first",), tokens_file=str(file))) == ("first", "phone-1", "indented", "last")


def test_lines_of_a_file_from_windows_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_tokens(Settings(tokens_file=str(file))) == ("one", "two")


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
def test_a_file_without_a_token_is_a_mistake(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(UserError, match=r"MLOPS_IMG_TOKENS_FILE=.*tokens holds no token: write one a line"):
        read_tokens(Settings(tokens_file=str(tmp_path / "tokens")))


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLOPS_IMG_TOKENS_FILE=/nowhere cannot be read: No such file or directory"):
        read_tokens(Settings(tokens_file="/nowhere"))
    (tmp_path / "tokens").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read: it is not UTF-8"):
        read_tokens(Settings(tokens_file=str(tmp_path / "tokens")))


@pytest.mark.parametrize("token", ["pässword", "two words", "bell\a", "tab\tbed", "\u200bhidden"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(tmp_path: Path, token: str) -> None:
    (tmp_path / "tokens").write_text(token, encoding="utf-8")
    for settings in (Settings(tokens=("good", token)), Settings(tokens_file=str(tmp_path / "tokens"))):
        with pytest.raises(UserError, match="a token must be printable ASCII without blanks") as raised:
            read_tokens(settings)
        assert token not in str(raised.value)


def test_a_mistake_ends_the_process_with_one_line_and_exit_code_2() -> None:
    code = "from mlops_img.serving.settings import settings_or_exit; settings_or_exit()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MLOPS_IMG_QUEUES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: MLOPS_IMG_QUEUES: there is no such setting. Did you mean 'MLOPS_IMG_QUEUE'?\n"


def test_the_supervising_process_reads_settings_without_anything_heavy() -> None:
    code = (
        "import sys; from mlops_img.serving.settings import settings_or_exit; settings_or_exit()\n"
        "heavy = {'torch', 'numpy', 'bentoml', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
