"""Settings of the service: defaults, and the messages for invalid ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from mlops_img.errors import UserError
from mlops_img.serving import settings as settings_module
from mlops_img.serving.settings import Settings, cores, read_settings, read_tokens


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings from the environment of the test run."""
    for variable in os.environ:
        if variable.startswith("MLOPS_IMG_") or variable == "PORT":
            monkeypatch.delenv(variable)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return a function that reads settings, each given by its name without the prefix."""

    def read_with(**variables: str) -> Settings:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name if name == "PORT" else f"MLOPS_IMG_{name}", value)
            return read_settings()

    return read_with


def secret(*tokens: str) -> tuple[SecretStr, ...]:
    return tuple(map(SecretStr, tokens))


def test_defaults_serve_the_latest_bundle_without_tokens() -> None:
    settings = read_settings()
    assert (settings.bundle, settings.device, settings.port) == ("bundles/latest", "auto", 3000)
    assert read_tokens(settings) == ()


def test_each_variable_sets_its_field(read: Callable[..., Settings]) -> None:
    variables = {
        "BUNDLE": "gs://bucket/folder",
        "DEVICE": "cuda:1",
        "WORKERS": "2",
        "THREADS": "3",
        "TOKENS": " one, two,",
        "TOKENS_FILE": "tokens.txt",
        "MAX_BYTES": "1000",
        "MAX_PIXELS": "2000",
        "MAX_IMAGES": "4",
        "QUEUE": "5",
        "TIMEOUT": "2.5",
        "KEEP_ALIVE": "7.5",
        "MAX_BATCH": "6",
        "PLUGINS": "routes, more.routes",
        "PORT": "80",
    }
    assert {name.lower() for name in variables} == set(Settings.model_fields)
    assert read(**variables) == Settings(
        bundle="gs://bucket/folder",
        device="cuda:1",
        workers=2,
        threads=3,
        tokens=secret("one", "two"),
        tokens_file="tokens.txt",
        max_bytes=1000,
        max_pixels=2000,
        max_images=4,
        queue=5,
        timeout=2.5,
        keep_alive=7.5,
        max_batch=6,
        plugins=("routes", "more.routes"),
        port=80,
    )


@pytest.mark.parametrize(
    ("device", "machine", "workers", "threads"),
    [
        ("cpu", 1, 1, 1),
        ("cpu", 2, 1, 2),
        ("cpu", 12, 3, 4),
        ("cpu", 64, 4, 16),
        ("cuda", 12, 1, 12),
        ("cuda:1", 12, 1, 12),
    ],
)
def test_default_workers_and_threads_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[..., Settings],
    device: str,
    machine: int,
    workers: int,
    threads: int,
) -> None:
    monkeypatch.setattr(settings_module, "cores", lambda: machine)
    settings = read(DEVICE=device)
    assert (settings.workers, settings.threads) == (workers, threads)


def test_workers_share_the_cores_by_default(monkeypatch: pytest.MonkeyPatch, read: Callable[..., Settings]) -> None:
    monkeypatch.setattr(settings_module, "cores", lambda: 8)
    assert read(WORKERS="3").threads == 2
    assert read(WORKERS="16").threads == 1
    assert read(WORKERS="3", THREADS="5").threads == 5


def test_only_cores_available_to_the_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cores() == 2


LIMITS = {
    "WORKERS": "a whole number, 1 to 1024",
    "THREADS": "a whole number, 1 to 1024",
    "MAX_BYTES": "a whole number, 1 to 1000000000000",
    "MAX_PIXELS": "a whole number, 1 to 1000000000000",
    "MAX_IMAGES": "a whole number, 1 to 1000",
    "QUEUE": "a whole number, 1 to 1000000000000",
    "MAX_BATCH": "a whole number, 1 to 1000000000000",
    "TIMEOUT": "a number above 0, at most 86400",
    "KEEP_ALIVE": "a number above 0, at most 86400",
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1e400", "9" * 20, "nan"])
def test_number_outside_its_bounds_is_named(read: Callable[..., Settings], name: str, value: str) -> None:
    with pytest.raises(UserError) as raised:
        read(**{name: value})
    assert str(raised.value) == f"MLOPS_IMG_{name}={value}: it must be {LIMITS[name]}"


@pytest.mark.parametrize("value", ["0", "65536", "-1", "http", "80.5", " ", "9" * 5000])
def test_invalid_port_is_named(read: Callable[..., Settings], value: str) -> None:
    with pytest.raises(UserError) as raised:
        read(PORT=value)
    assert str(raised.value) == f"PORT={value}: it must be a whole number, 1 to 65535"


def test_empty_port_is_the_default(read: Callable[..., Settings]) -> None:
    assert read(PORT="").port == 3000


def test_only_seconds_may_have_a_fraction(read: Callable[..., Settings]) -> None:
    assert read(TIMEOUT="0.5").timeout == 0.5
    with pytest.raises(UserError, match=r"MLOPS_IMG_QUEUE=0\.5: it must be a whole number"):
        read(QUEUE="0.5")


@pytest.mark.parametrize(
    ("wrong", "right"), [("TOKEN", "TOKENS"), ("MAXBYTES", "MAX_BYTES"), ("bundle", "BUNDLE"), ("PLUGIN", "PLUGINS")]
)
def test_unknown_variable_names_the_nearest(read: Callable[..., Settings], wrong: str, right: str) -> None:
    text = rf"^MLOPS_IMG_{wrong}: there is no such setting. Did you mean 'MLOPS_IMG_{right}'\?$"
    with pytest.raises(UserError, match=text):
        read(**{wrong: "1"})


def test_request_may_not_have_more_images_than_the_queue(read: Callable[..., Settings]) -> None:
    with pytest.raises(UserError, match=r"^MLOPS_IMG_MAX_IMAGES=32 is more than MLOPS_IMG_QUEUE=8 allows"):
        read(QUEUE="8")
    assert read(QUEUE="8", MAX_IMAGES="8").max_images == 8


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_empty_tokens_are_an_error(read: Callable[..., Settings], value: str) -> None:
    with pytest.raises(UserError, match=r"^MLOPS_IMG_TOKENS is empty: set a token, or unset it to require none$"):
        read(TOKENS=value)


def test_tokens_are_not_shown(read: Callable[..., Settings]) -> None:
    settings = read(TOKENS="open-sesame")
    assert "sesame" not in f"{settings!r} {settings}"


def test_tokens_come_from_the_environment_and_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# of the phone app\nphone-1\n\n   \n  indented  \n  # revoked: old\nlast", encoding="utf-8")
    settings = Settings(tokens=secret("first"), tokens_file=str(file))
    assert read_tokens(settings) == ("first", "phone-1", "indented", "last")


def test_token_file_of_windows_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_tokens(Settings(tokens_file=str(file))) == ("one", "two")


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
def test_token_file_without_a_token_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(UserError, match=r"MLOPS_IMG_TOKENS_FILE=.*tokens has no token: write one a line"):
        read_tokens(Settings(tokens_file=str(tmp_path / "tokens")))


def test_unreadable_token_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLOPS_IMG_TOKENS_FILE=/nowhere cannot be read: No such file or directory"):
        read_tokens(Settings(tokens_file="/nowhere"))
    (tmp_path / "tokens").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read: it is not UTF-8"):
        read_tokens(Settings(tokens_file=str(tmp_path / "tokens")))


@pytest.mark.parametrize("token", ["pässword", "two words", "bell\a", "tab\tbed", "\u200bhidden"])
def test_token_that_no_header_can_carry_is_refused_and_not_shown(tmp_path: Path, token: str) -> None:
    (tmp_path / "tokens").write_text(token, encoding="utf-8")
    for settings in (Settings(tokens=secret("good", token)), Settings(tokens_file=str(tmp_path / "tokens"))):
        with pytest.raises(UserError, match="a token must be printable ASCII without spaces") as raised:
            read_tokens(settings)
        assert token not in str(raised.value)


def test_settings_are_read_without_a_heavy_import() -> None:
    code = (
        "import sys; from mlops_img.serving.settings import read_settings; read_settings()\n"
        "heavy = {'torch', 'numpy', 'bentoml', 'PIL', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
