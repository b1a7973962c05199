"""The benchmarks: turns, ratios, skipped contenders, options and Ctrl-C."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import finetune
import pytest
import run_all
import trainings
from harness import Benchmark, Contender, options_of, rate_rows, run_benchmark, take_turns
from progress import duration, seconds_left

from mlops_img.errors import UserError
from tests.helpers.benchmarks import leaves, measured
from tests.helpers.paths import ROOT

# Turns


def test_contenders_take_turns_and_warmup_turns_do_not_count() -> None:
    order: list[str] = []

    def turn(name: str) -> Callable[[], float]:
        def take() -> float:
            order.append(name)
            return float(len(order))

        return take

    seconds = take_turns("fake", {"ours": turn("ours"), "peer": turn("peer")}, rounds=2, warmup=1)
    assert order == ["ours", "peer"] * 3
    assert seconds == {"ours": [3.0, 5.0], "peer": [4.0, 6.0]}


def test_turn_that_returns_no_seconds_is_timed() -> None:
    (seconds,) = take_turns("fake", {"ours": lambda: None}, rounds=1, warmup=0)["ours"]
    assert seconds > 0


def test_ratio_is_that_of_medians_and_the_worst_is_of_one_round() -> None:
    (_, ours), (_, peer) = rate_rows("images_per_second", {"ours": [10, 30, 20], "peer": [10, 5, 40]}, {"peer": 1.5})
    assert ours["ratio"] == ours["worst_ratio"] == 1.0
    assert peer == {
        "images_per_second": 10,
        "slowest": 5,
        "fastest": 40,
        "ratio": 2.0,
        "worst_ratio": 0.5,
        "goal": 1.5,
    }


def test_progress_goes_to_stderr_and_names_contender_round_and_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progress.LINE_SECONDS", 0.0)
    take_turns("fake", {"ours": lambda: None, "peer": lambda: None}, rounds=2, warmup=1)
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert not captured.out
    assert len(lines) == 6
    assert lines[0] == "fake: warm-up, ours, time left: known after the first turn"
    assert lines[5].startswith("fake: round 2 of 2, peer, about ")
    assert lines[5].endswith(" left")


def test_time_left_is_estimated_from_measured_turns() -> None:
    assert seconds_left({"ours": [], "peer": []}, ["ours", "peer"]) is None
    assert seconds_left({"ours": [1.0, 2.0, 9.0], "peer": [4.0]}, ["ours", "peer", "peer"]) == 10.0
    assert seconds_left({"ours": [2.0], "peer": [4.0], "new": []}, ["new"]) == 3.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# What is skipped


def test_contender_without_its_package_is_skipped_with_the_pip_line(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Callable[[], None]:
        raise AssertionError("must not be prepared")

    benchmark = Benchmark("fake", rounds=1, settings={})
    ready = benchmark.prepare(
        [Contender("ours", lambda: lambda: None), Contender("peer", broken, ("no_such_package_1", "torch"))]
    )
    assert list(ready) == ["ours"]
    benchmark.compare(ready, 1, warmup=0, goals={"peer": 1.0})
    benchmark.finish(kept=False)
    message = "no_such_package_1 is not installed: pip install -c constraints.txt no_such_package_1"
    assert f"skipped: fake, peer: {message}\n" in capsys.readouterr().out
    assert benchmark.result().skipped == {"peer": message}
    assert [row.contender for row in benchmark.result().cases[0].rows] == ["ours"]


def test_benchmark_whose_client_is_not_installed_is_skipped_as_a_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = importlib.import_module("serving")
    monkeypatch.setattr("harness.missing", lambda packages: f"{packages[0]} is not installed")
    monkeypatch.setattr("sys.argv", ["serving.py", "--endurance"])
    assert leaves(lambda: run_benchmark("serving", serving.main)) == 0
    assert capsys.readouterr().out == "skipped: serving_endurance: uvloop is not installed\n"


def test_all_benchmarks_run_and_the_end_says_what_was_skipped_or_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.py").write_text("import sys; print(sys.argv[1:]); print('skipped: good, peer: no peer')")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "absent.py").write_text("print('skipped: absent: no client')")
    entries = {
        "bad": run_all.Entry("bad.py"),
        "good": run_all.Entry("good.py", flags=("--flag",), takes=("rounds",)),
        "absent": run_all.Entry("absent.py"),
        "long": run_all.Entry("long.py", why_not="takes hours"),
        "finetune": run_all.Entry("finetune.py", takes=("data", "weights")),
    }
    monkeypatch.setattr(run_all, "ENTRIES", entries)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["run_all.py", "--rounds", "2", "--keep"])
    assert run_all.main() == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "['--flag', '--rounds', '2', '--keep']"
    assert lines[lines.index("measured: good") :] == [
        "measured: good",
        "skipped: long: takes hours",
        f"skipped: finetune: {run_all.NO_DATA}",
        "skipped: good, peer: no peer",
        "skipped: absent: no client",
        f"failed: bad: exit code 3: {sys.executable} {tmp_path / 'bad.py'} --keep",
    ]


# Options


@pytest.mark.parametrize("name", run_all.ENTRIES)
def test_scripts_know_the_options_that_they_are_started_with(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {option: str(tmp_path) for option in ("photos", "data", "weights", "timm_train")}
    monkeypatch.setattr(
        "sys.argv",
        ["run_all.py", "--rounds=1", *(f"--{key.replace('_', '-')}={value}" for key, value in options.items())],
    )
    entry = run_all.ENTRIES[name]
    call = run_all.command(entry, run_all.parse())
    script = importlib.import_module(entry.script.removesuffix(".py"))
    monkeypatch.setattr("sys.argv", [*call[1:], "--keeep"])
    assert leaves(script.main) == 2
    assert capsys.readouterr().err == (
        f"{entry.script}: unknown option --keeep. Did you mean '--keep'? (--help lists the options)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: '0' is not a whole number of at least 1"),
        (["--rounds"], "argument --rounds: expected one argument"),
        (["--roundz=3"], "unknown option --roundz. Did you mean '--rounds'?"),
        (["more"], "unknown option more."),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(lambda: options_of("doc", rounds=3).parse_args(arguments)) == 2
    error = capsys.readouterr().err
    assert message.removesuffix(".") in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["servin"], ["--photos", "no/such/folder"]])
def test_run_all_refuses_what_is_not_there(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run_all.py", *arguments])
    assert leaves(run_all.main) == 2
    error = capsys.readouterr().err
    assert arguments[-1] in error
    assert error.count("\n") == 1


def test_names_and_options_of_run_all_stand_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run_all.py", "serving", "--rounds", "3", "train_loop"])
    options = run_all.parse()
    assert (options.names, options.rounds) == (["serving", "train_loop"], 3)


def test_named_benchmark_runs_although_it_is_not_among_the_default_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run_all.py", "compression_models"])
    options = run_all.parse()
    assert run_all.why_not("compression_models", options) is None
    assert run_all.why_not("serving_endurance", options) == run_all.ENTRIES["serving_endurance"].why_not
    assert run_all.why_not("finetune", options) == run_all.NO_DATA
    assert run_all.why_not("finetune_minutes", options) == run_all.NO_DATA


# Ctrl-C


def test_interrupted_benchmark_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.FOLDER", tmp_path)

    def main() -> None:
        benchmark = measured()

        def interrupted() -> None:
            raise KeyboardInterrupt

        benchmark.compare({"ours": interrupted}, 1, warmup=0, goals={})
        benchmark.finish(kept=True)

    assert leaves(lambda: run_benchmark("train_loop", main)) == 130
    assert capsys.readouterr().err.endswith("train_loop: interrupted: no figures were kept\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_reaches_the_running_benchmark_once_and_the_summary_is_printed(tmp_path: Path) -> None:
    # A job in the background of a shell inherits SIGINT as ignored.
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    (tmp_path / "slow.py").write_text(f"{hears} print('ready'); signal.pause()")
    start = (
        f"{hears} import sys, run_all; from pathlib import Path; run_all.HERE = Path(sys.argv.pop());"
        "run_all.ENTRIES = {name: run_all.Entry('slow.py') for name in ('slow', 'next')}; sys.exit(run_all.main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path)], cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert rest.splitlines()[-3:] == [
        "measured: nothing",
        "skipped: slow: interrupted",
        "skipped: next: interrupted",
    ]


# Trainings


def test_numbers_are_read_with_the_seconds_of_their_line() -> None:
    output = trainings.Output(
        [(1.0, "start\n"), (2.5, "Test: [ 3/3] Acc@1: 90.0 ( 87.5)\n"), (3.0, "Test: [ 1/3] Acc@1: 1 (1)\n")]
    )
    assert output.numbers(finetune.TIMM_VALIDATION) == [(2.5, 87.5)]


def test_a_training_that_fails_says_what_it_printed_and_one_that_is_stopped_does_not_fail(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data"):
        trainings.python("-c", "import sys; sys.exit('no such data')", cwd=tmp_path)
    trainings.python("-c", "import time; time.sleep(600)", cwd=tmp_path, kill_after=0.1)


def test_accuracy_over_time_is_that_of_the_newest_epoch() -> None:
    trained = finetune.Trained(0.9, 0.8, [(25.0, 0.5), (35.0, 0.7), (59.0, 0.6)])
    figures = finetune.curve_figures(trained, minutes=1)
    assert list(figures.values()) == [None, None, 0.5, 0.7, 0.7, 0.6]
    assert list(figures)[2] == "val_top1_at_30_s"
