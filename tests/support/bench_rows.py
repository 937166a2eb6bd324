"""Rows of the kernel's benchmark with planted numbers."""

from __future__ import annotations

from dataclasses import replace

from fdmoe_kernels.bench.rows import Row

ROW = Row(
    model="qwen3-30b-a3b", tokens=16, dtype="bfloat16", mode="graph", latency_us=200.0, baseline_us=400.0,
    best_peer_us=220.7, floor_us=182.3, operations=1, relative_error=0.00288, best_peer="sgl_tuned",
    best_peer_ratio=1.104, no_beats_us=199.0, beats_share=0.005, power_w=412, speedup=2.0, floor_share=0.911,
    tflops=6.1, weight_gbps=3920.4, baseline_operations=31, baseline_relative_error=0.00427, device="NVIDIA H200",
    versions="python 3.12.3 torch 2.11.0 triton 3.6.0", commit="abc1234", command="python -m fdmoe_kernels.bench",
)  # fmt: skip
ALONE = replace(
    ROW, dtype="float32", baseline_us=None, best_peer_us=None, best_peer=None, best_peer_ratio=None, speedup=None
)
