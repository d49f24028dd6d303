// A forward pass, recorded once as a list of stages and then run for any batch. Inside a stage threads take items of
// work from a counter; between stages they meet at a barrier.
#pragma once

#include "stages.h"

namespace pagoda {

class Program {
  public:
    Program(std::shared_ptr<Pool> pool, const Kernels *kernels, int64_t max_tokens, int64_t max_logit_rows,
            KVType kv_type, int activation_bits, bool bf16_products);

    // Buffers of so many rows a token.
    int add_buffer(int64_t columns, int64_t rows = 1);
    int add_quantized(int64_t columns, int64_t rows = 1);
    int add_lora_site(int64_t rows, int64_t columns);
    int add_rope(std::vector<float> inv_freq, float scale, bool neox);
    template <class S>
    void add(S stage) {
        stage.admit(workspace);
        stages_.emplace_back(std::move(stage));
    }
    int64_t buffer_bytes() const;

    // One forward pass; workspace.logits then holds the wanted rows. Throws std::invalid_argument for a step that points
    // outside of anything.
    void run(const Step &step);

    // What the stages that had work did since the last call, when profiling.
    bool profiling = false;
    struct Profile {
        const char *kind = nullptr;  // the stage's kKind
        Cost cost;
        double seconds = 0;
    };
    std::vector<Profile> take_profile();

    Workspace workspace;

  private:
    struct Stretch {  // of memory
        const uint8_t *from, *end;
    };
    struct Range {  // of a stage's items
        int64_t begin, end;
    };

    int64_t items(size_t stage, const Step &step) const;
    int64_t num_items(size_t stage) const {  // as counted
        return counters_[(stage + 1) * static_cast<size_t>(workspace.pool->size()) - 1].end;
    }
    void count_items(const Step &step);
    void share_out(size_t stage, int64_t items);
    void count_routed(size_t route, const Step &step);
    void finish_products(const LinearStage &linear, const Step &step, int64_t shrinks, const std::vector<Range> &done);
    void plan_reading(size_t stage, const Step &step, std::vector<Stretch> &to) const;
    void work(const Step &step, int thread);
    void account(size_t stage, const Step &step, double seconds);

    std::vector<Stage> stages_;
    std::vector<LazyMemory> scratch_;  // a thread each
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    std::unique_ptr<Counter[]> counters_;  // [stages, and one for rotary tables][threads]
    alignas(64) std::atomic<int64_t> shrinks_done_{0};    // each thread's share of a shrink stage counts as one
    std::vector<Profile> profile_;
};

}  // namespace pagoda
