"""Launches the Hopper kernel: one layer's tensor maps and arguments over one workspace, made once."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import multiprocessors
from fdmoe_kernels.hopper.build import SHARED_BYTES, load_layer
from fdmoe_kernels.hopper.driver import checked, make_current, on_device, told_as_build_errors
from fdmoe_kernels.hopper.params import Params, TensorMap
from fdmoe_kernels.hopper.tiles import HOPPER, WEIGHT_ROWS, HopperTiles, tiles_for
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing, Scores
from fdmoe_kernels.tuning.tables import pinned_row

if TYPE_CHECKING:
    from fdmoe_kernels.hopper.scratch import HopperScratch
    from fdmoe_kernels.workspace import Workspace

_THREADS = 384
_LINE = 32  # int32 words of a 128-byte line
_COUNTERS = 192 + 8 * _LINE  # control words before the counts (params.cuh)
_SMALLEST_TOKEN_TILE = 8
# token.cuh has the same; what is left of its shared memory is for vectors and rows
_TOKEN_WARPS = 12
_CHUNK_COLUMNS = 256
_MAX_ENTRIES = 32
_MAX_TOKEN_ROWS = 24
_MAX_KEPT_ROWS = 16
_KEPT_ALIGNMENT = 128
_TOKEN_AT = 8192
_TOKEN_SHARED_BYTES = 3072
_TOKEN_BYTES = SHARED_BYTES - _TOKEN_AT - _TOKEN_SHARED_BYTES
# with more the portable form is faster: 188 us for 705 MB on one H200, where an older token.cuh took 257; for 101 MB it
# takes 59, with the tile numbers of several tokens, and token.cuh 48
_TOKEN_WEIGHT_BYTES = 128_000_000


def control_words(layer: MoELayer, max_tokens: int) -> int:
    """int32 words of counters for a layer and any token count up to `max_tokens`."""
    row_tiles = _row_tiles(max_tokens * layer.entries_per_token, layer.all_experts, _SMALLEST_TOKEN_TILE)
    return _COUNTERS + layer.experts + max_tokens + 2 * row_tiles


def _row_tiles(entries: int, experts: int, token_tile: int) -> int:
    """The most row tiles that so many entries of so many experts, shared ones included, can make."""
    return entries // token_tile + experts


def sorted_rows(layer: MoELayer, max_tokens: int) -> int:
    """The most rows of `act` and `sorted`: each tile has its padded width, which is less than 32 above its tokens, and
    less than twice as many where a tile holds 32 or more."""
    return 2 * max_tokens * layer.entries_per_token + 32 * layer.all_experts


class TokenCut(NamedTuple):
    """pairs     intermediate columns of a warp in an up item
    sharers   warps that share a row of H in a down item
    rows      rows of H in a down item
    kept      of those, how many come by the copy engine, into shared memory
    """

    pairs: int
    sharers: int
    rows: int
    kept: int


def token_cut(layer: MoELayer) -> TokenCut | None:
    """How token.cuh cuts its work; None if it does not take this layer, or another form is faster."""
    entries, intermediate, hidden = layer.entries_per_token, layer.intermediate_size, layer.hidden_size
    parts = entries * math.ceil(intermediate / _CHUNK_COLUMNS)
    shared_bytes = 16 * parts + 2 * (hidden + entries * intermediate)
    if entries > _MAX_ENTRIES or shared_bytes > _TOKEN_BYTES:
        return None
    if 2 * 3 * entries * intermediate * hidden > _TOKEN_WEIGHT_BYTES:
        return None
    ctas = multiprocessors(layer.device)

    def filled(pairs: int) -> float:
        """The share of its CTAs that the last round of up items keeps busy, and all rounds before it."""
        items = entries * math.ceil(intermediate / (_TOKEN_WARPS * pairs))
        return items / (ctas * math.ceil(items / ctas))

    pairs = max(range(1, 5), key=lambda pairs: (round(filled(pairs), 2), pairs))
    room = _TOKEN_BYTES - math.ceil(shared_bytes / _KEPT_ALIGNMENT) * _KEPT_ALIGNMENT
    most_kept = min(max(0, room) // (2 * entries * intermediate), _MAX_KEPT_ROWS)

    def taken(sharers: int, rows: int) -> float:
        """How long the down items take, by a rough count in chunks of a row: what comes from memory, once more what the
        warp with most of the rows that are not kept has of them, and what an item costs whatever its size."""
        rounds = math.ceil(math.ceil(hidden / rows) / ctas)
        others = math.ceil(max(0, rows - most_kept) / (_TOKEN_WARPS // sharers))
        return rounds * (rows * parts / _TOKEN_WARPS + others * math.ceil(parts / sharers) + 15)

    cuts = itertools.product((1, 2, 3, 4, 6, 12), range(1, _MAX_TOKEN_ROWS + 1))
    sharers, rows = min(cuts, key=lambda cut: taken(*cut))
    return TokenCut(pairs, sharers, rows, min(rows, most_kept))


class Plan:
    """`launch` runs the layer over the buffers of `workspace`, on the current stream.

    It holds addresses and keeps nothing alive: neither the layer nor the workspace, which both outlive their launches.
    Raises BuildError where the kernel cannot be compiled or loaded, or a tensor map made.
    """

    def __init__(self, layer: MoELayer, workspace: Workspace, scratch: HopperScratch) -> None:
        self._layer = weakref.ref(layer)
        self._dtype = layer.dtype
        self._device_index = torch.cuda.current_device() if layer.device.index is None else layer.device.index
        self._kernels = load_layer(self._device_index, layer.dtype, Fault.NONE)
        params = self._params = Params()
        experts, hidden, intermediate = layer.all_experts, layer.hidden_size, layer.intermediate_size
        self._weights = {ahead: _weight_maps(layer, ahead=ahead) for ahead in (False, True)}
        self._ahead: bool | None = None
        self._cut: tuple[int, HopperTiles, bool, bool] | None = None  # what `_fill_in_cut` has filled in
        rows = sorted_rows(layer, workspace.max_tokens)
        for name, buffer, columns, counts in (
            ("sorted", scratch.sorted, 64, (8, 16, 32, 64, 128)),
            ("act", scratch.act, 64, (8, 16, 32, 64, 128)),
            ("done", scratch.act, 32, (8, 16, 32, 64)),
        ):
            size = buffer.shape[1]
            for count in counts:
                boxes = _tensor_map(buffer, (size, rows), (size * 2,), (columns, count), ahead=True)
                setattr(params, f"{name}_{count}", boxes)
        for name in ("router", "gate_up", "down"):
            setattr(params, f"{name}_at", getattr(layer, name).data_ptr())
        for name in ("router_bias", "correction_bias", "gate_up_bias", "down_bias", "shared_gate"):
            setattr(params, name, _address(getattr(layer, name)))
        for name in ("logits", "lists", "weights", "control", "totals", "page"):
            setattr(params, name, _address(getattr(workspace, name)))
        for name in ("places", "act", "sorted"):
            setattr(params, name, getattr(scratch, name).data_ptr())
        rule, activation = layer.routing, layer.activation
        params.hidden, params.intermediate = hidden, intermediate
        params.up_tiles, params.down_tiles = math.ceil(2 * intermediate / WEIGHT_ROWS), math.ceil(hidden / WEIGHT_ROWS)
        params.experts, params.shared_experts, params.top_k = layer.experts, layer.shared_experts, rule.top_k
        params.capacity = workspace.max_tokens
        params.counts_at, params.route_at = _COUNTERS, _COUNTERS + layer.experts
        params.sigmoid, params.renormalize = rule.scores is Scores.SIGMOID, rule.renormalize
        params.groups, params.top_groups, params.group_scores = rule.groups, rule.top_groups, rule.group_scores
        params.scaling = rule.scaling
        params.alpha, params.up_offset = activation.alpha, activation.up_offset
        params.limit = float("inf") if activation.limit is None else activation.limit
        self._arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        self._address = ctypes.addressof(self._arguments)
        self._filling = threading.Lock()  # there is one set of arguments for all threads
        self._most_programs = workspace.slots if workspace.page is not None else None
        self._logit_rows = workspace.logit_rows
        self._steps = math.ceil(hidden / 64)
        self._experts, self._entries_per_token = experts, layer.entries_per_token
        self._fill = multiprocessors(layer.device)
        self._token = token_cut(layer)
        if self._token is not None:
            params.token_pairs, params.token_sharers, params.token_rows, params.token_kept = self._token
        self._tiles: dict[int, HopperTiles] = {}  # at most one a token count, so at most workspace.max_tokens

    @functools.cached_property
    def _driver(self) -> Any:
        from cuda.bindings import driver

        return driver

    def tiles(self, tokens: int) -> HopperTiles:
        """The table's, kept for each token count; a row that launches are held to for tuning comes first."""
        tiles = self._tiles.get(tokens)
        if tiles is not None and pinned_row(HOPPER) is None:
            return tiles
        layer = self._layer()
        assert layer is not None, "a plan is launched by who holds its layer"
        tiles = tiles_for(layer, tokens)
        if pinned_row(HOPPER) is None:
            self._tiles[tokens] = tiles
        return tiles

    def launch(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        routing: Routing | None = None,
        programs: int = 0,
        fault: Fault = Fault.NONE,
        tiles: HopperTiles | None = None,
    ) -> None:
        """x and out [T, H], T at least 1; programs: CTAs, 0 for one per multiprocessor; tiles: other than the usual.

        Raises BuildError where the build with `fault` cannot be compiled or loaded.
        """
        tokens = x.shape[0]
        usual = tiles is None and pinned_row(HOPPER) is None
        one = usual and tokens == 1 and self._token is not None
        tiles = tiles or self.tiles(tokens)
        kernels = self._kernels if fault is Fault.NONE else load_layer(self._device_index, self._dtype, fault)
        function = kernels.token if one else kernels.layer
        grid = programs or self._fill
        if self._most_programs is not None:
            grid = min(grid, self._most_programs)
        with self._filling:
            self._fill_in(x, out, routing, tiles, paired=tiles.paired and grid > 1 and not one)
            if torch.cuda.current_device() == self._device_index:
                make_current(self._device_index)
                self._launch(function, grid)
            else:
                with on_device(self._device_index):
                    self._launch(function, grid)

    def _fill_in(
        self, x: torch.Tensor, out: torch.Tensor, routing: Routing | None, tiles: HopperTiles, *, paired: bool
    ) -> None:
        params, tokens = self._params, x.shape[0]
        params.x, params.y = x.data_ptr(), out.data_ptr()
        params.given_experts = params.given_weights = 0
        if routing is not None:
            params.given_experts, params.given_weights = routing.experts.data_ptr(), routing.weights.data_ptr()
            params.given_is_64_bit = routing.experts.dtype == torch.int64
        cut = (tokens, tiles, paired, routing is None)
        if cut != self._cut:  # most launches are like the one before, and a fifth of a host's work is here
            self._cut = None
            self._fill_in_cut(tokens, tiles, paired=paired, routes=routing is None)
            self._cut = cut

    def _fill_in_cut(self, tokens: int, tiles: HopperTiles, *, paired: bool, routes: bool) -> None:
        params = self._params
        params.tokens = tokens
        params.token_tile, params.slots = tiles.token_tile, tiles.slots
        params.route_tokens = min(tiles.route_tokens, tiles.token_tile)  # they share the ring's rows
        splits = min(tiles.route_splits, self._logit_rows // tokens)
        params.route_steps = math.ceil(self._steps / splits)
        params.route_splits = math.ceil(self._steps / params.route_steps)  # no part without a step
        params.choose_tokens = min(tiles.choose_tokens, params.route_tokens)
        params.row_group, params.column_blocks = tiles.row_group, tiles.column_blocks
        params.combine_tokens = tiles.combine_tokens
        params.sort, params.paired = tiles.sort, paired
        route_tiles = math.ceil(tokens / params.route_tokens)
        params.logit_parts = params.route_splits * math.ceil(params.experts / WEIGHT_ROWS)
        params.logit_items = route_tiles * params.logit_parts if routes else 0
        params.choose_items = math.ceil(tokens / params.choose_tokens)
        params.combine_items = math.ceil(tokens / params.combine_tokens)
        ctas = 1 + paired
        params.block_tiles = math.ceil(math.ceil(params.down_tiles / ctas) / params.column_blocks) * ctas
        # pairs have many tokens for each weight, and find them in L2; with few the memory is the bottleneck
        if self._ahead is not tiles.paired:
            params.router, params.gate_up, params.down = self._weights[tiles.paired]
            self._ahead = tiles.paired
        row_tiles = _row_tiles(tokens * self._entries_per_token, self._experts, tiles.token_tile)
        params.up_at = params.route_at + route_tiles
        params.sorted_at = params.up_at + row_tiles
        params.control_words = params.sorted_at + row_tiles

    def _launch(self, function: int, grid: int) -> None:
        driver = self._driver
        stream = torch.cuda.current_stream(self._device_index).cuda_stream
        if self._params.paired:
            config = self._pairs
            config.gridDimX, config.hStream = grid // 2 * 2, stream
            (error,) = driver.cuLaunchKernelEx(config, function, self._address, 0)
        else:
            (error,) = driver.cuLaunchKernel(
                function, grid, 1, 1, _THREADS, 1, 1, SHARED_BYTES, stream, self._address, 0
            )
        if int(error) != 0:
            raise RuntimeError(f"the launch failed: {error!r}")

    @functools.cached_property
    def _pairs(self) -> Any:
        """How clusters of two CTAs are launched; the grid and the stream are each launch's own."""
        from cuda.bindings import driver

        cluster = driver.CUlaunchAttribute()
        cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z = 2, 1, 1
        config = driver.CUlaunchConfig()
        config.gridDimY = config.gridDimZ = 1
        config.blockDimX, config.blockDimY, config.blockDimZ = _THREADS, 1, 1
        config.sharedMemBytes = SHARED_BYTES
        config.attrs, config.numAttrs = [cluster], 1
        return config


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _weight_maps(layer: MoELayer, *, ahead: bool) -> tuple[TensorMap, TensorMap, TensorMap]:
    """Of the router, of gate and up, and of down: as params.cuh says."""
    experts, hidden, intermediate = layer.all_experts, layer.hidden_size, layer.intermediate_size
    row, half = hidden * 2, intermediate * hidden * 2
    router = _tensor_map(layer.router, (hidden, layer.experts), (row,), (64, 128), ahead=ahead)
    gate_up = _tensor_map(
        layer.gate_up, (hidden, 8, 2, intermediate // 8, experts), (row, half, 8 * row, 2 * half), (64, 8, 2, 8, 1),
        ahead=ahead,
    )  # fmt: skip
    sizes, strides = (intermediate, hidden, experts), (intermediate * 2, half)
    return router, gate_up, _tensor_map(layer.down, sizes, strides, (64, 128, 1), ahead=ahead)


def _tensor_map(
    tensor: torch.Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], *, ahead: bool
) -> TensorMap:
    """`tensor` as the copy engine sees it: sizes and box from the innermost dimension on, strides in bytes. In shared
    memory the 16-byte chunks of a box's rows, of 64 or 128 bytes, are swizzled. `ahead`: L2 fetches 256 bytes where 128
    are asked for.

    Raises BuildError where the driver refuses.
    """
    with told_as_build_errors():
        from cuda.bindings import driver

    half, promotion, swizzle = driver.CUtensorMapDataType, driver.CUtensorMapL2promotion, driver.CUtensorMapSwizzle
    returned = driver.cuTensorMapEncodeTiled(
        half.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if tensor.dtype == torch.bfloat16
        else half.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        len(sizes),
        tensor.data_ptr(),
        [driver.cuuint64_t(size) for size in sizes],
        [driver.cuuint64_t(stride) for stride in strides],
        [driver.cuuint32_t(size) for size in box],
        [driver.cuuint32_t(1) for _ in sizes],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzle.CU_TENSOR_MAP_SWIZZLE_128B if box[0] == 64 else swizzle.CU_TENSOR_MAP_SWIZZLE_64B,
        promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B if ahead
        else promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip
    encoded = checked(returned, f"a tensor map of sizes {sizes}, strides {strides} and box {box}")
    result = TensorMap()
    result.words[:] = [int(word) for word in encoded.opaque]
    return result
