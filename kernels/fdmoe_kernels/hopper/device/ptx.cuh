// Hopper's instructions, one small function each. Source: NVIDIA's PTX ISA 8.0 and newer.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

DEVICE u32 shared_address(const void* pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

// ---- mbarriers in shared memory
DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// as if so many threads did
DEVICE void barrier_arrive_times(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void barrier_arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// one arrival once all earlier cp.async of this thread are done
DEVICE void barrier_arrive_after_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
DEVICE bool barrier_passed(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
    return passed != 0;
}
// the same, without being suspended for a while
DEVICE bool barrier_tested(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
    return passed != 0;
}
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    while (!barrier_passed(barrier, parity)) {
    }
}
// ---- a cluster of two CTAs: each reaches the other's shared memory, at the address that its own has
DEVICE u32 address_in(u32 cta, u32 address) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(cta));
    return there;
}
DEVICE void barrier_arrive_in(u32 cta, u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address_in(cta, barrier)) : "memory");
}
// `value` to `address` there, 4 bytes that `barrier` beside it expects. What else was stored may arrive later.
DEVICE void send_in(u32 cta, u32 address, u32 barrier, int value) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address_in(cta, address)),
                 "r"(value), "r"(address_in(cta, barrier))
                 : "memory");
}
DEVICE bool barrier_tested_in_cluster(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
    return passed != 0;
}
// all threads of the cluster that have not ended
DEVICE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// hardware barrier `name` (1..15) among `threads` threads
DEVICE void named_barrier(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// ---- copies into shared memory
DEVICE void prefetch_map(const void* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
DEVICE void load_tile_2d(u32 target, const void* map, u32 barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            target),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1)
        : "memory");
}
// the same into both CTAs of a cluster, and to the barriers of both
DEVICE void load_tile_2d_in_both(u32 target, const void* map, u32 barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], "
        "[%2], %5;" ::"r"(target),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "h"(static_cast<unsigned short>(3))
        : "memory");
}
DEVICE void load_tile_3d(u32 target, const void* map, u32 barrier, int c0, int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(target),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
DEVICE void load_tile_5d(u32 target, const void* map, u32 barrier, int c0, int c1, int c2, int c3, int c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::
            "r"(target),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}
// `bytes` in a row, a multiple of 16, both addresses multiples of 16
DEVICE void copy_bytes(void* target, const void* source, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(target)),
                 "l"(source), "r"(bytes), "r"(barrier)
                 : "memory");
}
// into L2 only; a multiple of 16 bytes
DEVICE void prefetch_bytes(const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// out of shared memory; a thread's stores since the last commit are a group
DEVICE void store_tile_2d(const void* map, u32 source, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(source),
                 "r"(c0), "r"(c1)
                 : "memory");
}
DEVICE void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void stores_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
DEVICE void stores_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// 16 bytes, or zeros where `bytes` is 0
DEVICE void copy_16_bytes(u32 target, const void* source, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes)
                 : "memory");
}
// until all of this thread's are done
DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- warpgroup matrix products (the products themselves: mma.cuh, which build.py writes)
// ordinary stores and cp.async to shared memory become visible to wgmma and to the copy engine
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// the same for global memory: ordinary stores and the copy engine's accesses
DEVICE void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
template <int REGISTERS>
DEVICE void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
DEVICE void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
// four 8x8 matrices of 16-bit values, transposed; lane i gives the address of row i % 8 of matrix i / 8
DEVICE void store_transposed(u32 target, u32 m0, u32 m1, u32 m2, u32 m3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(m0), "r"(m1),
                 "r"(m2), "r"(m3)
                 : "memory");
}

// ---- global memory
DEVICE int load_acquire(const int* pointer) {
    int value;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
}
DEVICE int load_relaxed(const int* pointer) {
    int value;
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
}
DEVICE i64 load_host(const i64* pointer) {
    i64 value;
    asm volatile("ld.relaxed.sys.global.b64 %0, [%1];" : "=l"(value) : "l"(pointer) : "memory");
    return value;
}
DEVICE void store_host(i64* pointer, i64 a, i64 b) {
    asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(pointer), "l"(a), "l"(b) : "memory");
}
DEVICE void store_relaxed(int* pointer, int value) {
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}
DEVICE void add_release(int* pointer, int value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}
DEVICE void add_total(i64* pointer, i64 value) {
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(pointer), "l"(value) : "memory");
}
DEVICE int add_acquire_release(int* pointer, int value) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(pointer), "r"(value) : "memory");
    return before;
}
struct alignas(16) Vector {
    u32 words[4];
};
// past L1: other CTAs wrote it during this launch
DEVICE Vector load_vector(const void* pointer) {
    Vector v;
    asm volatile("ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(pointer)
                 : "memory");
    return v;
}
// the same if `wanted`, and else `v` stays as it was: one instruction, where a branch would be one more for each register
DEVICE void load_vector_if(bool wanted, Vector& v, const void* pointer) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.ne.s32 p, %5, 0;\n"
        "@p ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
        : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3])
        : "l"(pointer), "r"(static_cast<int>(wanted))
        : "memory");
}
// what nobody writes during a launch, and nobody here reads twice
DEVICE Vector stream(const void* pointer) {
    Vector v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(pointer));
    return v;
}
// the same if `wanted`, and else `v` stays as it was: one instruction, where a branch would be one more for each register
DEVICE void stream_if(bool wanted, Vector& v, const void* pointer) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.ne.s32 p, %5, 0;\n"
        "@p ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
        : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3])
        : "l"(pointer), "r"(static_cast<int>(wanted)));
}
DEVICE void store_vector(void* pointer, const Vector& v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(v.words[0]), "r"(v.words[1]),
                 "r"(v.words[2]), "r"(v.words[3])
                 : "memory");
}

// ---- numbers: HALF_BF16 or HALF_FP16 says which 16-bit type the build is for
#ifdef HALF_FP16
#define HALF_NAME "f16"
#else
#define HALF_NAME "bf16"
#endif
// two floats to two 16-bit values, `low` in the lower half
DEVICE u32 pack_halves(float low, float high) {
    u32 packed;
    asm("cvt.rn." HALF_NAME "x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
DEVICE float half_to_float(u16 value) {
#ifdef HALF_FP16
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
    return result;
#else
    return __uint_as_float(static_cast<u32>(value) << 16);
#endif
}
DEVICE float low_half(u32 packed) { return half_to_float(static_cast<u16>(packed)); }
DEVICE float high_half(u32 packed) { return half_to_float(static_cast<u16>(packed >> 16)); }
DEVICE float tangent(float x) {
    float result;
    asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// to 2 units in the last place; what becomes of it is rounded to 16 bits
DEVICE float exponential(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504f));
    return result;
}

// ---- a warp's product of 16 rows and 8 columns, 16 deep, added to `sums`. A lane has words i and i + 1 of row lane / 4
// (`upper`), of the row eight below it, and of column lane / 4: any 16 elements of the inner dimension, as long as the four
// lanes of a row and of a column have the same ones. It gets row lane / 4 and the one below at columns 2 (lane % 4) and the
// next: sums[0], [1], and [2], [3].
DEVICE void multiply_16x8(float (&sums)[4], const Vector& upper, const Vector& lower, const Vector& column, int i) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32." HALF_NAME "." HALF_NAME ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(upper.words[i]), "r"(lower.words[i]), "r"(upper.words[i + 1]), "r"(lower.words[i + 1]),
          "r"(column.words[i]), "r"(column.words[i + 1]));
}
