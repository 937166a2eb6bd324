// Stands in for device/ptx.cuh where there is no GPU: a thread of the machine for each warp, whose lanes take turns, in
// g++'s C++. Slow, and no proof of the memory model; everything else of the device code runs as it is written.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE inline
#define __device__
#define __forceinline__ inline

struct Index {
    u32 x;
};
struct Warp;
struct Cta;
inline thread_local Index threadIdx, blockIdx, gridDim;
inline thread_local Cta* cta;
inline thread_local Warp* warp;
static thread_local int looks;  // at what is waited for, since this thread's last line of the page

// A warp's lanes, each on a stack of its own.
struct Warp {
    static constexpr std::size_t STACK_BYTES = 256 << 10;
    ucontext_t home, lanes[32];
    bool ended[32] = {};
    std::unique_ptr<u8[]> stacks = std::make_unique_for_overwrite<u8[]>(32 * STACK_BYTES);
    void run(void (*entry)()) {
        warp = this;
        for (int lane = 0; lane < 32; ++lane) {
            getcontext(&lanes[lane]);
            lanes[lane].uc_stack = {stacks.get() + lane * STACK_BYTES, 0, STACK_BYTES};
            lanes[lane].uc_link = nullptr;
            makecontext(&lanes[lane], entry, 0);
        }
        swapcontext(&home, &lanes[0]);
    }
    // the lane whose turn it is after this one, or this one if all others have ended
    ucontext_t* next() {
        int lane = threadIdx.x % 32, to = lane;
        do to = (to + 1) % 32;
        while (ended[to] && to != lane);
        if (to <= lane) std::this_thread::yield();  // all have had theirs
        threadIdx.x += to - lane;
        return &lanes[to];
    }
    // all others' turns
    void give_way() {
        Index own = threadIdx;
        int own_looks = looks;
        ucontext_t* to = next();
        if (to != &lanes[own.x % 32]) swapcontext(&lanes[own.x % 32], to);
        threadIdx = own;
        looks = own_looks;
    }
    [[noreturn]] void end() {
        int lane = threadIdx.x % 32;
        ended[lane] = true;
        ucontext_t* to = next();
        setcontext(to == &lanes[lane] ? &home : to);
        __builtin_unreachable();
    }
};
inline void give_way() { warp->give_way(); }

// Where so many threads wait for each other.
class Meeting {
    const int size_;
    std::atomic<int> arrived_ = 0;
    std::atomic<u32> past_ = 0;

public:
    explicit Meeting(int size) : size_(size) {}
    u32 past() const { return past_; }
    void meet() {
        u32 before = past_;
        if (++arrived_ == size_) {
            arrived_ = 0;
            ++past_;
        }
        while (past_ == before) give_way();
    }
};
// What lanes tell each other: all may still read what was told last while they tell the next.
struct Exchange {
    Meeting meeting{32};
    std::array<u64, 32> told[2];
    std::array<std::array<u32, 6>, 32> factors[2];
};
struct Copy {
    void* target;
    const void* source;
    u32 bytes, barrier;
};
struct Cta {
    u8* memory;  // what its threads share
    u32 memory_bytes;
    const void* arguments;  // of the launch
    std::mutex copying;
    std::vector<Copy> copies;  // on their way
    Meeting all;
    Meeting consumers{256};
    std::vector<Exchange> exchanges;
    Cta(int threads, u8* shared, u32 bytes, const void* launched)
        : memory(shared), memory_bytes(bytes), arguments(launched), all(threads), exchanges(threads / 32) {}
    Exchange& exchange() { return exchanges[threadIdx.x / 32]; }
};

template <class T>
u64 bits_of(T value) {
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T>
T value_of(u64 bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
// all lanes' values to all lanes
template <class T>
std::array<T, 32> share(T value) {
    Exchange& exchange = cta->exchange();
    auto& told = exchange.told[exchange.meeting.past() % 2];
    told[threadIdx.x % 32] = bits_of(value);
    exchange.meeting.meet();
    std::array<T, 32> all;
    for (int i = 0; i < 32; ++i) all[i] = value_of<T>(told[i]);
    return all;
}
template <class T>
T __shfl_sync(u32, T value, int from) {
    return share(value)[from % 32];
}
template <class T>
T __shfl_xor_sync(u32, T value, int mask) {
    return share(value)[threadIdx.x % 32 ^ mask];
}
inline u32 __ballot_sync(u32, int predicate) {
    u32 votes = 0;
    auto all = share(predicate != 0);
    for (int i = 0; i < 32; ++i) votes |= static_cast<u32>(all[i]) << i;
    return votes;
}
inline int __all_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) == ~0u; }
inline int __any_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline u32 __reduce_max_sync(u32, u32 value) {
    u32 result = 0;
    for (u32 other : share(value)) result = std::max(result, other);
    return result;
}
inline u32 __reduce_min_sync(u32, u32 value) {
    u32 result = ~0u;
    for (u32 other : share(value)) result = std::min(result, other);
    return result;
}
static std::atomic<int> held_for;  // so many looks at the logits the CTAs that have them keep them back
inline int __reduce_add_sync(u32, int value) {
    ++looks;  // a look at the logits ends with it
    if (threadIdx.x == 0 && held_for > 0) --held_for;
    int result = 0;
    for (int other : share(value)) result += other;
    return result;
}
inline void __syncwarp() { cta->exchange().meeting.meet(); }
inline void __syncthreads() { cta->all.meet(); }
inline void named_barrier(int, int) { cta->consumers.meet(); }

template <class A, class B>
auto min(A a, B b) {
    using C = std::common_type_t<A, B>;
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(a) : static_cast<C>(b);
}
template <class A, class B>
auto max(A a, B b) {
    using C = std::common_type_t<A, B>;
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL); }
inline int atomicExch(int* at, int value) {  // who does this aborts the launch
    held_for = 0;
    return __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL);
}
template <class T>
T __ldcg(const T* at) {
    return *static_cast<const volatile T*>(at);
}
inline void __nanosleep(u32) { give_way(); }
inline int __ffs(u32 bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __uint_as_float(u32 bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline u32 __float_as_uint(float value) { return std::bit_cast<u32>(value); }
using std::fmaf, std::fmaxf, std::fminf;

inline u32 shared_address(const void* at) { return static_cast<u32>(static_cast<const u8*>(at) - cta->memory); }
// An mbarrier of one arrival: bytes that are still expected, and how many phases are over.
struct Arrivals {
    int bytes;
    u32 phase;
};
inline Arrivals& arrivals(u32 barrier) { return *reinterpret_cast<Arrivals*>(cta->memory + barrier); }
inline void barrier_init(u32 barrier, u32 count) {
    if (count != 1) __builtin_trap();
    arrivals(barrier) = {0, 0};
}
inline void barrier_arrive_expecting(u32 barrier, u32 bytes) {
    std::lock_guard locked(cta->copying);
    if (bytes == 0 || arrivals(barrier).bytes != 0) __builtin_trap();
    arrivals(barrier).bytes = static_cast<int>(bytes);
}
// What is copied is there as late as can be: when somebody waits for it.
inline void copy_bytes(void* target, const void* source, u32 bytes, u32 barrier) {
    if (bytes % 16 || reinterpret_cast<u64>(source) % 16 || reinterpret_cast<u64>(target) % 16) __builtin_trap();
    if (shared_address(target) + bytes > cta->memory_bytes) __builtin_trap();
    std::lock_guard locked(cta->copying);
    cta->copies.push_back({target, source, bytes, barrier});
}
inline void barrier_wait(u32 barrier, u32 parity) {
    for (;; give_way()) {
        std::lock_guard locked(cta->copying);
        Arrivals& at = arrivals(barrier);
        if (at.phase % 2 != parity) return;
        std::erase_if(cta->copies, [&](const Copy& copy) {
            if (copy.barrier != barrier) return false;
            std::memcpy(copy.target, copy.source, copy.bytes);
            at.bytes -= static_cast<int>(copy.bytes);
            if (at.bytes < 0) __builtin_trap();
            at.phase += at.bytes == 0;
            return true;
        });
    }
}
inline void fence_async_proxy() {}
// what a wait is known by on a page's line: which, by whom, for how many, and after how many looks
struct Shown {
    int cta, wait, target, looks;
};
static std::vector<Shown> lines;  // of this build: an inline variable would be all builds'
static std::mutex lines_lock;

inline int load_acquire(const int* at) {
    ++looks;
    give_way();
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
inline int load_relaxed(const int* at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
inline void store_relaxed(int* at, int value) {  // a logit
    while (held_for > 0) give_way();
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
inline i64 load_host(const i64* at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
inline void store_host(i64* at, i64 a, i64 b) {
    if (threadIdx.x == 2) {  // of the scheduler's warp, the lane that stores what the CTA waits for
        std::lock_guard locked(lines_lock);
        lines.push_back({static_cast<int>(blockIdx.x), static_cast<int>(b >> 32), static_cast<int>(b), looks});
        looks = 0;
    }
    __atomic_store_n(at, a, __ATOMIC_RELAXED);
    __atomic_store_n(at + 1, b, __ATOMIC_RELAXED);
}
inline void add_release(int* at, int value) { __atomic_fetch_add(at, value, __ATOMIC_RELEASE); }
inline void add_total(i64* at, i64 value) { __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline int add_acquire_release(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL); }
struct alignas(16) Vector {
    u32 words[4];
};
inline Vector load_vector(const void* at) {
    if (reinterpret_cast<u64>(at) % 16) __builtin_trap();
    return *static_cast<const Vector*>(at);
}
inline void load_vector_if(bool wanted, Vector& v, const void* at) {
    if (wanted) v = load_vector(at);
}
inline Vector stream(const void* at) { return load_vector(at); }
inline void stream_if(bool wanted, Vector& v, const void* at) {
    if (wanted) v = load_vector(at);
}
inline void store_vector(void* at, const Vector& v) { *static_cast<Vector*>(at) = v; }

inline u16 to_half(float value) {
    u32 bits = std::bit_cast<u32>(value);
    if (value != value) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float half_to_float(u16 value) { return std::bit_cast<float>(static_cast<u32>(value) << 16); }
inline u32 pack_halves(float low, float high) { return to_half(low) | static_cast<u32>(to_half(high)) << 16; }
inline float low_half(u32 packed) { return half_to_float(static_cast<u16>(packed)); }
inline float high_half(u32 packed) { return half_to_float(static_cast<u16>(packed >> 16)); }
inline float tangent(float x) { return std::tanh(x); }
inline float exponential(float x) { return std::exp(x); }
inline void multiply_16x8(float (&sums)[4], const Vector& upper, const Vector& lower, const Vector& column, int i) {
    Exchange& exchange = cta->exchange();
    auto& factors = exchange.factors[exchange.meeting.past() % 2];
    int lane = threadIdx.x % 32;
    factors[lane] = {upper.words[i],     lower.words[i],  upper.words[i + 1],
                     lower.words[i + 1], column.words[i], column.words[i + 1]};
    exchange.meeting.meet();
    for (int k = 0; k < 4; ++k)
        for (int deep = 0; deep < 2; ++deep)
            for (int other = 0; other < 4; ++other) {
                u32 a = factors[lane / 4 * 4 + other][2 * deep + k / 2];
                u32 b = factors[(lane % 4 * 2 + k % 2) * 4 + other][4 + deep];
                sums[k] += low_half(a) * low_half(b) + high_half(a) * high_half(b);
            }
}
