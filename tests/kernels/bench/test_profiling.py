"""What is made of Nsight Compute's words, without a GPU to profile."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from fdmoe_kernels.bench import profiling
from fdmoe_kernels.bench.profiling import ProfileError, read_launches, row_of

ABOUT = {"device": "d", "versions": "v", "commit": "c", "command": "x"}


def launch(kernel: str, active: str, dram: str, tensor: str) -> dict[str, str]:
    return {
        "ID": "0",
        "Kernel Name": kernel,
        profiling._TIME: "1,234,500",
        profiling._CLOCK: "1,797,767,192.15",
        profiling._INTERVAL: "1,500 (1,500)",
        **dict.fromkeys(profiling._SHARES.values(), "76.99"),
        profiling._ACTIVE: f"3 ({active})",
        profiling._DRAM: f"({dram})",
        profiling._TENSOR: f"9.1 ({tensor})",
        "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "1.00",
        "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "3.00",
    }


def printed(*launches: dict[str, str]) -> str:
    """As ncu prints it: words of its own, the names, the units, and a line a launch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(launches[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for values in (dict.fromkeys(launches[0], ""), *launches):
        writer.writerow(values)
    return f"==PROF== Connected to process 7\n{text.getvalue()}"


MEMORY = launch(
    "moe_layer_kernel", "0; 5; 5; 5; 5; 5; 5; 1,000; 0", "0; 0; 0; 90; 99; 0; 95; 2; 0", "0; 0; 0; 0; 9; 0; 11; 0; 0"
)
PRODUCTS = launch("moe_layer", "5; 5; 5; 5; 5; 5", "60; 10; 10; 10; 10; 70", "0; 40; 98; 99; 97; 0")
ALONE = launch("moe_layer_token", "5; 5; 5; 5", "0; 80; 80; 0", "0; 0; 0; 0")


def test_a_launch_that_reads_begins_with_its_weights_and_ends_with_its_products() -> None:
    (values,) = read_launches(printed(MEMORY))
    row = row_of("m", 16, values, ABOUT)
    assert (row.model, row.tokens, row.form, row.duration_us, row.sm_ghz) == ("m", 16, "portable", 1234.5, 1.8)
    assert (row.dram_share, row.l2_share, row.tensor_share, row.issue_share) == (0.77,) * 4
    # three samples of seven from the first that is active to the last: two before the weights, one after the products
    assert (row.begin_us, row.end_us) == (3.0, 1.5)
    assert (row.dram_read_flowing, row.tensor_flowing) == (0.71, 0.05)
    assert row.stalls == "wait 75%, barrier 25%"
    assert (row.device, row.commit, row.command) == ("d", "c", "x")


@pytest.mark.parametrize(
    ("values", "form", "begin_us", "end_us", "tensor"),
    [(PRODUCTS, "hopper", 1.5, 1.5, 0.835), (ALONE, "one token", 1.5, 1.5, 0.0)],
)
def test_products_count_where_they_are_most_of_it_and_reading_where_there_are_none(
    values: dict[str, str], form: str, begin_us: float, end_us: float, tensor: float
) -> None:
    row = row_of("m", 1, values, ABOUT)
    assert (row.form, row.begin_us, row.end_us, row.tensor_flowing) == (form, begin_us, end_us, tensor)


def test_several_launches_are_read_in_their_order() -> None:
    names = [values["Kernel Name"] for values in read_launches(printed(MEMORY, PRODUCTS, ALONE))]
    assert names == ["moe_layer_kernel", "moe_layer", "moe_layer_token"]
    assert read_launches("==ERROR== no permission") == []


def test_a_launch_of_many_samples_is_read() -> None:
    many = launch("moe_layer", "; ".join(["5"] * 50_000), "; ".join(["10"] * 50_000), "; ".join(["99"] * 50_000))
    (values,) = read_launches(printed(many))
    row = row_of("m", 16384, values, ABOUT)
    assert (row.begin_us, row.end_us, row.tensor_flowing) == (0.0, 0.0, 0.99)


@pytest.mark.parametrize("broken", [{profiling._DRAM: "n/a"}, {profiling._TIME: "no data"}])
def test_what_ncu_did_not_give_is_said(broken: dict[str, str]) -> None:
    with pytest.raises(ProfileError, match=r"^m, 16 tokens: ncu did not give"):
        row_of("m", 16, MEMORY | broken, ABOUT)


def test_an_ncu_that_is_not_there_or_fails_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(profiling.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(profiling, "device_name", lambda _: "a device")
    for program, words in (("no-such-program", "no-such-program cannot be started"), ("false", "false ended with 1")):
        with pytest.raises(SystemExit) as caught:
            profiling.main(["--ncu", program, "--models", "olmoe", "--tokens", "16"])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
