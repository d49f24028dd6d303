// Low-rank products of some of a step's tokens. For one (token, rank) or (token, row) the order of operations is the same in
// every tile. Included by kernels_lora_*.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels.h"
#include "kernels_lora.h"

namespace pagoda {
namespace {

#include "tiles.inl"
#include "kernels_rows.inl"

template <class S, LoraType Type>
PAGODA_INLINE typename S::F lora_row16(const uint8_t *weights, int64_t at) {
    if constexpr (Type == LoraType::F32) return S::load(reinterpret_cast<const float *>(weights) + at);
    else if constexpr (Type == LoraType::BF16) return S::load_bfloat(weights + 2 * at);
    else return S::load_i8(weights + at);
}

constexpr int kLoraTokens = 4;     // of one tile
constexpr int kLoraAhead = 2048;   // bytes of A that are read ahead

// Whether `lines` of what comes next are left to read; else the product reads its own numbers ahead.
PAGODA_INLINE bool lora_reads(const ReadAhead *ahead, int64_t lines) { return ahead && ahead->end - ahead->at >= lines * 64; }

template <int Lines>
PAGODA_INLINE void lora_read(ReadAhead *ahead) {
    UNROLL for (int line = 0; line < Lines; ++line) __builtin_prefetch(ahead->at + 64 * line, 0, 2);
    ahead->at += 64 * Lines;
}

template <class S, LoraType Type>
void lora_shrink_as(const LoraArgs &g) {
    const int64_t each = g.end - g.begin;
    const uint8_t *weights = g.weights + g.begin * g.columns * lora_element_bytes(Type);
    for_tiles<kLoraTokens>(0, g.count, [&](auto size, int64_t t) __attribute__((always_inline)) {
        constexpr int T = size;
        constexpr int R = S::kFloatTile < 12 ? (T == 1 ? 4 : 2) : T <= 2 ? 8 : 4;  // as many as there are registers for
        for_tiles<R>(0, each, [&](auto ranks, int64_t j) __attribute__((always_inline)) {
            constexpr int N = ranks;
            typename S::F acc[T][N];
            const float *x[T];
            UNROLL for (int i = 0; i < T; ++i) {
                x[i] = g.x + g.tokens[t + i] * g.x_stride;
                UNROLL for (int n = 0; n < N; ++n) acc[i][n] = S::zero();
            }
            constexpr int kLines = N * 16 * static_cast<int>(lora_element_bytes(Type)) / 64;
            const bool reads = kLines > 0 && lora_reads(g.ahead, g.columns / 16 * kLines);
            for (int64_t c = 0; c < g.columns; c += 16) {
                typename S::F values[T];
                UNROLL for (int i = 0; i < T; ++i) values[i] = S::load(x[i] + c);
                const int64_t at = c * each + 16 * j;
                if (reads) lora_read<kLines>(g.ahead);
                else if (j == 0)  // all ranks' numbers of these columns, once
                    for (int64_t line = 0; line < 16 * each * lora_element_bytes(Type); line += 64)
                        __builtin_prefetch(weights + at * lora_element_bytes(Type) + kLoraAhead + line);
                UNROLL for (int n = 0; n < N; ++n) {
                    const auto row = lora_row16<S, Type>(weights, at + 16 * n);
                    UNROLL for (int i = 0; i < T; ++i) acc[i][n] = S::fma(row, values[i], acc[i][n]);
                }
            }
            UNROLL for (int i = 0; i < T; ++i)
                UNROLL for (int n = 0; n < N; ++n) {
                    const int64_t rank = g.begin + j + n;
                    const float scale = Type == LoraType::Int8 ? g.scales[rank] : 1.0f;
                    g.hidden[g.tokens[t + i] * g.hidden_stride + rank] = lanes_sum<S>(acc[i][n]) * scale;
                }
        });
    });
}

// hidden[token][j] = row j of A times x[token], for j in [begin, end).
template <class S>
void lora_shrink(const LoraArgs &g) {
    if (g.type == LoraType::F32) lora_shrink_as<S, LoraType::F32>(g);
    else if (g.type == LoraType::BF16) lora_shrink_as<S, LoraType::BF16>(g);
    else lora_shrink_as<S, LoraType::Int8>(g);
}

// 16 rows of the product, at the scales that their weight's rows get.
template <class S>
PAGODA_INLINE typename S::F lora_scaled(const LoraArgs &g, const float *out, int64_t token, int64_t row) {
    const auto product = S::load(out);
    if (!g.row_scale) return product;
    const auto scale = S::load(g.row_scale + row);
    if (!g.before) return S::mul(product, scale);
    const auto before = S::load(g.before + token * g.before_stride + row);
    return S::fma(S::sub(product, before), scale, before);
}

template <class S, LoraType Type>
void lora_expand_as(const LoraArgs &g) {
    for_tiles<kLoraTokens>(0, g.count, [&](auto size, int64_t t) __attribute__((always_inline)) {
        constexpr int T = size;
        constexpr int P = S::kFloatTile < 12 ? 2 : T <= 2 ? 8 : 4;
        for_tiles<P>(g.begin, g.end, [&](auto panels, int64_t p) __attribute__((always_inline)) {
            constexpr int N = panels;
            typename S::F acc[T][N];
            constexpr int kLines = N * kPanelRows * static_cast<int>(lora_element_bytes(Type)) / 64;
            const bool reads = kLines > 0 && lora_reads(g.ahead, g.rank * kLines);
            const int64_t bytes = N * g.rank * kPanelRows * lora_element_bytes(Type);
            for (int64_t line = 0; line < bytes && !reads; line += 64)  // of the panels that come next
                __builtin_prefetch(g.weights + (p + N) * g.rank * kPanelRows * lora_element_bytes(Type) + line);
            if constexpr (Type == LoraType::Int8)
                UNROLL for (int n = 0; n < N; ++n) __builtin_prefetch(g.scales + (p + N + n) * kPanelRows);
            const float *hidden[T];
            UNROLL for (int i = 0; i < T; ++i) {
                hidden[i] = g.hidden + g.tokens[t + i] * g.hidden_stride;
                UNROLL for (int n = 0; n < N; ++n) acc[i][n] = S::zero();
            }
            for (int64_t j = 0; j < g.rank; ++j) {
                if (reads) lora_read<kLines>(g.ahead);
                UNROLL for (int n = 0; n < N; ++n) {
                    const auto row = lora_row16<S, Type>(g.weights, ((p + n) * g.rank + j) * kPanelRows);
                    UNROLL for (int i = 0; i < T; ++i) acc[i][n] = S::fma(row, S::set1(hidden[i][j]), acc[i][n]);
                }
            }
            UNROLL for (int i = 0; i < T; ++i)
                UNROLL for (int n = 0; n < N; ++n) {
                    const int64_t row = (p + n) * kPanelRows;
                    float *to = g.out + g.tokens[t + i] * g.out_stride + row;
                    auto sum = acc[i][n];
                    if constexpr (Type == LoraType::Int8) sum = S::mul(sum, S::load(g.scales + row));
                    if (g.bias) sum = S::add(sum, S::load(g.bias + row));
                    S::store(to, S::add(lora_scaled<S>(g, to, g.tokens[t + i], row), sum));
                }
        });
    });
}

// See LoraKernels, for the panels [begin, end) of out.
template <class S>
void lora_expand(const LoraArgs &g) {
    if (g.type == LoraType::F32) lora_expand_as<S, LoraType::F32>(g);
    else if (g.type == LoraType::BF16) lora_expand_as<S, LoraType::BF16>(g);
    else lora_expand_as<S, LoraType::Int8>(g);
}

template <class S>
const LoraKernels *make_lora_kernels() {
    static constexpr LoraKernels kTable{lora_shrink<S>, lora_expand<S>};
    return &kTable;
}

}  // namespace
}  // namespace pagoda
