#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "stages.h"

namespace pagoda {

constexpr float kLeastTotal = 1e-20f;  // scores that are all 0 stay so

// ---- route ----------------------------------------------------------------------------------------------------

void RouteStage::admit(Workspace &w) {
    if (num_experts < 1 || top_k < 1 || top_k > num_experts || num_experts > w.buffer(scores).stride)
        throw std::invalid_argument("experts are chosen from those that have scores");
    if (groups < 1 || num_experts % groups || used_groups < 1 || used_groups > groups || best < 1 || best > 2 ||
        best > num_experts / groups || top_k > num_experts / groups * used_groups)
        throw std::invalid_argument("groups must have as many experts each, and those used enough of them");
    for (const auto *each : {&scales, &corrections})
        if (!each->empty() && static_cast<int>(each->size()) != num_experts)
            throw std::invalid_argument("each expert has a scale or correction, or none has");
}

// The numbers of `rank`, the first `count` of them in order of what they are ranked by, equals by number.
static void order_by_rank(const std::vector<float> &rank, std::vector<int32_t> &order, size_t count) {
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), [&](int32_t a, int32_t b) {
        const float left = rank[static_cast<size_t>(a)], right = rank[static_cast<size_t>(b)];
        return left > right || (left == right && a < b);
    });
}

// The scores of one token's experts, and what they are picked by.
void RouteStage::score_experts(const float *given, std::vector<float> &score, std::vector<float> &rank) const {
    for (size_t e = 0; e < score.size(); ++e)  // what is no number has no place in an order
        rank[e] = std::isnan(given[e]) ? -std::numeric_limits<float>::infinity() : given[e];
    const float most = *std::max_element(rank.begin(), rank.end());
    float all = 0.0f;
    for (size_t e = 0; e < score.size(); ++e)
        all += score[e] = sigmoid ? 1.0f / (1.0f + std::exp(-rank[e])) : std::exp(rank[e] - most);
    for (size_t e = 0; !sigmoid && e < score.size(); ++e) score[e] /= all;
    for (size_t e = 0; !corrections.empty() && e < score.size(); ++e) {
        const float corrected = score[e] + corrections[e];
        rank[e] = std::isnan(corrected) ? -std::numeric_limits<float>::infinity() : corrected;
    }
    if (groups > 1) leave_groups(corrections.empty() ? score : rank, rank);
}

// Ranks experts of the groups that are not used last. What is no number is nobody's best.
void RouteStage::leave_groups(const std::vector<float> &by, std::vector<float> &rank) const {
    constexpr float kLow = -std::numeric_limits<float>::infinity();
    const size_t size = rank.size() / static_cast<size_t>(groups);
    std::vector<float> total(static_cast<size_t>(groups));
    for (size_t g = 0; g < total.size(); ++g) {
        float first = kLow, second = kLow;
        for (size_t e = g * size; e < (g + 1) * size; ++e) {
            if (by[e] > first)
                second = first, first = by[e];
            else if (by[e] > second)
                second = by[e];
        }
        total[g] = best == 2 ? first + second : first;
        if (std::isnan(total[g])) total[g] = kLow;
    }
    std::vector<int32_t> order(total.size());
    order_by_rank(total, order, static_cast<size_t>(used_groups));
    for (size_t g = static_cast<size_t>(used_groups); g < order.size(); ++g)
        std::fill_n(rank.begin() + static_cast<std::ptrdiff_t>(order[g]) * static_cast<std::ptrdiff_t>(size), size, kLow);
}

// One thread does it: a token's scores are few, and who works for whom is to be known before any product.
void RouteStage::run(Workspace &w, const Step &step, int64_t, uint8_t *) const {
    Routing &routing = w.routing;
    routing.top_k = top_k;
    routing.experts.resize(static_cast<size_t>(step.tokens * top_k));
    routing.weights.resize(routing.experts.size());
    std::vector<int32_t> order(static_cast<size_t>(num_experts));
    std::vector<float> score(order.size()), rank(order.size());
    for (int64_t t = 0; t < step.tokens; ++t) {
        score_experts(w.buffer(scores).row(t), score, rank);
        int32_t *chosen = routing.experts.data() + t * top_k;
        float *weight = routing.weights.data() + t * top_k, total = 0.0f;
        order_by_rank(rank, order, static_cast<size_t>(top_k));
        std::copy_n(order.begin(), top_k, chosen);
        std::sort(chosen, chosen + top_k);
        for (int k = 0; k < top_k; ++k) total += weight[k] = score[static_cast<size_t>(chosen[k])];
        for (int k = 0; normalize && k < top_k; ++k) weight[k] /= total + kLeastTotal;
        for (int k = 0; k < top_k; ++k)
            weight[k] *= scales.empty() ? scale : scale * scales[static_cast<size_t>(chosen[k])];
    }
    routing.group(step.tokens, num_experts, kRowChunk);
}

// ---- combine --------------------------------------------------------------------------------------------------

void CombineStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const Routing &routing = w.routing;
    const Buffer &from = w.buffer(x);
    float *to = w.buffer(out).row(token);
    std::fill_n(to, from.stride, 0.0f);
    for (int64_t i = token * routing.top_k; i < (token + 1) * routing.top_k; ++i) {
        const float *row = from.row(routing.rows[static_cast<size_t>(i)]), weight = routing.weights[static_cast<size_t>(i)];
        for (int64_t c = 0; c < from.stride; ++c) to[c] += weight * row[c];
    }
}

}  // namespace pagoda
