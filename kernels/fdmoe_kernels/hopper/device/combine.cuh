// The last steps: sum each token's rows in the order of k, and leave the counters as the next launch wants them.
#pragma once
#include "fault.cuh"
#include "page.cuh"

// y[token] = sum over k of weight * part, for a tile of tokens and one block of columns. CONSUMER_THREADS threads.
DEVICE void combine(const Context& c, const Item& item) {
    const Params& p = c.p;
    int block = c.block_tiles() * WEIGHT_ROWS;
    int column = item.column_tile * block, vectors = max(0, min(block, p.hidden - column)) / 8;
    int per_token = c.entries_per_token();
    for (int i = threadIdx.x - CONSUMER_FIRST; i < item.rows * vectors; i += CONSUMER_THREADS) {
        i64 token = item.first + i / vectors;
        i64 at = column + i % vectors * 8;
        const float* weights = p.weights + token * per_token;
        const u16* rows = p.part + token * per_token * p.hidden + at;
        float sums[8] = {};
#pragma unroll 8
        for (int k = 0; k < per_token; ++k) {
            float weight = __ldcg(weights + k);
            bool absent = __float_as_uint(weight) == ABSENT;
            Vector row = load_vector(rows + static_cast<i64>(k) * p.hidden);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sums[2 * j] += absent ? 0.0f : weight * low_half(row.words[j]);
                sums[2 * j + 1] += absent ? 0.0f : weight * high_half(row.words[j]);
            }
        }
        if (item.row_tile == 0 && item.column_tile == 0)
            for (int j = 0; j < 8; ++j) sums[j] = spoilt(sums[j]);
        Vector result;
#pragma unroll
        for (int j = 0; j < 4; ++j) result.words[j] = pack_halves(sums[2 * j], sums[2 * j + 1]);
        store_vector(p.y + token * p.hidden + at, result);
    }
}

// What a launch that is done adds to total `lane` of those before TOTAL_EXPERT_TOKENS (Workspace.bytes_moved defines the
// bytes). Called by a whole warp of a CTA that has mapped the experts.
DEVICE i64 work_done(const Context& c, int lane, int route, int up, int down, int combine) {
    const Params& p = c.p;
    int touched = 0, entries = 0;
#pragma unroll 1
    for (int expert = lane; expert < c.all_experts(); expert += 32) {
        touched += c.s.counts[expert] > 0;
        entries += c.s.counts[expert];
    }
    i64 touched_experts = __reduce_add_sync(~0u, touched), all_entries = __reduce_add_sync(~0u, entries);
    i64 hidden = p.hidden, intermediate = p.intermediate;
    i64 router = p.given_experts ? 0 : p.experts * hidden;
    i64 expert = 3 * hidden * intermediate + (p.gate_up_bias ? 2 * intermediate : 0) + (p.down_bias ? hidden : 0);
    i64 entry = 3 * hidden + 2 * intermediate;
    return lane == 0             ? route
           : lane == 1           ? up
           : lane == 2           ? down
           : lane == 3           ? combine
           : lane == TOTAL_BYTES ? 2 * (router + touched_experts * expert + all_entries * entry + p.tokens * hidden)
                                 : 0;
}

// The last CTA of a launch, all consumer threads: add to the totals, put the counters back, tell the host. `route` and the
// others are the launch's items.
//
// Only here is it known how the launch ended: a wait can still see the abort word after the last products are done. The
// totals cost the launch's end next to nothing: the experts' are added without waiting for what was there, and the others
// are worked out while the words they are added to are on their way. In a launch that was not aborted every CTA has mapped
// the experts, before it found no item left.
DEVICE void close_launch(const Context& c, int route, int up, int down, int combine) {
    const Params& p = c.p;
    int thread = threadIdx.x - CONSUMER_FIRST;
    bool aborted = load_relaxed(p.control + ABORT) != 0;
    if (thread < 32) {
        i64 total = thread < TOTAL_EXPERT_TOKENS ? __ldcg(p.totals + thread) : 0;
        i64 done = work_done(c, thread, route, up, down, combine);
        if (!aborted) total += done;
        if (thread == TOTAL_LAUNCHES) total = c.launch;
        if (thread < TOTAL_EXPERT_TOKENS) p.totals[thread] = total;
        // the host's line: launch, how it ended, and the items of the four phases
        i64 low = __shfl_sync(~0u, total, max(0, 2 * thread - 2) % 32);
        i64 high = __shfl_sync(~0u, total, max(0, 2 * thread - 1) % 32);
        if (thread == 0) {
            low = c.launch;
            high = c.launch << 8 | (aborted ? EXIT_ABORTED : EXIT_DONE);
        } else if (thread == 3) {
            low = high = 0;
        }
        if (p.page != nullptr && thread < 4) store_host(p.page + PAGE_EXIT + 2 * thread, low, high);
    }
    if (!aborted)
#pragma unroll 1
        for (int expert = thread; expert < c.all_experts(); expert += CONSUMER_THREADS)
            add_total(p.totals + TOTAL_EXPERT_TOKENS + expert, c.s.counts[expert]);
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
    for (int word = thread; word < p.control_words; word += CONSUMER_THREADS)
        if (word != NEVER) p.control[word] = 0;
}
