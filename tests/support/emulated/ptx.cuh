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
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE inline
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
    u32 x;
};
struct Warp;
struct Cta;
inline thread_local Index threadIdx, blockIdx, gridDim;
inline thread_local Cta* cta;
inline thread_local Warp* warp;
static thread_local int looks;  // at what is waited for, since this thread's last line of the page

// What a lane has begun and not waited for, in the groups that it was committed in; done when it is waited for.
class Pending {
    std::vector<std::vector<std::function<void()>>> groups_{1};

public:
    void add(std::function<void()> work) { groups_.back().push_back(std::move(work)); }
    void commit() { groups_.emplace_back(); }
    void wait(std::size_t but) {
        while (groups_.size() > but + 1) {
            for (const auto& work : groups_.front()) work();
            groups_.erase(groups_.begin());
        }
    }
    std::vector<std::function<void()>> take() { return std::exchange(groups_.back(), {}); }
    bool none() const { return groups_.size() == 1 && groups_.back().empty(); }
};
struct Lane {
    Pending products, stores, copies;
};

// A warp's lanes, each on a stack of its own.
struct Warp {
    static constexpr std::size_t STACK_BYTES = 256 << 10;
    ucontext_t home, lanes[32];
    bool ended[32] = {};
    Lane begun[32];
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
        const Lane& own = begun[lane];
        if (!own.products.none() || !own.stores.none() || !own.copies.none()) __builtin_trap();
        ucontext_t* to = next();
        setcontext(to == &lanes[lane] ? &home : to);
        __builtin_unreachable();
    }
};
inline void give_way() { warp->give_way(); }
inline Lane& own_lane() { return warp->begun[threadIdx.x % 32]; }

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
// On its way until somebody waits for the barrier. It gives the bytes that have come, and how many have arrived with them.
struct Copy {
    u32 barrier;
    std::function<std::pair<u32, int>()> work;
};
struct Cta {
    u8* memory;  // what its threads share
    u32 memory_bytes;
    const void* arguments;  // of the launch
    std::mutex copying;
    std::vector<Copy> copies;  // on their way
    Cta* peers[2] = {};     // of the cluster
    Meeting* cluster = nullptr;
    Meeting all;
    Meeting named[4] = {Meeting(0), Meeting(128), Meeting(128), Meeting(256)};
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
template <class T>
T __shfl_up_sync(u32, T value, int by) {
    int from = static_cast<int>(threadIdx.x % 32) - by;
    auto all = share(value);
    return from < 0 ? value : all[from];
}
inline int __popc(u32 bits) { return std::popcount(bits); }
inline u32 __reduce_or_sync(u32, u32 value) {
    u32 result = 0;
    for (u32 other : share(value)) result |= other;
    return result;
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
inline void named_barrier(int name, int threads) {
    if (threads != (name == 3 ? 256 : 128)) __builtin_trap();
    cta->named[name].meet();
}
inline void cluster_barrier() { cta->cluster->meet(); }

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
// An mbarrier: bytes and arrivals that its phase still waits for, and how many phases are over.
struct Arrivals {
    int bytes;
    u8 expected, pending;
    u16 phase;
    void settle() {
        if (pending != 0 || bytes != 0) return;
        ++phase;
        pending = expected;
    }
};
static_assert(sizeof(Arrivals) == 8);
// another CTA's shared memory is behind the first 16 MB
constexpr u32 WITHIN = (1 << 24) - 1;
inline u32 address_in(u32 rank, u32 address) { return (address & WITHIN) | (rank + 1) << 24; }
inline Cta& owner_of(u32 address) { return address > WITHIN ? *cta->peers[(address >> 24) - 1] : *cta; }
inline u8* shared_bytes(u32 address) { return owner_of(address).memory + (address & WITHIN); }
inline Arrivals& arrivals(u32 barrier) { return *reinterpret_cast<Arrivals*>(shared_bytes(barrier)); }
inline void barrier_init(u32 barrier, u32 count) {
    if (count == 0 || count > 255) __builtin_trap();
    arrivals(barrier) = {0, static_cast<u8>(count), static_cast<u8>(count), 0};
}
inline void arrive(u32 barrier, int times, int expected, int come) {
    std::lock_guard locked(owner_of(barrier).copying);
    Arrivals& at = arrivals(barrier);
    if (at.pending < times) __builtin_trap();
    at.bytes += expected - come;
    at.pending -= static_cast<u8>(times);
    at.settle();
}
inline void barrier_arrive(u32 barrier) { arrive(barrier, 1, 0, 0); }
inline void barrier_arrive_times(u32 barrier, u32 times) { arrive(barrier, static_cast<int>(times), 0, 0); }
inline void barrier_arrive_in(u32 rank, u32 barrier) { arrive(address_in(rank, barrier), 1, 0, 0); }
inline void barrier_arrive_expecting(u32 barrier, u32 bytes) { arrive(barrier, 1, static_cast<int>(bytes), 0); }
inline void send_in(u32 rank, u32 address, u32 barrier, int value) {
    std::memcpy(shared_bytes(address_in(rank, address)), &value, sizeof(int));
    arrive(address_in(rank, barrier), 0, 0, sizeof(int));
}
inline void copy_later(Cta& to, u32 barrier, std::function<std::pair<u32, int>()> work) {
    std::lock_guard locked(to.copying);
    to.copies.push_back({barrier, std::move(work)});
}
// What is copied is there as late as can be: when somebody waits for it.
inline bool barrier_passed(u32 barrier, u32 parity) {
    std::lock_guard locked(cta->copying);
    Arrivals& at = arrivals(barrier);
    if (at.phase % 2 != parity) return true;
    std::vector<Copy> due;
    std::erase_if(cta->copies, [&](Copy& copy) {
        if (copy.barrier != barrier) return false;
        due.push_back(std::move(copy));
        return true;
    });
    for (const Copy& copy : due) {
        auto [bytes, times] = copy.work();
        if (at.pending < times) __builtin_trap();
        at.bytes -= static_cast<int>(bytes);
        at.pending -= static_cast<u8>(times);
        at.settle();
    }
    return at.phase % 2 != parity;
}
inline bool barrier_tested(u32 barrier, u32 parity) { return barrier_passed(barrier, parity); }
inline bool barrier_tested_in_cluster(u32 barrier, u32 parity) { return barrier_passed(barrier, parity); }
inline void barrier_wait(u32 barrier, u32 parity) {
    while (!barrier_passed(barrier, parity)) give_way();
}
inline void copy_bytes(void* target, const void* source, u32 bytes, u32 barrier) {
    if (bytes == 0 || bytes % 16 || reinterpret_cast<u64>(source) % 16 || reinterpret_cast<u64>(target) % 16)
        __builtin_trap();
    if (shared_address(target) + bytes > cta->memory_bytes) __builtin_trap();
    copy_later(*cta, barrier, [=] {
        std::memcpy(target, source, bytes);
        return std::pair(bytes, 0);
    });
}

// A tensor map as emulated_kernels.py writes it: sizes and boxes from the innermost dimension on, strides in bytes.
struct Map {
    u64 base, dimensions, sizes[5], strides[5];
    u64 box;  // 16 bits a dimension; of a fifth it is 1
    u32 inner_bytes() const { return static_cast<u32>(box & 0xffff) * 2; }
    u64 box_of(u64 dimension) const { return dimension < 4 ? box >> 16 * dimension & 0xffff : 1; }
};
inline Map map_of(const void* at) {
    Map map;
    std::memcpy(&map, at, sizeof(Map));
    return map;
}
// where a byte of a box lies: rows of 128 or of 64 bytes, whose 16-byte chunks are swizzled
inline u32 swizzled(u32 address, u32 row_bytes) {
    return address ^ ((address >> 7 & (row_bytes == 128 ? 7 : 3)) << 4);
}
// calls each(address in shared memory, address in global memory, or 0 beyond the tensor) for each two bytes of a box
template <class Each>
void each_of_box(const Map& map, u32 shared, std::array<int, 5> from, Each each) {
    u64 rows = 1;
    for (u64 d = 1; d < map.dimensions; ++d) rows *= map.box_of(d);
    if (shared % 128 || shared + rows * map.inner_bytes() > cta->memory_bytes) __builtin_trap();
    for (u64 row = 0; row < rows; ++row) {
        u64 rest = row, offset = 0;
        bool within = true;
        for (u64 d = 1; d < map.dimensions; ++d) {
            i64 at = from[d] + static_cast<i64>(rest % map.box_of(d));
            rest /= map.box_of(d);
            within = within && at >= 0 && at < static_cast<i64>(map.sizes[d]);
            offset += static_cast<u64>(at) * map.strides[d];
        }
        for (u32 byte = 0; byte < map.inner_bytes(); byte += 2) {
            u64 column = static_cast<u64>(from[0]) + byte / 2;
            u32 place = swizzled(shared + static_cast<u32>(row) * map.inner_bytes() + byte, map.inner_bytes());
            each(place, within && column < map.sizes[0] ? map.base + offset + column * 2 : 0);
        }
    }
}
inline void load_tile(Cta& to, u32 target, const void* at, u32 barrier, std::array<int, 5> from) {
    copy_later(to, barrier, [=, map = map_of(at), memory = to.memory] {
        u32 bytes = 0;
        each_of_box(map, target, from, [&](u32 shared, u64 global) {
            u16 value = global ? *reinterpret_cast<const volatile u16*>(global) : 0;
            std::memcpy(memory + shared, &value, 2);
            bytes += 2;
        });
        return std::pair(bytes, 0);
    });
}
inline void load_tile_2d(u32 target, const void* map, u32 barrier, int c0, int c1) {
    load_tile(*cta, target, map, barrier, {c0, c1});
}
inline void load_tile_2d_in_both(u32 target, const void* map, u32 barrier, int c0, int c1) {
    for (Cta* to : cta->peers) load_tile(*to, target, map, barrier, {c0, c1});
}
inline void load_tile_3d(u32 target, const void* map, u32 barrier, int c0, int c1, int c2) {
    load_tile(*cta, target, map, barrier, {c0, c1, c2});
}
inline void load_tile_5d(u32 target, const void* map, u32 barrier, int c0, int c1, int c2, int c3, int c4) {
    load_tile(*cta, target, map, barrier, {c0, c1, c2, c3, c4});
}
inline void store_tile_2d(const void* at, u32 source, int c0, int c1) {
    own_lane().stores.add([=, map = map_of(at)] {
        each_of_box(map, source, {c0, c1}, [&](u32 shared, u64 global) {
            if (global) std::memcpy(reinterpret_cast<void*>(global), cta->memory + shared, 2);
        });
    });
}
inline void stores_commit() { own_lane().stores.commit(); }
template <int PENDING>
void stores_wait_read() {
    own_lane().stores.wait(PENDING);
}
inline void stores_wait() { own_lane().stores.wait(0); }
inline void copy_16_bytes(u32 target, const void* source, u32 bytes) {
    if (target % 16 || target + 16 > cta->memory_bytes || reinterpret_cast<u64>(source) % 16) __builtin_trap();
    own_lane().copies.add([=] {
        u8 chunk[16] = {};
        if (bytes) std::memcpy(chunk, source, 16);
        std::memcpy(cta->memory + target, chunk, 16);
    });
}
inline void barrier_arrive_after_copies(u32 barrier) {
    copy_later(*cta, barrier, [work = own_lane().copies.take()] {
        for (const auto& copy : work) copy();
        return std::pair(0u, 1);
    });
}
inline void copies_wait() {
    for (const auto& copy : own_lane().copies.take()) copy();
}
inline void prefetch_map(const void*) {}
inline void prefetch_bytes(const void*, u32) {}
inline void fence_async_proxy_global() {}
template <int REGISTERS>
void registers_down() {}
template <int REGISTERS>
void registers_up() {}

// wgmma's products are made when they are waited for, and a warp waits as one
inline void products_begin() {}
inline void products_commit() { own_lane().products.commit(); }
template <int PENDING>
void products_wait() {
    own_lane().products.wait(PENDING);
    __syncwarp();
}
// four matrices of 8 by 8; a lane has two values of a column of each, and the address of a row of one
inline void store_transposed(u32 target, u32 m0, u32 m1, u32 m2, u32 m3) {
    auto rows = share(target);
    u32 lane = threadIdx.x % 32, values[4] = {m0, m1, m2, m3};
    for (u32 m = 0; m < 4; ++m)
        for (u32 half = 0; half < 2; ++half) {
            u32 place = rows[8 * m + lane % 4 * 2 + half] + lane / 4 * 2;
            u16 value = static_cast<u16>(values[m] >> 16 * half);
            if (place + 2 > cta->memory_bytes) __builtin_trap();
            std::memcpy(cta->memory + place, &value, 2);
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
