// What this machine can do at most: the ceilings that speeds are stated beside.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>

#include "bursts.h"
#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;

namespace pagoda {
namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int kRounds = 7;  // the best one counts: the ceiling is what the machine can do, not what neighbours leave

// The most of `work` a second that `job` gets done in one of the rounds.
template <class Job>
double best_rate(double work, const Job &job) {
    double best = 0;
    for (int round = 0; round < kRounds; ++round) {
        const double start = now();
        job();
        best = std::max(best, work / (now() - start));
    }
    return best;
}

// Bytes a second that `threads` threads read together of `bytes` that no cache holds, each its own stretch.
double read_bandwidth(int threads, int64_t bytes) {
    bytes = round_up(bytes, int64_t{4096} * threads);
    const int64_t stretch = bytes / threads;
    Pool pool(threads);
    LazyMemory memory(static_cast<size_t>(bytes));
    pool.run([&](int thread) { std::memset(memory.data() + thread * stretch, 1, static_cast<size_t>(stretch)); });
    const auto read = available_kernels().front()->read_burst;
    std::atomic<uint64_t> sink{0};
    return best_rate(static_cast<double>(bytes), [&] {
        pool.run([&](int thread) { sink += read(memory.data() + thread * stretch, static_cast<size_t>(stretch)); });
    });
}

// Bytes a second that `threads` threads read together when each reads its own `bytes` over and over.
double cache_bandwidth(int threads, int64_t bytes) {
    constexpr int64_t traffic = int64_t{64} << 20;  // of one thread and round: some milliseconds
    bytes = round_up(bytes, 512);
    const int64_t times = std::max<int64_t>(1, traffic / bytes), stretch = round_up(bytes, 4096);
    Pool pool(threads);
    LazyMemory memory(static_cast<size_t>(stretch * threads));
    const auto read = available_kernels().front()->read_burst;
    std::atomic<uint64_t> sink{0};
    const auto pass = [&](int thread) {
        const uint8_t *data = memory.data() + thread * stretch;
        for (int64_t i = 0; i < times; ++i) sink += read(data, static_cast<size_t>(bytes));
    };
    std::memset(memory.data(), 1, memory.bytes());
    pool.run(pass);
    return best_rate(static_cast<double>(bytes * times * threads), [&] { pool.run(pass); });
}

// Operations a second of the best kernels' integer dot products.
double int8_peak(int threads) {
    constexpr int64_t rounds = 20000;
    const Kernels *kernels = available_kernels().front();
    Pool pool(threads);
    return best_rate(static_cast<double>(rounds * kBurstOperations * threads),
                     [&] { pool.run([&](int) { kernels->int8_burst(rounds); }); });
}

// Operations a second in a type, with the best instructions there are; none where no instruction computes in it.
std::optional<double> peak(const std::string &type, int threads) {
    if (type == "int8") return int8_peak(threads);
    if (type != "fp32" && type != "bf16") throw std::invalid_argument("no peak is measured in " + type);
    const Kernels *kernels = available_kernels().front();
    const Burst burst = type == "fp32" ? Burst{kernels->fp32_operations, kernels->fp32_burst} : bf16_burst();
    if (burst.run == nullptr) return std::nullopt;
    constexpr int64_t operations = int64_t{200} << 20;  // of one thread and round: some milliseconds
    const int64_t rounds = operations / burst.operations;
    Pool pool(threads);
    std::atomic<int> sink{0};
    return best_rate(static_cast<double>(rounds * burst.operations * threads),
                     [&] { pool.run([&](int) { sink += burst.run(rounds) > 0; }); });
}

}  // namespace

void bind_machine(nb::module_ &m) {
    using namespace nb::literals;
    using Release = nb::call_guard<nb::gil_scoped_release>;
    m.def("measure_read_bandwidth", &read_bandwidth, "threads"_a, "bytes"_a = int64_t{256} << 20, Release());
    m.def("measure_cache_bandwidth", &cache_bandwidth, "threads"_a, "bytes"_a, Release());
    m.def("measure_int8_peak", &int8_peak, "threads"_a, Release());
    m.def("measure_peak", &peak, "type"_a, "threads"_a, Release());
}

}  // namespace pagoda
