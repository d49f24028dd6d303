#include "pool.h"

#include <cstdint>

#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pagoda {

namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int kSpins = 4000;       // about 50 µs before a waiting thread yields its core
constexpr int kIdleYields = 20;    // then so many yields before an idle worker sleeps

}  // namespace

// The HTTP loop shares the cores.
void Pool::rest(int look) {
    if (look < kSpins)
        pause();
    else
        std::this_thread::yield();
}

Pool::Pool(int threads) {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

Pool::~Pool() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto &w : workers_) w.join();
}

void Pool::work(int thread) {
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = generation_.load(std::memory_order_acquire);
        for (int i = 0; now == seen && i < kSpins + kIdleYields; ++i) {
            rest(i);
            now = generation_.load(std::memory_order_acquire);
        }
        while (now == seen) {
            generation_.wait(seen, std::memory_order_acquire);
            now = generation_.load(std::memory_order_acquire);
        }
        seen = now;
        if (stop_.load()) return;
        (*job_)(thread);
        running_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

void Pool::run(const std::function<void(int)> &job) {
    if (workers_.empty()) return job(0);
    job_ = &job;
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_acq_rel);
    generation_.notify_all();
    job(0);
    for (int i = 0; running_.load(std::memory_order_acquire) != 0; ++i) rest(i);
}

void Pool::parallel_for(int64_t n, const std::function<void(int64_t, int64_t)> &job) {
    run([&](int thread) {
        const int64_t begin = n * thread / size(), end = n * (thread + 1) / size();
        if (begin < end) job(begin, end);
    });
}

}  // namespace pagoda
