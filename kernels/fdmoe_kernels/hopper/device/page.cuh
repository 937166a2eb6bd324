// Beats: a CTA's line of the page says what it does and, while it waits, for what.
#pragma once
#include "params.cuh"

constexpr u32 POLL = 256;  // spins between two looks at the host's abort word while all CTAs wait, 0.2 ms
// looks after which a wait is shown, 50 us: what the CTAs that others wait for release waits until the host has their
// lines, which must not queue behind those of all that wait for them
constexpr u32 SHOWN_AFTER = 64;

// One 64-byte line by four lanes, 16 bytes each: one posted write over PCIe. Called by a whole warp.
DEVICE void beat(const Context& c, const Item& item, int phase, int wait, int target, int seen, int items) {
    if (c.p.page == nullptr) return;
    int lane = threadIdx.x % 32;
    if (lane >= 4) return;
    i64 low = lane == 0 ? c.launch
            : lane == 1 ? phase
            : lane == 2 ? (static_cast<i64>(item.row_tile) << 32 | static_cast<u32>(item.column_tile))
                        : seen;
    i64 high = lane == 0 ? static_cast<i64>(item.ticket) + 1
             : lane == 1 ? item.expert
             : lane == 2 ? (static_cast<i64>(wait) << 32 | static_cast<u32>(target))
                         : items;
    store_host(c.p.page + PAGE_SLOTS + blockIdx.x * 8 + lane * 2, low, high);
}
