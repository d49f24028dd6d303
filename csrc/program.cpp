#include "program.h"

#include <chrono>

namespace pagoda {

namespace {

constexpr int64_t kReadAheadTokens = 8;  // a step of more is bound by arithmetic
constexpr int64_t kReadAheadItems = 6;   // of each thread's, while it waits

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Program::Program(std::shared_ptr<Pool> pool, const Kernels *kernels, int64_t max_tokens, int64_t max_logit_rows,
                 KVType kv_type, int activation_bits, bool bf16_products) {
    workspace.pool = std::move(pool);
    workspace.kernels = kernels;
    workspace.lora_kernels = &lora_kernels(kernels->name);
    workspace.latent_kernels = &latent_kernels(kernels->name);
    workspace.recurrent_kernels = &recurrent_kernels(kernels->name);
    workspace.max_tokens = max_tokens;
    workspace.max_logit_rows = max_logit_rows;
    workspace.kv_type = kv_type;
    workspace.activation_bits = activation_bits;
    workspace.bf16_products = bf16_products;
    for (int t = 0; t < workspace.pool->size(); ++t) scratch_.emplace_back(kScratch);
}

int Program::add_buffer(int64_t columns, int64_t rows) {
    const int64_t stride = round_up(columns, 32), all = workspace.max_tokens * rows;
    workspace.buffers.push_back({in_small_pages(static_cast<size_t>(all * stride) * 4), all, columns, stride});
    return static_cast<int>(workspace.buffers.size()) - 1;
}

int Program::add_quantized(int64_t columns, int64_t rows) {
    workspace.quantized.push_back({workspace.max_tokens * rows, columns, {}, {}});
    if (workspace.activation_bits == 16) workspace.quantized.back().open(16);
    return static_cast<int>(workspace.quantized.size()) - 1;
}

int Program::add_lora_site(int64_t rows, int64_t columns) {
    workspace.lora_sites.push_back({rows, columns});
    return static_cast<int>(workspace.lora_sites.size()) - 1;
}

int Program::add_rope(std::vector<float> inv_freq, float scale, bool neox) {
    LazyMemory turns = in_small_pages(static_cast<size_t>(workspace.max_tokens) * inv_freq.size() * 16);
    workspace.ropes.push_back({std::move(inv_freq), scale, neox, std::move(turns)});
    return static_cast<int>(workspace.ropes.size()) - 1;
}

int64_t Program::buffer_bytes() const {
    int64_t total = workspace.buffer_bytes();
    for (const LazyMemory &s : scratch_) total += static_cast<int64_t>(s.bytes());
    return total;
}

int64_t Program::items(size_t stage, const Step &step) const {
    return std::visit([&](const auto &s) { return s.items(workspace, step); }, stages_[stage]);
}

void Program::count_items(const Step &step) {
    const auto threads = static_cast<size_t>(workspace.pool->size());
    if (!counters_) counters_ = std::make_unique<Counter[]>((stages_.size() + 1) * threads);
    shrinks_done_.store(0, std::memory_order_relaxed);
    for (size_t i = 0; i <= stages_.size(); ++i) share_out(i, i < stages_.size() ? items(i, step) : step.tokens);
}

// A stretch of the stage's items for each thread.
void Program::share_out(size_t stage, int64_t items) {
    const int64_t threads = workspace.pool->size();
    for (int64_t t = 0; t < threads; ++t) {
        Counter &c = counters_[stage * static_cast<size_t>(threads) + static_cast<size_t>(t)];
        c.next.store(items * t / threads, std::memory_order_relaxed);
        c.end = items * (t + 1) / threads;
    }
}

// Counts the items of the stages after a route stage, up to the next one, again: now it is known which rows are routed.
void Program::count_routed(size_t route, const Step &step) {
    for (size_t i = route + 1; i < stages_.size() && !std::holds_alternative<RouteStage>(stages_[i]); ++i) {
        if (auto *linear = std::get_if<LinearStage>(&stages_[i])) linear->plan(workspace);
        share_out(i, items(i, step));
    }
}

// Adds what adapters do to the products of the items that this thread has done.
void Program::finish_products(const LinearStage &linear, const Step &step, int64_t shrinks, const std::vector<Range> &done) {
    workspace.pool->wait([&] { return shrinks_done_.load(std::memory_order_acquire) >= shrinks * workspace.pool->size(); });
    for (const Range &items : done) linear.finish(workspace, step, items.begin, items.end);
}

// What the threads will read first of the weights of the next linear stage after `stage`.
void Program::plan_reading(size_t stage, const Step &step, std::vector<Stretch> &to) const {
    to.clear();
    if (step.tokens > kReadAheadTokens || std::holds_alternative<RouteStage>(stages_[stage])) return;
    for (++stage; stage < stages_.size(); ++stage) {
        if (std::holds_alternative<RouteStage>(stages_[stage])) return;  // nobody knows yet which experts it takes
        if (std::holds_alternative<LinearStage>(stages_[stage])) break;
    }
    if (stage == stages_.size()) return;
    const auto &linear = std::get<LinearStage>(stages_[stage]);
    const int64_t n = linear.items(workspace, step), threads = workspace.pool->size();
    for (int64_t ahead = 0; ahead < kReadAheadItems; ++ahead)
        for (int64_t t = 0; t < threads; ++t) {
            const int64_t index = n * t / threads + ahead;
            if (index >= n) continue;
            const LinearStage::Item i = linear.item(workspace, step, index);
            const Weight &w = *i.weight;
            to.push_back({w.codes(i.panel_begin), w.codes(i.panel_end)});
            to.push_back({w.scales(i.panel_begin), w.scales(i.panel_end)});
            to.push_back({w.super(i.panel_begin), w.super(i.panel_end)});
        }
}

void Program::run(const Step &step) {
    workspace.check(step);
    workspace.plan(step);
    count_items(step);
    if (profiling && profile_.empty()) profile_.resize(stages_.size());
    workspace.pool->run([&](int thread) { work(step, thread); });
}

// All stages, as one of the threads goes through them.
void Program::work(const Step &step, int thread) {
    const int threads = workspace.pool->size();
    uint8_t *scratch = scratch_[static_cast<size_t>(thread)].data();
    // A thread streams through its own stretch of the items, then helps the others with theirs.
    const auto for_items = [&](size_t stage, auto do_item) {
        for (int v = 0; v < threads; ++v) {
            Counter &c = counters_[stage * static_cast<size_t>(threads) + static_cast<size_t>((thread + v) % threads)];
            for (int64_t i; (i = c.next.fetch_add(1, std::memory_order_relaxed)) < c.end;) do_item(i);
        }
    };
    for_items(stages_.size(), [&](int64_t token) { workspace.rotate(step, token); });
    std::vector<Stretch> ahead;
    std::vector<Range> done;  // of a linear stage, by this thread
    int64_t shrinks = 0;      // stages so far
    double since = profiling && thread == 0 ? now() : 0.0;
    for (size_t i = 0; i < stages_.size(); ++i) {
        if (num_items(i) == 0) continue;  // so nobody need wait
        const auto *linear = workspace.adapters.empty() ? nullptr : std::get_if<LinearStage>(&stages_[i]);
        if (linear && !linear->takes_adapters()) linear = nullptr;
        done.clear();
        Range here{0, 0};
        std::visit(
            [&]<class S>(const S &stage) {
                for_items(i, [&](int64_t item) {
                    if (linear) {
                        if (item == here.end) ++here.end;
                        else {
                            if (here.begin < here.end) done.push_back(here);
                            here = {item, item + 1};
                        }
                    }
                    stage.run(workspace, step, item, scratch);
                    if constexpr (std::is_same_v<S, RouteStage>) count_routed(i, step);
                });
            },
            stages_[i]);
        if (linear) {
            if (here.begin < here.end) done.push_back(here);
            finish_products(*linear, step, shrinks, done);
        }
        const bool shrinks_here = std::holds_alternative<LoraShrinkStage>(stages_[i]);
        if (shrinks_here) {
            ++shrinks;
            shrinks_done_.fetch_add(1, std::memory_order_release);
        }
        bool planned = false;
        size_t reading = 0;
        const auto read_ahead = [&] {  // while others work
            if (!planned) {
                plan_reading(i, step, ahead);
                planned = true;
            }
            if (reading == ahead.size()) return;
            Stretch &s = ahead[reading];
            for (int line = 0; line < 4 && s.from < s.end; ++line, s.from += 64) __builtin_prefetch(s.from);
            if (s.from >= s.end) ++reading;
        };
        // The products after a shrink stage read the same value, so they need not wait for it, but where they add to
        // what it still has to copy.
        if (!shrinks_here || workspace.adapters.scales_rows) workspace.pool->barrier(read_ahead);
        if (profiling && thread == 0) {
            const double at = now();
            account(i, step, at - since);
            since = at;
        }
    }
}

void Program::account(size_t i, const Step &step, double seconds) {
    Profile &p = profile_[i];
    std::visit(
        [&](const auto &stage) {
            Cost cost = stage.describe(workspace, step);
            p.kind = stage.kKind;
            p.cost.label = std::move(cost.label);
            p.cost.bytes += cost.bytes;
            p.cost.operations += cost.operations;
        },
        stages_[i]);
    p.seconds += seconds;
}

std::vector<Program::Profile> Program::take_profile() {
    std::vector<Profile> taken;
    taken.swap(profile_);
    std::erase_if(taken, [](const Profile &p) { return p.kind == nullptr; });
    return taken;
}

}  // namespace pagoda
