// Warps 1 to 3: fill the ring. A stage is
//
//     WEIGHT_ROWS rows of 128 bytes of weights (by the tensor copy engine) | token_tile rows of 128 bytes (gathered by
//     cp.async, or sorted ones by the copy engine)
//
// both with the 128-byte swizzle: the 16-byte chunk c of row r lies at chunk c ^ (r % 8).
// Weights do not depend on other CTAs: they are on their way while the item still waits for its rows.
#pragma once
#include "params.cuh"

struct ItemReader {
    const Context& c;
    int slot = 0;
    u32 parity = 0;
    DEVICE explicit ItemReader(const Context& context) : c(context) {}
    DEVICE const Item& known() const {
        barrier_wait(shared_address(&c.s.known[slot]), parity);
        return c.s.items[slot];
    }
    DEVICE void ready() const { barrier_wait(shared_address(&c.s.ready[slot]), parity); }
    DEVICE bool is_ready() const { return barrier_tested(shared_address(&c.s.ready[slot]), parity); }
    DEVICE u32 done() const { return shared_address(&c.s.done[slot]); }
    DEVICE u32 over() const { return shared_address(&c.s.over[slot]); }
    DEVICE void next() {
        if (++slot == c.p.slots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// steps before an item's last one at which the next ticket may be taken: a ticket that waits behind a long item is one that
// an idle CTA cannot have
constexpr int LEAD = 24;

// one thread
DEVICE void load_weights(const Context& c) {
    const Params& p = c.p;
    prefetch_map(&p.router);
    prefetch_map(&p.gate_up);
    prefetch_map(&p.down);
    ItemReader reader(c);
    Position at = {0, 0};
    while (true) {
        const Item& item = reader.known();
        int phase = item.phase, steps = item.k_steps, k = item.k_begin, expert = item.expert, column = item.column_tile;
        if (phase == PHASE_LEFT) return;
        u32 over = reader.over();
        reader.next();
        if (steps == 0) barrier_arrive(over);
        for (int step = 0; step < steps; ++step, ++k) {
            if (step == max(0, steps - LEAD)) barrier_arrive(over);
            barrier_wait(c.empty(at.stage), at.parity ^ 1);
            u32 full = c.full(at.stage), target = c.weights_at(at.stage);
            barrier_arrive_expecting(full, WEIGHT_BYTES);
            if (phase == PHASE_UP)
                load_tile_5d(target, &p.gate_up, full, k * DEPTH, 0, 0, column * (UP_COLUMNS / 8), expert);
            else if (phase == PHASE_DOWN)
                load_tile_3d(target, &p.down, full, k * DEPTH, column * WEIGHT_ROWS, expert);
            else
                load_tile_2d(target, &p.router, full, k * DEPTH, expert * WEIGHT_ROWS);
            at.next(c.stages);
        }
    }
}

// a width is put together of boxes of 8 << box rows, whose maps follow the one for 8
DEVICE int box_of(int rows) { return rows >= 128 ? 4 : rows >= 64 ? 3 : rows >= 32 ? 2 : rows >= 16 ? 1 : 0; }

// Rows that lie together: one thread asks the tensor copy engine. Of a pair, each CTA asks for a half or about that, in as
// few boxes as it takes, and the copy engine gives it to both.
//
// One warp is enough. The other does not even look at the stages, and loses its place in the ring: the items whose rows are
// gathered are before all of these, so it has nothing to do there any more.
DEVICE void load_rows(const Context& c, Position& at, int phase, int row, int padded, int steps, int thread) {
    const Params& p = c.p;
    const TensorMap* maps = phase == PHASE_DOWN ? &p.act_8 : &p.sorted_8;
    if (!__any_sync(~0u, thread == 0)) return;  // a vote: the compiler then knows that the warp goes one way
    if (thread == 0) fence_async_proxy_global();
    int half = round_up(ceil_div(padded, 2), 64);
    int begin = c.rank() * half, end = p.paired && begin == 0 ? min(half, padded) : padded;
    for (int step = 0; step < steps; ++step) {
        barrier_wait(c.empty(at.stage), at.parity ^ 1);
        u32 full = c.full(at.stage);
        if (thread == 0) {
            barrier_arrive_times(full, GATHER_THREADS - 1);
            barrier_arrive_expecting(full, padded * 128);
            for (int i = begin; i < end;) {
                int box = box_of(end - i);
                u32 target = c.rows_at(at.stage) + i * 128;
                if (p.paired)
                    load_tile_2d_in_both(target, maps + box, full, step * DEPTH, row + i);
                else
                    load_tile_2d(target, maps + box, full, step * DEPTH, row + i);
                i += 8 << box;
            }
        }
        __syncwarp();  // a lane that fell a round behind would wait for a phase that is over
        at.next(c.stages);
    }
}

// This CTA's share of x, into L2: the router's short items would wait for the memory at every step.
DEVICE void prefetch_share(const Context& c) {
    constexpr i64 PIECE = 16384, LIMIT = 32 << 20;
    i64 bytes = min(static_cast<i64>(c.p.tokens) * c.p.hidden * 2, LIMIT);
    for (i64 at = blockIdx.x * PIECE; at < bytes; at += gridDim.x * PIECE)
        prefetch_bytes(reinterpret_cast<const u8*>(c.p.x) + at, static_cast<u32>(min(PIECE, bytes - at)));
}

// GATHER_THREADS threads: eight for the 128 bytes of a row, eight rows at once
DEVICE void gather_rows(const Context& c, int thread) {
    constexpr int AT_ONCE = GATHER_THREADS / 8, PASSES = MAX_TOKEN_TILE / AT_ONCE, BATCH = 4;
    const Params& p = c.p;
    ItemReader reader(c);
    Position at = {0, 0};
    int chunk = thread % 8, first_row = thread / 8;
    u32 place = first_row * 128 + ((chunk ^ first_row) << 4);
    if (thread == 0 && p.tokens >= 512) prefetch_share(c);
    while (true) {
        const Item& item = reader.known();
        reader.ready();
        int phase = item.phase, steps = item.k_steps, k = item.k_begin;
        int padded = item.discard ? 0 : item.padded, passes = padded / AT_ONCE;
        if (phase == PHASE_LEFT) {
            copies_wait();  // no thread exits with copies of its own under way
            return;
        }
        if (item.by_tile) {
            int row = item.sorted_row;
            barrier_arrive(reader.over());
            reader.next();
            load_rows(c, at, phase, row, padded, steps, thread);
            continue;
        }
        // where this thread's rows start stays in registers: fetched one by one before each copy, they were the
        // bottleneck of the whole layer
        u32 starts[PASSES];
#pragma unroll
        for (int i = 0; i < PASSES; ++i)
            if (i < passes) starts[i] = c.s.source[reader.slot][first_row + i * AT_ONCE];
        barrier_arrive(reader.over());
        reader.next();
        const u8* base = reinterpret_cast<const u8*>(p.x);
        for (int step = 0; step < steps; ++step, ++k) {
            int column = k * DEPTH + chunk * 8;
            u32 bytes = column < p.hidden ? 16 : 0;
            const u8* from = base + (bytes ? column * 2 : 0);
            barrier_wait(c.empty(at.stage), at.parity ^ 1);
            u32 target = c.rows_at(at.stage) + place;
#pragma unroll
            for (int first = 0; first < PASSES; first += BATCH) {
                // a width is one pass or an even number of them
                if (first >= passes) break;
                const u8* rows[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; ++i) rows[i] = from + static_cast<u64>(starts[first + i]) * 16;
                copy_16_bytes(target + first * 1024, rows[0], bytes);
                if (first + 1 < passes) copy_16_bytes(target + (first + 1) * 1024, rows[1], bytes);
                if (first + 2 < passes) {
#pragma unroll
                    for (int i = 2; i < BATCH; ++i) copy_16_bytes(target + (first + i) * 1024, rows[i], bytes);
                }
            }
            barrier_arrive_after_copies(c.full(at.stage));
            at.next(c.stages);
        }
    }
}
