#include "adapter.h"

#include <algorithm>
#include <cmath>

namespace pagoda {

namespace {

constexpr int64_t kAlignment = 64, kHugePage = int64_t{2} << 20;
constexpr float kLargestByte = 127.0f;

// The scale of `count` numbers as bytes; of others 1.
float scale_of(LoraType type, const float *x, int64_t count) {
    if (type != LoraType::Int8) return 1.0f;
    float top = 0.0f;
    for (int64_t i = 0; i < count; ++i) top = std::max(top, std::fabs(x[i]));
    return top > 0.0f ? top / kLargestByte : 1.0f;
}

void store(LoraType type, uint8_t *to, int64_t at, float value, float scale) {
    switch (type) {
        case LoraType::F32: reinterpret_cast<float *>(to)[at] = value; break;
        case LoraType::BF16: reinterpret_cast<uint16_t *>(to)[at] = float_to_bfloat(value); break;
        case LoraType::Int8: reinterpret_cast<int8_t *>(to)[at] = static_cast<int8_t>(std::nearbyint(value / scale)); break;
    }
}

// See LoraArgs for the layouts.
void pack_a(LoraType type, const LoraFactors &f, int64_t columns, uint8_t *to, Adapter::Delta &d) {
    for (int64_t j = 0; j < f.rank; ++j) {
        const float *row = f.a + j * columns, scale = scale_of(type, row, columns);
        const int64_t first = j / kLoraRanks * kLoraRanks, each = std::min(kLoraRanks, f.rank - first);
        for (int64_t c = 0; c < columns; ++c)
            store(type, to, first * d.columns + (c / 16 * each + j - first) * 16 + c % 16, row[c], scale);
        if (type == LoraType::Int8) d.a_scales.push_back(scale);
    }
}

void pack_b(LoraType type, const LoraFactors &f, int64_t rows, uint8_t *to, Adapter::Delta &d) {
    if (type == LoraType::Int8) d.b_scales.assign(static_cast<size_t>(round_up(rows, kPanelRows)), 1.0f);
    for (int64_t row = 0; row < rows; ++row) {
        const float *from = f.b + row * f.rank, scale = scale_of(type, from, f.rank);
        const int64_t panel = row / kPanelRows * lora_b_ranks(type, f.rank), lane = row % kPanelRows;
        for (int64_t j = 0; j < f.rank; ++j) {
            const int64_t pair = (panel + j / 2 * 2) * kPanelRows + 2 * lane + j % 2;
            store(type, to, type == LoraType::Int8 ? pair : (panel + j) * kPanelRows + lane, from[j], scale);
        }
        if (type == LoraType::Int8) d.b_scales[static_cast<size_t>(row)] = scale;
    }
}

std::vector<float> padded(const float *values, int64_t rows, float filler) {
    std::vector<float> all(static_cast<size_t>(round_up(rows, kPanelRows)), filler);
    std::copy_n(values, rows, all.begin());
    return all;
}

}  // namespace

Adapter::Adapter(const void *of, const std::vector<LoraSite> &sites, const std::vector<LoraFactors> &factors, LoraType kind)
    : owner(of), type(kind), deltas(sites.size()) {
    const auto a_size = [&](const LoraFactors &f) {
        return round_up(f.rank * round_up(sites.at(f.site).columns, 16) * lora_element_bytes(type), kAlignment);
    };
    const auto b_size = [&](const LoraFactors &f) {
        const int64_t rows = round_up(sites.at(f.site).rows, kPanelRows);
        return round_up(rows * lora_b_ranks(type, f.rank) * lora_element_bytes(type), kAlignment);
    };
    int64_t total = 0;
    for (const LoraFactors &f : factors) total += a_size(f) + b_size(f);
    // In whole huge pages, where it is more than one: it is read line by line, once a step.
    memory_ = LazyMemory(static_cast<size_t>(total > kHugePage ? round_up(total, kHugePage) : total));
    uint8_t *next = memory_.data();
    for (const LoraFactors &f : factors) {
        const LoraSite &at = sites[f.site];
        Delta &d = deltas[f.site];
        d.rank = f.rank;
        d.columns = round_up(at.columns, 16);
        d.a = next;
        d.b = next + a_size(f);
        d.a_scales.clear();
        pack_a(type, f, at.columns, next, d);
        pack_b(type, f, at.rows, next + a_size(f), d);
        next += a_size(f) + b_size(f);
        if (f.bias) d.bias = padded(f.bias, at.rows, 0.0f);
        if (f.row_scale) d.row_scale = padded(f.row_scale, at.rows, 1.0f);
        scales_rows |= f.row_scale != nullptr;
        rank = std::max(rank, f.rank);
    }
}

}  // namespace pagoda
