"""The kernel's one argument as the host sees it: the same structure as Params in device/params.cuh."""

from __future__ import annotations

import ctypes


class TensorMap(ctypes.Structure):
    """A CUtensorMap: 128 bytes that the driver encodes."""

    _fields_ = [("words", ctypes.c_uint64 * 16)]


_MAPS = (
    "router", "gate_up", "down", "sorted_8", "sorted_16", "sorted_32", "sorted_64", "sorted_128",
    "act_8", "act_16", "act_32", "act_64", "act_128", "done_8", "done_16", "done_32", "done_64",
)  # fmt: skip
_POINTERS = (
    "x", "y", "router_bias", "correction_bias", "gate_up_bias", "down_bias", "shared_gate", "given_experts",
    "given_weights", "lists", "weights", "logits", "places", "act", "sorted", "control", "totals", "page",
    "router_at", "gate_up_at", "down_at",
)  # fmt: skip
_INTEGERS = (
    "tokens", "hidden", "intermediate", "experts", "shared_experts", "top_k", "capacity", "given_is_64_bit",
    "token_tile", "slots", "route_tokens", "route_splits", "choose_tokens", "row_group", "column_blocks",
    "combine_tokens",
    "sort", "paired", "token_pairs", "token_sharers", "token_rows", "token_kept",
    "logit_parts", "route_steps", "logit_items", "choose_items", "combine_items",
    "up_tiles", "down_tiles", "block_tiles",
    "counts_at", "route_at", "up_at", "sorted_at", "control_words",
    "sigmoid", "renormalize", "groups", "top_groups", "group_scores",
)  # fmt: skip
_FLOATS = ("scaling", "alpha", "limit", "up_offset")


class Params(ctypes.Structure):
    """Pointers are device addresses, 0 for none. The maps ask for 64-byte alignment, which the driver's copy gives."""

    _fields_ = [
        *((name, TensorMap) for name in _MAPS),
        *((name, ctypes.c_uint64) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in _INTEGERS),
        *((name, ctypes.c_float) for name in _FLOATS),
        ("padding", ctypes.c_int32 * 16),  # to a multiple of the maps' alignment
    ]
