#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string_view>

#include "stages.h"

namespace pagoda {

namespace {

constexpr int64_t kConvColumns = 256;  // of an item
constexpr int64_t kDeltaTokens = 32;   // whose q and k are made at a time

}  // namespace

const RecurrentKernels &recurrent_kernels(const char *isa) {
    [[maybe_unused]] const std::string_view name = isa;
#if defined(PAGODA_AVX)
    if (name == "avx2") return *recurrent_kernels_avx2();
    if (name == "avx512") return *recurrent_kernels_avx512();
#elif defined(PAGODA_NEON)
    if (name == "neon") return *recurrent_kernels_neon();
#endif
    return *recurrent_kernels_generic();
}

// ---- short convolution ------------------------------------------------------------------------------------------

void ShortConvStage::admit(Workspace &w) {
    const Buffer &from = w.buffer(x);
    columns_ = from.columns;
    if (taps < 2 || taps > kConvTaps) throw std::invalid_argument("a convolution has 2 to 8 taps");
    if (columns_ % 16) throw std::invalid_argument("a convolution's columns must be a multiple of 16");
    if (static_cast<int64_t>(weight.size()) != columns_ * taps || w.buffer(out).columns != columns_)
        throw std::invalid_argument("a convolution has a number for each column and tap");
    std::vector<float> turned(weight.size());
    for (int64_t c = 0; c < columns_; ++c)
        for (int64_t i = 0; i < taps; ++i)
            turned[static_cast<size_t>(i * columns_ + c)] = weight[static_cast<size_t>(c * taps + i)];
    weight = std::move(turned);
    state_at_ = w.add_state((taps - 1) * columns_);
}

int64_t ShortConvStage::items(const Workspace &, const Step &step) const {
    return step.sequences * ceil_div(columns_, kConvColumns);
}

void ShortConvStage::run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const {
    const int64_t sequence = item % step.sequences, column = item / step.sequences * kConvColumns;
    const int64_t width = std::min(kConvColumns, columns_ - column), before = taps - 1;
    const Buffer &from = w.buffer(x), &to = w.buffer(out);
    float *earlier = reinterpret_cast<float *>(scratch);  // [before][width]: it may be saved over where it comes from
    const int32_t start = step.state_starts[sequence];
    std::fill_n(earlier, before * width, 0.0f);
    for (int64_t i = 0; start >= 0 && i < before; ++i)
        std::copy_n(w.state(start) + state_at_ + i * columns_ + column, width, earlier + i * width);
    const int64_t begin = step.seq_starts[sequence], end = step.seq_starts[sequence + 1];
    const auto row = [&](int64_t token) {
        return token < begin ? earlier + (token - begin + before) * width : from.row(token) + column;
    };
    ConvArgs a{};
    a.taps = weight.data() + column;
    a.count = taps;
    a.taps_stride = columns_;
    a.columns = width;
    a.silu = silu;
    for (int64_t t = begin; t < end; ++t) {
        for (int64_t i = 0; i < taps; ++i) a.rows[i] = row(t - before + i);
        a.out = to.row(t) + column;
        w.recurrent_kernels->short_conv(a);
        const int32_t save = step.state_saves[t];
        for (int64_t i = 0; save >= 0 && i < before; ++i)
            std::copy_n(a.rows[i + 1], width, w.state(save) + state_at_ + i * columns_ + column);
    }
}

Cost ShortConvStage::describe(const Workspace &, const Step &step) const {
    return {"short convolution", 0, 2.0 * static_cast<double>(step.tokens * columns_ * taps)};
}

// ---- gated delta rule ---------------------------------------------------------------------------------------------

// One item: some columns of one value head of one sequence.
struct DeltaRuleStage::Head {
    int64_t v_head, k_head, begin, end;  // columns [begin, end) of its state
    float *state;                        // those columns, kDeltaColumns together
    float *q, *k, *left, *beta, *qk;     // of kDeltaTokens tokens
};

void DeltaRuleStage::admit(Workspace &w) {
    const auto is = [&](int buffer, int64_t columns) { return w.buffer(buffer).columns == columns; };
    if (k_heads < 1 || v_heads < 1 || v_heads % k_heads) throw std::invalid_argument("value heads share key heads evenly");
    if (k_dim < 16 || v_dim < 16 || k_dim % 16 || v_dim % 16)
        throw std::invalid_argument("the heads of a delta rule must be a multiple of 16 wide");
    const int64_t floats = int64_t{k_dim} * v_dim + kDeltaTokens * (2 * k_dim + 3);
    if (floats * 4 > static_cast<int64_t>(kScratch)) throw std::invalid_argument("the heads of a delta rule are too wide");
    if (!is(qkv, 2 * k_heads * k_dim + v_heads * v_dim) || !is(alpha, v_heads) || !is(beta, v_heads) ||
        !is(out, v_heads * v_dim) || decay.size() != static_cast<size_t>(v_heads) || dt_bias.size() != decay.size())
        throw std::invalid_argument("what a delta rule reads is not as wide as its heads");
    state_at_ = w.add_state(int64_t{v_heads} * k_dim * v_dim);
}

int64_t DeltaRuleStage::parts(const Workspace &w, const Step &step) const {
    return step.sequences * v_heads >= 4 * w.pool->size() ? 1 : ceil_div(v_dim, kDeltaColumns);
}

int64_t DeltaRuleStage::items(const Workspace &w, const Step &step) const {
    return step.sequences * v_heads * parts(w, step);
}

// What all columns of the head need of `count` tokens.
void DeltaRuleStage::prepare(const Workspace &w, const Head &head, int64_t token, int64_t count) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(k_dim));
    for (int64_t t = 0; t < count; ++t) {
        const float *row = w.buffer(qkv).row(token + t);
        float *q = head.q + t * k_dim, *k = head.k + t * k_dim;
        w.recurrent_kernels->unit(row + head.k_head * k_dim, scale, k_dim, q);
        w.recurrent_kernels->unit(row + (k_heads + head.k_head) * k_dim, 1.0f, k_dim, k);
        head.qk[t] = w.recurrent_kernels->dot(q, k, k_dim);
        const auto h = static_cast<size_t>(head.v_head);
        const float x = w.buffer(alpha).row(token + t)[head.v_head] + dt_bias[h];
        const float soft = x > 20.0f ? x : std::log1p(std::exp(x));
        head.left[t] = std::exp(decay[h] * soft);
        head.beta[t] = 1.0f / (1.0f + std::exp(-w.buffer(beta).row(token + t)[head.v_head]));
    }
}

// Takes tokens [from, from + count) of those prepared into the head's columns; the first prepared one is `token`.
void DeltaRuleStage::compute(const Workspace &w, const Head &head, int64_t token, int64_t from, int64_t count) const {
    DeltaArgs a{};
    a.k_dim = k_dim;
    a.tokens = count;
    a.q = head.q + from * k_dim;
    a.k = head.k + from * k_dim;
    a.left = head.left + from;
    a.beta = head.beta + from;
    a.qk = head.qk + from;
    a.v_stride = w.buffer(qkv).stride;
    a.out_stride = w.buffer(out).stride;
    for (int64_t column = head.begin; column < head.end; column += kDeltaColumns) {
        a.columns = std::min(kDeltaColumns, head.end - column);
        a.state = head.state + (column - head.begin) * k_dim;
        a.v = w.buffer(qkv).row(token + from) + 2 * k_heads * k_dim + head.v_head * v_dim + column;
        a.out = w.buffer(out).row(token + from) + head.v_head * v_dim + column;
        w.recurrent_kernels->delta(a);
    }
}

void DeltaRuleStage::run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const {
    const int64_t pieces = parts(w, step), sequence = item / pieces / v_heads, part = item % pieces;
    Head head{};
    head.v_head = item / pieces % v_heads;
    head.k_head = tiled ? head.v_head % k_heads : head.v_head / (v_heads / k_heads);
    head.begin = pieces == 1 ? 0 : part * kDeltaColumns;
    head.end = pieces == 1 ? v_dim : std::min<int64_t>(v_dim, head.begin + kDeltaColumns);
    const int64_t floats = (head.end - head.begin) * k_dim, at = state_at_ + (head.v_head * v_dim + head.begin) * k_dim;
    head.state = reinterpret_cast<float *>(scratch);
    head.q = head.state + floats;
    head.k = head.q + kDeltaTokens * k_dim;
    head.left = head.k + kDeltaTokens * k_dim;
    head.beta = head.left + kDeltaTokens;
    head.qk = head.beta + kDeltaTokens;
    const int32_t start = step.state_starts[sequence];
    if (start >= 0)
        std::copy_n(w.state(start) + at, floats, head.state);
    else
        std::fill_n(head.state, floats, 0.0f);
    const int64_t begin = step.seq_starts[sequence], end = step.seq_starts[sequence + 1];
    for (int64_t token = begin; token < end; token += kDeltaTokens) {
        const int64_t count = std::min(kDeltaTokens, end - token);
        prepare(w, head, token, count);
        for (int64_t from = 0, to = 0; from < count; from = to) {
            while (to < count && step.state_saves[token + to] < 0) ++to;
            to = std::min(to + 1, count);
            compute(w, head, token, from, to - from);
            const int32_t save = step.state_saves[token + to - 1];
            if (save >= 0) std::copy_n(head.state, floats, w.state(save) + at);
        }
    }
}

Cost DeltaRuleStage::describe(const Workspace &, const Step &step) const {
    const double numbers = static_cast<double>(v_heads) * k_dim * v_dim;
    int64_t moved = 0;
    for (int64_t b = 0; b < step.sequences; ++b) moved += step.state_starts[b] >= 0;
    for (int64_t t = 0; t < step.tokens; ++t) moved += step.state_saves[t] >= 0;
    return {"delta rule", 4.0 * numbers * static_cast<double>(moved), 7.0 * numbers * static_cast<double>(step.tokens)};
}

// ---- scaled rows ---------------------------------------------------------------------------------------------------

void ScaleRowsStage::run(Workspace &w, const Step &, int64_t token, uint8_t *) const {
    float scale;
    w.kernels->activated(w.buffer(gate).row(token), *activation, 1, &scale);
    const Buffer &from = w.buffer(x);
    float *to = w.buffer(out).row(token);
    const float *values = from.row(token);
    for (int64_t c = 0; c < from.columns; ++c) to[c] = values[c] * scale;
}

Cost ScaleRowsStage::describe(const Workspace &, const Step &) const { return {"scale rows"}; }

}  // namespace pagoda
