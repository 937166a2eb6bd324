// Stands in for build.py's mma.cuh: a lane's part of wgmma.m64nNk16, of rows of 128 bytes with the 128-byte swizzle.
#pragma once
#include "ptx.cuh"

inline float operand(u32 start, u32 row, u32 k) {
    u16 value;
    std::memcpy(&value, cta->memory + swizzled(start + row * 128 + k * 2, 128), 2);
    return half_to_float(value);
}
template <int N>
void product(float (&sums)[N / 2], u64 weights, u64 rows) {
    constexpr u64 LAYOUT = 1ull << 16 | 64ull << 32 | 1ull << 62;
    if ((weights & ~0x3fffull) != LAYOUT || (rows & ~0x3fffull) != LAYOUT) __builtin_trap();
    own_lane().products.add([&sums, weights, rows] {
        u32 a = static_cast<u32>(weights & 0x3fff) << 4, b = static_cast<u32>(rows & 0x3fff) << 4;
        u32 lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
        float upper[16], lower[16];
        for (u32 k = 0; k < 16; ++k) {
            upper[k] = operand(a, row, k);
            lower[k] = operand(a, row + 8, k);
        }
        for (u32 j = 0; j < N / 8; ++j)
            for (u32 half = 0; half < 2; ++half)
                for (u32 k = 0; k < 16; ++k) {
                    float value = operand(b, 8 * j + lane % 4 * 2 + half, k);
                    sums[4 * j + half] += upper[k] * value;
                    sums[4 * j + 2 + half] += lower[k] * value;
                }
    });
}
