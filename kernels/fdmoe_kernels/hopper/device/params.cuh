// The kernel's one argument, the words it shares with other CTAs and with the host, and its shared memory.
//
// Legend: T tokens, E routed experts, S shared experts, K chosen per token, H hidden size, I intermediate size.
#pragma once
#include "ptx.cuh"
#include "widths.cuh"

struct alignas(64) TensorMap {
    u64 words[16];
};

struct alignas(8) Place {
    int expert, at;
};

// fdmoe_kernels/hopper/params.py holds the same structure for the host; a test compares the sizes and offsets.
struct Params {
    TensorMap router;   // [E, H]
    TensorMap gate_up;  // [E + S, 2, I / 8, 8, H]: eight gate rows, then eight up rows, and so on
    TensorMap down;     // [E + S, H, I]
    TensorMap sorted_8, sorted_16, sorted_32, sorted_64, sorted_128;  // `sorted`, by so many rows
    TensorMap act_8, act_16, act_32, act_64, act_128;                 // `act`, likewise
    TensorMap done_8, done_16, done_32, done_64;                      // and as a warpgroup stores it: 32 columns
    const u16* x;       // [T, H]
    u16* y;             // [T, H]
    const u16* router_bias;         // [E] or null
    const float* correction_bias;   // [E] or null
    const u16* gate_up_bias;        // [E + S, 2I] or null
    const u16* down_bias;           // [E + S, H] or null
    const u16* shared_gate;         // [H] or null
    const void* given_experts;      // [T, K] int32 or int64, or null: the router decides
    const float* given_weights;     // [T, K]
    int* lists;         // [E, capacity]: the tokens of each expert
    float* weights;     // [T, K + S]; ABSENT: the entry has no expert
    float* logits;      // [route_splits, T, E]
    Place* places;      // [T, K + S]: where each routed entry is in its expert's list
    u16* act;           // [sorted rows, I]
    u16* sorted;        // [sorted rows, H]: rows of x, and of a tile whose up items are done what the down items give
    int* control;       // counters, zero between launches; the logits of one token are where the experts' are
    i64* totals;        // never reset: items of each phase, launches, bytes moved, tokens per expert
    i64* page;          // the beat page, or null
    const u16 *router_at, *gate_up_at, *down_at;  // the weights themselves: [E, H], [E + S, 2I, H], [E + S, H, I]
    int tokens, hidden, intermediate, experts, shared_experts, top_k, capacity;
    int given_is_64_bit;
    // how the work is cut: tiles.py
    int token_tile, slots, route_tokens, route_splits, choose_tokens, row_group, column_blocks, combine_tokens;
    int sort;      // the first up tile of some rows leaves them sorted for the others
    int paired;    // clusters of two CTAs: neighbouring column tiles of the same rows, which the copy engine gives to both
    // token.cuh: columns a warp of an up item; of a down item, warps that share a row, its rows, and how many of those come
    // by the copy engine
    int token_pairs, token_sharers, token_rows, token_kept;
    // items and tiles: what the host divides needs no instructions to be fetched. Of a route tile: items of its logits, and
    // stages of each
    int logit_parts, route_steps, logit_items, choose_items, combine_items;
    int up_tiles, down_tiles, block_tiles;  // column tiles; of a column block
    // where counters are in `control`
    int counts_at, route_at, up_at, sorted_at, control_words;
    // the routing rule
    int sigmoid, renormalize, groups, top_groups, group_scores;
    float scaling;
    // the activation
    float alpha, limit, up_offset;
};

// control words, a 128-byte line each
constexpr int TICKET = 0;
constexpr int ROUTE_DONE = 32;
constexpr int EXITS = 96;
constexpr int ABORT = 128;
constexpr int NEVER = 160;
constexpr int DOWN_DONE = 192;  // a line for each of MAX_BLOCKS column blocks
constexpr int MAX_BLOCKS = 8;
constexpr int CLOSED = 1 << 30;

// totals
constexpr int TOTAL_ITEMS = 0;  // route, up, down, combine
constexpr int TOTAL_LAUNCHES = 4;
constexpr int TOTAL_BYTES = 5;
constexpr int TOTAL_EXPERT_TOKENS = 6;

// the page's words (fdmoe_watchdog.page; a test compares them)
constexpr int PAGE_ABORT = 8;
constexpr int PAGE_EXIT = 24;
constexpr int PAGE_SLOTS = 64;
constexpr int ALL_EXPERTS = -1;  // the expert of an item that is of all of them
enum Phase { PHASE_ROUTE = 1, PHASE_UP = 2, PHASE_DOWN = 3, PHASE_COMBINE = 4, PHASE_LEFT = 5 };
enum Wait { WAIT_NONE = 0, WAIT_ROUTE = 1, WAIT_UP = 2, WAIT_DOWN = 3 };
enum Exit { EXIT_DONE = 1, EXIT_ABORTED = 2 };

// builds that go wrong on purpose (fdmoe_kernels/faults.py)
#ifndef FAULT
#define FAULT 0
#endif
constexpr int FAULT_STALL = 1;
constexpr int FAULT_ENDLESS = 2;
constexpr int FAULT_NAN = 3;
constexpr int FAULT_WRONG = 4;
constexpr int FAULT_SLOW = 5;
constexpr int FAULT_ILLEGAL = 6;

#define INFINITE __int_as_float(0x7f800000)
constexpr u32 ABSENT = 0x7fc0dead;  // a NaN no computation gives

// ---- the CTA: warp 0 schedules, warp 1 loads weights, warps 2 and 3 gather rows, then two warpgroups multiply
constexpr int GROUP_THREADS = 128;  // a warpgroup
constexpr int GATHER_FIRST = 64;
constexpr int GATHER_THREADS = 64;
constexpr int CONSUMER_FIRST = GROUP_THREADS;
constexpr int CONSUMER_THREADS = 2 * GROUP_THREADS;
constexpr int THREADS = CONSUMER_FIRST + CONSUMER_THREADS;
constexpr int BARRIER_GROUP = 1;  // and 2: one warpgroup
constexpr int BARRIER_CONSUMERS = 3;

constexpr int DEPTH = 64;             // elements of the inner dimension a stage: 128 bytes, one swizzle row
constexpr int WEIGHT_ROWS = 128;      // rows of the weights a tile, 64 for each warpgroup
constexpr int WEIGHT_BYTES = WEIGHT_ROWS * DEPTH * 2;
constexpr int UP_COLUMNS = WEIGHT_ROWS / 2;  // intermediate columns a tile: gate and up rows take turns of eight
constexpr int MAX_TOKEN_TILE = 256;
constexpr int MAX_ROUTE_TOKENS = 64;
constexpr int MAX_STAGES = 12;
constexpr int MAX_SLOTS = 4;
constexpr int MAX_EXPERTS = 576;
constexpr u32 SHARED_BYTES = 232448;  // all that a CTA can have

struct Item {
    int phase;  // PHASE_LEFT: there are no more
    int ticket, expert, row_tile, column_tile;
    int first, rows, padded;  // rows of the expert's list (route, combine: tokens), and how many the products take
    int sorted_row;           // where the tile's rows are in `sorted` and `act`
    int by_tile;              // the rows are read there, by the tensor copy engine, and not gathered
    int save;                 // the rows are left there
    int k_begin, k_steps;     // stages of DEPTH
    int done;                 // control word that is raised when the item is done; NEVER: none
#if FAULT
    int faulty;               // the launch's first up tile
#endif
    int discard;              // aborted while its weights were on their way: let them land, and forget them
};

struct Letter {
    u64 come;
    int value;
};

struct Shared {
    u64 full[MAX_STAGES], empty[MAX_STAGES];  // one behind the other: Context::empty_of
    u64 known[MAX_SLOTS], ready[MAX_SLOTS], done[MAX_SLOTS], over[MAX_SLOTS];
    Item items[MAX_SLOTS];
    u64 quiet;  // all that this CTA had to tell others is told
    // what the first CTA of a pair tells the second: tickets, and of each item whether it is discarded; and in the first,
    // that the second has read it
    Letter tickets[MAX_SLOTS], verdicts[MAX_SLOTS], route_verdict;
    u64 heard[MAX_SLOTS];
    int left;   // CTAs that had left before this one
    int counts[MAX_EXPERTS];  // entries of each expert
    int ends[MAX_EXPERTS];    // row tiles of the experts up to and including it
    int starts[MAX_EXPERTS];  // where its rows start in `sorted` and `act`: every tile has its padded width there
    u32 source[MAX_SLOTS][MAX_TOKEN_TILE];  // where a row starts, in 16 bytes from the start of x
    alignas(1024) u8 scratch[16384];  // results: 8 KB a warpgroup; routing and combining: all of it
    // the ring follows, at a multiple of 1024: stages of WEIGHT_BYTES of weights and token_tile rows of 128 bytes
};

DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE int round_up(int a, int b) { return ceil_div(a, b) * b; }
// the smallest of the widths that products are compiled for (build.py) that takes `rows`
DEVICE int padded_width(int rows) {
#define WIDTH(N) | 1u << (N / 8 - 1)
    constexpr u32 WHICH = 0 WIDTHS;  // a bit each: an instruction or two, where a launch waits for its first tickets
#undef WIDTH
    int before = (rows - 1) / 8;
    return 8 * (before + __ffs(WHICH >> before));
}

// tiles of one expert are alike: no short last one
DEVICE int tile_width(int count, int tiles) { return round_up(tiles == 1 ? count : ceil_div(count, tiles), 8); }

struct Position {  // in the ring
    int stage;
    u32 parity;
    DEVICE void next(int stages) {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
    DEVICE int before(int stages) const { return (stage == 0 ? stages : stage) - 1; }
};

struct Context {
    const Params& p;
    Shared& s;
    u32 ring;    // shared address of stage 0
    int stages;  // as many as fit
    i64 launch;
    DEVICE bool is_plain() const {  // softmax of the logits, and nothing else
        return !p.sigmoid && p.correction_bias == nullptr && p.groups == 1 && p.router_bias == nullptr;
    }
    DEVICE bool is_silu() const {  // SiLU of the gate times up, and nothing else
        return p.gate_up_bias == nullptr && !(p.limit < INFINITE) && p.alpha == 1 && p.up_offset == 0;
    }
    DEVICE int entries_per_token() const { return p.top_k + p.shared_experts; }
    DEVICE int all_experts() const { return p.experts + p.shared_experts; }
    DEVICE int ctas() const { return 1 + p.paired; }  // of a cluster
    DEVICE int rank() const { return p.paired ? blockIdx.x % 2 : 0; }
    DEVICE int shares(int count) const { return (count + p.paired) >> p.paired; }  // of each, or of a pair
    DEVICE u32 stage_bytes() const { return WEIGHT_BYTES + p.token_tile * 128; }
    DEVICE u32 weights_at(int stage) const { return ring + stage * stage_bytes(); }
    DEVICE u32 rows_at(int stage) const { return weights_at(stage) + WEIGHT_BYTES; }
    DEVICE u32 full(int stage) const { return shared_address(&s.full[stage]); }
    DEVICE u32 empty(int stage) const { return shared_address(&s.empty[stage]); }
    DEVICE static u32 empty_of(u32 full) { return full + static_cast<u32>(sizeof(Shared::full)); }  // the same stage's
};
