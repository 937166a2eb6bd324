// Warp 0: takes tickets, says what each is and which rows it needs, and waits for what it waits for.
//
// Tickets are numbered in topological order:
//
//     [ logits | choose | up | down block 0 | down 1 | combine 0 | down 2 | combine 1 | .. | combine of the last ]
//
// Where there are many tokens, the up items of column tile 0 come first: they leave their gathered rows sorted by expert,
// and the other columns read them by the tensor copy engine. Where those are fewer than the CTAs, some more columns gather
// rows for themselves, for to wait for the first would take as long.
//
// A column block is a part of H: its rows are combined after the products of the next block by those that have no more of
// them.
//
// The oldest unfinished item never waits for a younger one, and a CTA works its items off in the order of their tickets,
// so a launch ends with any number of CTAs, co-resident or not.
//
// Two CTAs of a pair have each ticket in common and work in step: items of one rank and the next, an even number of all
// kinds. The first takes the ticket, does the waiting, and says whether the item is discarded; the second hears of it.
#pragma once
#include "page.cuh"

struct Scheduler {
    const Context& c;
    int slot = 0;
    u32 parity = 0;
    int items = 0;  // handed out
    int told = 0, told_slot = 0;  // of them, done and told to the other CTAs
    u32 told_parity = 0;
    int logit_tickets, route_tickets, row_tiles = 0, ctas, rank;
    int gathering;  // shares of a row tile's columns that gather
    bool mapped = false;

    DEVICE explicit Scheduler(const Context& context) : c(context) {
        ctas = c.ctas();
        rank = c.rank();
        logit_tickets = c.shares(c.p.logit_items);
        route_tickets = logit_tickets + c.shares(c.p.choose_items);
    }

    // Lanes that read the same word may read different values, and the warp must go one way.
    DEVICE static bool all_tested(const u64* barrier, u32 parity) {
        return __all_sync(~0u, barrier_tested(shared_address(barrier), parity));
    }

    // From the first of a pair to the second.
    DEVICE void send(Letter& letter, int value) const {
        if (c.p.paired && rank == 0 && threadIdx.x == 0)
            send_in(1, shared_address(&letter.value), shared_address(&letter.come), value);
    }
    DEVICE void expect(Letter& letter) const {
        if (threadIdx.x == 0) barrier_arrive_expecting(shared_address(&letter.come), sizeof(int));
        __syncwarp();
    }
    DEVICE static bool has_come(const Letter& letter, u32 parity) {
        return __all_sync(~0u, barrier_tested_in_cluster(shared_address(&letter.come), parity));
    }

    DEVICE int take() {
        Letter& letter = c.s.tickets[slot];
        if (rank == 1) {
            expect(letter);
            while (!has_come(letter, parity)) look();
            return letter.value;
        }
        int ticket = 0;
        if (threadIdx.x == 0) ticket = atomicAdd(c.p.control + TICKET, 1);
        if (c.p.paired) {  // the other has read what came with this slot before
            while (!all_tested(&c.s.heard[slot], parity ^ 1)) look();
        }
        send(letter, ticket);
        return __shfl_sync(~0u, ticket, 0);
    }

    // Tell the other CTAs of an item that is done: its results have arrived (Debt::tell). A release waits for what else this
    // CTA has stored, microseconds while the memory is busy: here, while the warpgroups that multiply go on.
    DEVICE void tell_done() {
        if (told == items || !all_tested(&c.s.done[told_slot], told_parity)) return;
        if (threadIdx.x == 0) {
            const Item& item = c.s.items[told_slot];
            bool counts = item.phase != PHASE_ROUTE && item.done != NEVER && !item.discard;
#if FAULT == 1
            counts = counts && !item.faulty;
#endif
            if (counts) add_release(c.p.control + item.done, 1);
            if (counts && item.save) add_release(c.p.control + item.done - c.p.up_at + c.p.sorted_at, 1);
        }
        __syncwarp();
        ++told;
        if (++told_slot == c.p.slots) {
            told_slot = 0;
            told_parity ^= 1;
        }
    }

    // The same while there is nothing else to do. With many tokens the chip is at its power limit, which looks count
    // against as well, and an item takes 10 us.
    DEVICE void look() {
        tell_done();
        if (c.p.paired) __nanosleep(200);
    }

    // Wait until control word `counter` reaches `target`; true if the launch was aborted meanwhile.
    // The host's abort word is a PCIe read of 4 us: a waiting CTA looks at the device's word every 16 spins, and at the
    // host's only in its turn. The line names the wait once it lasts, and nothing else is left to do here.
    // Of a pair, the first decides, and the other waits for its word as well: both must do the same.
    DEVICE bool wait(const Item& item, int phase, int counter, int target, int reason, Letter& verdict, u32 verdict_parity) {
        const Params& p = c.p;
        u32 turns = gridDim.x >> p.paired, turn = blockIdx.x >> p.paired;
        bool shown = false, heard = rank == 0;
        if (!heard) expect(verdict);
        for (u32 spins = 1;; ++spins) {
            int seen = load_acquire(p.control + counter);
            if (!heard && has_come(verdict, verdict_parity)) {
                if (verdict.value) return true;
                heard = true;
            }
            if (heard && __all_sync(~0u, seen >= target)) {
                send(verdict, false);
                return false;
            }
            if (rank == 0 && spins % 16 == 0 && __any_sync(~0u, load_relaxed(p.control + ABORT))) break;
            if (p.page != nullptr && spins % (POLL * turns) == POLL * (turn + 1) - 1) {
                int aborted = 0;
                if (threadIdx.x == 0 && rank == 0 && load_host(p.page + PAGE_ABORT) == c.launch) {
                    if (atomicExch(p.control + ABORT, 1) == 0) atomicAdd(p.control + TICKET, CLOSED);
                    aborted = 1;
                }
                shown = false;
                if (__shfl_sync(~0u, aborted, 0)) break;
            }
            tell_done();
            if (!shown && spins >= SHOWN_AFTER && told == items && target > 0) {
                beat(c, item, phase, reason, target, seen, items);
                shown = true;
            }
        }
        send(verdict, true);
        return true;
    }

    // After routing: entries and row tiles of each expert, for all of this CTA. A lane has some experts in a row.
    DEVICE void map_experts() {
        const Params& p = c.p;
        constexpr int AT_ONCE = 4;  // loads that take their time together; more would be more code to fetch
        int lane = threadIdx.x, each = ceil_div(c.all_experts(), 32);
        int begin = lane * each, end = min(begin + each, c.all_experts());
#pragma unroll 1
        for (int start = begin; start < end; start += AT_ONCE) {
            int counts[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                counts[i] = p.tokens;
                if (start + i < min(end, p.experts)) counts[i] = load_relaxed(p.control + p.counts_at + start + i);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
                if (start + i < end) c.s.counts[start + i] = counts[i];
        }
        int tiles = 0, rows = 0;
#pragma unroll 1
        for (int expert = begin; expert < end; ++expert) {
            int count = c.s.counts[expert], its_tiles = ceil_div(count, p.token_tile);
            c.s.starts[expert] = rows;
            if (its_tiles > 0) rows += its_tiles * padded_width(tile_width(count, its_tiles));
            tiles += its_tiles;
            c.s.ends[expert] = tiles;
        }
        int tiles_to = tiles, rows_to = rows;  // those of this lane included
#pragma unroll 1
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(~0u, tiles_to, step), other_rows = __shfl_up_sync(~0u, rows_to, step);
            if (lane >= step) {
                tiles_to += other;
                rows_to += other_rows;
            }
        }
#pragma unroll 1
        for (int expert = begin; expert < end; ++expert) {
            c.s.ends[expert] += tiles_to - tiles;
            c.s.starts[expert] += rows_to - rows;
        }
        row_tiles = __shfl_sync(~0u, tiles_to, 31);
        gathering = c.shares(p.up_tiles);
        if (p.sort)
            gathering = min(gathering, ceil_div(static_cast<int>(gridDim.x) >> p.paired, max(row_tiles, 1)));
        mapped = true;
        __syncwarp();
    }

    // The rows of an item that gathers them: where they start in x.
    DEVICE void find_rows(const Item& item) const {
        const Params& p = c.p;
        constexpr int AT_ONCE = 2;
        const int* list = p.lists + static_cast<i64>(item.expert) * p.capacity;
        bool listed = item.phase == PHASE_UP && item.expert < p.experts;
#pragma unroll 1
        for (int start = 0; start < item.padded; start += 32 * AT_ONCE) {
            int tokens[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                int row = start + i * 32 + threadIdx.x;
                // rows that only fill up the tile read what the first one reads
                tokens[i] = item.first + (row < item.rows ? row : 0);
                if (listed && row < item.padded) tokens[i] = load_relaxed(list + tokens[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                int row = start + i * 32 + threadIdx.x;
                if (row >= item.padded) break;
                c.s.source[slot][row] = static_cast<u32>(tokens[i]) * static_cast<u32>(p.hidden / 8);
            }
        }
        __syncwarp();
    }

    // item `index` of a matrix product over all row tiles, each in `columns` column tiles, or pairs of them, from
    // `first_column` on: per expert, groups of row tiles whose CTAs share the weights in L2. Returns which of all row
    // tiles it is. A pair's second column tile may be one too many: it computes zeros, which are nowhere stored.
    DEVICE int locate(Item& item, int index, int columns, int first_column) const {
        const Params& p = c.p;
        int expert = 0;
#pragma unroll 1
        for (int start = 0; start < c.all_experts(); start += 32) {
            int e = start + threadIdx.x;
            expert += __popc(__ballot_sync(~0u, e < c.all_experts() && c.s.ends[e] * columns <= index));
        }
        int first = expert == 0 ? 0 : c.s.ends[expert - 1];
        int tiles = c.s.ends[expert] - first, count = c.s.counts[expert];
        int local = index - first * columns;
        item.expert = expert;
        if (tiles > 1) {
            int group = local / (p.row_group * columns);
            int rows = min(p.row_group, tiles - group * p.row_group);
            local -= group * p.row_group * columns;
            item.row_tile = group * p.row_group + local % rows;
            local /= rows;
        }
        item.column_tile = first_column + local * ctas + rank;
        int width = tile_width(count, tiles);
        item.first = item.row_tile * width;
        item.rows = min(width, count - item.first);
        item.padded = padded_width(item.rows);
        item.sorted_row = c.s.starts[expert] + item.row_tile * padded_width(width);
        item.k_begin = 0;
        return first + item.row_tile;
    }

    // What comes after routing. Returns the wait's counter in `counter` and its target, 0 for none.
    DEVICE void decode(Item& item, int index, int& counter, int& target) const {
        const Params& p = c.p;
        int up_shares = c.shares(p.up_tiles), row_tile;
        if (index < row_tiles * up_shares) {
            item.phase = PHASE_UP;
            if (index < row_tiles * gathering) {
                row_tile = locate(item, index, gathering, 0);
                item.save = p.sort && item.column_tile == 0;
            } else {
                row_tile = locate(item, index - row_tiles * gathering, up_shares - gathering, gathering * ctas);
                item.by_tile = 1;
                counter = p.sorted_at + row_tile;
                target = 1;
            }
#if FAULT
            item.faulty = index == 0 && rank == 0;
#endif
            item.k_steps = ceil_div(p.hidden, DEPTH);
            if (item.column_tile < p.up_tiles) item.done = p.up_at + row_tile;
            return;
        }
        index -= row_tiles * up_shares;
        int combine_shares = c.shares(p.combine_items);
#pragma unroll 1
        for (int block = 0; block <= p.column_blocks; ++block) {
            // none: H is too narrow for it
            int columns = c.shares(max(0, min(p.block_tiles, p.down_tiles - block * p.block_tiles)));
            if (block < p.column_blocks && index < row_tiles * columns) {
                item.phase = PHASE_DOWN;
                counter = p.up_at + locate(item, index, columns, block * p.block_tiles);
                target = p.up_tiles;
                item.k_steps = ceil_div(p.intermediate, DEPTH);
                item.by_tile = 1;
                if (item.column_tile < p.down_tiles) item.done = DOWN_DONE + 32 * block;
                return;
            }
            if (block < p.column_blocks) index -= row_tiles * columns;
            if (block == 0) continue;
            if (index < combine_shares) {
                int finished = min(p.block_tiles, p.down_tiles - (block - 1) * p.block_tiles);
                item.phase = PHASE_COMBINE;
                item.row_tile = index * ctas + rank;
                item.column_tile = block - 1;
                item.first = item.row_tile * p.combine_tokens;
                item.rows = max(0, min(p.combine_tokens, p.tokens - item.first));  // none: a pair's second, one too many
                counter = DOWN_DONE + 32 * (block - 1);
                target = row_tiles * finished;
                return;
            }
            index -= combine_shares;
        }
    }

    // A part of the logits of some tokens, or, when all of theirs are there, the choice of their experts.
    DEVICE void route_item(Item& item, int& counter, int& target) const {
        const Params& p = c.p;
        int index = item.ticket * ctas + rank;
        item.phase = PHASE_ROUTE;
        if (item.ticket >= logit_tickets) {
            index -= logit_tickets * ctas;
            item.row_tile = index;
            item.first = index * p.choose_tokens;
            item.rows = min(p.choose_tokens, p.tokens - item.first);
            item.done = ROUTE_DONE;
            item.discard = index >= p.choose_items;  // a pair's second, one too many
            if (p.given_experts || item.discard) return;
            counter = p.route_at + (item.first >> (__ffs(p.route_tokens) - 1));
            target = p.logit_parts;
            return;
        }
        int tile = index / p.logit_parts, part = index - tile * p.logit_parts;
        item.row_tile = tile;
        for (; part >= p.route_splits; part -= p.route_splits) ++item.expert;  // the block of experts
        item.column_tile = part;                                               // the part of the inner dimension
        item.first = tile * p.route_tokens;
        item.rows = max(0, min(p.route_tokens, p.tokens - item.first));  // none: a pair's second, one too many
        item.padded = padded_width(item.rows);
        item.k_steps = p.route_steps;  // beyond H there are zeros: all parts have the same steps
        item.k_begin = part * p.route_steps;
        item.done = p.route_at + tile;
        item.discard = index >= p.logit_items;
    }

    DEVICE void run() {
        const Params& p = c.p;
        bool aborted = false;
        while (true) {
            int last = slot == 0 ? p.slots - 1 : slot - 1;
            u32 last_parity = slot == 0 ? parity ^ 1 : parity;
            while (
                items - told >= p.slots || !all_tested(&c.s.over[slot], parity ^ 1) ||
                (items > 0 && !all_tested(&c.s.over[last], last_parity))
            )
                look();
            int ticket = take();
            Item item = {};
            item.ticket = ticket;
            item.done = NEVER;
            int counter = 0, target = 0, phase;
            if (ticket < route_tickets) {
                route_item(item, counter, target);
            } else if (ticket >= CLOSED) {
                item.phase = PHASE_LEFT;
                aborted = true;
            } else {
                if (!mapped) {
                    aborted = wait(item, PHASE_UP, ROUTE_DONE, p.choose_items, WAIT_ROUTE, c.s.route_verdict, 0);
                    if (!aborted) map_experts();
                }
                item.phase = PHASE_LEFT;
                if (!aborted) decode(item, ticket - route_tickets, counter, target);
            }
            phase = item.phase;
            if (item.k_steps > 0 && !item.by_tile) find_rows(item);
            if (threadIdx.x == 0) {
                c.s.items[slot] = item;
                barrier_arrive(shared_address(&c.s.known[slot]));
            }
            int reason = phase == PHASE_ROUTE ? WAIT_ROUTE : phase == PHASE_COMBINE ? WAIT_DOWN : WAIT_UP;
            bool dropped =
                (target > 0 || p.paired) && wait(item, phase, counter, target, reason, c.s.verdicts[slot], parity);
            if (dropped) {
                aborted = true;
                if (threadIdx.x == 0) c.s.items[slot].discard = 1;
            }
            __syncwarp();
            if (threadIdx.x == 0) barrier_arrive(shared_address(&c.s.ready[slot]));
            if (rank == 1 && threadIdx.x == 0) barrier_arrive_in(0, shared_address(&c.s.heard[slot]));
            if (phase == PHASE_LEFT) break;
            ++items;
            if (++slot == p.slots) {
                slot = 0;
                parity ^= 1;
            }
        }
        while (told < items) tell_done();
        if (threadIdx.x == 0) barrier_arrive(shared_address(&c.s.quiet));
    }
};
