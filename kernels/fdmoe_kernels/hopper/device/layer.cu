// A mixture-of-experts layer in one launch, for GPUs of compute capability 9.0. The public op is fdmoe_kernels/fused.py;
// its portable form, with the same rules, is _fused_kernel.py.
#include "combine.cuh"
#include "fault.cuh"
#include "gemm.cuh"
#include "route.cuh"
#include "schedule.cuh"
#include "token.cuh"

DEVICE void consume(const Context& c) {
    const Params& p = c.p;
    ItemReader reader(c);
    Position at = {0, 0};
    int thread = threadIdx.x - CONSUMER_FIRST, lane = thread % 32;
    // the warp's, and the compiler knows it: where tiles are is then worked out in uniform registers
    int group = __reduce_or_sync(~0u, thread / GROUP_THREADS);
    int items = 0;
    Debt debt;
    while (true) {
        if (debt.done != 0 && !reader.is_ready()) debt.settle(c, at);  // others may wait for it
        const Item& item = reader.known();  // stays in shared memory: the products need the registers
        int phase = item.phase;
        if (item.k_steps == 0) debt.settle(c, at);
        __syncwarp();
        if (phase == PHASE_COMBINE) find_entries(c, item, 0);  // known since the routing
        reader.ready();
        bool multiplies = item.k_steps > 0 && !item.discard;
        if (!multiplies) debt.settle(c, at);
        if (phase == PHASE_LEFT) break;
        if (thread < 32) beat(c, item, phase, WAIT_NONE, 0, 0, items);
        go_wrong(p, item, 100);  // a tile takes 6 to 20 us
        if (item.discard) {
            drain(c, at, item.k_steps);
        } else if (phase == PHASE_COMBINE) {
            combine(c, item);
        } else {
            if (multiplies) multiply_item(c, at, item, group, debt);
            if (phase == PHASE_ROUTE) {
                if (!multiplies) enter(c, item);
                named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
                if (thread == 0) add_release(p.control + item.done, 1);
            }
        }
        ++items;
        __syncwarp();
        if (lane == 0) {
            if (multiplies && phase != PHASE_ROUTE)
                debt.done = reader.done();  // the results are still on their way to memory
            else
                barrier_arrive(reader.done());
        }
        reader.next();
    }
    barrier_wait(shared_address(&c.s.quiet), 0);
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
    if (thread == 0) c.s.left = add_acquire_release(p.control + EXITS, 1);
    // after the count, whose release would wait until the host has the line
    if (thread < 32) beat(c, reader.known(), PHASE_LEFT, WAIT_NONE, 0, 0, items);
    named_barrier(BARRIER_CONSUMERS, CONSUMER_THREADS);
    if (c.s.left != gridDim.x - 1) return;
    int row_tiles = c.s.ends[c.all_experts() - 1];
    close_launch(
        c, p.logit_items + p.choose_items, row_tiles * p.up_tiles, row_tiles * p.down_tiles,
        p.column_blocks * p.combine_items
    );
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_layer(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    Shared& s = *reinterpret_cast<Shared*>(memory);
    u32 begin = shared_address(memory), ring = (begin + sizeof(Shared) + 1023) / 1024 * 1024;
    Context c = {p, s, ring, 0, p.totals[TOTAL_LAUNCHES] + 1};
    c.stages = min(MAX_STAGES, static_cast<int>((begin + SHARED_BYTES - ring) / c.stage_bytes()));
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < c.stages; ++stage) {
            barrier_init(c.full(stage), 1 + GATHER_THREADS);
            barrier_init(c.empty(stage), c.ctas() * CONSUMER_THREADS / 32);
        }
        for (int slot = 0; slot < p.slots; ++slot) {
            barrier_init(shared_address(&s.known[slot]), 1);
            barrier_init(shared_address(&s.ready[slot]), 1);
            barrier_init(shared_address(&s.done[slot]), CONSUMER_THREADS / 32);
            barrier_init(shared_address(&s.over[slot]), 1 + GATHER_THREADS);
            barrier_init(shared_address(&s.tickets[slot].come), 1);
            barrier_init(shared_address(&s.verdicts[slot].come), 1);
            barrier_init(shared_address(&s.heard[slot]), 1);
        }
        barrier_init(shared_address(&s.route_verdict.come), 1);
        barrier_init(shared_address(&s.quiet), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (p.paired) cluster_barrier();
    int warp = threadIdx.x / 32;
    if (threadIdx.x < CONSUMER_FIRST) {
        registers_down<72>();
        if (warp == 0)
            Scheduler(c).run();
        else if (warp > 1)
            gather_rows(c, threadIdx.x - GATHER_FIRST);
        else if (threadIdx.x % 32 == 0)
            load_weights(c);
    } else {
        registers_up<216>();
        consume(c);
    }
    if (p.paired) cluster_barrier();  // the other CTA may still reach into this one's memory
}

// The same for one token. A kernel of its own: beside the other's code the registers did not suffice.
extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_layer_token(const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    token_layer(p, memory);
}
