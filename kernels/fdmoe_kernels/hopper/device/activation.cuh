#pragma once
#include "ptx.cuh"

// gate * sigmoid(alpha * gate) * (up + up_offset) (fdmoe_kernels/activation.py), by sigmoid(z) = (1 + tanh(z / 2)) / 2:
// one slow operation an element instead of two, to 5e-4 of the sigmoid, where a bfloat16 is rounded by 4e-3
DEVICE float activate(float gate, float up, float half_alpha, float up_offset) {
    float half = 0.5f * gate;
    return (half + half * tangent(half_alpha * gate)) * (up + up_offset);
}

// the same for alpha 1 and up_offset 0, in fewer instructions
DEVICE float silu(float gate, float up) {
    float half = 0.5f * gate;
    return (half + half * tangent(half)) * up;
}

// written so that a NaN comes through, which fminf and fmaxf would replace by the limit
DEVICE float clamped(float value, float low, float high) { return value > high ? high : value < low ? low : value; }
