"""The watchdog's part of the settings tree (fdmoe_ops.settings holds the whole)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

MIB = 1024 * 1024
# one record's ceiling: what 768 CTAs, 50 events and the stacks of a large process need, four times over
FLIGHT_RECORD_MAX_BYTES = MIB


class Group(BaseModel):
    """A branch of the settings tree: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WatchdogSettings(Group):
    host: str = Field("127.0.0.1", description="Address of the watchdog's HTTP server.")
    port: int = Field(9400, ge=0, le=65535, description="Port of the watchdog's HTTP server; 0 takes a free one.")
    poll_interval_s: float = Field(0.005, gt=0, le=1, description="How often the beat pages are read, in seconds.")
    flight_keep: int = Field(100, ge=1, description="Flight records that are kept; the oldest go first.")
    flight_max_bytes: ByteSize = Field(
        ByteSize(64 * MIB), ge=FLIGHT_RECORD_MAX_BYTES, description="Most bytes of all flight records together."
    )
    gpu_interval_s: float = Field(1.0, ge=0.1, le=60, description="How often NVML is asked about each GPU, in seconds.")
    gpu_deadline_s: float = Field(
        5.0, gt=0, description="How long the NVML probe may say nothing of a GPU before it is killed and replaced."
    )
    expert_series: bool = Field(
        True, description="Export fdmoe_expert_tokens_total, which has a series for each expert of each layer."
    )
    gpu_recording: Path | None = Field(
        None, description="File of figures that is replayed instead of asking NVML, for demos; metrics say so."
    )
    give_up_linger_s: float = Field(
        30.0,
        ge=0,
        description="How long /metrics and /status stay up once nothing can be served any more (exit codes 70 and 71), "
        "so that the reason is scraped, in seconds.",
    )

    @model_validator(mode="after")
    def _deadline_allows_two_readings(self) -> Self:
        least = 2 * self.gpu_interval_s
        if self.gpu_deadline_s < least:
            raise ValueError(
                f"gpu_deadline_s is {self.gpu_deadline_s:g}; at least twice gpu_interval_s, {least:g}, is allowed"
            )
        return self


class RecoverySettings(Group):
    """Deadlines of detection and of the ladder's rungs (DESIGN: ladder)."""

    stall_floor_s: float = Field(
        0.05, gt=0, description="Outstanding work without a beat for less than this is never a stall."
    )
    stall_ceiling_s: float = Field(
        5.0, gt=0, description="Outstanding work without a beat for longer than this always is a stall."
    )
    stall_factor: float = Field(
        4.0,
        ge=1,
        description="The stall time is the longest gap seen lately between beats times this, floor and ceiling kept.",
    )
    stall_first_s: float = Field(
        0.25,
        gt=0,
        description="The stall time of a layer and size of which no launch has ended yet, floor and ceiling kept.",
    )
    watchdog_lag_max_s: float = Field(
        0.1,
        gt=0,
        description="A turn of the watchdog that comes later than this judges nobody's silence, and what it was late "
        "counts for no deadline.",
    )
    launch_deadline_s: float = Field(
        1.0, gt=0, description="How long a launch may take until the device shows its first beat."
    )
    abort_deadline_s: float = Field(0.05, gt=0, description="Rung 1: how long an aborted kernel may take to end.")
    answer_deadline_s: float = Field(
        10.0,
        gt=0,
        description="How long the baseline path may work on one batch, and the longest that a worker may leave one "
        "untouched.",
    )
    host_deadline_s: float = Field(
        0.4,
        ge=0.2,
        description="How long a worker's host thread may show no beat while a batch waits and neither path runs: it "
        "copies and compares rows then, and beats after each. On the CPU the answer deadline unless it is given.",
    )
    blocked_deadline_s: float = Field(
        0.04,
        ge=0.02,
        description="How long of that, after its first 30 ms, it may be seen to sleep, beside no thread of its process "
        "that runs, and not because it waits for the device or for the next message.",
    )
    stopped_deadline_s: float = Field(
        0.05,
        gt=0,
        description="How long a worker or the gateway may be held by a signal (SIGSTOP, a terminal's) until it counts "
        "as frozen.",
    )
    route_deadline_s: float = Field(
        1.0,
        ge=0.2,
        description="Rung 2: how long the gateway may try to connect to the worker that batches go to, and how long it "
        "then waits for that one's first word, unless a path runs there. On the CPU the answer deadline unless it is "
        "given.",
    )
    kill_deadline_s: float = Field(10.0, gt=0, description="Rung 3: how long a killed process may take to be reaped.")
    reclaim_deadline_s: float = Field(
        10.0, gt=0, description="Rung 3: how long a killed process's memory may stay taken on the device."
    )
    trial_deadline_s: float = Field(
        30.0, gt=0, description="Rung 4: how long a trial kernel may take before the device counts as broken."
    )
    startup_deadline_s: float = Field(
        300.0, gt=0, description="How long a worker may load, compile and warm up before it counts as stuck."
    )
    backoff_initial_s: float = Field(0.2, gt=0, description="Rung 4: pause before the first restart of a period.")
    backoff_max_s: float = Field(30.0, gt=0, description="Rung 4: ceiling of that pause, which doubles per restart.")
    restart_budget: int = Field(10, ge=0, description="Rung 4: restarts within the restart period; more are refused.")
    restart_period_s: float = Field(600.0, gt=0, description="Rung 4: the period in which restarts are counted.")
    spare_process: bool = Field(
        True,
        description="Rung 4: keep a process for each worker, and one for the gateway, that has imported everything and "
        "waits to take its place: a restart takes seconds less. It takes memory of the host and none of the device. On "
        "the CPU not unless it is given.",
    )
    cooldown_initial_s: float = Field(
        2.0, ge=0, description="Pause on the baseline before the fused path is tried again."
    )
    cooldown_max_s: float = Field(600.0, ge=0, description="Ceiling of that pause, which doubles per relapse.")
    relapse_period_s: float = Field(
        600.0,
        gt=0,
        description="A stall later than this after the fused path came back starts again at the first pause.",
    )
    shadow_checks: int = Field(
        3, ge=1, description="Clean comparisons of a token bucket before the fused path serves it again."
    )
    compare_ratio: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Share of each layer's batches on the fused path that also run on the baseline and are compared; "
        "the first of a token bucket, and late ones, are compared in any case (recovery.slow_checks).",
    )
    compare_interval_s: float = Field(
        60.0,
        gt=0,
        description="While requests come, one batch at least is compared in this time, of the layer that has waited "
        "longest, unless compare_ratio is 0; a worker that has nothing to do, as a standby, proves the baseline of all "
        "its layers in it.",
    )
    compare_before_answer: bool = Field(
        False,
        description="Every batch of the fused path is compared before it is answered, and one that differs is answered "
        "by the baseline: no wrong answer leaves, and each takes the time of both paths.",
    )
    slow_factor: float = Field(
        2.5,
        ge=1.5,
        description="The fused path is slow if its batches take this many times their usual, by themselves and "
        "against the baseline on the same batches, and half as long again as the baseline.",
    )
    slow_checks: int = Field(
        50,
        ge=0,
        description="Batches of a token bucket in a row that must say so; 0: being slow is no reason to leave the "
        "fused path. On the CPU 3 unless it is given.",
    )
