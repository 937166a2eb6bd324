// The kernel for one token, by threads of this machine (ptx.cuh beside this file).
#include "token.cuh"

static void one_lane() {
    token_layer(*static_cast<const Params*>(cta->arguments), cta->memory);
    warp->end();
}

extern "C" void launch(const Params* params, int grid) {
    std::vector<std::unique_ptr<Cta>> ctas;
    std::vector<std::unique_ptr<u8[]>> shared;
    std::vector<std::thread> threads;
    for (int block = 0; block < grid; ++block) {
        shared.push_back(std::make_unique<u8[]>(SHARED_BYTES + 1024));
        u8* memory = shared.back().get();
        memory += 1024 - reinterpret_cast<u64>(memory) % 1024;
        // what shared memory holds at first is anybody's guess
        std::memset(memory, 0xa5, SHARED_BYTES);
        ctas.push_back(std::make_unique<Cta>(THREADS, memory, SHARED_BYTES, params));
        for (u32 first = 0; first < THREADS; first += 32)
            threads.emplace_back([=, owner = ctas.back().get()] {
                threadIdx = {first};
                blockIdx = {static_cast<u32>(block)};
                gridDim = {static_cast<u32>(grid)};
                cta = owner;
                Warp().run(one_lane);
            });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& cta : ctas)
        if (!cta->copies.empty()) __builtin_trap();  // into memory that was given away
}
// the lines of the launches since the last call: which CTA's, its wait, and how many looks it had before
extern "C" int lines_shown(Shown* into, int most) {
    int count = std::min(most, static_cast<int>(lines.size()));
    std::copy_n(lines.begin(), count, into);
    lines.clear();
    return count;
}
// the next logits are kept back until a CTA has looked for them so often
extern "C" void hold_logits(int looks) { held_for = looks; }
// what a line says of logits that are there, in route items
extern "C" int route_items_seen(int experts, int logits) { return Token::items_seen<TOKEN_WARPS>(experts, logits); }
extern "C" int params_bytes() { return sizeof(Params); }
