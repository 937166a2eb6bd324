// Routing's second half: from logits to experts, weights and the experts' lists. Eight warps, one or two tokens each at a
// time.
#pragma once
#include "page.cuh"

constexpr float LOWEST = -3.0e38f;
constexpr int MAX_TOP_K = 16;
constexpr int MAX_GROUPED_EXPERTS = 304;

// floats in the order of their bits as unsigned integers
DEVICE u32 sortable(float value) {
    u32 bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float from_sortable(u32 bits) { return __uint_as_float(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits); }

// NaN counts as the lowest value and infinity as the largest finite one: each token gets K distinct experts
DEVICE float finite(float value) { return value == value ? fminf(fmaxf(value, LOWEST), -LOWEST) : LOWEST; }

struct RouteScratch {
    int counts[MAX_EXPERTS];   // entries of this tile for each expert, then where they start in its list
    u16 chosen[MAX_ROUTE_TOKENS * MAX_TOP_K];  // [token][k]; MAX_EXPERTS: none
    u16 places[MAX_ROUTE_TOKENS * MAX_TOP_K];
    float choices[CONSUMER_THREADS / 32][MAX_GROUPED_EXPERTS];  // a warp's token, where the rule has groups
};
static_assert(sizeof(RouteScratch) <= 16384);

// J experts a lane: lane + 32 j. The parts of a logit are summed in their order: the same bits every time.
template <int J>
DEVICE void load_logits(const Context& c, float (&logits)[J], i64 token) {
    const Params& p = c.p;
    const float* from = p.logits + token * p.experts;
#pragma unroll
    for (int j = 0; j < J; ++j) logits[j] = 0;
#pragma unroll 4
    for (int split = 0; split < p.route_splits; ++split) {
#pragma unroll
        for (int j = 0; j < J; ++j)
            logits[j] += __ldcg(from + min(static_cast<int>(threadIdx.x % 32) + 32 * j, p.experts - 1));
        from += static_cast<i64>(p.tokens) * p.experts;
    }
}

// Experts outside of the best groups cannot be chosen. `values`: the token's E choices.
template <int J>
DEVICE void keep_best_groups(const Context& c, u32 (&key)[J], const float* values) {
    const Params& p = c.p;
    int lane = threadIdx.x % 32;
    __syncwarp();
    int size = p.experts / p.groups;
    u32 group_key = 0;
    if (lane < p.groups) {
        float best = -INFINITE, second = -INFINITE;
#pragma unroll 1
        for (int i = 0; i < size; ++i) {
            float value = values[lane * size + i];
            second = fmaxf(second, fminf(best, value));
            best = fmaxf(best, value);
        }
        group_key = sortable(p.group_scores == 2 ? best + second : best);
    }
    __syncwarp();  // the next token's choices are put where these were read
    u32 kept = 0;
#pragma unroll 1
    for (int i = 0; i < p.top_groups; ++i) {
        u32 top = __reduce_max_sync(~0u, group_key);
        int winner = __ffs(__ballot_sync(~0u, group_key == top)) - 1;
        kept |= 1u << winner;
        if (lane == winner) group_key = 0;
    }
#pragma unroll
    for (int j = 0; j < J; ++j) {
        int expert = lane + 32 * j;
        if (expert < p.experts && !(kept >> (expert / size) & 1)) key[j] = 0;
    }
}

// For a token, and one `apart` from it if there is a second one, whose steps take their time together. `values`: room for
// a token's E choices, for rules with groups, which are for one token. chosen: [token][MAX_TOP_K]. Lane k calls
// weigh(0 or 1, weight) with the token's weight of its k-th expert. PLAIN: see Context::is_plain; what other rules need is
// not even fetched.
template <int TOKENS, int J, bool PLAIN, class Weigh>
DEVICE void select(
    const Context& c, const float (&logits)[TOKENS][J], float* values, u16* chosen, Weigh weigh, int apart = 0, int count = 1
) {
    const Params& p = c.p;
    int lane = threadIdx.x % 32;
    float score[TOKENS][J], sum[TOKENS];
    u32 key[TOKENS][J];
    // softmax keeps the order of the logits, which still differ where scores round to the same number
    bool sigmoid = !PLAIN && p.sigmoid, corrected = !PLAIN && p.correction_bias != nullptr;
    bool grouped = TOKENS == 1 && !PLAIN && p.groups > 1;
    bool by_logits = !sigmoid && !corrected && (!grouped || p.group_scores == 1);
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
        float logit[J], highest = LOWEST;
#pragma unroll
        for (int j = 0; j < J; ++j) {
            int expert = lane + 32 * j;
            float value = LOWEST;
            if (expert < p.experts) {
                value = logits[t][j];
                if (!PLAIN && p.router_bias != nullptr) value += half_to_float(p.router_bias[expert]);
            }
            logit[j] = finite(value);
            highest = fmaxf(highest, logit[j]);
        }
        for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
        // scores without their common divisor, which keeps their order: one division at the end instead of one an expert
        sum[t] = 0;
#pragma unroll
        for (int j = 0; j < J; ++j) {
            float power = exponential(sigmoid ? -logit[j] : logit[j] - highest);
            score[t][j] = lane + 32 * j >= p.experts ? 0.0f : sigmoid ? __fdividef(1.0f, 1.0f + power) : power;
            sum[t] += score[t][j];
        }
        for (int step = 16; step > 0; step /= 2) sum[t] += __shfl_xor_sync(~0u, sum[t], step);
        if (sigmoid) sum[t] = 1.0f;
#pragma unroll
        for (int j = 0; j < J; ++j) {
            int expert = lane + 32 * j;
            key[t][j] = 0;
            if (expert < p.experts) {
                float choice = by_logits ? logit[j] : __fdividef(score[t][j], sum[t]);
                if (corrected) choice = finite(choice + p.correction_bias[expert]);
                if (grouped) values[expert] = choice;
                key[t][j] = sortable(choice);
            }
        }
    }
    if (grouped) keep_best_groups<J>(c, key[0], values);
    float weight[TOKENS] = {}, total[TOKENS] = {};
#pragma unroll 1
    for (int k = 0; k < p.top_k; ++k) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            u32 best = 0;
#pragma unroll
            for (int j = 0; j < J; ++j) best = max(best, key[t][j]);
            u32 top = __reduce_max_sync(~0u, best);
            u32 mine = MAX_EXPERTS;
#pragma unroll
            for (int j = J - 1; j >= 0; --j)
                if (key[t][j] == top) mine = lane + 32 * j;
            u32 expert = __reduce_min_sync(~0u, mine);
            float value = 0;
#pragma unroll
            for (int j = 0; j < J; ++j)
                if (expert == lane + 32 * j) {
                    value = score[t][j];
                    key[t][j] = 0;
                }
            value = __shfl_sync(~0u, value, expert % 32);
            total[t] += value;
            if (lane == k) {
                weight[t] = value;
                if (t < count) chosen[t * apart * MAX_TOP_K + k] = static_cast<u16>(expert);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
        // the rule's 1e-20, for scores that are not divided by their sum yet: all K may be zero
        float divisor = p.renormalize ? total[t] + 1e-20f * sum[t] : sum[t];
        if (lane < p.top_k && t < count) weigh(t, weight[t] * (p.scaling / divisor));
    }
}

// sigmoid(x . shared_gate), or 1, for the shared experts of a token
DEVICE void weigh_shared(const Context& c, i64 token) {
    const Params& p = c.p;
    int lane = threadIdx.x % 32;
    float weight = 1.0f;
    if (p.shared_gate != nullptr) {
        float sum = 0;
        for (int h = lane; h < p.hidden; h += 32)
            sum += half_to_float(p.x[token * p.hidden + h]) * half_to_float(p.shared_gate[h]);
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        weight = 1.0f / (1.0f + __expf(-sum));
    }
    for (int s = lane; s < p.shared_experts; s += 32)
        p.weights[token * c.entries_per_token() + p.top_k + s] = weight;
}

// The routing that the caller gave. An expert that does not exist, or has no weight, contributes nothing; one that is
// named twice is entered once, with the sum of its weights: no list can overflow.
DEVICE void take_given(const Context& c, i64 token, u16* chosen) {
    const Params& p = c.p;
    int lane = threadIdx.x % 32;
    i64 at = token * p.top_k + lane;
    i64 expert = -1;
    float weight = 0;
    if (lane < p.top_k) {
        expert = p.given_is_64_bit ? static_cast<const i64*>(p.given_experts)[at]
                                   : static_cast<const int*>(p.given_experts)[at];
        weight = p.given_weights[at];
    }
    bool valid = expert >= 0 && expert < p.experts;
    float sum = 0;
    bool first = true;
#pragma unroll 1
    for (int k = 0; k < p.top_k; ++k) {
        i64 other = __shfl_sync(~0u, expert, k);
        float its_weight = __shfl_sync(~0u, weight, k);
        if (other == expert) {
            sum += its_weight;
            first = first && k >= lane;
        }
    }
    valid = valid && first && sum != 0;
    if (lane < p.top_k) {
        chosen[lane] = valid ? static_cast<u16>(expert) : MAX_EXPERTS;
        p.weights[token * c.entries_per_token() + lane] = valid ? sum : __uint_as_float(ABSENT);
    }
}

// TOKENS at once by a warp
template <int TOKENS, int J, bool PLAIN>
DEVICE void choose(const Context& c, const Item& item, RouteScratch& scratch) {
    constexpr int WARPS = CONSUMER_THREADS / 32;
    int warp = threadIdx.x / 32 - CONSUMER_FIRST / 32;
    float logits[TOKENS][J], next[TOKENS][J];
    auto load = [&](int token) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) load_logits<J>(c, next[t], item.first + min(token + t * WARPS, item.rows - 1));
    };
    if (warp < item.rows) load(warp);
#pragma unroll 1
    for (int token = warp; token < item.rows; token += TOKENS * WARPS) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t)
#pragma unroll
            for (int j = 0; j < J; ++j) logits[t][j] = next[t][j];
        if (token + TOKENS * WARPS < item.rows) load(token + TOKENS * WARPS);
        int count = ceil_div(item.rows - token, WARPS);
        auto weigh = [&](int t, float weight) {
            i64 at = static_cast<i64>(item.first + token) + t * WARPS;
            c.p.weights[at * c.entries_per_token() + threadIdx.x % 32] = weight;
        };
        select<TOKENS, J, PLAIN>(c, logits, scratch.choices[warp], scratch.chosen + token * MAX_TOP_K, weigh, WARPS, count);
    }
}

// All logits of an item's tokens are there (or their routing was given): choose, and enter the tokens into the experts'
// lists. CONSUMER_THREADS threads.
DEVICE void enter(const Context& c, const Item& item) {
    const Params& p = c.p;
    RouteScratch& scratch = *reinterpret_cast<RouteScratch*>(c.s.scratch);
    int thread = threadIdx.x - CONSUMER_FIRST, warp = thread / 32;
    // loops that run once or a few times stay rolled up: unrolled they were more instructions to fetch, and slower
#pragma unroll 1
    for (int expert = thread; expert < p.experts; expert += CONSUMER_THREADS) scratch.counts[expert] = 0;
    if (p.given_experts != nullptr)
        for (int token = warp; token < item.rows; token += CONSUMER_THREADS / 32)
            take_given(c, item.first + token, scratch.chosen + token * MAX_TOP_K);
    else if (p.experts <= 128 && c.is_plain() && item.rows > CONSUMER_THREADS / 32)
        choose<2, 4, true>(c, item, scratch);
    else if (p.experts <= 128 && p.groups == 1 && item.rows > CONSUMER_THREADS / 32)
        choose<2, 4, false>(c, item, scratch);
    else if (p.experts <= 64)
        choose<1, 2, false>(c, item, scratch);
    else if (p.experts <= 128)
        choose<1, 4, false>(c, item, scratch);
    else if (p.experts <= 256)
        choose<1, 8, false>(c, item, scratch);
    else
        choose<1, 18, false>(c, item, scratch);
    if (p.shared_experts > 0)
        for (int token = warp; token < item.rows; token += CONSUMER_THREADS / 32) weigh_shared(c, item.first + token);
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
    // places are counted in shared memory first: one atomic a tile and expert, not one a token and expert
#pragma unroll 1
    for (int i = thread; i < item.rows * p.top_k; i += CONSUMER_THREADS) {
        int at = i / p.top_k * MAX_TOP_K + i % p.top_k, expert = scratch.chosen[at];
        if (expert < MAX_EXPERTS) scratch.places[at] = static_cast<u16>(atomicAdd(&scratch.counts[expert], 1));
    }
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
#pragma unroll 1
    for (int expert = thread; expert < p.experts; expert += CONSUMER_THREADS) {
        int count = scratch.counts[expert];
        if (count > 0) scratch.counts[expert] = atomicAdd(p.control + p.counts_at + expert, count);
    }
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
#pragma unroll 1
    for (int i = thread; i < item.rows * p.top_k; i += CONSUMER_THREADS) {
        int token = i / p.top_k, k = i % p.top_k, at = token * MAX_TOP_K + k, expert = scratch.chosen[at];
        if (expert < MAX_EXPERTS) {
            Place place = {expert, scratch.counts[expert] + scratch.places[at]};
            int entry = (item.first + token) * c.entries_per_token() + k;
            p.lists[static_cast<i64>(expert) * p.capacity + place.at] = item.first + token;
            p.places[entry] = place;
        }
    }
}
