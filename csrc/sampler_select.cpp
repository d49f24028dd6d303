#include "sampler_select.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>

namespace pagoda::sampling {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr size_t kNumBuckets = 1024;
constexpr size_t kFewCandidates = 128;  // sorting them is faster than another round of buckets

Scale scale_of(const Row &row, float temperature) {
    return {row.max, static_cast<float>(kLog2E / static_cast<double>(temperature))};
}

// The logit that weighs 2^log2_weight, rounded down.
float logit_of(Scale scale, double log2_weight) {
    const double logit = static_cast<double>(scale.max) + log2_weight / static_cast<double>(scale.slope);
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

}  // namespace

int32_t Selector::argmax(const Row &row) {
    const size_t block = std::find(row.maxima, row.maxima + num_blocks(row.n), row.max) - row.maxima;
    const float *begin = row.x + block * kBlock;
    return static_cast<int32_t>(std::find(begin, row.x + row.n, row.max) - row.x);
}

int32_t Selector::draw(const Row &row, const Params &params, double u) {
    const Scale scale = scale_of(row, params.temperature);
    if (!params.truncates()) return draw_from_row(row, scale, u);
    truncate(row, params, scale);
    return draw_from_candidates(u);
}

const Candidates &Selector::support(const Row &row, const Params &params) {
    const Scale scale = scale_of(row, params.temperature);
    if (params.truncates()) {
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
        gather(row, logit_of(scale, std::log2(params.min_p) - 0.001));  // a little more than enough
    } else {
        const double mass_wanted = params.top_p * total(row, scale);
        gather_mass(row, mass_wanted, scale);
        return keep_top_p(mass_wanted);
    }
    weigh(scale);
    if (params.min_p > 0.0) keep_weights_from(params.min_p);
    if (params.top_p < 1.0) keep_top_p(params.top_p * mass());
}

void Selector::gather(const Row &row, float threshold) {
    threshold = std::max(threshold, -FLT_MAX);  // never a banned token
    Candidates &c = scratch_.candidates;
    grow(c.ids, row.n + 1);
    grow(c.logits, row.n + 1);
    grow(c.weights, row.n + 1);
    c.size = 0;
    for (size_t block = 0; block < num_blocks(row.n); ++block) {
        if (row.maxima[block] < threshold) continue;
        const size_t end = std::min(row.n, (block + 1) * kBlock);
        for (size_t i = block * kBlock; i < end; ++i) {  // writes one past the last candidate instead of branching
            c.ids[c.size] = static_cast<int32_t>(i);
            c.logits[c.size] = row.x[i];
            c.size += row.x[i] >= threshold;
        }
    }
}

void Selector::weigh(Scale scale) {
    Candidates &c = scratch_.candidates;
    passes_.weights(c.logits.data(), c.size, scale, c.weights.data());
}

double Selector::mass() const {
    const Candidates &c = scratch_.candidates;
    double sum = 0.0;
    for (size_t i = 0; i < c.size; ++i) sum += static_cast<double>(c.weights[i]);
    return sum;
}

double Selector::total(const Row &row, Scale scale) {
    grow(scratch_.sums, num_blocks(row.n));
    passes_.block_sums(row.x, row.n, row.maxima, scale, scratch_.sums.data());
    return std::accumulate(scratch_.sums.begin(), scratch_.sums.begin() + num_blocks(row.n), 0.0);
}

// Lowers the threshold until the candidates hold the mass; most rows need one or two rounds.
void Selector::gather_mass(const Row &row, double mass_wanted, Scale scale) {
    for (double log2_weight = -8.0;; log2_weight -= 8.0) {
        const bool all = log2_weight < -127.0;
        gather(row, all ? -INFINITY : logit_of(scale, log2_weight));
        weigh(scale);
        if (all || mass() >= mass_wanted) return;
    }
}

// k maxima of different blocks are k tokens: the k-th largest maximum bounds the k-th largest logit from below.
const Candidates &Selector::top_k(const Row &row, size_t k) {
    std::vector<float> &order = scratch_.floats;
    const size_t blocks = num_blocks(row.n);
    float threshold = -INFINITY;
    if (k <= blocks) {
        order.assign(row.maxima, row.maxima + blocks);
        std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
        threshold = order[k - 1];
    }
    gather(row, threshold);
    const Candidates &c = scratch_.candidates;
    if (c.size > k) {
        order.assign(c.logits.begin(), c.logits.begin() + c.size);
        std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
        const float last = order[k - 1];
        keep_from(last, std::count(order.begin(), order.begin() + k, last));
    }
    return c;
}

void Selector::keep_weights_from(double min_weight) {
    Candidates &c = scratch_.candidates;
    size_t kept = 0;
    for (size_t i = 0; i < c.size; ++i) {
        if (static_cast<double>(c.weights[i]) < min_weight) continue;
        c.ids[kept] = c.ids[i];
        c.logits[kept] = c.logits[i];
        c.weights[kept++] = c.weights[i];
    }
    c.size = kept;
}

// Keeps what is above `logit` and the first num_equals of those that equal it.
void Selector::keep_from(float logit, size_t num_equals) {
    Candidates &c = scratch_.candidates;
    size_t kept = 0;
    for (size_t i = 0; i < c.size; ++i) {
        if (c.logits[i] < logit || (c.logits[i] == logit && num_equals == 0)) continue;
        if (c.logits[i] == logit) --num_equals;
        c.ids[kept] = c.ids[i];
        c.logits[kept] = c.logits[i];
        c.weights[kept++] = c.weights[i];
    }
    c.size = kept;
}

namespace {

// Tokens (indices of candidates) among which a cut by mass falls; `above` is the mass of those that rank higher.
struct Boundary {
    std::vector<uint32_t> &tokens;
    double above = 0.0;
};

// Keeps the tokens of the one bucket, of 1024 over their range of logits, in which the mass is reached.
void narrow(Boundary &boundary, const Candidates &c, double lowest, double highest, double mass_wanted) {
    const double buckets_per_logit = kNumBuckets / (highest - lowest);
    const auto bucket = [&](uint32_t i) {
        const double place = (highest - static_cast<double>(c.logits[i])) * buckets_per_logit;
        return std::min(kNumBuckets - 1, static_cast<size_t>(place));
    };
    double masses[kNumBuckets] = {};
    for (uint32_t i : boundary.tokens) masses[bucket(i)] += static_cast<double>(c.weights[i]);
    size_t reached = 0;
    while (reached + 1 < kNumBuckets && boundary.above + masses[reached] < mass_wanted)
        boundary.above += masses[reached++];
    std::erase_if(boundary.tokens, [&](uint32_t i) { return bucket(i) != reached; });
}

}  // namespace

// Keeps each token for as long as those that rank higher hold less than the mass wanted.
void Selector::keep_top_p(double mass_wanted) {
    const Candidates &c = scratch_.candidates;
    std::vector<uint32_t> &tokens = scratch_.order;
    tokens.resize(c.size);
    std::iota(tokens.begin(), tokens.end(), 0u);
    Boundary boundary{tokens};
    const auto lower = [&](uint32_t i, uint32_t j) { return c.logits[i] < c.logits[j]; };
    bool all_equal = false;
    while (true) {
        const auto [lowest, highest] = std::minmax_element(tokens.begin(), tokens.end(), lower);
        all_equal = c.logits[*lowest] == c.logits[*highest];
        if (all_equal || tokens.size() <= kFewCandidates) break;
        narrow(boundary, c, c.logits[*lowest], c.logits[*highest], mass_wanted);
    }
    if (!all_equal)
        std::sort(tokens.begin(), tokens.end(),
                  [&](uint32_t i, uint32_t j) { return lower(j, i) || (!lower(i, j) && i < j); });
    size_t kept = 0;
    do boundary.above += static_cast<double>(c.weights[tokens[kept++]]);
    while (kept < tokens.size() && boundary.above < mass_wanted);
    const float last = c.logits[tokens[kept - 1]];
    keep_from(last, std::count_if(tokens.begin(), tokens.begin() + kept, [&](uint32_t i) { return c.logits[i] == last; }));
}

int32_t Selector::draw_from_row(const Row &row, Scale scale, double u) {
    double target = u * total(row, scale);
    size_t block = 0, last = 0;
    for (; block < num_blocks(row.n); ++block) {  // rounding may carry the target past the end: the last one then
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
    return c.ids[pick(c.weights.data(), c.size, u * mass())];
}

}  // namespace pagoda::sampling
