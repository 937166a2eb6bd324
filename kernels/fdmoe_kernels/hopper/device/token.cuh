// One token: no tiles, only vectors. Rows of weights go straight into registers, as many bytes at once as the memory needs
// to be busy, or into shared memory before anybody can use them.
//
//     [ route | up | down ]
//
// A route item is a row of the router a warp, whose logit is put where the form for many tokens counts the expert's
// entries. Every CTA then chooses the experts by itself, from the same logits: to be told would take as long. An up item is
// `token_pairs` intermediate columns a warp, gate and up row each. A down item is `token_rows` rows of H, all of their
// experts, so that a row is summed where it is computed, and there is nothing left to combine.
//
// Down items are not dealt by ticket: a CTA knows its own, and has its weights on the way before the activations are there.
// The copy engine brings `token_kept` of the rows into shared memory. Few entries are asked for at once: what a CTA asks for
// comes in that order, and its looks at others' progress would stand behind them.
//
// Tickets, waits, beats and the abort are those of the other form (schedule.cuh), by warp 0 for all of its CTA. Down items
// take a ticket only to see that the launch was closed.
#pragma once
#include "activation.cuh"
#include "combine.cuh"
#include "fault.cuh"
#include "route.cuh"

constexpr int TOKEN_WARPS = THREADS / 32;
constexpr int CHUNK_COLUMNS = 256;  // of a row by a warp at once: 16 bytes a lane
constexpr int BATCH = 8;            // loads of a lane that take their time together
constexpr int UP_BATCH = 4;         // of a gate row, and of an up row
constexpr int MAX_ENTRIES = 32;     // K + S
constexpr int MAX_TOKEN_ROWS = 24;  // of a down item
constexpr int MAX_KEPT_ROWS = 16;   // of those, in shared memory
constexpr int KEPT_COLUMNS = 64;    // of these, by a warp at once
constexpr int ASKED_AHEAD = 3;      // entries whose rows are asked for when a CTA has no up item left

// a chunk of the inner dimension of one entry, as a row of H is summed over them
struct Part {
    i64 at;       // where it is, from row 0 of the first expert's
    u16 act;      // where its activations are, in 8 elements
    u16 columns;  // 0: the entry contributes nothing
    float weight;
};

struct TokenShared {
    u64 come[MAX_ENTRIES];  // the rows of each entry that are kept in shared memory
    int ticket, aborted;
    int asked;  // warp 0: entries whose rows were asked for, for the down item that takes them next
    int experts[MAX_ENTRIES];  // of each entry; -1: it contributes nothing
    float weights[MAX_ENTRIES];
    int all;  // whether all of them do
    u16 chosen[MAX_TOP_K];
    float choices[MAX_GROUPED_EXPERTS];  // of the experts, where the rule has groups
    float sums[MAX_TOKEN_ROWS * TOKEN_WARPS];  // of each row, what its warps have
};
// shared memory: of Shared what this form uses, TokenShared, the parts, x, the activations, and rows of the down weights
constexpr int TOKEN_AT = 8192, TOKEN_SHARED_BYTES = 3072, KEPT_ALIGNMENT = 128;
static_assert(sizeof(Shared) - sizeof(Shared::source) - sizeof(Shared::scratch) <= TOKEN_AT);  // they are its last
static_assert(sizeof(TokenShared) <= TOKEN_SHARED_BYTES);

struct Token {
    const Context& c;
    TokenShared& s;
    Part* parts;  // [entries, chunks]
    u16* x;       // [H]
    u16* act;     // [entries, I]
    u16* kept;    // [entries, token_kept, I]
    int warp, lane, entries, blocks, chunks, groups;
    int route_items, up_items, down_items, items = 0;
    int downs = 0;  // down items that this CTA has done; every grid-th is its own
    bool chosen = false, parted = false;

    DEVICE Token(const Context& context, TokenShared& shared, u8* memory) : c(context), s(shared) {
        const Params& p = c.p;
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        entries = c.entries_per_token();
        blocks = ceil_div(p.intermediate, TOKEN_WARPS * p.token_pairs);
        chunks = ceil_div(p.intermediate, CHUNK_COLUMNS);
        parts = reinterpret_cast<Part*>(memory);
        x = reinterpret_cast<u16*>(parts + entries * chunks);
        act = x + p.hidden;
        kept = reinterpret_cast<u16*>(
            memory + round_up(sizeof(Part) * entries * chunks + 2 * (p.hidden + entries * p.intermediate), KEPT_ALIGNMENT)
        );
        groups = TOKEN_WARPS / p.token_sharers;
        route_items = p.given_experts ? 0 : ceil_div(p.experts, TOKEN_WARPS);
        up_items = entries * blocks;
        down_items = ceil_div(p.hidden, p.token_rows);
    }

    DEVICE static float dot(const Vector& a, const Vector& b) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum = fmaf(low_half(a.words[i]), low_half(b.words[i]), sum);
            sum = fmaf(high_half(a.words[i]), high_half(b.words[i]), sum);
        }
        return sum;
    }

    DEVICE static float over_lanes(float sum) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        return sum;
    }

    DEVICE Vector at(const u16* vector, int column) const {
        return *reinterpret_cast<const Vector*>(vector + column);
    }

    // Items that are done, of PER each and the last of the rest, if those that are not lack all of theirs.
    template <int PER>
    DEVICE static int items_seen(int target, int seen) {
        return ceil_div(target, PER) - ceil_div(target - seen, PER);
    }

    // Warp 0: until what `look` sees reaches `target`; the rest of the CTA waits at its barrier. See Scheduler::wait. The
    // line counts in items, PER to each.
    template <int PER, class Look>
    DEVICE void wait(const Item& item, int reason, int target, Look look) {
        const Params& p = c.p;
        bool shown = false;
        for (u32 spins = 1;; ++spins) {
            int seen = look();
            if (__all_sync(~0u, seen >= target)) {
                if (shown) beat(c, item, item.phase, WAIT_NONE, 0, 0, items);
                return;
            }
            bool ended = spins % 16 == 0 && __any_sync(~0u, load_relaxed(p.control + ABORT));
            if (p.page != nullptr && spins % (POLL * gridDim.x) == POLL * (blockIdx.x + 1) - 1) {
                int aborted = 0;
                if (lane == 0 && load_host(p.page + PAGE_ABORT) == c.launch) {
                    if (atomicExch(p.control + ABORT, 1) == 0) atomicAdd(p.control + TICKET, CLOSED);
                    aborted = 1;
                }
                shown = false;
                ended = ended || __shfl_sync(~0u, aborted, 0);
            }
            if (ended) {
                if (lane == 0) s.aborted = 1;
                __syncwarp();  // it is read next
                return;
            }
            if (!shown && spins >= SHOWN_AFTER) {
                beat(c, item, item.phase, reason, ceil_div(target, PER), items_seen<PER>(target, seen), items);
                shown = true;
            }
        }
    }

    // `count` steps, each fetched while the one before is multiplied: two steps' loads are under way at once. Both calls
    // keep their own place. before(): once, when all is asked for that can be before something is multiplied.
    template <int LOADS, class Fetch, class Before, class Multiply>
    DEVICE static void pipeline(int count, Fetch fetch, Before before, Multiply multiply) {
        Vector even[LOADS], odd[LOADS];
        if (count > 0) fetch(even);
        for (int left = count;; left -= 2) {
            if (left > 1) fetch(odd);
            if (left == count) before();
            if (left < 1) break;
            multiply(even);
            if (left > 2) fetch(even);
            if (left > 1) multiply(odd);
            if (left < 3) break;
        }
    }

    // a row of H elements times x, by this warp; the sum is in all lanes
    DEVICE float row_times_x(const u16* row) const {
        const Params& p = c.p;
        float sum = 0;
        for (int start = lane * 8; start < p.hidden; start += BATCH * CHUNK_COLUMNS) {
            Vector parts[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                if (start + i * CHUNK_COLUMNS < p.hidden) parts[i] = stream(row + start + i * CHUNK_COLUMNS);
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                if (start + i * CHUNK_COLUMNS < p.hidden) sum += dot(parts[i], at(x, start + i * CHUNK_COLUMNS));
        }
        return over_lanes(sum);
    }

    // A logit as a word that is not 0, which all are until they are written; one NaN of all becomes its neighbour.
    DEVICE static int posted(float logit) { return static_cast<int>(max(sortable(logit), 1u)); }

    DEVICE void route(int index) {
        const Params& p = c.p;
        int expert = index * TOKEN_WARPS + warp;
        if (expert < p.experts) {
            float logit = row_times_x(p.router_at + static_cast<i64>(expert) * p.hidden);
            if (lane == 0) store_relaxed(p.control + p.counts_at + expert, posted(logit));
        }
    }

    // All of the CTA: who is chosen, with what weight.
    DEVICE void choose(const Item& item) {
        const Params& p = c.p;
        if (warp == 1) {  // it has nothing else to do; as the launch begins, the others would wait for it
            if (lane < entries) barrier_init(come(lane), 1);
            fence_async_proxy();  // the copy engine arrives at them
        }
        if (warp == 0) {
            if (p.given_experts != nullptr)
                take_given(c, 0, s.chosen);
            else if (p.experts <= 128 && c.is_plain())
                pick<4, true>(item);
            else if (p.experts <= 128)
                pick<4, false>(item);
            else
                pick<18, false>(item);
            if (!s.aborted) {
                if (p.shared_experts > 0) weigh_shared(c, 0);
                __syncwarp();
                int expert = lane < p.top_k ? s.chosen[lane % MAX_TOP_K] : p.experts + lane - p.top_k;
                bool absent = lane < entries && expert >= MAX_EXPERTS;
                if (lane < entries) {
                    s.experts[lane] = absent ? -1 : expert;
                    if (p.given_experts != nullptr || lane >= p.top_k) s.weights[lane] = __ldcg(p.weights + lane);
                }
                absent = __any_sync(~0u, absent);
                if (lane == 0) s.all = !absent;
            }
        }
        __syncthreads();
        chosen = true;
    }

    // What the down items read: after an up item, by each warp that is done with it, while others still wait for weights.
    DEVICE void make_parts() {
        const Params& p = c.p;
        parted = true;
        for (int i = threadIdx.x; i < entries * chunks; i += THREADS) {
            int entry = i / chunks, column = i % chunks * CHUNK_COLUMNS, expert = s.experts[entry];
            Part part;
            part.at = static_cast<i64>(max(expert, 0)) * p.hidden * p.intermediate + column;
            part.act = static_cast<u16>((entry * p.intermediate + column) / 8);
            part.columns = static_cast<u16>(expert < 0 ? 0 : min(CHUNK_COLUMNS, p.intermediate - column));
            part.weight = s.weights[entry];
            parts[i] = part;
        }
    }

    // Warp 0, J experts a lane. The logits say by themselves that they are there: no release has to wait for them, and no
    // load comes after it was heard of.
    template <int J, bool PLAIN>
    DEVICE void pick(const Item& item) {
        const Params& p = c.p;
        int words[J];
        wait<TOKEN_WARPS>(item, WAIT_ROUTE, p.experts, [&] {
            int there = 0;
#pragma unroll
            for (int j = 0; j < J; ++j)
                words[j] = load_relaxed(p.control + p.counts_at + min(lane + 32 * j, p.experts - 1));
#pragma unroll
            for (int j = 0; j < J; ++j) there += lane + 32 * j < p.experts && words[j] != 0;
            return __reduce_add_sync(~0u, there);
        });
        if (s.aborted) return;
        float logits[1][J];
#pragma unroll
        for (int j = 0; j < J; ++j) logits[0][j] = from_sortable(static_cast<u32>(words[j]));
        auto weigh = [&](int, float weight) { s.weights[lane] = weight; };
        select<1, J, PLAIN>(c, logits, s.choices, s.chosen, weigh);
    }

    // WHOLE: H is a multiple of a batch's columns, and no chunk has to be asked whether it exists
    template <bool WHOLE>
    DEVICE void up(int index) {
        const Params& p = c.p;
        int entry = index / blocks, expert = s.experts[entry];
        int first = (index % blocks * TOKEN_WARPS + warp) * p.token_pairs;
        int columns = min(p.token_pairs, p.intermediate - first), batches = ceil_div(p.hidden, UP_BATCH * CHUNK_COLUMNS);
        if (expert < 0 || columns <= 0) return;
        const u16* row = p.gate_up_at + (static_cast<i64>(expert) * 2 * p.intermediate + first) * p.hidden;
        i64 to_ups = static_cast<i64>(p.intermediate) * p.hidden;
        int fetched = lane * 8, multiplied = lane * 8, column = first;
        float gate = 0, up = 0;
        auto fetch = [&](Vector(&to)[2 * UP_BATCH]) {
#pragma unroll
            for (int i = 0; i < UP_BATCH; ++i) {
                bool exists = WHOLE || fetched + i * CHUNK_COLUMNS < p.hidden;
                stream_if(exists, to[i], row + fetched + i * CHUNK_COLUMNS);
                stream_if(exists, to[UP_BATCH + i], row + to_ups + fetched + i * CHUNK_COLUMNS);
            }
            fetched += UP_BATCH * CHUNK_COLUMNS;
            if (fetched - lane * 8 >= p.hidden) {
                fetched = lane * 8;
                row += p.hidden;
            }
        };
        auto multiply = [&](const Vector(&from)[2 * UP_BATCH]) {
#pragma unroll
            for (int i = 0; i < UP_BATCH; ++i) {
                if (WHOLE || multiplied + i * CHUNK_COLUMNS < p.hidden) {
                    Vector v = at(x, multiplied + i * CHUNK_COLUMNS);
                    gate += dot(from[i], v);
                    up += dot(from[UP_BATCH + i], v);
                }
            }
            multiplied += UP_BATCH * CHUNK_COLUMNS;
            if (multiplied - lane * 8 < p.hidden) return;
            finish_column(entry, expert, column, over_lanes(gate), over_lanes(up));
            gate = up = 0;
            multiplied = lane * 8;
            ++column;
        };
        pipeline<2 * UP_BATCH>(columns * batches, fetch, [] {}, multiply);
    }

    DEVICE u32 come(int entry) const { return shared_address(&s.come[entry]); }

    DEVICE int own_down_item() const { return blockIdx.x + downs * gridDim.x; }

    // Warp 0: the rows that the CTA's down item after those that are done, if it has one, keeps in shared memory, of `more`
    // entries.
    DEVICE void ask(int more) {
        const Params& p = c.p;
        int first = own_down_item() * p.token_rows, expert = lane < entries ? s.experts[lane] : -1, asked = s.asked;
        int elements = min(p.token_kept, p.hidden - first) * p.intermediate;
        if (elements <= 0) return;
        if (lane >= asked && lane < asked + more && expert >= 0) {
            barrier_arrive_expecting(come(lane), elements * 2);
            copy_bytes(kept + lane * p.token_kept * p.intermediate,
                       p.down_at + (static_cast<i64>(expert) * p.hidden + first) * p.intermediate, elements * 2, come(lane));
        }
        __syncwarp();
        if (lane == 0) s.asked = min(asked + more, entries);
        __syncwarp();
    }

    // All warps: `count` rows in shared memory, KEPT_COLUMNS of an entry at a time. The tensor core's product has 16 rows and
    // 8 columns, and there is one vector to multiply with. So row r and row r + 8 have column r to themselves, with
    // whatever part of the vector they are at: rows of odd number have the halves of a slice in the other order, which keeps
    // them out of the even ones' banks where I is a multiple of KEPT_COLUMNS. WHOLE: it is.
    template <bool WHOLE>
    DEVICE void multiply_kept(int count) {
        static_assert(MAX_KEPT_ROWS == 16);
        int intermediate = c.p.intermediate, width = round_up(intermediate, KEPT_COLUMNS), row = lane / 4;
        float sums[4] = {};
        // an entry's slices are dealt on from where those of the one before ended
        for (int entry = 0, column = warp * KEPT_COLUMNS; entry < entries; ++entry, column -= width) {
            bool contributes = s.experts[entry] >= 0;
            if (contributes) barrier_wait(come(entry), downs % 2);
            float weight = s.weights[entry];
            const u16 *rows = kept + (entry * c.p.token_kept + row) * intermediate, *vector = act + entry * intermediate;
            for (; column < width; column += TOKEN_WARPS * KEPT_COLUMNS) {
                if (!contributes) continue;
                float products[2][4] = {};
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    int from = column + (half ^ (row & 1)) * (KEPT_COLUMNS / 2) + lane % 4 * 8;
                    Vector upper = {}, lower = {}, v = {};
                    if (WHOLE || from < intermediate) {
                        v = at(vector, from);
                        if (row < count) upper = at(rows, from);
                        if (row + 8 < count) lower = at(rows, from + 8 * intermediate);
                    }
                    multiply_16x8(products[half], upper, lower, v, 0);
                    multiply_16x8(products[half], upper, lower, v, 2);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[i] += weight * (products[0][i] + products[1][i]);
            }
        }
        if (lane % 4 == row / 2) {  // it has column `row`
            if (row < count) s.sums[row * TOKEN_WARPS + warp] = row % 2 ? sums[1] : sums[0];
            if (row + 8 < count) s.sums[(row + 8) * TOKEN_WARPS + warp] = row % 2 ? sums[3] : sums[2];
        }
    }

    // The rows that are not kept in shared memory are shared out to groups of warps, whose warps share the inner dimension.
    // WHOLE: I is a multiple of CHUNK_COLUMNS, and every entry contributes.
    template <bool WHOLE>
    DEVICE void down(const Item& item, int index) {
        const Params& p = c.p;
        int sharers = p.token_sharers, count = entries * chunks, begin = warp % sharers, group = warp / sharers;
        int first = index * p.token_rows, there = min(p.token_rows, p.hidden - first), early = min(p.token_kept, there);
        int others = max(0, ceil_div(there - early - group, groups));
        int batches = max(1, ceil_div(count - begin, BATCH * sharers));
        const u16* row = p.down_at + static_cast<i64>(first + early + group) * p.intermediate + lane * 8;
        int fetched = begin, multiplied = begin, finished = (early + group) * TOKEN_WARPS + begin;
        float sum = 0;
        auto fetch = [&](Vector(&to)[BATCH]) {
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                int part = min(fetched + i * sharers, count - 1);
                bool exists = fetched + i * sharers < count && (WHOLE || lane * 8 < parts[part].columns);
                stream_if(exists, to[i], row + parts[part].at);
            }
            fetched += BATCH * sharers;
            if (fetched >= count) {
                fetched = begin;
                row += groups * p.intermediate;
            }
        };
        auto before = [&] {
            if (downs == 0) gather_activations(item);
            if (s.aborted || early == 0) return;
            if (warp == 0) ask(entries);
            multiply_kept<WHOLE>(early);
        };
        auto multiply = [&](const Vector(&from)[BATCH]) {
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                int part = multiplied + i * sharers;
                if (part < count && (WHOLE || lane * 8 < parts[part].columns))
                    sum += parts[part].weight * dot(from[i], at(act, parts[part].act * 8 + lane * 8));
            }
            multiplied += BATCH * sharers;
            if (multiplied < count) return;
            sum = over_lanes(sum);
            if (lane == 0) s.sums[finished] = sum;
            sum = 0;
            multiplied = begin;
            finished += groups * TOKEN_WARPS;
        };
        // a warp whose share begins behind the last part has a step all the same, for its sums, which are 0
        pipeline<BATCH>(others * batches, fetch, before, multiply);
        __syncthreads();
        if (s.aborted) return;
        for (int i = threadIdx.x; i < there; i += THREADS) {
            float y = 0;
#pragma unroll
            for (int other = 0; other < TOKEN_WARPS; ++other)
                if (i < early || other < sharers) y += s.sums[i * TOKEN_WARPS + other];
            if (p.down_bias != nullptr)
                for (int entry = 0; entry < entries; ++entry)
                    if (s.experts[entry] >= 0)
                        y += s.weights[entry] *
                             half_to_float(p.down_bias[static_cast<i64>(s.experts[entry]) * p.hidden + first + i]);
            if (index == 0) y = spoilt(y);
            p.y[first + i] = static_cast<u16>(pack_halves(y, 0.0f));
        }
    }

    // All of the CTA: what the up items left, past L1, into shared memory.
    DEVICE void gather_activations(const Item& item) {
        const Params& p = c.p;
        if (warp == 0)
            wait<1>(item, WAIT_UP, up_items, [&] {
                int seen = load_acquire(p.control + DOWN_DONE);  // its answer comes before these rows
                ask(1);
                return seen;
            });
        __syncthreads();
        if (s.aborted) return;
        for (int i = threadIdx.x * 8; i < entries * p.intermediate; i += THREADS * 8)
            *reinterpret_cast<Vector*>(act + i) = load_vector(p.act + i);
        __syncthreads();
    }

    // what an entry's products give in one intermediate column; they are in all lanes
    DEVICE void finish_column(int entry, int expert, int column, float gate, float up) const {
        const Params& p = c.p;
        if (lane != 0) return;
        if (p.gate_up_bias != nullptr) {
            const u16* bias = p.gate_up_bias + static_cast<i64>(expert) * 2 * p.intermediate + column;
            gate += half_to_float(bias[0]);
            up += half_to_float(bias[p.intermediate]);
        }
        if (p.limit < INFINITE) {
            gate = clamped(gate, -INFINITE, p.limit);
            up = clamped(up, -p.limit, p.limit);
        }
        float value = activate(gate, up, 0.5f * p.alpha, p.up_offset);
        p.act[static_cast<i64>(entry) * p.intermediate + column] = static_cast<u16>(pack_halves(value, 0.0f));
    }

    DEVICE void work(const Item& item, int index) {
        const Params& p = c.p;
        if (item.phase == PHASE_ROUTE)
            route(index);
        else if (item.phase == PHASE_UP && p.hidden % (UP_BATCH * CHUNK_COLUMNS) == 0)
            up<true>(index);
        else if (item.phase == PHASE_UP)
            up<false>(index);
        else if (p.intermediate % CHUNK_COLUMNS == 0 && s.all)
            down<true>(item, index);
        else
            down<false>(item, index);
    }

    DEVICE void count_experts() {
        for (int expert = threadIdx.x; expert < c.all_experts(); expert += THREADS) c.s.counts[expert] = 0;
        __syncthreads();
        if (threadIdx.x < entries && s.experts[threadIdx.x] >= 0) c.s.counts[s.experts[threadIdx.x]] = 1;
    }

    // ticket: thread 0's first one
    DEVICE void run(int ticket) {
        const Params& p = c.p;
        for (int i = threadIdx.x * 8; i < p.hidden; i += THREADS * 8)
            *reinterpret_cast<Vector*>(x + i) = load_vector(p.x + i);
        if (threadIdx.x == 0) {
            s.aborted = s.asked = 0;
            s.ticket = ticket;
        }
        __syncthreads();
        while (true) {
            int index = s.ticket, next = 0;
            Item item = {};
            item.ticket = index;
            item.phase = PHASE_ROUTE;
            if (index >= route_items) {
                item.phase = PHASE_UP;
                // whoever leaves has chosen, too, for the last one closes the launch
                if (!chosen && index < CLOSED) {
                    choose(item);
                    if (s.aborted) break;
                }
                if (index >= CLOSED) break;
                index -= route_items;
                if (index >= up_items) {
                    item.phase = PHASE_DOWN;
                    index = own_down_item();
                    if (index >= down_items) break;
                    item.ticket = route_items + up_items + index;
                }
            }
            if (threadIdx.x == 0) next = atomicAdd(p.control + TICKET, 1);  // it takes its time beside the item
            item.column_tile = index;
            if (item.phase == PHASE_UP) item.expert = max(s.experts[index / blocks], 0);
            if (item.phase == PHASE_DOWN) item.expert = ALL_EXPERTS;
            if (warp == 0) beat(c, item, item.phase, WAIT_NONE, 0, 0, items);
#if FAULT
            item.faulty = item.phase == PHASE_UP && index == 0;
#endif
            go_wrong(p, item, 20);
            if (item.phase == PHASE_DOWN && !parted) {
                make_parts();
                __syncthreads();
            }
            work(item, index);
            if (item.phase == PHASE_UP) {
                if (warp == 0 && __shfl_sync(~0u, next, 0) >= route_items + up_items) ask(ASKED_AHEAD);
                if (!parted) make_parts();
            }
            __syncthreads();
            if (s.aborted) break;
            if (threadIdx.x == 0) {
                int counter = item.phase == PHASE_UP ? DOWN_DONE : NEVER;
#if FAULT == 1
                if (item.faulty) counter = NEVER;
#endif
                if (counter != NEVER) add_release(p.control + counter, 1);
                s.ticket = next;
                if (item.phase == PHASE_DOWN) s.asked = 0;
            }
            ++items;
            downs += item.phase == PHASE_DOWN;
            __syncthreads();
        }
        leave();
    }

    DEVICE void leave() {
        const Params& p = c.p;
        Item item = {};
        item.phase = PHASE_LEFT;
        int left = 0;
        // a CTA that leaves gives its shared memory away
        if (warp == 0 && lane < s.asked && s.experts[lane] >= 0) barrier_wait(come(lane), downs % 2);
        __syncthreads();
        if (threadIdx.x == 0) left = add_acquire_release(p.control + EXITS, 1);
        if (chosen && !s.aborted) count_experts();  // while the answer is on its way
        if (threadIdx.x == 0) c.s.left = left;
        // after the count, whose release would wait until the host has the line
        if (warp == 0) beat(c, item, PHASE_LEFT, WAIT_NONE, 0, 0, items);
        __syncthreads();
        if (c.s.left != gridDim.x - 1) return;
        if (threadIdx.x >= CONSUMER_FIRST) close_launch(c, route_items, up_items, down_items, 0);
    }
};

DEVICE void token_layer(const Params& p, u8* memory) {
    int ticket = 0;
    if (threadIdx.x == 0) ticket = atomicAdd(p.control + TICKET, 1);  // on its way beside x
    Context c = {p, *reinterpret_cast<Shared*>(memory), 0, 0, p.totals[TOTAL_LAUNCHES] + 1};
    u8* rest = memory + TOKEN_AT;
    Token(c, *reinterpret_cast<TokenShared*>(rest), rest + TOKEN_SHARED_BYTES).run(ticket);
}
