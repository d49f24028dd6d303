#include "adapter.h"

#include <algorithm>

namespace pagoda {

namespace {

constexpr int64_t kAlignment = 64;

struct Writer {
    uint8_t *to;
    bool halves;
    void store(int64_t at, float value) const {
        if (halves)
            reinterpret_cast<uint16_t *>(to)[at] = float_to_bfloat(value);
        else
            reinterpret_cast<float *>(to)[at] = value;
    }
};

}  // namespace

Adapter::Adapter(const void *of, const std::vector<LoraSite> &sites, const std::vector<LoraFactors> &factors, bool half)
    : owner(of), halves(half), deltas(sites.size()) {
    const int64_t element = halves ? 2 : 4;
    const auto a_size = [&](const LoraFactors &f) {
        return round_up(f.rank * round_up(sites.at(f.site).columns, kPanelRows) * element, kAlignment);
    };
    const auto b_size = [&](const LoraFactors &f) {
        return round_up(round_up(sites.at(f.site).rows, kPanelRows) * f.rank * element, kAlignment);
    };
    int64_t total = 0;
    for (const LoraFactors &f : factors) total += a_size(f) + b_size(f);
    memory_ = LazyMemory(static_cast<size_t>(total));
    uint8_t *next = memory_.data();
    for (const LoraFactors &f : factors) {
        const LoraSite &at = sites[f.site];
        Delta &d = deltas[f.site];
        const int64_t r = d.rank = f.rank;
        d.columns = round_up(at.columns, kPanelRows);
        const Writer a{next, halves}, b{next + a_size(f), halves};
        d.a = a.to;
        d.b = b.to;
        next += a_size(f) + b_size(f);
        for (int64_t j = 0; j < r; ++j)
            for (int64_t c = 0; c < at.columns; ++c) a.store(j * d.columns + c, f.a[j * at.columns + c]);
        for (int64_t row = 0; row < at.rows; ++row)
            for (int64_t j = 0; j < r; ++j)
                b.store((row / kPanelRows * r + j) * kPanelRows + row % kPanelRows, f.b[row * r + j]);
        if (f.bias) {
            d.bias.assign(static_cast<size_t>(round_up(at.rows, kPanelRows)), 0.0f);
            std::copy_n(f.bias, at.rows, d.bias.begin());
        }
        rank = std::max(rank, r);
    }
}

}  // namespace pagoda
