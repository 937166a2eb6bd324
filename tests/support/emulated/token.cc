// The kernel for one token (launch.cuh).
#include "launch.cuh"
#include "token.cuh"

static void one_lane() {
    token_layer(*static_cast<const Params*>(cta->arguments), cta->memory);
    warp->end();
}

extern "C" void launch(const Params* params, int grid) {
    launch_ctas(params, grid, THREADS, SHARED_BYTES, 1, one_lane);
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
