"""A timer for the CPU: it runs everything once, and its times are planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fdmoe_kernels.timing import Run


class FakeTimer:
    """`planted` gives the microseconds of a variant by its name; `asked` lists the variants of each call."""

    def __init__(self, planted: Callable[[str], float]) -> None:
        self._planted = planted
        self.asked: list[tuple[str, ...]] = []
        self.captures = 0

    def latency_us(self, variants: Mapping[str, Run], *, runs: int, budget_s: float) -> dict[str, float]:
        assert runs > 0
        assert budget_s > 0
        self.asked.append(tuple(variants))
        for run in variants.values():
            run()
        return {name: self._planted(name) for name in variants}

    def captured(self, run: Run) -> Run:
        self.captures += 1
        return run

    def operations(self, run: Run) -> int:
        run()
        return 1
