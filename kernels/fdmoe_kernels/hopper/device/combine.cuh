// The last steps: sum each token's rows in the order of k, and leave the counters as the next launch wants them.
#pragma once
#include "page.cuh"

// y[token] = sum over k of weight * part, for a tile of tokens and one block of columns. CONSUMER_THREADS threads.
DEVICE void combine(const Context& c, const Item& item) {
    const Params& p = c.p;
    int down_tiles = ceil_div(p.hidden, WEIGHT_ROWS), block = ceil_div(down_tiles, p.column_blocks) * WEIGHT_ROWS;
    int column = item.column_tile * block, vectors = min(block, p.hidden - column) / 8;
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
#if FAULT == 3 || FAULT == 4
        if (item.row_tile == 0 && item.column_tile == 0)
            for (int j = 0; j < 8; ++j) sums[j] = FAULT == FAULT_NAN ? __int_as_float(0x7fc00000) : 1 - 2 * sums[j];
#endif
        Vector result;
#pragma unroll
        for (int j = 0; j < 4; ++j) result.words[j] = pack_halves(sums[2 * j], sums[2 * j + 1]);
        store_vector(p.y + token * p.hidden + at, result);
    }
}

// The last CTA of a launch, all consumer threads: put the counters back, tell the host.
DEVICE void close_launch(const Context& c) {
    const Params& p = c.p;
    int thread = threadIdx.x - CONSUMER_FIRST;
    if (thread < 32) {
        bool aborted = load_relaxed(p.control + ABORT) != 0;
        i64 total = thread < TOTAL_LAUNCHES ? __ldcg(p.totals + thread) : 0;
        if (thread == 0) p.totals[TOTAL_LAUNCHES] = c.launch;
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
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
    for (int word = thread; word < p.control_words; word += CONSUMER_THREADS)
        if (word != NEVER) p.control[word] = 0;
}
