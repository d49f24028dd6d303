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

    // For use inside a job: waits until every thread has come here.
    void barrier();

    // Splits [0, n) into `size()` stretches and calls job(begin, end) on each.
    void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)> &job);

  private:
    void work(int thread);

    std::vector<std::thread> workers_;
    const std::function<void(int)> *job_ = nullptr;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace pagoda
