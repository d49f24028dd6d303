// A persistent team of threads that runs one function together, with barriers inside.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace pagoda {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls job(thread) on every thread, the caller being thread 0; returns when all have. Not reentrant. The job
    // must not throw.
    void run(const std::function<void(int)> &job);

    // For use inside a job: waits until every thread has come here. Whoever waits calls `idle()`, which must be short,
    // between two looks.
    template <class Idle>
    void barrier(Idle idle) {
        if (workers_.empty()) return;
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int i = 0; phase_.load(std::memory_order_acquire) == phase; ++i) {
            idle();
            rest(i);
        }
    }

    // For use inside a job: waits until `ready()`, which other threads bring about.
    template <class Ready>
    void wait(Ready ready) {
        for (int i = 0; !ready(); ++i) rest(i);
    }

    // Splits [0, n) into `size()` stretches and calls job(begin, end) on each.
    void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)> &job);

  private:
    void work(int thread);
    static void rest(int look);  // between two looks: spins, then gives the core to others

    std::vector<std::thread> workers_;
    const std::function<void(int)> *job_ = nullptr;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace pagoda
