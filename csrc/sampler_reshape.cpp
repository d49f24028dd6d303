// llama.cpp's cuts of the candidates: top-n-sigma, typical, XTC, dynamic temperature, mirostat 1 and 2. None sorts all.
//
// Order: top-n-sigma, min_p, top_k, typical, top_p, XTC; then the temperature, where it is dynamic or comes last.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>

#include "sampler_select.h"

namespace pagoda::sampling {
namespace {

constexpr uint32_t kXtcStream = 1;    // of random numbers
constexpr size_t kMirostatTop = 100;  // tokens from which mirostat 1 estimates the slope of Zipf's law
constexpr float kColdest = 1e-5f;     // temperatures below it leave the likeliest candidate alone

}  // namespace

void Selector::reshape(const Row &row, const State &state) {
    const Params &params = state.params();
    const Scale scale = scale_of(row, params.cut_temperature());
    if (params.mirostat != 0) return cut_by_mirostat(row, state);
    const float lowest = params.top_n_sigma > 0.0 ? sigma_threshold(row, params.top_n_sigma) : -FLT_MAX;
    if (params.top_k > 0)
        top_k(row, static_cast<size_t>(params.top_k));
    else
        gather(row, lowest);
    weigh(scale);
    Candidates &c = scratch_.candidates;
    for (size_t i = 0; i < c.size; ++i)
        if (c.logits[i] < lowest) c.weights[i] = 0.0f;
    keep_weights_from(std::max(params.min_p, static_cast<double>(FLT_TRUE_MIN)));
    if (params.typical_p < 1.0) keep_typical(params.typical_p * mass(), scale);
    if (params.top_p < 1.0) keep_top_p(params.top_p * mass(), scale);
    if (params.xtc_probability > 0.0 && state.draw(kXtcStream) < params.xtc_probability)
        exclude_top(params.xtc_threshold * mass());
    if (params.temperature_last || params.dynatemp_range > 0.0) weigh_at_last(params);
}

// max - n standard deviations of the logits that are not ruled out (Tang et al., 'Top-nsigma', 2024).
float Selector::sigma_threshold(const Row &row, double num_sigmas) const {
    double sum = 0.0, squares = 0.0;
    size_t count = 0;
    for (size_t i = 0; i < row.n; ++i)
        if (row.x[i] != -INFINITY) {
            sum += static_cast<double>(row.x[i]);
            ++count;
        }
    const double mean = sum / static_cast<double>(count);
    for (size_t i = 0; i < row.n; ++i)
        if (row.x[i] != -INFINITY) {
            const double d = static_cast<double>(row.x[i]) - mean;
            squares += d * d;
        }
    const double sigma = std::sqrt(squares / static_cast<double>(count));
    return static_cast<float>(static_cast<double>(row.max) - num_sigmas * sigma);
}

// In nats, of the candidates' distribution. None has weight 0.
double Selector::entropy(double total_mass, Scale scale) const {
    const Candidates &c = scratch_.candidates;
    const double log_mass = std::log(total_mass), nats = static_cast<double>(scale.slope) / kLog2E;
    double sum = 0.0;
    for (size_t i = 0; i < c.size; ++i)
        sum += static_cast<double>(c.weights[i]) *
               (log_mass - static_cast<double>(c.logits[i] - scale.max) * nats);
    return sum / total_mass;
}

// Keeps those whose surprise is closest to the entropy, for as long as they hold no more than the mass wanted, and one
// more (Meister et al., 'Locally typical sampling', 2023). Of equal ones the lower ids.
void Selector::keep_typical(double mass_wanted, Scale scale) {
    Candidates &c = scratch_.candidates;
    const double total_mass = mass(), expected = entropy(total_mass, scale), log_mass = std::log(total_mass);
    const double nats = static_cast<double>(scale.slope) / kLog2E;
    std::vector<double> &distance = scratch_.doubles;
    std::vector<uint32_t> &order = scratch_.order;
    distance.resize(c.size);
    order.resize(c.size);
    for (size_t i = 0; i < c.size; ++i) {
        distance[i] = std::abs(log_mass - static_cast<double>(c.logits[i] - scale.max) * nats - expected);
        order[i] = static_cast<uint32_t>(i);
    }
    const auto is_closer = [&](uint32_t i, uint32_t j) {
        return distance[i] < distance[j] || (distance[i] == distance[j] && i < j);
    };
    double before = 0.0;  // what the closer ones hold together
    auto begin = order.begin(), end = order.end();
    while (end - begin > 1) {
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end, is_closer);
        double closer = 0.0;
        for (auto i = begin; i < middle; ++i) closer += static_cast<double>(c.weights[*i]);
        if (before + closer > mass_wanted) {
            end = middle;
        } else {
            before += closer;
            begin = middle;
        }
    }
    for (auto i = end; i < order.end(); ++i) c.weights[*i] = 0.0f;
    keep_weights_from(FLT_TRUE_MIN);
}

// Where several weigh that much, leaves out all of them but the least likely (p-e-w's 'Exclude top choices', 2024).
void Selector::exclude_top(double min_weight) {
    Candidates &c = scratch_.candidates;
    size_t num_top = 0, last = 0;
    for (size_t i = 0; i < c.size; ++i) {
        if (static_cast<double>(c.weights[i]) < min_weight) continue;
        if (num_top++ == 0 || c.logits[i] <= c.logits[last]) last = i;
    }
    if (num_top < 2) return;
    for (size_t i = 0; i < c.size; ++i)
        if (i != last && static_cast<double>(c.weights[i]) >= min_weight) c.weights[i] = 0.0f;
    keep_weights_from(FLT_TRUE_MIN);
}

// Weighs the candidates that are left at the temperature asked for, or between the two that the range gives, the higher
// the more evenly they are distributed at temperature 1.
void Selector::weigh_at_last(const Params &params) {
    Candidates &c = scratch_.candidates;
    const float max = *std::max_element(c.logits.begin(), c.logits.begin() + c.size);
    double temperature = static_cast<double>(params.temperature);
    if (params.dynatemp_range > 0.0 && c.size > 1) {
        const Scale even = {max, static_cast<float>(kLog2E)};
        weigh(even);
        keep_weights_from(FLT_TRUE_MIN);
        const double share = c.size > 1 ? entropy(mass(), even) / std::log(static_cast<double>(c.size)) : 0.0;
        const double low = std::max(0.0, temperature - params.dynatemp_range);
        const double high = temperature + params.dynatemp_range;
        temperature = low + (high - low) * std::pow(std::max(share, 0.0), params.dynatemp_exponent);
    }
    if (temperature < static_cast<double>(kColdest)) {
        const auto best = std::max_element(c.logits.begin(), c.logits.begin() + c.size);
        for (size_t i = 0; i < c.size; ++i) c.weights[i] = c.logits.begin() + i == best ? 1.0f : 0.0f;
    } else {
        weigh({max, static_cast<float>(kLog2E / temperature)});
    }
    keep_weights_from(FLT_TRUE_MIN);
}

// Basu et al., 'Mirostat', 2021: so many of the likeliest that the surprise to be expected is the target.
void Selector::cut_by_mirostat(const Row &row, const State &state) {
    const Params &params = state.params();
    const Scale scale = scale_of(row, params.temperature);
    if (params.mirostat == 1) {
        top_k(row, kMirostatTop);
        top_k(row, mirostat_k(state.mu(), static_cast<int64_t>(row.n), scale));
        weigh(scale);
        return keep_weights_from(FLT_TRUE_MIN);
    }
    gather(row, -FLT_MAX);
    weigh(scale);
    keep_weights_from(std::min(1.0, mass() * std::exp2(-state.mu())));
}

size_t Selector::mirostat_k(double mu, int64_t vocab_size, Scale scale) {
    Candidates &c = scratch_.candidates;
    std::sort(c.logits.begin(), c.logits.begin() + c.size, std::greater<>());
    double products = 0.0, squares = 0.0;
    for (size_t i = 0; i + 1 < c.size; ++i) {
        const double t = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
        const double b = static_cast<double>(c.logits[i] - c.logits[i + 1]) * static_cast<double>(scale.slope) / kLog2E;
        products += t * b;
        squares += t * t;
    }
    if (squares == 0.0) return 1;
    const double s = products / squares, epsilon = s - 1.0, n = static_cast<double>(vocab_size);
    const double factor = std::abs(epsilon) < 1e-9 ? 1.0 / std::log(n) : epsilon / (1.0 - std::pow(n, -epsilon));
    const double k = std::pow(factor * std::exp2(mu), 1.0 / s);
    return k >= n ? static_cast<size_t>(vocab_size) : k >= 1.0 ? static_cast<size_t>(k) : 1;
}

// In bits, of a candidate among those that are left.
double Selector::surprise(int32_t token) const {
    const Candidates &c = scratch_.candidates;
    const size_t i = std::lower_bound(c.ids.begin(), c.ids.begin() + c.size, token) - c.ids.begin();
    return std::log2(mass() / static_cast<double>(c.weights[i]));
}

}  // namespace pagoda::sampling
