// Short convolutions, the gated delta rule and the selective scan. Included by kernels_recurrent_*.cpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "kernels_recurrent.h"

namespace pagoda {
namespace {

#include "tiles.inl"
#include "kernels_rows.inl"

template <class S>
void short_conv(const ConvArgs &a) {
    for (int64_t c = 0; c < a.columns; c += 16) {
        auto sum = a.bias ? S::load(a.bias + c) : S::zero();
        for (int64_t i = 0; i < a.count; ++i)
            sum = S::fma(S::load(a.rows[i] + c), S::load(a.taps + i * a.taps_stride + c), sum);
        S::store(a.out + c, a.silu ? activate<S>(sum, Activation::Silu) : sum);
    }
}

template <class S>
float row_dot(const float *a, const float *b, int64_t n) {
    auto sum = S::zero();
    for (int64_t i = 0; i < n; i += 16) sum = S::fma(S::load(a + i), S::load(b + i), sum);
    return lanes_sum<S>(sum);
}

template <class S>
void unit(const float *x, float scale, int64_t n, float *out) {
    const auto factor = S::set1(scale / std::sqrt(row_dot<S>(x, x, n) + 1e-6f));
    for (int64_t i = 0; i < n; i += 16) S::store(out + i, S::mul(S::load(x + i), factor));
}

// Products of k and q with the state, in chains that are added at the end.
template <class S, int V, int Chains>
struct DeltaSums {
    typename S::F k[Chains][V], q[Chains][V];

    PAGODA_INLINE void clear() {
        UNROLL for (int c = 0; c < Chains; ++c)
            UNROLL for (int i = 0; i < V; ++i) k[c][i] = q[c][i] = S::zero();
    }
    PAGODA_INLINE void add(int chain, int i, typename S::F state, typename S::F with_k, typename S::F with_q) {
        k[chain][i] = S::fma(state, with_k, k[chain][i]);
        q[chain][i] = S::fma(state, with_q, q[chain][i]);
    }
    PAGODA_INLINE static typename S::F total(const typename S::F (&sums)[Chains][V], int i) {
        auto sum = sums[0][i];
        UNROLL for (int c = 1; c < Chains; ++c) sum = S::add(sum, sums[c][i]);
        return sum;
    }
};

// One pass over the state for each token: it takes the token in, and is multiplied by the next one's k and q on the way.
template <class S, int V>
void delta_columns(const DeltaArgs &a) {
    constexpr int Chains = S::kFloatTile < 12 ? 1 : 2;
    const int64_t width = 16 * V;
    DeltaSums<S, V, Chains> sums;
    sums.clear();
    for (int64_t j = 0; j < a.k_dim; j += Chains)
        UNROLL for (int c = 0; c < Chains; ++c) {
            const auto with_k = S::set1(a.k[j + c]), with_q = S::set1(a.q[j + c]);
            UNROLL for (int i = 0; i < V; ++i) sums.add(c, i, S::load(a.state + (j + c) * width + 16 * i), with_k, with_q);
        }
    for (int64_t t = 0; t < a.tokens; ++t) {
        typename S::F missing[V];
        const auto left = S::set1(a.left[t]), beta = S::set1(a.beta[t]), qk = S::set1(a.qk[t]);
        UNROLL for (int i = 0; i < V; ++i) {
            const auto v = S::load(a.v + t * a.v_stride + 16 * i);
            missing[i] = S::mul(beta, S::sub(v, S::mul(left, sums.total(sums.k, i))));
            S::store(a.out + t * a.out_stride + 16 * i, S::fma(qk, missing[i], S::mul(left, sums.total(sums.q, i))));
        }
        const bool last = t + 1 == a.tokens;
        const float *k = a.k + t * a.k_dim, *next_k = last ? k : k + a.k_dim;
        const float *next_q = last ? k : a.q + (t + 1) * a.k_dim;
        sums.clear();
        for (int64_t j = 0; j < a.k_dim; j += Chains)
            UNROLL for (int c = 0; c < Chains; ++c) {
                const auto by = S::set1(k[j + c]), with_k = S::set1(next_k[j + c]), with_q = S::set1(next_q[j + c]);
                UNROLL for (int i = 0; i < V; ++i) {
                    float *at = a.state + (j + c) * width + 16 * i;
                    const auto state = S::fma(by, missing[i], S::mul(left, S::load(at)));
                    S::store(at, state);
                    sums.add(c, i, state, with_k, with_q);
                }
            }
    }
}

template <class S>
void delta(const DeltaArgs &a) {
    a.columns == kStateColumns ? delta_columns<S, 2>(a) : delta_columns<S, 1>(a);
}

// One pass over the state for each token: it takes the token in, and is multiplied by the token's c on the way.
template <class S, int V>
void scan_columns(const ScanArgs &a) {
    constexpr int Chains = S::kFloatTile < 12 ? 1 : 2;
    const int64_t width = 16 * V;
    for (int64_t t = 0; t < a.tokens; ++t) {
        const float *x = a.x + t * a.stride, *b = a.b + t * a.stride, *c = a.c + t * a.stride;
        const auto left = S::set1(a.left[t]), dt = S::set1(a.dt[t]), skip = S::set1(a.skip);
        typename S::F written[V], sums[Chains][V];
        UNROLL for (int i = 0; i < V; ++i) {
            written[i] = S::mul(dt, S::load(x + 16 * i));
            UNROLL for (int chain = 0; chain < Chains; ++chain) sums[chain][i] = S::zero();
        }
        for (int64_t j = 0; j < a.state_dim; j += Chains)
            UNROLL for (int chain = 0; chain < Chains; ++chain) {
                const auto by = S::set1(b[j + chain]), with = S::set1(c[j + chain]);
                UNROLL for (int i = 0; i < V; ++i) {
                    float *at = a.state + (j + chain) * width + 16 * i;
                    const auto state = S::fma(by, written[i], S::mul(left, S::load(at)));
                    S::store(at, state);
                    sums[chain][i] = S::fma(state, with, sums[chain][i]);
                }
            }
        UNROLL for (int i = 0; i < V; ++i) {
            auto sum = sums[0][i];
            UNROLL for (int chain = 1; chain < Chains; ++chain) sum = S::add(sum, sums[chain][i]);
            S::store(a.out + t * a.out_stride + 16 * i, S::fma(skip, S::load(x + 16 * i), sum));
        }
    }
}

template <class S>
void scan(const ScanArgs &a) {
    a.columns == kStateColumns ? scan_columns<S, 2>(a) : scan_columns<S, 1>(a);
}

template <class S>
const RecurrentKernels *make_recurrent_kernels() {
    static const RecurrentKernels table{short_conv<S>, unit<S>, row_dot<S>, delta<S>, scan<S>};
    return &table;
}

}  // namespace
}  // namespace pagoda
