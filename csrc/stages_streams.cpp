#include "stages_streams.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "stages.h"

namespace pagoda {

namespace {

constexpr int64_t kLanes = 16;     // partial sums, so that compilers may add side by side
constexpr int64_t kColumns = 256;  // of each stream, that are mixed at a time: they stay in L1

// The sum of value(i) for i below n, in an order that n fixes.
template <class Fn>
float sum_of(int64_t n, Fn &&value) {
    float lanes[kLanes] = {}, sum = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += value(i + l);
    for (const float lane : lanes) sum += lane;
    for (; i < n; ++i) sum += value(i);
    return sum;
}

}  // namespace

void GaussianTopkStage::admit(Workspace &w) {
    if (w.buffer(out).columns != w.buffer(x).columns) throw std::invalid_argument("values of another width are cut");
}

void GaussianTopkStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const float *from = w.buffer(x).row(token);
    float *to = w.buffer(out).row(token);
    const int64_t n = w.buffer(x).columns;
    const float mean = sum_of(n, [&](int64_t i) { return from[i]; }) / static_cast<float>(n);
    const float squares = sum_of(n, [&](int64_t i) { return (from[i] - mean) * (from[i] - mean); });
    const float above = deviations * std::sqrt(squares / static_cast<float>(n));
    for (int64_t i = 0; i < n; ++i) to[i] = std::max(from[i] - mean - above, 0.0f);
}

Cost GaussianTopkStage::describe(const Workspace &, const Step &) const { return {"gaussian top-k"}; }

void MixStreamsStage::admit(Workspace &w) {
    const int64_t held = w.buffer(x).columns, each = w.buffer(coefficients).columns;
    if (streams < 1 || held % streams || each % streams || w.buffer(out).columns != each / streams * (held / streams))
        throw std::invalid_argument("streams need a coefficient for each pair of them");
}

void MixStreamsStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    const int64_t width = w.buffer(x).columns / streams, made = w.buffer(coefficients).columns / streams;
    const float *from = w.buffer(x).row(token), *factors = w.buffer(coefficients).row(token);
    float *to = w.buffer(out).row(token);
    for (int64_t begin = 0; begin < width; begin += kColumns) {
        const int64_t count = std::min(kColumns, width - begin);
        for (int64_t i = 0; i < made; ++i) {
            float *row = to + i * width + begin;
            std::fill_n(row, count, 0.0f);
            for (int64_t j = 0; j < streams; ++j) {
                const float factor = factors[i * streams + j], *held = from + j * width + begin;
                for (int64_t c = 0; c < count; ++c) row[c] += factor * held[c];
            }
        }
    }
}

Cost MixStreamsStage::describe(const Workspace &, const Step &) const { return {"mix streams"}; }

}  // namespace pagoda
