// A launch: a thread of this machine for each warp.
#pragma once
#include "ptx.cuh"

// `entry` is a lane's whole life; `threads` a CTA, `clustered` CTAs to a cluster
inline void launch_ctas(const void* arguments, int grid, int threads, u32 shared_bytes, int clustered, void (*entry)()) {
    std::vector<std::unique_ptr<Cta>> ctas;
    std::vector<std::unique_ptr<Meeting>> clusters;
    std::vector<std::unique_ptr<u8[]>> shared;
    std::vector<std::thread> warps;
    for (int block = 0; block < grid; ++block) {
        shared.push_back(std::make_unique<u8[]>(shared_bytes + 1024));
        u8* memory = shared.back().get();
        memory += 1024 - reinterpret_cast<u64>(memory) % 1024;
        // what shared memory holds at first is anybody's guess
        std::memset(memory, 0xa5, shared_bytes);
        ctas.push_back(std::make_unique<Cta>(threads, memory, shared_bytes, arguments));
        if (block % clustered == 0) clusters.push_back(std::make_unique<Meeting>(clustered * threads));
        ctas.back()->cluster = clusters.back().get();
    }
    for (int block = 0; block < grid; ++block)
        for (int rank = 0; rank < clustered; ++rank)
            ctas[block]->peers[rank] = ctas[block / clustered * clustered + rank].get();
    for (int block = 0; block < grid; ++block)
        for (int first = 0; first < threads; first += 32)
            warps.emplace_back([=, owner = ctas[block].get()] {
                threadIdx = {static_cast<u32>(first)};
                blockIdx = {static_cast<u32>(block)};
                gridDim = {static_cast<u32>(grid)};
                cta = owner;
                std::make_unique<Warp>()->run(entry);
            });
    for (std::thread& thread : warps) thread.join();
    for (const auto& cta : ctas)
        if (!cta->copies.empty()) __builtin_trap();  // into memory that was given away
}
