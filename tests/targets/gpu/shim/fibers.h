// Workgroups of a GPU kernel on the CPU: each thread is a fiber that runs until it has to wait for others.
//
// A dialect (metal.h, cuda.h) turns the barriers of its language into `shim::wait`, its workgroup memory into
// `shim::Array`, and gives each kernel an entry that one thread runs. What is wrong ends the launch with a message:
//   * a barrier that not every thread of the group reaches, or where threads wait at different places of the text
//   * an access outside of a buffer (guard pages) or of an array in workgroup or thread memory (checked indices)
//   * with SHIM_RACES, an element of workgroup memory that one thread writes and another uses with no barrier between
// Between two barriers threads run whole, one after the other, in an order that is chosen. So a missing barrier also
// shows as a wrong result in one of the orders, no matter how fast the threads are.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>
#include <utility>
#include <vector>

namespace shim {

struct Index {
    unsigned x, y, z;
};

enum class Order { forward, reverse, shuffled };

using Entry = void (*)(void* const* arguments);

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr unsigned EVERYONE = ~0u;  // the width of a barrier of the whole workgroup
constexpr unsigned char POISON = 0xFF;  // memory that nothing was written to: NaN, -1
constexpr size_t EXCHANGE_BYTES = 16;
constexpr unsigned SIMD_WIDTH = 32;  // of the groups that narrow barriers order
constexpr unsigned NOBODY = ~0u;

struct Fiber {
    enum class State { ready, waiting, done } state;
    unsigned width, site;  // of the barrier it waits at
    unsigned passed, passed_narrow;  // barriers of the workgroup, and narrower ones since then
    bool started;
    char* stack;
    ucontext_t start;
    jmp_buf context;
    alignas(16) unsigned char offered[EXCHANGE_BYTES];  // what other threads of its SIMD group may read
};

struct Region {
    char *mapping, *data;
    size_t mapped, bytes;
};

struct SharedArray {
    Entry owner;
    void* data;
    size_t bytes;
};

struct Launch {
    Entry entry;
    void* const* arguments;
    unsigned argument_count, threads;
    Index grid, group;  // group: the workgroup that runs
    unsigned thread;    // of it, that runs
    Order thread_order, group_order;
    unsigned skipped;  // line of the barrier that is left out, 0 for none
    uint64_t random;
    char* message;
    size_t message_bytes;
};

inline Launch launch;
inline std::vector<Fiber> fibers;
inline std::vector<Region> regions;
inline std::vector<SharedArray> shared_arrays;
inline jmp_buf scheduler;
inline sigjmp_buf failed;

// Ends the launch; `text` follows the place where it happened.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* text, ...) {
    const Index& g = launch.group;
    int used = snprintf(launch.message, launch.message_bytes, "workgroup (%u, %u, %u), thread %u: ", g.x, g.y, g.z,
                        launch.thread);
    va_list values;
    va_start(values, text);
    vsnprintf(launch.message + used, launch.message_bytes - used, text, values);
    va_end(values);
    siglongjmp(failed, 1);
}

// --- switching

[[gnu::noinline]] inline void leave() {
    if (_setjmp(fibers[launch.thread].context) == 0) _longjmp(scheduler, 1);
}

inline void fiber_main() {
    for (;;) {  // once a workgroup
        launch.entry(launch.arguments);
        fibers[launch.thread].state = Fiber::State::done;
        leave();
    }
}

[[gnu::noinline]] inline void resume(unsigned thread) {
    launch.thread = thread;
    if (_setjmp(scheduler) != 0) return;
    Fiber& fiber = fibers[thread];
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

inline void make_fibers(unsigned count) {
    if (fibers.size() == count) return;
    for (Fiber& fiber : fibers) munmap(fiber.stack, STACK_BYTES);
    fibers = std::vector<Fiber>(count);
    for (Fiber& fiber : fibers) {
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) fail("no memory for stacks");
        fiber.stack = static_cast<char*>(stack);
        mprotect(fiber.stack, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack;
        fiber.start.uc_stack.ss_size = STACK_BYTES;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
    }
}

// --- what dialects are made of

// A barrier of the threads i with the same i / width. `place` is where it stands in the kernel's text.
inline void wait(unsigned width = EVERYONE, std::source_location place = std::source_location::current()) {
    if (width == EVERYONE && place.line() == launch.skipped) return;
    Fiber& fiber = fibers[launch.thread];
    fiber.state = Fiber::State::waiting;
    fiber.width = width;
    fiber.site = place.line();
    leave();
    if (width == EVERYONE) {
        fiber.passed++;
        fiber.passed_narrow = 0;
    } else {
        fiber.passed_narrow++;
    }
}

// What thread `source` of this SIMD group of `width` threads offers; all of its threads must come here.
template <class T>
T exchange(T value, unsigned source, unsigned width, std::source_location place) {
    static_assert(sizeof(T) <= EXCHANGE_BYTES);
    unsigned first = launch.thread / width * width;
    if (source >= width || first + source >= fibers.size()) fail("line %u: no lane %u", place.line(), source);
    memcpy(fibers[launch.thread].offered, &value, sizeof value);
    wait(width, place);
    memcpy(&value, fibers[first + source].offered, sizeof value);
    wait(width, place);
    return value;
}

[[gnu::noinline]] inline size_t checked(long long index, size_t size) {
    if (static_cast<unsigned long long>(index) >= size) fail("index %lld of an array of %zu", index, size);
    return static_cast<size_t>(index);
}

// An array in thread memory. Its elements are poison until they are written.
template <class T, size_t N>
class Array {
   public:
    Array() { memset(static_cast<void*>(elements_), POISON, sizeof elements_); }
    template <class I>
    T& operator[](I index) {
        return elements_[checked(index, N)];
    }

   private:
    T elements_[N];
};

#ifndef SHIM_RACES

// An array in workgroup memory, to be `static`.
template <class T, size_t N>
struct Shared : Array<T, N> {
    Shared() { shared_arrays.push_back({launch.entry, static_cast<void*>(this), sizeof *this}); }
};

#else

// Who used an element last, and behind which barriers.
struct Use {
    unsigned thread, passed, passed_narrow;

    // Whether a barrier orders this use before what the running thread does now.
    bool ordered() const {
        const Fiber& now = fibers[launch.thread];
        bool neighbours = thread / SIMD_WIDTH == launch.thread / SIMD_WIDTH;
        return thread == NOBODY || thread == launch.thread || passed != now.passed ||
               (neighbours && passed_narrow != now.passed_narrow);
    }
    static Use by_now() {
        const Fiber& now = fibers[launch.thread];
        return {launch.thread, now.passed, now.passed_narrow};
    }
};

// What is known of the uses of one element: the last write, and of the reads since then two by different threads.
struct Uses {
    Use write, read, other_read;

    [[gnu::noinline]] void before_read(size_t index) {
        if (!write.ordered()) race(index, write.thread, "wrote");
        if (read.thread != NOBODY && !read.ordered()) other_read = read;
        read = Use::by_now();
    }
    [[gnu::noinline]] void before_write(size_t index) {
        if (!write.ordered()) race(index, write.thread, "wrote");
        if (!read.ordered()) race(index, read.thread, "read");
        if (!other_read.ordered()) race(index, other_read.thread, "read");
        write = Use::by_now();
    }
    [[noreturn]] static void race(size_t index, unsigned thread, const char* did) {
        fail("uses element %zu of workgroup memory that thread %u %s, with no barrier between them", index, thread, did);
    }
};

// An array in workgroup memory, to be `static`.
template <class T, size_t N>
class Shared {
   public:
    class Element;

    // An address: of the elements from one on.
    class Place {
       public:
        template <class I>
        Element operator[](I index) const {
            return array_[index_ + static_cast<size_t>(index)];
        }

       private:
        friend Element;
        Place(Shared& array, size_t index) : array_(array), index_(index) {}
        Shared& array_;
        size_t index_;
    };
    class Element {
       public:
        operator T() const {
            array_.uses_[index_].before_read(index_);
            return array_.elements_[index_];
        }
        Element& operator=(T value) {
            array_.uses_[index_].before_write(index_);
            array_.elements_[index_] = value;
            return *this;
        }
        Element& operator=(const Element& other) { return *this = static_cast<T>(other); }
        Place operator&() const { return {array_, index_}; }

       private:
        friend Shared;
        Element(Shared& array, size_t index) : array_(array), index_(index) {}
        Shared& array_;
        size_t index_;
    };

    Shared() {
        memset(static_cast<void*>(this), POISON, sizeof *this);  // nobody has used it
        shared_arrays.push_back({launch.entry, static_cast<void*>(this), sizeof *this});
    }
    template <class I>
    Element operator[](I index) {
        return {*this, checked(index, N)};
    }

   private:
    T elements_[N];
    Uses uses_[N];
};

#endif

// --- scheduling

inline unsigned random_below(unsigned count) {  // xorshift64*, Vigna 2016
    launch.random ^= launch.random >> 12;
    launch.random ^= launch.random << 25;
    launch.random ^= launch.random >> 27;
    return static_cast<unsigned>((launch.random * 0x2545F4914F6CDD1DULL) >> 32) % count;
}

inline void arrange(std::vector<unsigned>& numbers, Order order) {
    unsigned count = static_cast<unsigned>(numbers.size());
    for (unsigned i = 0; i < count; i++) numbers[i] = order == Order::reverse ? count - 1 - i : i;
    if (order != Order::shuffled) return;
    for (unsigned i = count; i > 1; i--) std::swap(numbers[i - 1], numbers[random_below(i)]);
}

// Whether the threads [first, first + count) all wait at one barrier of `width`.
inline bool together(unsigned first, unsigned count, unsigned width) {
    for (unsigned i = first; i < first + count; i++) {
        const Fiber& fiber = fibers[i];
        if (fiber.state != Fiber::State::waiting || fiber.width != width || fiber.site != fibers[first].site)
            return false;
    }
    return true;
}

inline void release(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; i++) fibers[i].state = Fiber::State::ready;
}

// Lets go whoever waits together; false if nobody does.
inline bool release_complete() {
    unsigned count = launch.threads;
    if (together(0, count, EVERYONE)) {
        release(0, count);
        return true;
    }
    bool any = false;
    for (unsigned i = 0; i < count;) {
        const Fiber& fiber = fibers[i];
        bool narrow = fiber.state == Fiber::State::waiting && fiber.width != EVERYONE;
        unsigned size = narrow ? fiber.width : 1;
        if (narrow && i % size == 0 && i + size <= count && together(i, size, size)) {
            release(i, size);
            any = true;
        }
        i += size;
    }
    return any;
}

[[noreturn]] inline void fail_divergent() {
    unsigned waiting = 0;
    while (fibers[waiting].state != Fiber::State::waiting) waiting++;
    const Fiber& one = fibers[waiting];
    for (launch.thread = 0; launch.thread < launch.threads; launch.thread++) {
        const Fiber& fiber = fibers[launch.thread];
        if (fiber.state == Fiber::State::done)
            fail("has ended, but thread %u waits at the barrier of line %u: divergent barrier", waiting, one.site);
        if (fiber.site != one.site)
            fail("waits at the barrier of line %u, but thread %u at that of line %u: divergent barrier", fiber.site,
                 waiting, one.site);
    }
    launch.thread = waiting;
    fail("waits at the barrier of line %u for threads that do not exist", one.site);
}

inline void run_workgroup(std::vector<unsigned>& order) {
    for (const SharedArray& array : shared_arrays)
        if (array.owner == launch.entry) memset(array.data, POISON, array.bytes);
    for (Fiber& fiber : fibers) {
        fiber.state = Fiber::State::ready;
        fiber.passed = fiber.passed_narrow = 0;
    }
    for (;;) {
        arrange(order, launch.thread_order);
        for (unsigned thread : order)
            if (fibers[thread].state == Fiber::State::ready) resume(thread);
        if (release_complete()) continue;
        for (const Fiber& fiber : fibers)
            if (fiber.state == Fiber::State::waiting) fail_divergent();
        return;
    }
}

// --- buffers between guard pages

inline void on_fault(int, siginfo_t* info, void*) {
    const char* address = static_cast<const char*>(info->si_addr);
    for (const Region& region : regions) {
        if (address < region.mapping || address >= region.mapping + region.mapped) continue;
        unsigned index = 0;
        while (index < launch.argument_count && launch.arguments[index] != region.data) index++;
        long long at = address - region.data;
        fail("byte %lld of argument %u, which has %zu", at, index, region.bytes);
    }
    fail("access at %p, in no buffer", info->si_addr);
}

}  // namespace shim

#define SHIM_PUBLIC extern "C" [[gnu::visibility("default"), gnu::used]]

// `bytes` of poison that end (at_end) or start at a page that must not be touched; null without memory.
SHIM_PUBLIC inline void* shim_allocate(size_t bytes, int at_end) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pages = (bytes + page - 1) / page * page;
    void* mapping = mmap(nullptr, pages + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    char* first = static_cast<char*>(mapping) + page;
    if (pages && mprotect(first, pages, PROT_READ | PROT_WRITE) != 0) return nullptr;
    char* data = at_end ? first + pages - bytes : first;
    memset(data, shim::POISON, bytes);
    shim::regions.push_back({static_cast<char*>(mapping), data, pages + 2 * page, bytes});
    return data;
}

SHIM_PUBLIC inline void shim_free(void* data) {
    for (size_t i = 0; i < shim::regions.size(); i++) {
        if (shim::regions[i].data != data) continue;
        munmap(shim::regions[i].mapping, shim::regions[i].mapped);
        shim::regions[i] = shim::regions.back();
        shim::regions.pop_back();
        return;
    }
}

// Runs a kernel on all workgroups of `grid` (x, y, z), each of `threads` threads in a row. Orders: 0 forward, 1 reverse,
// 2 shuffled by `seed`. The barrier in line `skipped` of the text is left out. 0, or 1 with a message.
SHIM_PUBLIC inline int shim_launch(shim::Entry entry, void* const* arguments, unsigned argument_count,
                                   const unsigned* grid, unsigned threads, int thread_order, int group_order,
                                   unsigned seed, unsigned skipped, char* message, size_t message_bytes) {
    using namespace shim;
    launch = Launch{entry,
                    arguments,
                    argument_count,
                    threads,
                    {grid[0], grid[1], grid[2]},
                    {0, 0, 0},
                    0,
                    static_cast<Order>(thread_order),
                    static_cast<Order>(group_order),
                    skipped,
                    0x9E3779B97F4A7C15ULL + seed,
                    message,
                    message_bytes};
    static std::vector<char> fault_stack(64 * 1024);
    static std::vector<unsigned> groups, order;
    static struct sigaction previous;
    static stack_t previous_stack;
    stack_t stack = {};
    stack.ss_sp = fault_stack.data();
    stack.ss_size = fault_stack.size();
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaltstack(&stack, &previous_stack);
    sigaction(SIGSEGV, &action, &previous);
    bool ok = sigsetjmp(failed, 1) == 0;
    if (ok) {
        make_fibers(threads);
        order.resize(threads);
        groups.resize(static_cast<size_t>(grid[0]) * grid[1] * grid[2]);
        arrange(groups, launch.group_order);
        for (unsigned number : groups) {
            launch.group = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
            run_workgroup(order);
        }
    } else {
        for (Fiber& fiber : fibers) munmap(fiber.stack, STACK_BYTES);
        fibers.clear();  // they stand in the middle of the kernel
    }
    sigaction(SIGSEGV, &previous, nullptr);
    sigaltstack(&previous_stack, nullptr);
    return ok ? 0 : 1;
}
