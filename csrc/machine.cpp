// What this machine can do at most: the ceilings that speeds are stated beside.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <chrono>

#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;

namespace pagoda {
namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int kRounds = 7;  // the best one counts: the ceiling is what the machine can do, not what neighbours leave

// Bytes a second that `threads` threads read together from memory that no cache holds.
double read_bandwidth(int threads) {
    constexpr int64_t bytes = int64_t{256} << 20;
    Pool pool(threads);
    LazyMemory memory(static_cast<size_t>(bytes));
    pool.parallel_for(bytes, [&](int64_t begin, int64_t end) {
        std::memset(memory.data() + begin, 1, static_cast<size_t>(end - begin));
    });
    std::atomic<uint64_t> sink{0};
    double best = 0;
    for (int round = 0; round < kRounds; ++round) {
        const double start = now();
        pool.parallel_for(bytes / 64, [&](int64_t begin, int64_t end) {
            const uint64_t *p = memory.as<uint64_t>();
            uint64_t sum[8] = {};
            for (int64_t line = begin; line < end; ++line)
                for (int i = 0; i < 8; ++i) sum[i] += p[8 * line + i];
            for (const uint64_t s : sum) sink += s;
        });
        best = std::max(best, static_cast<double>(bytes) / (now() - start));
    }
    return best;
}

// Operations a second (a multiplication and an addition are two) of the best kernels' integer dot products.
double int8_peak(int threads) {
    constexpr int64_t rounds = 20000;
    const Kernels *kernels = available_kernels().front();
    Pool pool(threads);
    double best = 0;
    for (int round = 0; round < kRounds; ++round) {
        const double start = now();
        pool.run([&](int) { kernels->int8_burst(rounds); });
        best = std::max(best, static_cast<double>(rounds * kBurstOperations * threads) / (now() - start));
    }
    return best;
}

}  // namespace

void bind_machine(nb::module_ &m) {
    using namespace nb::literals;
    m.def("measure_read_bandwidth", &read_bandwidth, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("measure_int8_peak", &int8_peak, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pagoda
