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
    for (int i = 0, box; i < item.padded; i += box) {
        box = box_rows(item.padded - i);
        store_tile_2d(&p.sorted_8 + box / 16, rows + i * 128, step * DEPTH, item.sorted_row + i);
    }
    stores_commit();
}

// What a stage held is read by this warp, and stored by its first lane if it is saved. A pair's rows come to both CTAs at
// once, so both must have read theirs.
DEVICE void release(const Context& c, int stage) {
    if (threadIdx.x % 32 != 0) return;
    barrier_arrive(c.empty(stage));
    if (c.p.paired) barrier_arrive_in(c.rank() ^ 1, c.empty(stage));
}

template <int N>
DEVICE void multiply(float (&sums)[N / 2], const Context& c, Position& at, const Item& item, int group) {
    int before = 0, steps = item.k_steps;
    bool gathered = !item.by_tile;
    bool saves = item.save && threadIdx.x == CONSUMER_FIRST;
    for (int step = 0; step < steps; ++step) {
        barrier_wait(c.full(at.stage), at.parity);
        if (gathered) fence_async_proxy();
        u64 weights = tile_descriptor(c.weights_at(at.stage) + group * (WEIGHT_BYTES / 2));
        u64 rows = tile_descriptor(c.rows_at(at.stage));
        products_begin();
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) product<N>(sums, weights + 2 * k, rows + 2 * k);
        products_commit();
        if (saves) save_rows(c, c.rows_at(at.stage), item, step);
        products_wait<1>();
        if (saves) stores_wait_read<1>();
        if (step > 0) release(c, before);
        before = at.stage;
        at.next(c.stages);
    }
    products_wait<0>();
    if (saves) stores_wait_read<0>();
    if (steps > 0) release(c, before);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

DEVICE void drain(const Context& c, Position& at, int steps) {
    for (int step = 0; step < steps; ++step) {
        barrier_wait(c.full(at.stage), at.parity);
        release(c, at.stage);
        at.next(c.stages);
    }
}

// A warpgroup's results, [TOKENS][BYTES] in its scratch, of which `tokens` are wanted, go to rows of `target`: one after
// another, or those of `entries`. BYTES: 64 or 128 a token. All is read before anything is stored: one by one, the reads
// took their time one after another, and half of the epilogue.
template <int BYTES, int TOKENS>
DEVICE void copy_out(u32 scratch, u16* target, int row_length, int column, int columns, const int* entries, int tokens) {
    constexpr int CHUNKS = BYTES / 16, AT_ONCE = GROUP_THREADS / CHUNKS, PASSES = (TOKENS + AT_ONCE - 1) / AT_ONCE;
    int thread = threadIdx.x % GROUP_THREADS, chunk = thread % CHUNKS, first = thread / CHUNKS;
    if (column + chunk * 8 >= columns) tokens = 0;
    Vector vectors[PASSES];
    int rows[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
        int token = first + i * AT_ONCE;
        int swizzled = BYTES == 128 ? chunk ^ (token & 7) : chunk ^ (token >> 1 & 3);
        vectors[i] = load_shared_vector(scratch + token * BYTES + swizzled * 16);
        rows[i] = entries == nullptr ? token : entries[token];
    }
#pragma unroll
    for (int i = 0; i < PASSES; ++i)
        if (first + i * AT_ONCE < tokens)
            store_vector(target + static_cast<i64>(rows[i]) * row_length + column + chunk * 8, vectors[i]);
}

template <int N>
DEVICE void finish_up(float (&sums)[N / 2], const Context& c, const Item& item, int group) {
    const Params& p = c.p;
    int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    u32 scratch = shared_address(c.s.scratch) + group * 8192;
    int column = item.column_tile * UP_COLUMNS + group * 32;
    int own = column + warp * 8 + lane / 4;
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
    u32 halves[N / 8];
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
        float first = activate(sums[4 * j] + gate_bias, sums[4 * j + 2], alpha, up_offset);
        float second = activate(sums[4 * j + 1] + gate_bias, sums[4 * j + 3], alpha, up_offset);
        halves[j] = pack_halves(first, second);
    }
    constexpr int CHUNK = N < 128 ? N : 128;  // tokens that the scratch holds at once
#pragma unroll
    for (int start = 0; start < N; start += CHUNK) {
        named_barrier(BARRIER_GROUP + group, GROUP_THREADS);  // all have read what was there, of the item before too
#pragma unroll
        for (int i = 0; i < CHUNK / 8; i += 4) {
            // four matrices of eight tokens, or what is left: then the last ones are stored once more in place
            constexpr int LAST = N / 8 - 1;
            int j = start / 8 + i, matrix = lane / 8;
            if (j > LAST) continue;
            int token = 8 * min(i + matrix, LAST - start / 8) + lane % 8;
            u32 target = scratch + token * 64 + ((warp ^ (token >> 1 & 3)) << 4);
            store_transposed(
                target, halves[j], halves[j + 1 < LAST ? j + 1 : LAST], halves[j + 2 < LAST ? j + 2 : LAST],
                halves[j + 3 < LAST ? j + 3 : LAST]
            );
        }
        named_barrier(BARRIER_GROUP + group, GROUP_THREADS);
        u16* target = p.act + (item.sorted_row + start) * static_cast<i64>(p.intermediate);
        copy_out<64, CHUNK>(scratch, target, p.intermediate, column, p.intermediate, nullptr, min(CHUNK, item.rows - start));
    }
    if (item.save && threadIdx.x == CONSUMER_FIRST) stores_wait();
}

template <int N>
DEVICE void finish_down(float (&sums)[N / 2], const Context& c, const Item& item, const int* entries, int group) {
    const Params& p = c.p;
    int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    u32 scratch = shared_address(c.s.scratch) + group * 8192;
    int column = item.column_tile * WEIGHT_ROWS + group * 64;
    int own = column + warp * 16 + lane / 4;
    if (p.down_bias != nullptr) {
        const u16* bias = p.down_bias + static_cast<i64>(item.expert) * p.hidden;
        float low_bias = own < p.hidden ? half_to_float(bias[own]) : 0;
        float high_bias = own + 8 < p.hidden ? half_to_float(bias[own + 8]) : 0;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) sums[i] += i % 4 < 2 ? low_bias : high_bias;
    }
    constexpr int CHUNK = N < 64 ? N : 64;
#pragma unroll
    for (int start = 0; start < N; start += CHUNK) {
        named_barrier(BARRIER_GROUP + group, GROUP_THREADS);  // all have read what was there, of the item before too
#pragma unroll
        for (int i = 0; i < CHUNK / 8; i += 2) {
            constexpr int LAST = N / 8 - 1;
            int j = start / 8 + i, matrix = lane / 8;  // rows + 0, rows + 8, then the same of the next eight tokens
            if (j > LAST) continue;
            int next = j < LAST ? j + 1 : LAST;
            int token = 8 * min(i + matrix / 2, LAST - start / 8) + lane % 8;
            u32 target = scratch + token * 128 + (((2 * warp + matrix % 2) ^ (token & 7)) << 4);
            store_transposed(
                target, pack_halves(sums[4 * j], sums[4 * j + 1]), pack_halves(sums[4 * j + 2], sums[4 * j + 3]),
                pack_halves(sums[4 * next], sums[4 * next + 1]), pack_halves(sums[4 * next + 2], sums[4 * next + 3])
            );
        }
        named_barrier(BARRIER_GROUP + group, GROUP_THREADS);
        copy_out<128, CHUNK>(scratch, p.part, p.hidden, column, p.hidden, entries + start, min(CHUNK, item.rows - start));
    }
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
DEVICE void multiply_item(const Context& c, Position& at, const Item& item, const int* entries, int group) {
    // zeros, though the first product could ignore what is there: read uninitialised, the registers of all widths would be
    // alive at once, and spilled
    float sums[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = 0;
    multiply<N>(sums, c, at, item, group);
    if (item.phase == PHASE_UP)
        finish_up<N>(sums, c, item, group);
    else if (item.phase == PHASE_DOWN)
        finish_down<N>(sums, c, item, entries, group);
    else if constexpr (N <= MAX_ROUTE_TOKENS)
        finish_logits<N>(sums, c, item, group);
}

DEVICE void multiply_item(const Context& c, Position& at, const Item& item, const int* entries, int group) {
    switch (item.padded) {
#define WIDTH(N) \
    case N: \
        multiply_item<N>(c, at, item, entries, group); \
        break;
        WIDTHS
#undef WIDTH
    }
}
