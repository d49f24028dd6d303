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

template <class S, bool Halves>
PAGODA_INLINE typename S::F lora_row16(const uint8_t *weights, int64_t at) {
    if constexpr (Halves) return S::load_bfloat(weights + 2 * at);
    else return S::load(reinterpret_cast<const float *>(weights) + at);
}

constexpr int kLoraTokens = 4;  // of one tile

template <class S, bool Halves>
void lora_shrink_as(const LoraArgs &g) {
    for_tiles<kLoraTokens>(0, g.count, [&](auto size, int64_t t) __attribute__((always_inline)) {
        constexpr int T = size;
        constexpr int R = S::kFloatTile < 12 ? 2 : T == 1 ? 8 : 4;  // accumulators for which there are registers
        for_tiles<R>(g.begin, g.end, [&](auto ranks, int64_t j) __attribute__((always_inline)) {
            constexpr int N = ranks;
            typename S::F acc[T][N];
            const float *x[T];
            UNROLL for (int i = 0; i < T; ++i) {
                x[i] = g.x + g.tokens[t + i] * g.x_stride;
                UNROLL for (int n = 0; n < N; ++n) acc[i][n] = S::zero();
            }
            for (int64_t c = 0; c < g.columns; c += 16) {
                typename S::F values[T];
                UNROLL for (int i = 0; i < T; ++i) values[i] = S::load(x[i] + c);
                UNROLL for (int n = 0; n < N; ++n) {
                    const auto row = lora_row16<S, Halves>(g.weights, (j + n) * g.columns + c);
                    UNROLL for (int i = 0; i < T; ++i) acc[i][n] = S::fma(row, values[i], acc[i][n]);
                }
            }
            UNROLL for (int i = 0; i < T; ++i)
                UNROLL for (int n = 0; n < N; ++n)
                    g.hidden[g.tokens[t + i] * g.hidden_stride + j + n] = lanes_sum<S>(acc[i][n]);
        });
    });
}

// hidden[token][j] = row j of A times x[token], for j in [begin, end).
template <class S>
void lora_shrink(const LoraArgs &g) {
    if (g.halves) lora_shrink_as<S, true>(g);
    else lora_shrink_as<S, false>(g);
}

template <class S, bool Halves>
void lora_expand_as(const LoraArgs &g) {
    for_tiles<kLoraTokens>(0, g.count, [&](auto size, int64_t t) __attribute__((always_inline)) {
        constexpr int T = size;
        constexpr int P = S::kFloatTile < 12 ? 2 : T == 1 ? 8 : 4;
        for_tiles<P>(g.begin, g.end, [&](auto panels, int64_t p) __attribute__((always_inline)) {
            constexpr int N = panels;
            typename S::F acc[T][N];
            const float *hidden[T];
            UNROLL for (int i = 0; i < T; ++i) {
                hidden[i] = g.hidden + g.tokens[t + i] * g.hidden_stride;
                UNROLL for (int n = 0; n < N; ++n)
                    acc[i][n] = g.bias ? S::load(g.bias + (p + n) * kPanelRows) : S::zero();
            }
            for (int64_t j = 0; j < g.rank; ++j)
                UNROLL for (int n = 0; n < N; ++n) {
                    const auto row = lora_row16<S, Halves>(g.weights, ((p + n) * g.rank + j) * kPanelRows);
                    UNROLL for (int i = 0; i < T; ++i) acc[i][n] = S::fma(row, S::set1(hidden[i][j]), acc[i][n]);
                }
            UNROLL for (int i = 0; i < T; ++i)
                UNROLL for (int n = 0; n < N; ++n) {
                    float *to = g.out + g.tokens[t + i] * g.out_stride + (p + n) * kPanelRows;
                    S::store(to, S::add(S::load(to), acc[i][n]));
                }
        });
    });
}

// out[token] += B hidden[token] + bias, for the panels [begin, end) of out.
template <class S>
void lora_expand(const LoraArgs &g) {
    if (g.halves) lora_expand_as<S, true>(g);
    else lora_expand_as<S, false>(g);
}

template <class S>
const LoraKernels *make_lora_kernels() {
    static constexpr LoraKernels kTable{lora_shrink<S>, lora_expand<S>};
    return &kTable;
}

}  // namespace
}  // namespace pagoda
