"""SIGTERM and Ctrl-C as a request to stop."""

from __future__ import annotations

import os
import signal

import pytest

from mlops_img.core.interrupts import SIGNALS, StopRequest


@pytest.mark.parametrize("first", SIGNALS)
def test_first_signal_is_a_request_and_a_second_ctrl_c_interrupts(
    first: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest("stopping soon") as stop:
        assert not stop.requested
        os.kill(os.getpid(), first)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert caplog.messages[0] == f"{first.name}: stopping soon"
    assert [signal.getsignal(number) for number in SIGNALS] == before
