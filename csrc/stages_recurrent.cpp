#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string_view>

#include "stages.h"

namespace pagoda {

namespace {

constexpr int64_t kConvColumns = 256;  // of an item
constexpr int64_t kHeadTokens = 32;    // whose numbers are made at a time

// log(1 + e^x)
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

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
    if (!bias.empty() && static_cast<int64_t>(bias.size()) != columns_)
        throw std::invalid_argument("a convolution's bias has a number for each column");
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
    a.bias = bias.empty() ? nullptr : bias.data() + column;
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

// ---- states of heads ----------------------------------------------------------------------------------------------

void HeadStates::admit(Workspace &w, int64_t heads, int64_t rows, int64_t columns, int64_t free, const char *what) {
    const std::string name = what;
    if (heads < 1 || rows < 16 || columns < 16 || rows % 16 || columns % 16)
        throw std::invalid_argument("the heads of a " + name + " must be a multiple of 16 wide");
    if ((rows * columns + free) * 4 > static_cast<int64_t>(kScratch))
        throw std::invalid_argument("the heads of a " + name + " are too wide");
    heads_ = heads;
    rows_ = rows;
    columns_ = columns;
    at_ = w.add_state(heads * rows * columns);
}

int64_t HeadStates::parts(const Workspace &w, const Step &step) const {
    return step.sequences * heads_ >= 4 * w.pool->size() ? 1 : ceil_div(columns_, kStateColumns);
}

int64_t HeadStates::items(const Workspace &w, const Step &step) const { return step.sequences * heads_ * parts(w, step); }

HeadStates::Item HeadStates::item(const Workspace &w, const Step &step, int64_t index, uint8_t *scratch) const {
    const int64_t pieces = parts(w, step), part = index % pieces;
    Item i{};
    i.sequence = index / pieces / heads_;
    i.head = index / pieces % heads_;
    i.begin = pieces == 1 ? 0 : part * kStateColumns;
    i.end = pieces == 1 ? columns_ : std::min(columns_, i.begin + kStateColumns);
    i.state = reinterpret_cast<float *>(scratch);
    i.free = i.state + (i.end - i.begin) * rows_;
    return i;
}

template <class Prepare, class Take>
void HeadStates::run(Workspace &w, const Step &step, int64_t index, uint8_t *scratch, Prepare &&prepare, Take &&take) const {
    const Item i = item(w, step, index, scratch);
    const int64_t floats = (i.end - i.begin) * rows_, at = at_ + (i.head * columns_ + i.begin) * rows_;
    const int32_t start = step.state_starts[i.sequence];
    if (start >= 0)
        std::copy_n(w.state(start) + at, floats, i.state);
    else
        std::fill_n(i.state, floats, 0.0f);
    const int64_t begin = step.seq_starts[i.sequence], end = step.seq_starts[i.sequence + 1];
    for (int64_t token = begin; token < end; token += kHeadTokens) {
        const int64_t count = std::min(kHeadTokens, end - token);
        prepare(i, token, count);
        for (int64_t from = 0, to = 0; from < count; from = to) {
            while (to < count && step.state_saves[token + to] < 0) ++to;
            to = std::min(to + 1, count);
            for (int64_t column = i.begin; column < i.end; column += kStateColumns)
                take(i, Columns{column, std::min(kStateColumns, i.end - column), i.state + (column - i.begin) * rows_},
                     token + from, from, to - from);
            const int32_t save = step.state_saves[token + to - 1];
            if (save >= 0) std::copy_n(i.state, floats, w.state(save) + at);
        }
    }
}

Cost HeadStates::cost(const char *label, double operations, const Step &step) const {
    const double numbers = static_cast<double>(heads_ * rows_ * columns_);
    int64_t moved = 0;
    for (int64_t b = 0; b < step.sequences; ++b) moved += step.state_starts[b] >= 0;
    for (int64_t t = 0; t < step.tokens; ++t) moved += step.state_saves[t] >= 0;
    return {label, 4.0 * numbers * static_cast<double>(moved), operations * numbers * static_cast<double>(step.tokens)};
}

// ---- gated delta rule ---------------------------------------------------------------------------------------------

struct DeltaRuleStage::Prepared {  // of kHeadTokens tokens
    float *q, *k, *left, *beta, *qk;
};

DeltaRuleStage::Prepared DeltaRuleStage::prepared(float *free) const {
    float *left = free + 2 * kHeadTokens * k_dim;
    return {free, free + kHeadTokens * k_dim, left, left + kHeadTokens, left + 2 * kHeadTokens};
}

void DeltaRuleStage::admit(Workspace &w) {
    const auto is = [&](int buffer, int64_t columns) { return w.buffer(buffer).columns == columns; };
    if (k_heads < 1 || v_heads < 1 || v_heads % k_heads) throw std::invalid_argument("value heads share key heads evenly");
    states_.admit(w, v_heads, k_dim, v_dim, kHeadTokens * (2 * k_dim + 3), "delta rule");
    if (!is(qkv, 2 * k_heads * k_dim + v_heads * v_dim) || !is(alpha, v_heads) || !is(beta, v_heads) ||
        !is(out, v_heads * v_dim) || decay.size() != static_cast<size_t>(v_heads) || dt_bias.size() != decay.size())
        throw std::invalid_argument("what a delta rule reads is not as wide as its heads");
}

// What all columns of the head need of `count` tokens.
void DeltaRuleStage::prepare(const Workspace &w, const HeadStates::Item &item, int64_t token, int64_t count) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(k_dim));
    const Prepared p = prepared(item.free);
    const int64_t k_head = tiled ? item.head % k_heads : item.head / (v_heads / k_heads);
    for (int64_t t = 0; t < count; ++t) {
        const float *row = w.buffer(qkv).row(token + t);
        float *q = p.q + t * k_dim, *k = p.k + t * k_dim;
        w.recurrent_kernels->unit(row + k_head * k_dim, scale, k_dim, q);
        w.recurrent_kernels->unit(row + (k_heads + k_head) * k_dim, 1.0f, k_dim, k);
        p.qk[t] = w.recurrent_kernels->dot(q, k, k_dim);
        const auto h = static_cast<size_t>(item.head);
        p.left[t] = std::exp(decay[h] * softplus(w.buffer(alpha).row(token + t)[item.head] + dt_bias[h]));
        p.beta[t] = 1.0f / (1.0f + std::exp(-w.buffer(beta).row(token + t)[item.head]));
    }
}

void DeltaRuleStage::run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const {
    const auto make = [&](const HeadStates::Item &i, int64_t token, int64_t count) { prepare(w, i, token, count); };
    const auto take = [&](const HeadStates::Item &i, const HeadStates::Columns &columns, int64_t token, int64_t from,
                          int64_t count) {
        const Prepared p = prepared(i.free);
        const int64_t column = i.head * v_dim + columns.first;
        DeltaArgs a{};
        a.state = columns.state;
        a.k_dim = k_dim;
        a.columns = columns.count;
        a.tokens = count;
        a.q = p.q + from * k_dim;
        a.k = p.k + from * k_dim;
        a.left = p.left + from;
        a.beta = p.beta + from;
        a.qk = p.qk + from;
        a.v = w.buffer(qkv).row(token) + 2 * k_heads * k_dim + column;
        a.v_stride = w.buffer(qkv).stride;
        a.out = w.buffer(out).row(token) + column;
        a.out_stride = w.buffer(out).stride;
        w.recurrent_kernels->delta(a);
    };
    states_.run(w, step, item, scratch, make, take);
}

Cost DeltaRuleStage::describe(const Workspace &, const Step &step) const { return states_.cost("delta rule", 7.0, step); }

// ---- selective scan -----------------------------------------------------------------------------------------------

void SelectiveScanStage::admit(Workspace &w) {
    const auto is = [&](int buffer, int64_t columns) { return w.buffer(buffer).columns == columns; };
    const auto are = [&](const std::vector<float> &numbers) { return numbers.size() == static_cast<size_t>(heads); };
    if (heads < 1 || groups < 1 || heads % groups) throw std::invalid_argument("heads share groups evenly");
    states_.admit(w, heads, state_dim, head_dim, 2 * kHeadTokens, "selective scan");
    if (!is(xbc, heads * head_dim + 2 * groups * state_dim) || !is(dt, heads) || !is(out, heads * head_dim) || !are(decay) ||
        !are(dt_bias) || !are(skip))
        throw std::invalid_argument("what a selective scan reads is not as wide as its heads");
}

void SelectiveScanStage::run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const {
    const auto make = [&](const HeadStates::Item &i, int64_t token, int64_t count) {
        const auto h = static_cast<size_t>(i.head);
        float *left = i.free, *steps = left + kHeadTokens;
        for (int64_t t = 0; t < count; ++t) {
            steps[t] = softplus(w.buffer(dt).row(token + t)[i.head] + dt_bias[h]);
            left[t] = std::exp(decay[h] * steps[t]);
        }
    };
    const auto take = [&](const HeadStates::Item &i, const HeadStates::Columns &columns, int64_t token, int64_t from,
                          int64_t count) {
        const int64_t column = i.head * head_dim + columns.first, group = i.head / (heads / groups);
        const float *row = w.buffer(xbc).row(token), *of_groups = row + heads * head_dim;
        ScanArgs a{};
        a.state = columns.state;
        a.state_dim = state_dim;
        a.columns = columns.count;
        a.tokens = count;
        a.x = row + column;
        a.b = of_groups + group * state_dim;
        a.c = of_groups + (groups + group) * state_dim;
        a.stride = w.buffer(xbc).stride;
        a.left = i.free + from;
        a.dt = i.free + kHeadTokens + from;
        a.skip = skip[static_cast<size_t>(i.head)];
        a.out = w.buffer(out).row(token) + column;
        a.out_stride = w.buffer(out).stride;
        w.recurrent_kernels->scan(a);
    };
    states_.run(w, step, item, scratch, make, take);
}

Cost SelectiveScanStage::describe(const Workspace &, const Step &step) const {
    return states_.cost("selective scan", 5.0, step);
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
