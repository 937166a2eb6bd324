"""The one-launch MoE layer as a Triton kernel. Private: fused.py holds the public op.

Every CTA takes work items by one atomic ticket until none is left. Tickets are numbered in topological order:

    [ parts of route tiles | up tiles | down tiles | combine tiles ]

so the oldest unfinished item never waits for a younger one, and any number of CTAs, co-resident or not, finishes: also
one CTA alone, and the interpreter, which runs the programs one after another.

    route    a part of the logits of a tile of tokens; who finishes the last part enters each entry (token, k) in its
             expert's list: _route_tile.py
    up       act[entry] = activation(x[token] @ gate^T, x[token] @ up^T)   for a tile of one expert's list
    down     part[entry] = act[entry] @ down^T                             for the same tiles
    combine  y[token] = sum over k of weight * part[entry]                 in the order of k, the shared experts last

Where an entry stands in its expert's list depends on the order in which CTAs came, but a row of a matrix product does
not depend on the row's place in its tile, and combine sums by k: the same input gives the same bits.

Control words (int32, a 128-byte line each, zero between launches; the last CTA to leave puts them back to zero):

    TICKET      next work item; CLOSED is added when the launch is aborted
    ROUTE_DONE  route tiles finished
    DOWN_DONE   down tiles finished
    EXITS       CTAs that have left
    ABORT       1 once the host's abort word was seen
    COUNTS      [E + S] entries per expert, then [row tiles] up tiles finished per row tile, then [route tiles] parts of
                their logits that are there

Totals (int64, never reset; 32 bits would be used up by 30 hours of 50 us launches):

    0 to 3      work items finished of each phase
    LAUNCHES    launches finished
    MOVED       bytes moved, as Workspace.bytes_moved defines them
    ENTERED     [E + S] entries of each expert
"""

import triton
import triton.language as tl

from fdmoe_kernels._route_tile import given_tile, part_of_logits, route_tile, shared_tile

TICKET = tl.constexpr(0)
ROUTE_DONE = tl.constexpr(32)
DOWN_DONE = tl.constexpr(64)
EXITS = tl.constexpr(96)
ABORT = tl.constexpr(128)
NEVER = tl.constexpr(160)
COUNTS = tl.constexpr(192)
LAUNCHES = tl.constexpr(4)
MOVED = tl.constexpr(5)
ENTERED = tl.constexpr(6)

CLOSED = tl.constexpr(1 << 30)

# The page's words (fdmoe_watchdog.page; a test compares them).
PAGE_ABORT = tl.constexpr(8)
PAGE_EXIT = tl.constexpr(24)
PAGE_SLOTS = tl.constexpr(64)
PHASE_ROUTE = tl.constexpr(1)
PHASE_UP = tl.constexpr(2)
PHASE_DOWN = tl.constexpr(3)
PHASE_COMBINE = tl.constexpr(4)
PHASE_LEFT = tl.constexpr(5)
WAIT_NONE = tl.constexpr(0)
WAIT_ROUTE = tl.constexpr(1)
WAIT_UP = tl.constexpr(2)
WAIT_DOWN = tl.constexpr(3)
EXIT_DONE = tl.constexpr(1)
EXIT_ABORTED = tl.constexpr(2)

# Looks after which a wait is shown, 50 us: what the CTAs that others wait for release waits until the host has their
# lines, which must not queue behind those of all that wait for them.
SHOWN_AFTER = tl.constexpr(64)

FAULT_NONE = tl.constexpr(0)
FAULT_STALL = tl.constexpr(1)
FAULT_ENDLESS = tl.constexpr(2)
FAULT_NAN = tl.constexpr(3)
FAULT_WRONG = tl.constexpr(4)
FAULT_SLOW = tl.constexpr(5)
FAULT_ILLEGAL = tl.constexpr(6)
# so often a slow tile is computed: in the interpreter a launch takes 6 to 10 times as long then
SLOWER = tl.constexpr(20)


@triton.jit
def _beat(page, launch, ticket, phase, expert, row_tile, column_tile, wait, target, seen, items, BEATS: tl.constexpr):
    """Store this CTA's slot: one 64-byte line, one posted write over PCIe."""
    if BEATS:
        word = tl.arange(0, 8)
        value = tl.where(word == 0, launch.to(tl.int64), 0)
        value = tl.where(word == 1, (ticket + 1).to(tl.int64), value)
        value = tl.where(word == 2, phase, value)
        value = tl.where(word == 3, expert.to(tl.int64), value)
        value = tl.where(word == 4, (row_tile.to(tl.int64) << 32) | column_tile.to(tl.int64), value)
        value = tl.where(word == 5, (tl.full((), wait, tl.int64) << 32) | target.to(tl.int64), value)
        value = tl.where(word == 6, seen.to(tl.int64), value)
        value = tl.where(word == 7, items.to(tl.int64), value)
        tl.store(page + PAGE_SLOTS + tl.program_id(0) * 8 + word, value)


@triton.jit
def _wait(
    control, page, counter, target, launch, ticket, phase, expert, row_tile, column_tile, wait, items,
    POLL: tl.constexpr, BEATS: tl.constexpr,
):  # fmt: skip
    """Wait until `counter` reaches `target`; 1 if the launch was aborted meanwhile, else 0.

    The slot names the wait only while there is one, and once it has lasted for SHOWN_AFTER spins.

    A poll of the host's abort word is a PCIe read of 4 us, 500 us when 132 CTAs do it at once. So each waiting CTA
    looks at the device's abort word every 16 spins, and at the host's only in its turn, every POLL spins times the
    number of CTAs: while all wait, about one looks at a time; while one waits alone, it looks every POLL * CTAs spins.
    """
    seen = tl.atomic_add(control + counter, 0, sem="acquire")
    aborted = 0
    spins = 0
    while (seen < target) & (aborted == 0):
        spins += 1
        if spins % 16 == 0:
            aborted = tl.atomic_add(control + ABORT, 0, sem="relaxed")
        if BEATS:
            in_turn = spins % (POLL * tl.num_programs(0)) == POLL * tl.program_id(0)
            if (spins == SHOWN_AFTER) | (in_turn & (spins > SHOWN_AFTER)):
                _beat(page, launch, ticket, phase, expert, row_tile, column_tile, wait, target, seen, items, BEATS)
            if in_turn:
                word = tl.atomic_add(page + PAGE_ABORT, 0, sem="relaxed", scope="sys")
                if word == launch:
                    first = tl.atomic_xchg(control + ABORT, 1, sem="relaxed")
                    if first == 0:
                        tl.atomic_add(control + TICKET, CLOSED, sem="relaxed")
                    aborted = 1
        seen = tl.atomic_add(control + counter, 0, sem="acquire")
    if (spins >= SHOWN_AFTER) & (aborted == 0):
        _beat(page, launch, ticket, phase, expert, row_tile, column_tile, WAIT_NONE, target, seen, items, BEATS)
    return aborted


@triton.jit
def _up_tile(
    x, gate_up, bias, lists, act, expert, row_tile, column_tile, count, capacity,
    H: tl.constexpr, I: tl.constexpr, ENTRIES: tl.constexpr,
    ALPHA: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    filled = row < count
    entry = tl.load(lists + expert.to(tl.int64) * capacity + row, mask=filled, other=0)
    a = x + (entry // ENTRIES).to(tl.int64)[:, None] * H + depth[None, :]
    gate = gate_up + expert.to(tl.int64) * (2 * I * H) + column[None, :].to(tl.int64) * H + depth[:, None]
    gates = tl.zeros((ROWS, COLUMNS), tl.float32)
    ups = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, H, DEPTH):
        # weights first: they do not wait for the list
        in_columns = _inside(column[None, :] < I, start + depth[:, None], H, DEPTH)
        left = tl.load(gate + start, mask=in_columns, other=0.0)
        right = tl.load(gate + I * H + start, mask=in_columns, other=0.0)
        rows = tl.load(a + start, mask=_inside(filled[:, None], start + depth[None, :], H, DEPTH), other=0.0)
        gates = tl.dot(rows, left, gates, input_precision=PRECISION)
        ups = tl.dot(rows, right, ups, input_precision=PRECISION)
    if bias is not None:
        here = bias + expert.to(tl.int64) * (2 * I) + column
        gates += tl.load(here, mask=column < I, other=0.0).to(tl.float32)[None, :]
        ups += tl.load(here + I, mask=column < I, other=0.0).to(tl.float32)[None, :]
    if LIMIT is not None:  # by comparisons, which keep a NaN
        gates = tl.where(gates > LIMIT, LIMIT, gates)
        ups = tl.where(ups > LIMIT, LIMIT, tl.where(ups < -LIMIT, -LIMIT, ups))
    if UP_OFFSET != 0.0:
        ups += UP_OFFSET
    result = gates / (1.0 + tl.exp(-ALPHA * gates)) * ups
    tl.store(
        act + entry.to(tl.int64)[:, None] * I + column[None, :],
        result.to(act.dtype.element_ty),
        mask=filled[:, None] & (column < I)[None, :],
    )


@triton.jit
def _inside(mask, depth, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """`mask`, and inside the inner dimension where the depth of a tile does not divide it."""
    if SIZE % DEPTH == 0:
        return mask
    else:
        return mask & (depth < SIZE)


@triton.jit
def _down_tile(
    act, down, bias, lists, part, expert, row_tile, column_tile, count, capacity,
    H: tl.constexpr, I: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    filled = row < count
    entry = tl.load(lists + expert.to(tl.int64) * capacity + row, mask=filled, other=0).to(tl.int64)
    a = act + entry[:, None] * I + depth[None, :]
    b = down + expert.to(tl.int64) * (H * I) + column[None, :].to(tl.int64) * I + depth[:, None]
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, I, DEPTH):
        in_columns = _inside(column[None, :] < H, start + depth[:, None], I, DEPTH)
        columns = tl.load(b + start, mask=in_columns, other=0.0)
        rows = tl.load(a + start, mask=_inside(filled[:, None], start + depth[None, :], I, DEPTH), other=0.0)
        result = tl.dot(rows, columns, result, input_precision=PRECISION)
    if bias is not None:
        result += tl.load(bias + expert.to(tl.int64) * H + column, mask=column < H, other=0.0).to(tl.float32)[None, :]
    tl.store(
        part + entry[:, None] * H + column[None, :],
        result.to(part.dtype.element_ty),
        mask=filled[:, None] & (column < H)[None, :],
    )


@triton.jit
def _combine_tile(
    part, weights, norms, y, token_tile, column_tile, T,
    H: tl.constexpr, K: tl.constexpr, S: tl.constexpr, GIVEN: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, FAULT: tl.constexpr,
):  # fmt: skip
    token = token_tile * TOKENS + tl.arange(0, TOKENS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    live = token < T
    mask = live[:, None] & (column < H)[None, :]
    if not GIVEN:
        norm = tl.load(norms + token, mask=live, other=1.0)
    result = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for k in tl.static_range(K + S):
        entry = token.to(tl.int64) * (K + S) + k
        weight = tl.load(weights + entry, mask=live, other=0.0)
        computed = mask
        if k < K:
            if GIVEN:
                computed = mask & (weight != 0.0)[:, None]
            else:
                weight = weight / norm
        row = tl.load(part + entry[:, None] * H + column[None, :], mask=computed, other=0.0)
        result += weight[:, None] * row.to(tl.float32)
    if FAULT == FAULT_NAN:
        result = tl.where(token_tile + column_tile == 0, float("nan"), result)
    if FAULT == FAULT_WRONG:
        result = tl.where(token_tile + column_tile == 0, 1.0 - 2.0 * result, result)
    tl.store(y + token.to(tl.int64)[:, None] * H + column[None, :], result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _leave(
    control, page, totals, launch, tile_counters, route, up, down, combine, counts, once_bytes,
    EXPERTS: tl.constexpr, EXPERT_BYTES: tl.constexpr, ENTRY_BYTES: tl.constexpr, BEATS: tl.constexpr,
):  # fmt: skip
    """The last CTA: report how the launch ended, and put every control word back for the next launch."""
    word = tl.arange(0, 8)  # of the page's line: launch, how it ended, and the items of the four phases
    phase = (word >= 2) & (word < 6)
    total = tl.load(totals + word - 2, mask=phase, other=0)
    expert = tl.arange(0, counts.shape[0])
    entered = tl.load(totals + ENTERED + expert, mask=expert < EXPERTS, other=0)
    all_moved = tl.load(totals + MOVED)
    aborted = tl.atomic_add(control + ABORT, 0, sem="acquire")
    code = tl.where(aborted == 1, EXIT_ABORTED, EXIT_DONE)
    tl.store(control + TICKET, 0)
    tl.store(control + ROUTE_DONE, 0)
    tl.store(control + DOWN_DONE, 0)
    tl.store(control + EXITS, 0)
    tl.store(control + ABORT, 0)
    tl.store(totals + LAUNCHES, launch)
    words = tl.arange(0, 1024)
    for start in range(0, EXPERTS + tile_counters, 1024):
        tl.store(control + COUNTS + start + words, 0, mask=start + words < EXPERTS + tile_counters)
    if aborted == 0:
        total += tl.where(word == 2, route, tl.where(word == 3, up, tl.where(word == 4, down, combine)))
        tl.store(totals + word - 2, total, mask=phase)
        entries = counts.to(tl.int64)
        moved = tl.sum((entries > 0).to(tl.int64), 0) * EXPERT_BYTES + tl.sum(entries, 0) * ENTRY_BYTES + once_bytes
        tl.store(totals + MOVED, all_moved + moved)
        tl.store(totals + ENTERED + expert, entered + entries, mask=expert < EXPERTS)
    if BEATS:
        value = tl.where(word == 0, launch.to(tl.int64), tl.where(phase, total, 0))
        value = tl.where(word == 1, (launch.to(tl.int64) << 8) | code, value)
        tl.store(page + PAGE_EXIT + word, value)


@triton.jit(do_not_specialize=["T", "capacity", "row_tiles_bound", "route_steps"])
def moe_layer_kernel(
    x, router, router_bias, correction_bias, gate_up, gate_up_bias, down, down_bias, shared_gate, chosen, given, y,
    logits, lists, weights, norms, act, part, control, totals, page,
    T, capacity, row_tiles_bound, route_steps,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, SCALING: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_SCORES: tl.constexpr,
    ALPHA: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr,
    EXPERT_LANES: tl.constexpr, GROUP_LANES: tl.constexpr, K_LANES: tl.constexpr,
    ROUTE_TOKENS: tl.constexpr, ROUTE_EXPERTS: tl.constexpr, ROUTE_DEPTH: tl.constexpr,
    ROUTE_SPLITS: tl.constexpr, CHOOSE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr, UP_COLUMNS: tl.constexpr, UP_DEPTH: tl.constexpr,
    DOWN_COLUMNS: tl.constexpr, DOWN_DEPTH: tl.constexpr,
    COMBINE_TOKENS: tl.constexpr, COMBINE_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, POLL: tl.constexpr, BEATS: tl.constexpr, FAULT: tl.constexpr,
):  # fmt: skip
    """The layer's tensors are as in layer.MoELayer, absent ones None, and y is like x [T, H]. chosen [T, K] and given
    [T, K] float32 are the experts and weights of a routing made elsewhere, or None. logits [route parts, T, E] float32;
    lists [E + S, capacity] int32; weights [T, K + S] and norms [T] float32; act [T * (K + S), I];
    part [T * (K + S), H]; control int32; totals int64; page int64 words. route_steps is a part's, of ROUTE_DEPTH of H
    each. *_LANES and ROUTE_EXPERTS are powers of two: of E + S, groups, K and E."""
    GIVEN: tl.constexpr = chosen is not None
    EXPERTS: tl.constexpr = E + S
    BYTES: tl.constexpr = x.dtype.element_ty.primitive_bitwidth // 8
    ROUTER_BYTES: tl.constexpr = 0 if GIVEN else E * H * BYTES
    BIASES: tl.constexpr = (0 if gate_up_bias is None else 2 * I) + (0 if down_bias is None else H)
    zero = tl.program_id(0) * 0
    launch = tl.load(totals + LAUNCHES) + 1
    route_tiles = tl.cdiv(T, ROUTE_TOKENS)
    # of a tile: parts of route_steps steps of its logits, ROUTE_SPLITS at most
    route_parts = zero + 1
    if not GIVEN:
        route_parts = tl.cdiv(tl.cdiv(H, ROUTE_DEPTH), route_steps)
    route_items = route_tiles * route_parts
    items = zero
    ticket = tl.atomic_add(control + TICKET, 1, sem="relaxed")
    while ticket < route_items:
        tile = ticket // route_parts
        index = ticket % route_parts
        _beat(page, launch, ticket, PHASE_ROUTE, zero, tile, index, WAIT_NONE, zero, zero, items, BEATS)
        others = route_parts - 1
        if not GIVEN:
            part_of_logits(
                x, router, logits, tile, index, route_steps, T, H, E, ROUTE_TOKENS, ROUTE_EXPERTS, ROUTE_DEPTH
            )
            tl.debug_barrier()
            others = tl.atomic_add(control + COUNTS + EXPERTS + row_tiles_bound + tile, 1, sem="acq_rel")
        if others == route_parts - 1:
            if GIVEN:
                given_tile(
                    chosen, given, lists, weights, control + COUNTS, tile, T, capacity,
                    E, K, S, K_LANES, ROUTE_TOKENS,
                )  # fmt: skip
            else:
                for first in range(tile * ROUTE_TOKENS, (tile + 1) * ROUTE_TOKENS, CHOOSE_TOKENS):
                    route_tile(
                        logits, router_bias, correction_bias, lists, weights, norms, control + COUNTS, first,
                        route_parts, T, capacity, E, K, S, SIGMOID, RENORMALIZE, SCALING, GROUPS, TOP_GROUPS,
                        GROUP_SCORES, GROUP_LANES, K_LANES, CHOOSE_TOKENS, ROUTE_EXPERTS, ROUTE_SPLITS,
                    )  # fmt: skip
            if S > 0:
                shared_tile(
                    x, shared_gate, lists, weights, control + COUNTS, tile, T, capacity,
                    H, E, K, S, ROUTE_TOKENS, ROUTE_DEPTH,
                )  # fmt: skip
            tl.debug_barrier()
            tl.atomic_add(control + ROUTE_DONE, 1, sem="release")
        items += 1
        ticket = tl.atomic_add(control + TICKET, 1, sem="relaxed")

    UP_TILES: tl.constexpr = (I + UP_COLUMNS - 1) // UP_COLUMNS
    DOWN_TILES: tl.constexpr = (H + DOWN_COLUMNS - 1) // DOWN_COLUMNS
    COMBINE_TILES: tl.constexpr = (H + COMBINE_COLUMNS - 1) // COMBINE_COLUMNS
    item = ticket - route_items
    aborted = zero
    if ticket < CLOSED:
        aborted += _wait(
            control, page, ROUTE_DONE, route_tiles, launch, ticket, PHASE_UP, zero, zero, zero, WAIT_ROUTE, items,
            POLL, BEATS,
        )  # fmt: skip
    experts = tl.arange(0, EXPERT_LANES)
    counts = tl.load(control + COUNTS + experts, mask=experts < EXPERTS, other=0)
    tiles = tl.cdiv(counts, ROWS)
    ends = tl.cumsum(tiles, 0)
    row_tiles = tl.sum(tiles, 0)
    up_items = row_tiles * UP_TILES
    down_items = row_tiles * DOWN_TILES
    last_item = up_items + down_items + tl.cdiv(T, COMBINE_TOKENS) * COMBINE_TILES
    if aborted > 0:
        last_item = zero
    while item < last_item:
        if item < up_items + down_items:
            # all row tiles of an expert for one column tile, then the next column tile: CTAs that run side by side
            # share the expert's weights in L2
            up = item < up_items
            index = tl.where(up, item, item - up_items)
            columns = tl.where(up, UP_TILES, DOWN_TILES)
            expert = tl.sum((ends * columns <= index).to(tl.int32), 0)
            here = experts == expert
            expert_tiles = tl.sum(tl.where(here, tiles, 0), 0)
            first = tl.sum(tl.where(here, ends, 0), 0) - expert_tiles
            count = tl.sum(tl.where(here, counts, 0), 0)
            index -= first * columns
            column_tile = index // expert_tiles
            row_tile = index % expert_tiles
            done = COUNTS + EXPERTS + first + row_tile
            phase = tl.where(up, PHASE_UP, PHASE_DOWN)
            _beat(page, launch, ticket, phase, expert, row_tile, column_tile, WAIT_NONE, zero, zero, items, BEATS)
            if up:
                if FAULT == FAULT_ENDLESS:
                    if item == 0:
                        stuck = tl.atomic_add(control + NEVER, 0, sem="relaxed")
                        while stuck == 0:
                            stuck = tl.atomic_add(control + NEVER, 0, sem="relaxed")
                if FAULT == FAULT_ILLEGAL:
                    if item == 0:
                        if tl.atomic_add(control + NEVER, 0, sem="relaxed") == 0:
                            nobodys = (item + 64).to(tl.int64).to(tl.pointer_type(tl.int32), bitcast=True)
                            tl.store(nobodys, 1)
                if FAULT == FAULT_SLOW:
                    for _ in range(SLOWER - 1):
                        _up_tile(
                            x, gate_up, gate_up_bias, lists, act, expert, row_tile, column_tile, count, capacity,
                            H, I, K + S, ALPHA, LIMIT, UP_OFFSET, ROWS, UP_COLUMNS, UP_DEPTH, PRECISION,
                        )  # fmt: skip
                _up_tile(
                    x, gate_up, gate_up_bias, lists, act, expert, row_tile, column_tile, count, capacity,
                    H, I, K + S, ALPHA, LIMIT, UP_OFFSET, ROWS, UP_COLUMNS, UP_DEPTH, PRECISION,
                )  # fmt: skip
                tl.debug_barrier()
                if FAULT == FAULT_STALL:
                    if item != 0:
                        tl.atomic_add(control + done, 1, sem="release")
                else:
                    tl.atomic_add(control + done, 1, sem="release")
            else:
                aborted = _wait(
                    control, page, done, zero + UP_TILES, launch, ticket, PHASE_DOWN, expert, row_tile, column_tile,
                    WAIT_UP, items, POLL, BEATS,
                )  # fmt: skip
                if aborted == 0:
                    if FAULT == FAULT_SLOW:
                        for _ in range(SLOWER - 1):
                            _down_tile(
                                act, down, down_bias, lists, part, expert, row_tile, column_tile, count, capacity,
                                H, I, ROWS, DOWN_COLUMNS, DOWN_DEPTH, PRECISION,
                            )  # fmt: skip
                    _down_tile(
                        act, down, down_bias, lists, part, expert, row_tile, column_tile, count, capacity,
                        H, I, ROWS, DOWN_COLUMNS, DOWN_DEPTH, PRECISION,
                    )  # fmt: skip
                    tl.debug_barrier()
                    tl.atomic_add(control + DOWN_DONE, 1, sem="release")
        else:
            index = item - up_items - down_items
            row_tile = index // COMBINE_TILES
            column_tile = index % COMBINE_TILES
            _beat(page, launch, ticket, PHASE_COMBINE, zero, row_tile, column_tile, WAIT_NONE, zero, zero, items, BEATS)
            aborted = _wait(
                control, page, DOWN_DONE, down_items, launch, ticket, PHASE_COMBINE, zero, row_tile, column_tile,
                WAIT_DOWN, items, POLL, BEATS,
            )  # fmt: skip
            if aborted == 0:
                _combine_tile(
                    part, weights, norms, y, row_tile, column_tile, T,
                    H, K, S, GIVEN, COMBINE_TOKENS, COMBINE_COLUMNS, FAULT,
                )  # fmt: skip
        items += 1
        ticket = tl.atomic_add(control + TICKET, 1, sem="relaxed")
        item = ticket - route_items

    tl.debug_barrier()
    left = tl.atomic_add(control + EXITS, 1, sem="acq_rel")
    # not before: what releases waits for all earlier stores, and this one goes over PCIe
    _beat(page, launch, ticket, PHASE_LEFT, zero, zero, zero, WAIT_NONE, zero, zero, items, BEATS)
    if left == tl.num_programs(0) - 1:
        _leave(
            control, page, totals, launch, row_tiles_bound + route_tiles,
            route_items, up_items, down_items, last_item - up_items - down_items, counts,
            (launch * 0 + T) * (H * BYTES) + ROUTER_BYTES,  # in the 64 bits of launch
            EXPERTS, (3 * I * H + BIASES) * BYTES, (3 * H + 2 * I) * BYTES, BEATS,
        )  # fmt: skip
