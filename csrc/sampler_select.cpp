#include "sampler_select.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <numeric>

namespace pagoda::sampling {
namespace {

constexpr size_t kFewCandidates = 128;  // that are sorted rather than halved once more
constexpr size_t kChunk = 1024;         // candidates that a draw skips at once

// The logit that has this weight, rounded down.
float logit_of(Scale scale, double weight) {
    const double logit = static_cast<double>(scale.max) + std::log2(weight) / static_cast<double>(scale.slope);
    return std::nextafter(static_cast<float>(std::max(logit, -static_cast<double>(FLT_MAX))), -INFINITY);
}

// The first index at which the running sum of the weights exceeds the target; the last one with a weight if none does.
size_t pick(const float *weights, size_t n, double target) {
    double sum = 0.0;
    size_t last = 0;
    for (size_t i = 0; i < n; ++i) {
        if (weights[i] > 0.0f) last = i;
        sum += static_cast<double>(weights[i]);
        if (sum > target) return i;
    }
    return last;
}

template <class T>
void grow(std::vector<T> &v, size_t n) {
    if (v.size() < n) v.resize(n);
}

// Moves candidate i to place `to`; callers advance `to` by whether it is kept.
void move(Candidates &c, size_t i, size_t to) {
    c.ids[to] = c.ids[i];
    c.logits[to] = c.logits[i];
    c.weights[to] = c.weights[i];
}

}  // namespace

int32_t Selector::argmax(const Row &row) {
    const size_t block = std::find(row.maxima, row.maxima + num_blocks(row.n), row.max) - row.maxima;
    const float *begin = row.x + block * kBlock;
    return static_cast<int32_t>(std::find(begin, row.x + row.n, row.max) - row.x);
}

int32_t Selector::draw(const Row &row, const State &state) {
    const Params &params = state.params();
    const Scale scale = scale_of(row, params.temperature);
    if (!params.truncates()) return draw_from_row(row, scale, state.draw());
    if (!params.reshapes()) {
        truncate(row, params, scale);
        return draw_from_candidates(state.draw());
    }
    reshape(row, state);
    const int32_t token = draw_from_candidates(state.draw());
    if (params.mirostat != 0) state.note_surprise(token, surprise(token));
    return token;
}

const Candidates &Selector::support(const Row &row, const State &state) {
    const Params &params = state.params();
    const Scale scale = scale_of(row, params.temperature);
    if (params.reshapes()) {
        reshape(row, state);
    } else if (params.truncates()) {
        truncate(row, params, scale);
    } else {
        gather(row, -INFINITY);
        weigh(scale);
    }
    keep_weights_from(FLT_TRUE_MIN);
    return scratch_.candidates;
}

// min_p before top_k or after is the same: each keeps a beginning of the order.
void Selector::truncate(const Row &row, const Params &params, Scale scale) {
    if (params.top_k > 0) {
        top_k(row, static_cast<size_t>(params.top_k));
    } else if (params.min_p > 0.0) {
        gather(row, logit_of(scale, params.min_p * 0.999));  // a little more than enough
    } else {
        const double total_mass = total(row, scale);
        gather_mass(row, params.top_p * total_mass, total_mass, scale);
        return keep_top_p(params.top_p * total_mass, scale);
    }
    weigh(scale);
    if (params.min_p > 0.0) keep_weights_from(params.min_p);
    if (params.top_p < 1.0) keep_top_p(params.top_p * mass(), scale);
}

double Selector::total(const Row &row, Scale scale) {
    grow(scratch_.sums, num_blocks(row.n));
    passes_.block_sums(row.x, row.n, row.maxima, scale, scratch_.sums.data());
    return std::accumulate(scratch_.sums.begin(), scratch_.sums.begin() + num_blocks(row.n), 0.0);
}

// Makes the tokens from `threshold` up the candidates, without weights.
void Selector::gather(const Row &row, float threshold) {
    threshold = std::max(threshold, -FLT_MAX);  // never a banned token
    Candidates &c = scratch_.candidates;
    grow(c.ids, row.n + 1);
    grow(c.logits, row.n + 1);
    grow(c.weights, row.n + 1);
    size_t size = 0;
    for (size_t block = 0; block < num_blocks(row.n); ++block) {
        if (row.maxima[block] < threshold) continue;
        const size_t end = std::min(row.n, (block + 1) * kBlock);
        for (size_t i = block * kBlock; i < end; ++i) {  // writes one past the last candidate instead of branching
            c.ids[size] = static_cast<int32_t>(i);
            c.logits[size] = row.x[i];
            size += row.x[i] >= threshold;
        }
    }
    c.size = size;
    c.lowest = threshold;
}

// Makes tokens that hold the mass the candidates: few where the likeliest hold it, at last all but those so light that
// even a whole vocabulary of them would not make up the rest.
void Selector::gather_mass(const Row &row, double mass_wanted, double total_mass, Scale scale) {
    const double lightest = 0.999 * (total_mass - mass_wanted) / static_cast<double>(row.n);
    for (double weight = 0x1p-8; weight > lightest; weight *= 0x1p-3) {
        gather(row, logit_of(scale, weight));
        weigh(scale);
        if (mass() >= mass_wanted) return;
    }
    gather(row, logit_of(scale, lightest));
    weigh(scale);
}

// Candidates: the k likeliest tokens.
const Candidates &Selector::top_k(const Row &row, size_t k) {
    gather(row, bound_top_k(row, k));
    const Candidates &c = scratch_.candidates;
    if (c.size > k) {
        std::vector<float> &logits = scratch_.floats;
        logits.assign(c.logits.begin(), c.logits.begin() + c.size);
        std::nth_element(logits.begin(), logits.begin() + (k - 1), logits.end(), std::greater<>());
        const float last = logits[k - 1];
        keep_from(last, std::count(logits.begin(), logits.begin() + k, last));
    }
    return c;
}

// A logit below the k-th largest, not far: k block maxima above it are k tokens.
float Selector::bound_top_k(const Row &row, size_t k) const {
    const auto maxima_above = [&](float bound) {
        return passes_.count_greater(row.maxima, num_blocks(row.n), bound);
    };
    if (maxima_above(-INFINITY) < k) return -INFINITY;
    float bound = row.max;
    for (float step = 0.5f; maxima_above(bound) < k; step *= 1.25f) bound = row.max - step;
    return bound;
}

void Selector::weigh(Scale scale) {
    Candidates &c = scratch_.candidates;
    passes_.weights(c.logits.data(), c.size, scale, c.weights.data());
}

double Selector::mass() const {
    const Candidates &c = scratch_.candidates;
    return passes_.share_from(c.logits.data(), c.weights.data(), c.size, -INFINITY).mass;
}

void Selector::keep_weights_from(double min_weight) {
    Candidates &c = scratch_.candidates;
    size_t kept = 0;
    for (size_t i = 0; i < c.size; ++i) {
        const bool keep = static_cast<double>(c.weights[i]) >= min_weight;
        move(c, i, kept);
        kept += keep;
    }
    c.size = kept;
}

// Keeps what is above `logit` and the first num_equals of those that equal it.
void Selector::keep_from(float logit, size_t num_equals) {
    Candidates &c = scratch_.candidates;
    size_t kept = 0;
    for (size_t i = 0; i < c.size; ++i) {
        const bool is_equal = (c.logits[i] == logit) & (num_equals > 0);
        const bool keep = (c.logits[i] > logit) | is_equal;
        num_equals -= is_equal;
        move(c, i, kept);
        kept += keep;
    }
    c.size = kept;
}

// Where a cut by mass falls: among logits [low, high), halved until few or equal ones are left.
Selector::Span Selector::span_of_cut(double mass_wanted, Scale scale) const {
    const Candidates &c = scratch_.candidates;
    Span span{std::max(c.lowest, logit_of(scale, 0x1p-127)), INFINITY, {0, 0.0}};  // what is lower has no weight
    size_t num_from_low = c.size;
    float middle = scale.max;
    while (num_from_low - span.above.count > kFewCandidates && span.low < middle && middle < span.high) {
        const Share share = passes_.share_from(c.logits.data(), c.weights.data(), c.size, middle);
        if (share.mass >= mass_wanted) {
            span.low = middle;
            num_from_low = share.count;
        } else {
            span.high = middle;
            span.above = share;
        }
        middle = span.low + (span.high - span.low) / 2;
    }
    return span;
}

// Keeps each token for as long as those that rank higher hold less than the mass wanted.
void Selector::keep_top_p(double mass_wanted, Scale scale) {
    const Candidates &c = scratch_.candidates;
    const Span span = span_of_cut(mass_wanted, scale);
    std::vector<uint32_t> &tokens = scratch_.order;
    grow(tokens, c.size + 1);
    size_t num_tokens = 0;
    for (size_t i = 0; i < c.size; ++i) {
        tokens[num_tokens] = static_cast<uint32_t>(i);
        const float logit = c.logits[i];
        num_tokens += logit >= span.low && logit < span.high;
    }
    const auto ranks_higher = [&](uint32_t i, uint32_t j) {
        return c.logits[i] > c.logits[j] || (c.logits[i] == c.logits[j] && i < j);
    };
    const auto begin = tokens.begin(), end = begin + num_tokens;
    if (!std::is_sorted(begin, end, ranks_higher)) std::sort(begin, end, ranks_higher);  // many equal ones are sorted
    double mass = span.above.mass;
    auto next = begin;
    do mass += static_cast<double>(c.weights[*next++]);
    while (next < end && mass < mass_wanted);
    const float last = c.logits[*(next - 1)];
    keep_from(last, std::count_if(begin, next, [&](uint32_t i) { return c.logits[i] == last; }));
}

int32_t Selector::draw_from_row(const Row &row, Scale scale, double u) {
    double target = u * total(row, scale);
    size_t last = 0;
    for (size_t block = 0; block < num_blocks(row.n); ++block) {  // past the end by rounding: the last with a weight
        if (scratch_.sums[block] > 0.0) last = block;
        if (target < scratch_.sums[block]) break;
        target -= scratch_.sums[block];
    }
    float weights[kBlock];
    const size_t begin = last * kBlock, n = std::min(kBlock, row.n - begin);
    passes_.weights(row.x + begin, n, scale, weights);
    return static_cast<int32_t>(begin + pick(weights, n, target));
}

int32_t Selector::draw_from_candidates(double u) const {
    const Candidates &c = scratch_.candidates;
    double target = u * mass();
    size_t begin = 0;
    for (; begin + kChunk < c.size; begin += kChunk) {
        const double chunk = passes_.share_from(&c.logits[begin], &c.weights[begin], kChunk, -INFINITY).mass;
        if (target < chunk) break;
        target -= chunk;
    }
    return c.ids[begin + pick(&c.weights[begin], std::min(kChunk, c.size - begin), target)];
}

}  // namespace pagoda::sampling
