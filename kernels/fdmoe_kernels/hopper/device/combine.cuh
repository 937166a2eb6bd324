// The last steps: sum each token's rows in the order of k, and leave the counters as the next launch wants them.
#pragma once
#include "fault.cuh"
#include "page.cuh"

struct Entry {
    float weight;
    int row;  // of `sorted`; -1: it has no expert
};
constexpr int MAX_AT_ONCE = sizeof(Shared::scratch) / sizeof(Entry);  // entries that are combined
static_assert(MAX_AT_ONCE >= MAX_EXPERTS);                            // those of one token at least

DEVICE int combined_at_once(const Context& c) { return MAX_AT_ONCE / c.entries_per_token(); }

// Into shared memory: the entries of an item's tokens from `begin` on. CONSUMER_THREADS threads.
DEVICE void find_entries(const Context& c, const Item& item, int begin) {
    const Params& p = c.p;
    int per_token = c.entries_per_token(), count = min(combined_at_once(c), item.rows - begin) * per_token;
    Entry* entries = reinterpret_cast<Entry*>(c.s.scratch);
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);  // all have read what was there
    for (int i = threadIdx.x - CONSUMER_FIRST; i < count; i += CONSUMER_THREADS) {
        int token = item.first + begin + i / per_token, k = i % per_token;
        i64 at = static_cast<i64>(token) * per_token + k;
        float weight = __ldcg(p.weights + at);
        Place place = {p.experts + k - p.top_k, token};
        if (k < p.top_k) {
            u64 both = __ldcg(reinterpret_cast<const u64*>(p.places) + at);
            place = {static_cast<int>(both), static_cast<int>(both >> 32)};
        }
        int row = -1;
        if (__float_as_uint(weight) != ABSENT) {  // else it has no place
            int tiles = c.s.ends[place.expert] - (place.expert == 0 ? 0 : c.s.ends[place.expert - 1]);
            int width = tile_width(c.s.counts[place.expert], tiles);
            row = c.s.starts[place.expert] + place.at / width * padded_width(width) + place.at % width;
        }
        entries[i] = {weight, row};
    }
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
}

// y[token] = sum over k of weight * row, for a tile of tokens and one block of columns. CONSUMER_THREADS threads, which
// have found the first tokens' entries. A thread has eight columns of two tokens, whose loads take their time together.
DEVICE void combine(const Context& c, const Item& item) {
    constexpr int TOKENS = 2, AT_ONCE = 8;
    const Params& p = c.p;
    int block = p.block_tiles * WEIGHT_ROWS, thread = threadIdx.x - CONSUMER_FIRST;
    int column = item.column_tile * block, vectors = max(0, min(block, p.hidden - column)) / 8;
    int per_token = c.entries_per_token(), at_once = combined_at_once(c);
#pragma unroll 1
    for (int begin = 0; begin < item.rows; begin += at_once) {
        if (begin > 0) find_entries(c, item, begin);
        int tokens = min(at_once, item.rows - begin);
#pragma unroll 1
        for (int i = thread; i < ceil_div(tokens, TOKENS) * vectors; i += CONSUMER_THREADS) {
            int first = i / vectors * TOKENS;
            i64 at = column + i % vectors * 8;
            const Entry* entries = reinterpret_cast<const Entry*>(c.s.scratch) + first * per_token;
            float sums[TOKENS][8] = {};
#pragma unroll 1
            for (int start = 0; start < per_token; start += AT_ONCE) {
                float weights[TOKENS][AT_ONCE];
                Vector rows[TOKENS][AT_ONCE];
#pragma unroll
                for (int t = 0; t < TOKENS; ++t)
#pragma unroll
                    for (int k = 0; k < AT_ONCE; ++k) {
                        Entry entry = {0, -1};
                        if (first + t < tokens && start + k < per_token) entry = entries[t * per_token + start + k];
                        weights[t][k] = entry.row < 0 ? 0 : entry.weight;
                        rows[t][k] = {};
                        load_vector_if(entry.row >= 0, rows[t][k], p.sorted + static_cast<i64>(entry.row) * p.hidden + at);
                    }
#pragma unroll
                for (int t = 0; t < TOKENS; ++t)
#pragma unroll
                    for (int k = 0; k < AT_ONCE; ++k)
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            sums[t][2 * j] += weights[t][k] * low_half(rows[t][k].words[j]);
                            sums[t][2 * j + 1] += weights[t][k] * high_half(rows[t][k].words[j]);
                        }
            }
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                if (first + t >= tokens) break;
                if (item.row_tile == 0 && item.column_tile == 0)
                    for (int j = 0; j < 8; ++j) sums[t][j] = spoilt(sums[t][j]);
                Vector result;
#pragma unroll
                for (int j = 0; j < 4; ++j) result.words[j] = pack_halves(sums[t][2 * j], sums[t][2 * j + 1]);
                store_vector(p.y + static_cast<i64>(item.first + begin + first + t) * p.hidden + at, result);
            }
        }
    }
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);  // the next item's results may be put where the entries were
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
