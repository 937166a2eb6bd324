// The two warpgroups that multiply: rows of weights (the M of the product) times tokens (its N, any multiple of 8).
//
// A tile is 128 rows of weights by `padded` tokens; a warpgroup has 64 rows of it. Thread t of a warpgroup holds, of the
// product, rows 16 * (t / 32) + t % 32 / 4 and the same + 8, and tokens 8j + t % 4 * 2 and the next. In an up tile those
// two rows are the gate and the up value of the same intermediate column.
#pragma once
#include "activation.cuh"
#include "load.cuh"
#include "mma.cuh"

// 128-byte swizzle, rows of 128 bytes, 1024 bytes from eight rows to the next eight
DEVICE u64 tile_descriptor(u32 address) {
    return static_cast<u64>((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// the rows of a stage, as they lie in shared memory, to their sorted places
DEVICE void save_rows(const Context& c, u32 rows, const Item& item, int step) {
    const Params& p = c.p;
    for (int i = 0; i < item.padded;) {
        int box = box_of(item.padded - i);
        store_tile_2d(&p.sorted_8 + box, rows + i * 128, step * DEPTH, item.sorted_row + i);
        i += 8 << box;
    }
    stores_commit();
}

// A warp's first lane: what the stage of this barrier held is read by the warp, and stored by the lane if it is saved. A
// pair's rows come to both CTAs at once, so both must have read theirs.
DEVICE void release(const Context& c, u32 empty) {
    barrier_arrive(empty);
    if (c.p.paired) barrier_arrive_in(c.rank() ^ 1, empty);
}

// A warpgroup's results: bytes of one token, half of a tile's columns, and of the parts in which they lie
constexpr int UP_BYTES = UP_COLUMNS / 2 * 2;
constexpr int DOWN_BYTES = WEIGHT_ROWS / 2 * 2;
constexpr int PART_BYTES = sizeof(Shared::scratch) / 2;
static_assert(PART_BYTES == WEIGHT_BYTES / 2, "the second part is where the warpgroup's weights were");

// Results beyond the first part are put into the item's last stage, which is given back once they are read.
template <int N>
DEVICE bool keeps_stage(int phase) {
    return (phase == PHASE_UP && N * UP_BYTES > PART_BYTES) || (phase == PHASE_DOWN && N * DOWN_BYTES > PART_BYTES);
}

// What a warp's first lane still has to do for the item before, whose results the copy engine stores while the next item's
// products are made.
struct Debt {
    u32 done = 0;  // the item's barrier; 0: nothing
    bool stage = false;
    DEVICE void tell() {
        stores_wait();
        barrier_arrive(done);
        done = 0;
    }
    DEVICE void settle(const Context& c, const Position& at) {
        if (done == 0) return;
        stores_wait_read<0>();
        if (stage) release(c, c.empty(at.before(c.stages)));
        tell();
    }
};
constexpr int TELL_AT = 2;  // the step of a pair whose products are under way while its stores are waited for

// An instruction more in this loop is one for each of eight warps, while the chip is at its power limit.
template <int N>
DEVICE void multiply(float (&sums)[N / 2], const Context& c, Position& at, const Item& item, int group, Debt& debt) {
    u32 before = 0;  // the barrier that gives the stage before back
    int steps = item.k_steps, tell_at = c.p.paired ? min(TELL_AT, steps - 1) : 0;
    bool gathered = !item.by_tile, first = threadIdx.x % 32 == 0;
    bool saves = item.save && threadIdx.x == CONSUMER_FIRST;
    int busy = saves || debt.done != 0;      // this thread has more to do than multiply
    int release_from = first ? 1 : 1 << 30;  // the step
    u64 first_weights = tile_descriptor(c.weights_at(0) + group * (WEIGHT_BYTES / 2));
    u32 rows_from_weights = (WEIGHT_BYTES - group * (WEIGHT_BYTES / 2)) >> 4;
    for (int step = 0; step < steps; ++step) {
        u32 full = c.full(at.stage);
        barrier_wait(full, at.parity);
        if (gathered) fence_async_proxy();
        u64 weights = first_weights + at.stage * (c.stage_bytes() >> 4);
        u64 rows = weights + rows_from_weights;
        products_begin();
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) product<N>(sums, weights + 2 * k, rows + 2 * k);
        products_commit();
        if (busy) {
            if (saves) save_rows(c, c.rows_at(at.stage), item, step);
            if (debt.done != 0) {
                if (step == 0 && debt.stage) {
                    if (saves)
                        stores_wait_read<1>();
                    else
                        stores_wait_read<0>();
                    release(c, c.empty(at.before(c.stages)));
                }
                if (step == tell_at) {
                    debt.tell();
                    busy = saves;
                }
            }
        }
        products_wait<1>();
        stores_wait_read<1>();  // of what is saved; who saves nothing has no more than one store under way
        if (step >= release_from) release(c, before);
        before = c.empty_of(full);
        at.next(c.stages);
    }
    products_wait<0>();
    if (saves) stores_wait_read<0>();
    if (first && !keeps_stage<N>(item.phase)) release(c, before);
    debt.stage = keeps_stage<N>(item.phase);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

DEVICE void drain(const Context& c, Position& at, int steps) {
    for (int step = 0; step < steps; ++step) {
        barrier_wait(c.full(at.stage), at.parity);
        if (threadIdx.x % 32 == 0) release(c, c.empty(at.stage));
        at.next(c.stages);
    }
}

// Where a warpgroup puts a part of its results: 128 tokens of an up item, 64 of a down item. `stage` is the item's last. Its
// weights are this warpgroup's own; its rows both read.
DEVICE u32 results_at(const Context& c, int stage, int group, int part) {
    return part == 0   ? shared_address(c.s.scratch) + group * PART_BYTES
           : part == 1 ? c.weights_at(stage) + group * PART_BYTES
                       : c.rows_at(stage) + group * 2 * PART_BYTES + (part - 2) * PART_BYTES;
}

// The first lane of a warp: the copy engine stores the results of its 64 tokens, and what fills up the last eight.
DEVICE void store_results(const Context& c, const Item& item, int group, int stage) {
    constexpr int SHARE = MAX_TOKEN_TILE / (GROUP_THREADS / 32);
    const Params& p = c.p;
    bool up = item.phase == PHASE_UP;
    const TensorMap* maps = up ? &p.done_8 : &p.sorted_8;
    int bytes = up ? UP_BYTES : DOWN_BYTES, first = threadIdx.x % GROUP_THREADS / 32 * SHARE, end = min(item.rows, first + SHARE);
    int column = item.column_tile * (up ? UP_COLUMNS : WEIGHT_ROWS) + group * bytes / 2;
    u32 place = results_at(c, stage, group, first * bytes / PART_BYTES) + first * bytes % PART_BYTES;
#pragma unroll 1
    for (int i = first; i < end;) {
        int left = end - i, which = left > 56 ? 3 : left > 24 ? 2 : left > 8 ? 1 : 0;  // 64, 32, 16 or 8
        store_tile_2d(maps + which, place, column, item.sorted_row + i);
        i += 8 << which;
        place += bytes << (3 + which);
    }
    stores_commit();
}

// What gate and up values become where there are biases, a limit, or another activation than SiLU; `own` is this thread's
// intermediate column.
template <int N>
DEVICE void activate_tile(float (&sums)[N / 2], u32 (&halves)[N / 8], const Params& p, const Item& item, int own) {
    float gate_bias = 0, up_bias = 0;
    if (p.gate_up_bias != nullptr && own < p.intermediate) {
        const u16* bias = p.gate_up_bias + static_cast<i64>(item.expert) * 2 * p.intermediate + own;
        gate_bias = half_to_float(bias[0]);
        up_bias = half_to_float(bias[p.intermediate]);
    }
    if (p.limit < INFINITE) {
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            bool gate = i % 4 < 2;
            sums[i] = clamped(sums[i] + (gate ? gate_bias : up_bias), gate ? -INFINITE : -p.limit, p.limit);
        }
        gate_bias = up_bias = 0;
    }
    float alpha = 0.5f * p.alpha, up_offset = p.up_offset + up_bias;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        float first = activate(sums[4 * j] + gate_bias, sums[4 * j + 2], alpha, up_offset);
        float second = activate(sums[4 * j + 1] + gate_bias, sums[4 * j + 3], alpha, up_offset);
        halves[j] = pack_halves(first, second);
    }
}

template <int N>
DEVICE void finish_up(float (&sums)[N / 2], const Context& c, const Item& item, int group, int stage) {
    int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    int column = item.column_tile * UP_COLUMNS + group * 32;
    int own = column + warp * 8 + lane / 4;
    u32 halves[N / 8];
    if (c.is_silu()) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
            halves[j] = pack_halves(silu(sums[4 * j], sums[4 * j + 2]), silu(sums[4 * j + 1], sums[4 * j + 3]));
    } else {
        activate_tile<N>(sums, halves, c.p, item, own);
    }
    named_barrier(BARRIER_GROUP + group, GROUP_THREADS);  // all have read the stage, and what was stored before is read
#pragma unroll
    for (int j = 0; j < N / 8; j += 4) {
        // four matrices of eight tokens, or what is left: then the last ones are stored once more in place
        constexpr int LAST = N / 8 - 1;
        int token = 8 * min(j + lane / 8, LAST) + lane % 8;
        u32 part = results_at(c, stage, group, 8 * j * UP_BYTES / PART_BYTES);
        u32 target = part + token % (PART_BYTES / UP_BYTES) * UP_BYTES + ((warp ^ (token >> 1 & 3)) << 4);
        store_transposed(
            target, halves[j], halves[j + 1 < LAST ? j + 1 : LAST], halves[j + 2 < LAST ? j + 2 : LAST],
            halves[j + 3 < LAST ? j + 3 : LAST]
        );
    }
    fence_async_proxy();
}

template <int N>
DEVICE void finish_down(float (&sums)[N / 2], const Context& c, const Item& item, int group, int stage) {
    const Params& p = c.p;
    int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    int column = item.column_tile * WEIGHT_ROWS + group * 64;
    int own = column + warp * 16 + lane / 4;
    if (p.down_bias != nullptr) {
        const u16* bias = p.down_bias + static_cast<i64>(item.expert) * p.hidden;
        float low_bias = own < p.hidden ? half_to_float(bias[own]) : 0;
        float high_bias = own + 8 < p.hidden ? half_to_float(bias[own + 8]) : 0;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) sums[i] += i % 4 < 2 ? low_bias : high_bias;
    }
    named_barrier(BARRIER_GROUP + group, GROUP_THREADS);  // all have read the stage, and what was stored before is read
#pragma unroll
    for (int j = 0; j < N / 8; j += 2) {
        constexpr int LAST = N / 8 - 1;
        if (j == 16) named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);  // both have read the stage's rows
        int next = j < LAST ? j + 1 : LAST, matrix = lane / 8;  // rows + 0, rows + 8, then those of the next eight tokens
        int token = 8 * min(j + matrix / 2, LAST) + lane % 8;
        u32 part = results_at(c, stage, group, 8 * j * DOWN_BYTES / PART_BYTES);
        u32 target = part + token % (PART_BYTES / DOWN_BYTES) * DOWN_BYTES + (((2 * warp + matrix % 2) ^ (token & 7)) << 4);
        store_transposed(
            target, pack_halves(sums[4 * j], sums[4 * j + 1]), pack_halves(sums[4 * j + 2], sums[4 * j + 3]),
            pack_halves(sums[4 * next], sums[4 * next + 1]), pack_halves(sums[4 * next + 2], sums[4 * next + 3])
        );
    }
    fence_async_proxy();
}

// partial logits of 64 experts, float32: [split][token][expert]
template <int N>
DEVICE void finish_logits(float (&sums)[N / 2], const Context& c, const Item& item, int group) {
    const Params& p = c.p;
    int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    int expert = item.expert * WEIGHT_ROWS + group * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        int token = i / 4 * 8 + lane % 4 * 2 + i % 2, row = expert + (i % 4 / 2) * 8;
        if (token < item.rows && row < p.experts)
            p.logits[(static_cast<i64>(item.column_tile) * p.tokens + item.first + token) * p.experts + row] = sums[i];
    }
}

template <int N>
DEVICE void multiply_item(const Context& c, Position& at, const Item& item, int group, Debt& debt) {
    // zeros, though the first product could ignore what is there: read uninitialised, the registers of all widths would be
    // alive at once, and spilled
    float sums[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = 0;
    multiply<N>(sums, c, at, item, group, debt);
    int stage = at.before(c.stages);
    if (item.phase == PHASE_UP)
        finish_up<N>(sums, c, item, group, stage);
    else if (item.phase == PHASE_DOWN)
        finish_down<N>(sums, c, item, group, stage);
    else if constexpr (N <= MAX_ROUTE_TOKENS)
        finish_logits<N>(sums, c, item, group);
}

DEVICE void multiply_item(const Context& c, Position& at, const Item& item, int group, Debt& debt) {
    int phase = item.phase;
    switch (item.padded) {
#define WIDTH(N) \
    case N: \
        multiply_item<N>(c, at, item, group, debt); \
        break;
        WIDTHS
#undef WIDTH
    }
    if (phase == PHASE_ROUTE) return;
    named_barrier(BARRIER_GROUP + group, GROUP_THREADS);  // the results are in shared memory
    if (threadIdx.x % 32 == 0) store_results(c, item, group, at.before(c.stages));
}
