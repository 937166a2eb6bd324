"""All of a measurement but the clock: on the CPU, a small layer in the interpreter, planted times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_timer import FakeTimer

from fdmoe_kernels import warmup
from fdmoe_kernels.bench import measuring
from fdmoe_kernels.bench.__main__ import main
from fdmoe_kernels.bench.command import reproduce
from fdmoe_kernels.bench.measuring import Plan, measure_model
from fdmoe_kernels.bench.models import DTYPES, MODELS, Model
from fdmoe_kernels.bench.rows import read_rows
from fdmoe_kernels.bench.work import BYTES_PER_S, FLOP_PER_S, flop_per_s, work_of
from fdmoe_kernels.layer import MoELayer, RoutingRule

TINY = Model(hidden=32, intermediate=16, experts=4, top_k=2, renormalize=True)
TIMES = {"fused": 50.0, "no_beats": 49.0, "baseline": 150.0}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)


def _plan(timer: FakeTimer) -> Plan:
    return Plan(timer, torch.device("cpu"), runs=5, budget_s=1.0, commit="abc1234", command="a command")


def test_the_floor_counts_the_chosen_experts_once_and_each_tokens_products() -> None:
    # x is one-hot, so that token t's logits are the router's column t: experts 0 and 1 are chosen by all
    router = torch.zeros(4, 32)
    router[:2] = 1.0
    layer = MoELayer(router, torch.zeros(4, 32, 32), torch.zeros(4, 32, 16), RoutingRule(2, True))
    work = work_of(layer, torch.eye(32)[:3], DTYPES["bfloat16"])
    expert = 3 * 32 * 16
    assert work.weight_bytes == (2 * expert + 4 * 32) * 4
    assert work.flop == 2 * 3 * (2 * expert + 4 * 32)
    assert work.floor_us == pytest.approx(max(work.flop / FLOP_PER_S, work.weight_bytes / BYTES_PER_S) * 1e6)
    assert work.tflops(10.0) == pytest.approx(work.flop / 10e-6 / 1e12)
    assert work.weight_gbps(10.0) == pytest.approx(work.weight_bytes / 10e-6 / 1e9)


def test_float32_has_a_floor_of_its_own_arithmetic() -> None:
    rates = {name: flop_per_s(numbers) / 1e12 for name, numbers in DTYPES.items()}
    assert rates == pytest.approx(
        {"bfloat16": 790, "float16": 790, "float32-tf32": 395, "float32-tf32x3": 131.67, "float32": 67}, rel=1e-4
    )
    layer = TINY.random_layer(torch.float32, "cpu")
    x = torch.randn(5, 32)
    work = work_of(layer, x, DTYPES["float32"])
    assert work.floor_us == pytest.approx(max(work.flop / 67e12, work.weight_bytes / BYTES_PER_S) * 1e6)


@pytest.mark.parametrize(("dtype", "most"), [("float32-tf32x3", 1e-5), ("float32-tf32", 2e-3)])
def test_float32_on_tensor_cores_is_a_row_of_its_own(dtype: str, most: float) -> None:
    (row,) = measure_model("tiny", dtype, [5], ("eager",), _plan(FakeTimer(TIMES.__getitem__)), done=set())
    assert (row.dtype, row.best_peer) == (dtype, None)
    assert row.relative_error < most
    assert row.baseline_relative_error < 1e-5


def test_a_row_a_mode_with_results_that_were_compared() -> None:
    timer = FakeTimer(TIMES.__getitem__)
    eager, graph = measure_model("tiny", "float32", [5], ("eager", "graph"), _plan(timer), done=set())
    assert (eager.model, eager.tokens, eager.dtype, eager.mode) == ("tiny", 5, "float32", "eager")
    assert (eager.latency_us, eager.no_beats_us, eager.baseline_us) == (50.0, 49.0, 150.0)
    assert (eager.speedup, eager.beats_share, eager.best_peer, eager.best_peer_us) == (3.0, 0.0204, None, None)
    assert eager.relative_error < 1e-5
    assert eager.baseline_relative_error < 1e-5
    assert (eager.operations, eager.commit, eager.command) == (1, "abc1234", "a command")
    # on the CPU the baseline is a loop, which no graph holds
    assert (graph.mode, graph.baseline_us, graph.speedup) == ("graph", None, None)
    pair = ("fused", "no_beats")
    assert timer.asked == [("fused", "baseline"), pair, ("fused",), pair]
    assert timer.captures == 2


@pytest.mark.parametrize("wanted", [2, 3, 4])
def test_a_batch_chooses_as_many_experts_as_the_peers_did(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "chosen_experts", lambda model, tokens: {("tiny", 3): wanted}[model, tokens])
    monkeypatch.setattr(measuring, "warm_up", lambda *_, **__: 0.0)
    row = next(measure_model("tiny", "float32", [3], ("eager",), _plan(FakeTimer(TIMES.__getitem__)), done=set()))
    weight_bytes = (wanted * 3 * 32 * 16 + 4 * 32) * 4
    assert row.weight_gbps == round(weight_bytes / row.latency_us / 1e3, 1)


def test_a_result_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = measuring.fused_moe
    monkeypatch.setattr(measuring, "fused_moe", lambda *args, **kwargs: right(*args, **kwargs).mul_(2))
    monkeypatch.setattr(measuring, "warm_up", lambda *_, **__: 0.0)
    row = next(measure_model("tiny", "float32", [5], ("eager",), _plan(FakeTimer(TIMES.__getitem__)), done=set()))
    assert row.relative_error == pytest.approx(1.0, rel=1e-3)


def test_a_kernel_that_is_not_proven_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "fused_moe", lambda x, *_, **__: torch.zeros_like(x))
    with pytest.raises(warmup.ProofError, match="the paths differ by 1"):
        next(measure_model("tiny", "float32", [5], ("eager",), _plan(FakeTimer(TIMES.__getitem__)), done=set()))


def test_a_run_that_ended_early_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    arguments = ["--models", "tiny", "--dtypes", "float32", "--csv", str(path), "--resume", "--tokens", "1"]

    def fails_at_third(name: str, times: list[str] = []) -> float:  # noqa: B006
        times.append(name)
        if len(times) > 4:
            raise KeyboardInterrupt
        return TIMES[name]

    with pytest.raises(KeyboardInterrupt):
        main(arguments, FakeTimer(fails_at_third), "cpu")
    assert [row.mode for row in read_rows(path)] == ["eager"]
    timer = FakeTimer(TIMES.__getitem__)
    assert main([*arguments, "3"], timer, "cpu") == 0
    assert [row.key[1::2] for row in read_rows(path)] == [(1, "eager"), (1, "graph"), (3, "eager"), (3, "graph")]
    assert len(timer.asked) == 2 * 3
    assert read_rows(path)[0].command == "python -m fdmoe_kernels.bench --models tiny --dtypes float32 --tokens 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "'0' is no whole number from 1 up"),
        (["--resume"], "--csv is missing; --resume and --plot need the file of the rows"),
        (["--table-from", "none.csv"], "none.csv"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments, FakeTimer(TIMES.__getitem__), "cpu")
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_leaves_out_where_it_is_written() -> None:
    words = [
        "--models",
        "olmoe",
        "--csv",
        "out.csv",
        "--resume",
        "--plot",
        "a.png",
        "b.svg",
        "--commit=abc",
        "--tokens",
        "1",
    ]
    assert reproduce(words) == "python -m fdmoe_kernels.bench --models olmoe --tokens 1"
