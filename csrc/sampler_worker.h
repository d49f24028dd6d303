// One row from logits to a token and its logprobs, with the buffers that this takes.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "sampler_passes.h"
#include "sampler_select.h"
#include "sampler_state.h"

namespace pagoda::sampling {

enum class Status { ok, not_finite, nothing_allowed };

struct Logprobs {
    double chosen = 0.0;
    int64_t rank = 0;
    std::vector<int32_t> top_ids;  // likeliest first
    std::vector<double> top;
};

struct Job {
    const float *logits;
    const State *state;
    const uint32_t *mask;  // or null
};

struct Outcome {
    Status status = Status::ok;
    int32_t token = 0;
    std::optional<Logprobs> logprobs;
};

inline const char *message(Status status) {
    return status == Status::not_finite
               ? "the model's logits hold NaN or +inf"
               : "every token is ruled out by masks, allowed_token_ids, bad_words or min_tokens together";
}

// Samples rows one after another; each thread would have its own.
class Worker {
  public:
    explicit Worker(const Passes &passes) : passes_(passes), selector_(passes, scratch_) {}

    Outcome sample(const Job &job) {
        const size_t n = static_cast<size_t>(job.state->vocab_size());
        const Row row = adjusted(job, n);
        Outcome outcome{status_of(row), 0, std::nullopt};
        if (outcome.status != Status::ok) return outcome;
        const Params &params = job.state->params();
        const bool greedy = params.temperature == 0.0f;
        outcome.token = greedy ? Selector::argmax(row) : selector_.draw(row, *job.state);
        if (!params.num_logprobs) return outcome;
        const Row raw = row.x == job.logits ? row : scan(job.logits, n);
        outcome.status = status_of(raw);
        if (outcome.status == Status::ok) outcome.logprobs = logprobs(raw, outcome.token, *params.num_logprobs);
        return outcome;
    }

    Status support(const Job &job, std::vector<int32_t> &ids, std::vector<double> &probs) {
        const Row row = adjusted(job, static_cast<size_t>(job.state->vocab_size()));
        if (const Status status = status_of(row); status != Status::ok) return status;
        if (job.state->params().temperature == 0.0f) {
            ids = {Selector::argmax(row)};
            probs = {1.0};
            return Status::ok;
        }
        const Candidates &c = selector_.support(row, *job.state);
        ids.assign(c.ids.begin(), c.ids.begin() + c.size);
        probs.assign(c.weights.begin(), c.weights.begin() + c.size);
        double sum = 0.0;
        for (double p : probs) sum += p;
        for (double &p : probs) p /= sum;
        return Status::ok;
    }

    // Of the model's own distribution, before adjustments and temperature.
    Logprobs logprobs(const Row &row, int32_t token, int64_t num_top) {
        const double sum = selector_.total(row, {row.max, 1.44269504f});
        const double log_sum = static_cast<double>(row.max) + std::log(sum);
        const auto logprob = [&](float logit) { return static_cast<double>(logit) - log_sum; };
        Logprobs result{logprob(row.x[token]), 1 + count_greater(row, row.x[token]), {}, {}};
        if (num_top == 0) return result;
        const Candidates &c = selector_.top_k(row, static_cast<size_t>(num_top));
        result.top_ids.assign(c.ids.begin(), c.ids.begin() + c.size);
        std::stable_sort(result.top_ids.begin(), result.top_ids.end(),
                         [&](int32_t i, int32_t j) { return row.x[i] > row.x[j]; });
        for (int32_t id : result.top_ids) result.top.push_back(logprob(row.x[id]));
        return result;
    }

    Row scan(const float *x, size_t n) {
        maxima_.resize(num_blocks(n));
        passes_.block_maxima(x, n, maxima_.data());
        float max = -INFINITY;
        for (float m : maxima_) {
            if (std::isnan(m)) return {x, n, maxima_.data(), m};
            max = std::max(max, m);
        }
        return {x, n, maxima_.data(), max};
    }

    static Status status_of(const Row &row) {
        if (row.max == -INFINITY) return Status::nothing_allowed;
        return std::isfinite(row.max) ? Status::ok : Status::not_finite;
    }

  private:
    Row adjusted(const Job &job, size_t n) {
        if (!job.state->adjusts(job.mask)) return scan(job.logits, n);
        adjusted_.resize(n);
        job.state->adjust(job.logits, job.mask, adjusted_.data());
        return scan(adjusted_.data(), n);
    }

    int64_t count_greater(const Row &row, float value) const {
        return static_cast<int64_t>(passes_.count_greater(row.x, row.n, value));
    }

    const Passes &passes_;
    Scratch scratch_;
    Selector selector_;
    std::vector<float> adjusted_;
    std::vector<float> maxima_;
};

}  // namespace pagoda::sampling
