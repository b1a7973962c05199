"""A version of uvicorn or circus that lacks what the service replaces ends the start with one line."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version
from typing import Any

import pytest
import uvicorn
import uvicorn.loops.auto
import uvicorn.protocols.http.auto
from circus.arbiter import Arbiter
from circus.process import Process
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops_img.errors import UserError
from mlops_img.serving import replaced_names, supervisor
from mlops_img.serving.compatibility import check_server, replace_uvicorn
from mlops_img.serving.protocol import GuardedHttpProtocol
from mlops_img.serving.replaced_names import CIRCUS, UVICORN, check_circus, check_uvicorn
from mlops_img.serving.server import DrainingServer
from tests.helpers.service_process import restore_uvicorn


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    restore_uvicorn(monkeypatch)


def message(package: str, name: str) -> str:
    return (
        f"{package} {version(package)} has no {name}, which mlops_img replaces. "
        f"Install the tested version: pip install -c constraints.txt {package}"
    )


def test_installed_versions_have_everything() -> None:
    check_uvicorn()
    check_circus()
    replace_uvicorn(10.0, 75.0)
    assert uvicorn.Server is DrainingServer


@pytest.mark.parametrize("name", UVICORN)
def test_uvicorn_without_an_attribute_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(name.replace(":", "."))
    with pytest.raises(UserError) as raised:
        replace_uvicorn(10.0, 75.0)
    assert str(raised.value) == message("uvicorn", name.replace(":", "."))


@pytest.mark.parametrize("name", CIRCUS)
def test_circus_without_an_attribute_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(name.replace(":", "."))
    with pytest.raises(UserError) as raised:
        supervisor.extend_circus()
    assert str(raised.value) == message("kantoku", name.replace(":", "."))
    assert not hasattr(Arbiter, "_stop_watchers_only")
    assert not hasattr(Process, "_spawn_only")


def test_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced_names, "UVICORN", ("uvicorn.loops.renamed:auto_loop_factory",))
    with pytest.raises(UserError, match=r"has no uvicorn\.loops\.renamed\.auto_loop_factory, which mlops_img replaces"):
        check_uvicorn()


def overridden(extended: type, base: type) -> set[str]:
    """Return the methods that a class declares to override, but for those of asyncio's protocols."""
    methods = {name for name, value in vars(extended).items() if getattr(value, "__override__", False)}
    return {f"{base.__name__}.{name}" for name in methods - set(dir(asyncio.Protocol))}


def test_every_overridden_method_is_checked() -> None:
    checked = {name.partition(":")[2] for name in UVICORN}
    for extended, base in ((GuardedHttpProtocol, HttpToolsProtocol), (DrainingServer, uvicorn.Server)):
        assert overridden(extended, base)
        assert overridden(extended, base) <= checked
        public = {name for name, value in vars(extended).items() if inspect.isfunction(value) and name in dir(base)}
        declared = {name for name, value in vars(extended).items() if getattr(value, "__override__", False)}
        assert public - {"__init__"} == declared, "each is marked"


def test_keep_alive_without_its_attribute_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    initialize = HttpToolsProtocol.__init__

    def renamed(self: Any, *arguments: Any, **options: Any) -> None:
        initialize(self, *arguments, **options)
        del self.timeout_keep_alive

    monkeypatch.setattr(HttpToolsProtocol, "__init__", renamed)
    with pytest.raises(UserError) as raised:
        replace_uvicorn(10.0, 75.0)
    assert str(raised.value) == message("uvicorn", "HttpToolsProtocol.timeout_keep_alive")


@pytest.mark.parametrize(
    ("table", "key", "instead", "name"),
    [
        (
            "HTTP_PROTOCOLS",
            "auto",
            "uvicorn.protocols.http.h11_impl:H11Protocol",
            "Config.http_protocol_class from uvicorn.protocols.http.auto",
        ),
        (
            "LOOP_FACTORIES",
            "auto",
            "tests.serving.test_compatibility:other_loop",
            "Config.get_loop_factory from uvicorn.loops.auto",
        ),
    ],
)
def test_default_that_is_looked_up_elsewhere_is_named(
    monkeypatch: pytest.MonkeyPatch, table: str, key: str, instead: str, name: str
) -> None:
    monkeypatch.setitem(getattr(uvicorn.config, table), key, instead)
    with pytest.raises(UserError) as raised:
        replace_uvicorn(10.0, 75.0)
    assert str(raised.value) == message("uvicorn", name)


def other_loop(use_subprocess: bool = False) -> Any:
    return asyncio.new_event_loop


def test_worker_of_another_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DrainingServer, "in_use", False)
    with pytest.raises(UserError, match=f"^bentoml {version('bentoml')} has no worker that is started by uvicorn"):
        check_server()
    monkeypatch.setattr(DrainingServer, "in_use", True)
    check_server()
