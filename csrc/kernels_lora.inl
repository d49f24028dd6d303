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
            for (int64_t c = 0; c < g.columns; c += 16) {
                typename S::F values[T];
                UNROLL for (int i = 0; i < T; ++i) values[i] = S::load(x[i] + c);
                const int64_t at = c * each + 16 * j;
                if (j == 0)  // all ranks' numbers of these columns, once
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

// 16 rows of what B makes, added to the token's out.
template <class S>
PAGODA_INLINE void lora_add(const LoraArgs &g, int64_t token, int64_t row, typename S::F sum) {
    float *to = g.out + token * g.out_stride + row;
    if (g.bias) sum = S::add(sum, S::load(g.bias + row));
    S::store(to, S::add(lora_scaled<S>(g, to, token, row), sum));
}

// Of floats.
template <class S, LoraType Type>
void lora_expand_as(const LoraArgs &g) {
    for_tiles<kLoraTokens>(0, g.count, [&](auto size, int64_t t) __attribute__((always_inline)) {
        constexpr int T = size;
        constexpr int P = S::kFloatTile < 12 ? 2 : T <= 2 ? 8 : 4;
        for_tiles<P>(g.begin, g.end, [&](auto panels, int64_t p) __attribute__((always_inline)) {
            constexpr int N = panels;
            typename S::F acc[T][N];
            constexpr int kLines = N * kPanelRows * static_cast<int>(lora_element_bytes(Type)) / 64;
            for (int64_t line = 0; line < g.rank * kLines; ++line)  // of the panels that come next
                __builtin_prefetch(g.weights + (p + N) * g.rank * kPanelRows * lora_element_bytes(Type) + 64 * line);
            const float *hidden[T];
            UNROLL for (int i = 0; i < T; ++i) {
                hidden[i] = g.hidden + g.tokens[t + i] * g.hidden_stride;
                UNROLL for (int n = 0; n < N; ++n) acc[i][n] = S::zero();
            }
            for (int64_t j = 0; j < g.rank; ++j) {
                UNROLL for (int n = 0; n < N; ++n) {
                    const auto row = lora_row16<S, Type>(g.weights, ((p + n) * g.rank + j) * kPanelRows);
                    UNROLL for (int i = 0; i < T; ++i) acc[i][n] = S::fma(row, S::set1(hidden[i][j]), acc[i][n]);
                }
            }
            UNROLL for (int i = 0; i < T; ++i)
                UNROLL for (int n = 0; n < N; ++n) lora_add<S>(g, g.tokens[t + i], (p + n) * kPanelRows, acc[i][n]);
        });
    });
}

constexpr int64_t kLoraPairs = 128;    // of ranks, whose products with bytes fit in 32 bits
constexpr float kLargestCode = 32767;  // of what A makes, in 16 bits

// Codes of hidden[begin, end), two to a number, and their scale.
inline float lora_codes(const float *hidden, int64_t begin, int64_t end, int32_t *codes) {
    float top = 0.0f;
    for (int64_t j = begin; j < end; ++j) top = std::max(top, std::fabs(hidden[j]));
    const float inverse = top > 0.0f ? kLargestCode / top : 0.0f;
    const auto code = [&](int64_t j) {
        return static_cast<uint32_t>(static_cast<uint16_t>(j < end ? static_cast<int16_t>(std::nearbyint(hidden[j] * inverse)) : 0));
    };
    for (int64_t j = begin; j < end; j += 2) codes[(j - begin) / 2] = static_cast<int32_t>(code(j) | code(j + 1) << 16);
    return top / kLargestCode;
}

// Of bytes, which meet codes of what A makes: products of two ranks at once.
template <class S, class Pairs>
void lora_expand_bytes(const LoraArgs &g) {
    const int64_t all = lora_b_ranks(LoraType::Int8, g.rank) / 2;
    for_tiles<kLoraTokens>(0, g.count, [&](auto size, int64_t t) __attribute__((always_inline)) {
        constexpr int T = size;
        constexpr int P = S::kFloatTile < 12 ? 2 : T <= 2 ? 8 : 4;
        LoraArgs part = g;
        for (int64_t first = 0; first < all || first == 0; first += kLoraPairs) {
            int32_t codes[T][kLoraPairs];
            float scales[T];
            const int64_t pairs = std::min(kLoraPairs, all - first);
            UNROLL for (int i = 0; i < T; ++i)
                scales[i] = lora_codes(g.hidden + g.tokens[t + i] * g.hidden_stride, 2 * first,
                                       std::min(g.rank, 2 * (first + kLoraPairs)), codes[i]);
            for_tiles<P>(g.begin, g.end, [&](auto panels, int64_t p) __attribute__((always_inline)) {
                constexpr int N = panels;
                typename S::I acc[T][N];
                UNROLL for (int i = 0; i < T; ++i) UNROLL for (int n = 0; n < N; ++n) acc[i][n] = Pairs::zero();
                const uint8_t *weights = g.weights + (p * all + first) * 32;
                for (int64_t line = 0; line < N * all / 2; ++line)  // of the panels that come next
                    __builtin_prefetch(g.weights + (p + N) * all * 32 + 64 * line);
                UNROLL for (int n = 0; n < N; ++n) __builtin_prefetch(g.scales + (p + N + n) * kPanelRows);
                for (int64_t j = 0; j < pairs; ++j) {
                    UNROLL for (int n = 0; n < N; ++n) {
                        const auto row = Pairs::load(weights + (n * all + j) * 32);
                        UNROLL for (int i = 0; i < T; ++i) acc[i][n] = Pairs::add(acc[i][n], row, Pairs::set(codes[i][j]));
                    }
                }
                UNROLL for (int i = 0; i < T; ++i)
                    UNROLL for (int n = 0; n < N; ++n) {
                        const int64_t row = (p + n) * kPanelRows;
                        const auto scale = S::mul(S::load(g.scales + row), S::set1(scales[i]));
                        lora_add<S>(part, g.tokens[t + i], row, S::mul(S::to_float(acc[i][n]), scale));
                    }
            });
            part.bias = part.row_scale = nullptr;  // once is enough
        }
    });
}

// See LoraKernels, for the panels [begin, end) of out. Pairs: 16 lanes of two 16-bit numbers, see kernels_lora_*.cpp.
template <class S, class Pairs>
void lora_expand(const LoraArgs &g) {
    if (g.type == LoraType::F32) lora_expand_as<S, LoraType::F32>(g);
    else if (g.type == LoraType::BF16) lora_expand_as<S, LoraType::BF16>(g);
    else lora_expand_bytes<S, Pairs>(g);
}

template <class S, class Pairs>
const LoraKernels *make_lora_kernels() {
    static constexpr LoraKernels kTable{lora_shrink<S>, lora_expand<S, Pairs>};
    return &kTable;
}

}  // namespace
}  // namespace pagoda
