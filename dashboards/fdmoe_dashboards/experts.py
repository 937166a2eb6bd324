"""How the load spreads over the experts, and what it moves."""

from __future__ import annotations

from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from fdmoe_dashboards.alerts import IMBALANCE
from fdmoe_dashboards.frame import Board, board
from fdmoe_dashboards.panels import Panel, bars, heat_map, limits, lines, runbooks
from fdmoe_dashboards.queries import gauge, now, query, rate, rate_of

_TOKENS = rate("fdmoe_expert_tokens_total")


def dashboard() -> Board:
    return board(
        "fdmoe-experts",
        "fdmoe experts",
        "How the load spreads over the experts, and how many bytes it moves. The panels by expert are empty where the "
        "per-expert series are switched off.",
        (("Balance", _balance()), ("Traffic", _traffic())),
        layers=True,
    )


def _balance() -> list[Panel]:
    # as text 10 comes before 2: with two leading zeros the rows are in order
    padded = (
        f'label_replace(label_replace(sum by (expert) ({_TOKENS}), "expert", "0$1", "expert", "(..)"), '
        '"expert", "00$1", "expert", "(.)")'
    )
    return [
        runbooks(
            limits(
                lines(
                    "Imbalance",
                    "The busiest expert's tokens in the last minute over the mean of all: 1 is even, and the number of "
                    "experts over those chosen per token is the worst. Nothing while fewer than 1000 tokens came.",
                    "none",
                    gauge("fdmoe_expert_imbalance_ratio", "layer"),
                    width=12,
                    height=9,
                ),
                IMBALANCE,
            ),
            "expert-imbalance",
        ),
        bars(
            "Busiest experts",
            "The ten experts with the most tokens per second now.",
            "short",
            now(f"topk(10, sum by (layer, expert) ({_TOKENS}))", "{{layer}} expert {{expert}}"),
        ),
        heat_map(
            "Load over experts",
            "Tokens per second, a row for each expert. Choose one layer: of several the experts of one number add up.",
            "none",
            query(padded, "{{expert}}").format(PromQueryFormat.TIME_SERIES),
            width=24,
            height=12,
        ),
    ]


def _traffic() -> list[Panel]:
    bytes_, tokens = rate("fdmoe_comm_bytes_total"), rate("fdmoe_expert_tokens_total")
    return [
        lines(
            "Routed tokens by layer",
            "Tokens that went to experts per second: each token counts once for each expert that was chosen.",
            "short",
            rate_of("fdmoe_expert_tokens_total", "layer"),
        ),
        lines(
            "Bytes moved",
            "By fused launches, by where to; `local` is this GPU's own memory.",
            "Bps",
            rate_of("fdmoe_comm_bytes_total", "peer"),
        ),
        lines(
            "Bytes for a routed token",
            "Falls as batches grow: the weights of an expert are read once for all its tokens.",
            "bytes",
            query(f"sum by (instance) ({bytes_}) / sum by (instance) ({tokens})", "{{instance}}"),
        ),
    ]
