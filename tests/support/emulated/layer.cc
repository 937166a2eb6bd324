// The kernel for many tokens (launch.cuh).
#include "launch.cuh"
#include "layer.cu"

static void one_lane() {
    moe_layer(*static_cast<const Params*>(cta->arguments));
    warp->end();
}

extern "C" void launch(const Params* params, int grid) {
    launch_ctas(params, grid, THREADS, SHARED_BYTES, 1 + params->paired, one_lane);
}
extern "C" int params_bytes() { return sizeof(Params); }
