// Attention to vectors that are keys and values (kernels_latent.h), once for all instruction sets. `Apart` is what an
// instruction set does with codes of two tokens, which lie in turn.
//
// Scores are products of a key's row and a query's, which add up in 16 lanes and then across them: so their order is fixed by
// the width of a head alone. Weighing values, softmax and what is merged are those of kernels_attend.inl.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels_latent.h"

namespace pagoda {
namespace {

#include "tiles.inl"
#include "kernels_rows.inl"
#include "kernels_store.inl"
#include "kernels_attend.inl"

// ---- storing ----------------------------------------------------------------------------------------------------

template <class E, class Convert>
PAGODA_INLINE void store_row(const float *x, int head_dim, E *to, Convert &&convert) {
    for (int d = 0; d < head_dim; ++d) to[d] = convert(x[d]);
}

template <class S>
PAGODA_INLINE void store_codes(const float *x, int head_dim, int slot, uint8_t *to, float *scales) {
    const auto part = [&](int d) { return within<S>(S::load(x + d), kLargestStored); };
    auto largest = S::zero();
    for (int d = 0; d < head_dim; d += 16) largest = S::max(largest, S::abs(part(d)));
    const float by_length = scale_by_length<S>(head_dim, part).scale, by_size = lanes_max<S>(largest) / kLargestValue;
    const CodeScale scale(by_length < by_size ? by_size : by_length);
    int16_t *codes = reinterpret_cast<int16_t *>(to) + slot / 2 * head_dim * 2 + slot % 2;
    for (int d = 0; d < head_dim; d += 16) S::store_every_other(codes + 2 * d, codes_of<S>(part(d), scale));
    scales[slot] = scale.scale;
}

template <class S>
void store_latent(const float *x, int head_dim, int slot, KVType type, uint8_t *to, float *scales) {
    const int64_t at = static_cast<int64_t>(slot) * head_dim;
    switch (type) {
        case KVType::F32:
            store_row(x, head_dim, reinterpret_cast<float *>(to) + at, [](float v) { return finite(v, 3e38f); });
            break;
        case KVType::F16: {
            uint16_t *halves = reinterpret_cast<uint16_t *>(to) + at;
            for (int d = 0; d < head_dim; d += 16) S::store_half(halves + d, within<S>(S::load(x + d), 65504.0f));
            break;
        }
        case KVType::BF16:
            store_row(x, head_dim, reinterpret_cast<uint16_t *>(to) + at,
                      [](float v) { return float_to_bfloat(finite(v, 3e38f)); });
            break;
        case KVType::Int16:
            store_codes<S>(x, head_dim, slot, to, scales);
            break;
        case KVType::Int8: {
            const float scale = largest_magnitude(x, head_dim) / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
            store_row(x, head_dim, reinterpret_cast<int8_t *>(to) + at,
                      [&](float v) { return static_cast<int8_t>(std::nearbyint(finite(v * inverse, 127.0f))); });
            scales[slot] = scale;
            break;
        }
    }
}

// ---- attending --------------------------------------------------------------------------------------------------

// Tokens, or pairs of them, whose scores with R rows are summed side by side.
template <int R, int Sums>
constexpr int kRowsBeside = 4 * R <= Sums ? 4 : 2 * R <= Sums ? 2 : 1;

PAGODA_INLINE int64_t width_of_values(const LatentArgs &a) { return a.head_dim - a.values_from; }

// weigh(beside, column) for 32 or 16 columns of the values at a time, by tiles of rows.
template <class S, int Tile, class Fn>
PAGODA_INLINE void over_columns(int64_t width, int rows, Fn &&weigh) {
    for (int64_t at = 0; at < width; at += 32)  // of the values so many columns stay in the first-level cache
        for_tiles<Tile>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) { weigh(size, r, at); });
}

template <class S>
PAGODA_INLINE void nothing_seen(float *scores, int rows) {
    for (int r = 0; r < rows; ++r) S::store(scores + r * kAttendChunk, S::set1(-INFINITY));
}

template <class S, KVType Type>
struct LatentFloats : FloatRows<S, Type> {
    using FloatRows<S, Type>::FloatRows, FloatRows<S, Type>::rows, FloatRows<S, Type>::padded;
    using FloatRows<S, Type>::q, FloatRows<S, Type>::scores;

    // Of R rows from `r` on against the keys of a block, which go to to[…][0 … 16).
    template <int R>
    PAGODA_NOINLINE void score_block(const uint8_t *keys, int head_dim, int64_t r, float *to) {
        constexpr int N = kRowsBeside<R, S::kRows>;
        const float *asked = q + r * head_dim;
        for (int t = 0; t < kBlockTokens; t += N) {
            typename S::F s[N][R];
            unroll<N * R>([&](auto i) __attribute__((always_inline)) { s[i / R][i % R] = S::zero(); });
            for (int d = 0; d < head_dim; d += 16) {
                typename S::F k[N];
                unroll<N>([&](auto n) __attribute__((always_inline)) {
                    k[n] = load_kv<S, Type>(keys, static_cast<int64_t>(t + n) * head_dim + d);
                });
                unroll<R>([&](auto i) __attribute__((always_inline)) {
                    const auto x = S::load(asked + i * head_dim + d);
                    unroll<N>([&](auto n) __attribute__((always_inline)) { s[n][i] = S::fma(k[n], x, s[n][i]); });
                });
            }
            unroll<N * R>([&](auto i) __attribute__((always_inline)) {
                to[(r + i % R) * kAttendChunk + t + i / R] = lanes_sum<S>(s[i / R][i % R]);
            });
        }
    }

    void attend_keys(const LatentArgs &a, int chunk, Partial &to) {
        const ChunkOfKeys c(a, chunk);
        for (int b = c.block_begin; b < c.block_end; ++b) {
            float *at = scores + (b - c.block_begin) * kBlockTokens;
            if (a.table[b] < 0) {
                nothing_seen<S>(at, rows);
                continue;
            }
            const uint8_t *keys = a.kv + a.table[b] * a.block_stride + a.k_offset;
            for_tiles<S::kRows>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) {
                this->template score_block<size>(keys, a.head_dim, r, at);
            });
        }
        scale_by_values<S, Type>(a, c.block_begin, c.block_end, rows, scores);  // keys have the same scales
        for (int r = 0; r < rows; ++r) {
            mask_row<S>(a, a.position + r / a.group, c.first_key, c.width, scores + r * kAttendChunk);
            softmax_row<S>(scores + r * kAttendChunk, c.width, to.tops[r], to.sums[r]);
        }
        scale_by_values<S, Type>(a, c.block_begin, c.block_end, rows, scores);
        const Upcoming next = upcoming(a, chunk);
        const int64_t width = width_of_values(a);
        over_columns<S, S::kRows>(width, rows, [&](auto size, int64_t r, int64_t at) __attribute__((always_inline)) {
            constexpr int R = size, kN = kBeside<S, R>;
            with_ahead<S, R>(rows, [&](auto ahead) __attribute__((always_inline)) {
                const float *p = scores + r * kAttendChunk;
                float *out = to.out + r * padded;
                for (int64_t column = at; column < at + 32 && column < width; column += 16 * kN) {
                    if (kN == 2 && column + 32 > width)
                        weigh_values<S, Type, R, 1, ahead>(a, c.block_begin, c.block_end, padded, column, p, next, out);
                    else
                        weigh_values<S, Type, R, kN, ahead>(a, c.block_begin, c.block_end, padded, column, p, next, out);
                }
            });
        });
    }
};

template <class S, class Apart>
struct LatentCodes : CodeRows<S> {
    using CodeRows<S>::rows, CodeRows<S>::padded, CodeRows<S>::q, CodeRows<S>::q_scales, CodeRows<S>::k_scales;
    using CodeRows<S>::scores;

    // Queries [rows][2 * head_dim]: each pair of codes twice, for a key's and for its neighbour's.
    explicit LatentCodes(const AttendArgs &a) : CodeRows<S>(a) {
        for (int r = 0; r < rows; ++r) {
            const float *from = a.q + r / a.group * a.q_stride + r % a.group * a.head_dim;
            const auto part = [&](int d) { return S::load(from + d); };
            const CodeScale scale = scale_by_length<S>(a.head_dim, part);
            int16_t codes[16], *to = q + static_cast<int64_t>(r) * 2 * a.head_dim;
            for (int d = 0; d < a.head_dim; d += 16) {
                S::store_i16(codes, codes_of<S>(part(d), scale));
                for (int i = 0; i < 32; i += 2) std::memcpy(to + 2 * d + i, codes + i / 4 * 2, 4);
            }
        }
        this->end = reinterpret_cast<float *>(q + round_up(rows * 2 * a.head_dim, 32));
    }

    // Of R rows from `r` on against the keys of a block, without scales, which go to to[…][0 … 16).
    template <int R>
    PAGODA_NOINLINE void score_block(const uint8_t *keys, int head_dim, int64_t r, float *to) {
        constexpr int N = kRowsBeside<R, S::kCodeSums>;
        const int16_t *asked = q + r * 2 * head_dim;
        for (int t = 0; t < kBlockTokens / 2; t += N) {
            typename S::I s[N][R];
            unroll<N * R>([&](auto i) __attribute__((always_inline)) { s[i / R][i % R] = S::zero_int(); });
            for (int d = 0; d < head_dim; d += 16) {
                typename S::B k[N];
                unroll<N>([&](auto n) __attribute__((always_inline)) {
                    k[n] = Apart::apart(S::load_b(keys + 4 * (static_cast<int64_t>(t + n) * head_dim + d)));
                });
                unroll<R>([&](auto i) __attribute__((always_inline)) {
                    const auto x = S::load_b(asked + 2 * (i * head_dim + d));
                    unroll<N>([&](auto n) __attribute__((always_inline)) { s[n][i] = S::add_pairs(s[n][i], k[n], x); });
                });
            }
            unroll<N * R>([&](auto i) __attribute__((always_inline)) {
                int32_t both[2];
                Apart::sums(s[i / R][i % R], both);
                float *at = to + (r + i % R) * kAttendChunk + 2 * (t + i / R);
                at[0] = static_cast<float>(both[0]);
                at[1] = static_cast<float>(both[1]);
            });
        }
    }

    void attend_keys(const LatentArgs &a, int chunk, Partial &to) {
        const ChunkOfKeys c(a, chunk);
        this->read_scales(a, c.block_begin, c.block_end);
        for (int b = c.block_begin; b < c.block_end; ++b) {
            const int column = (b - c.block_begin) * kBlockTokens;
            if (a.table[b] < 0) {
                nothing_seen<S>(scores + column, rows);
                continue;
            }
            const uint8_t *keys = a.kv + a.table[b] * a.block_stride + a.k_offset;
            for_tiles<S::kCodeRows>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) {
                this->template score_block<size>(keys, a.head_dim, r, scores + column);
            });
            const auto of_keys = S::load(k_scales + column);
            for (int r = 0; r < rows; ++r) {
                float *at = scores + r * kAttendChunk + column;
                S::store(at, S::mul(S::load(at), S::mul(of_keys, S::set1(q_scales[r]))));
            }
        }
        for (int r = 0; r < rows; ++r) {
            mask_row<S>(a, a.position + r / a.group, c.first_key, c.width, scores + r * kAttendChunk);
            this->weigh_row(r, c.width, to.tops[r], to.sums[r]);
        }
        const Upcoming next = upcoming(a, chunk);
        const int64_t width = width_of_values(a);
        over_columns<S, S::kCodeRows>(width, rows, [&](auto size, int64_t r, int64_t at) __attribute__((always_inline)) {
            constexpr int R = size, kN = kCodesBeside<S, R>;
            with_ahead<S, R, S::kCodeRows>(rows, [&](auto ahead) __attribute__((always_inline)) {
                for (int64_t column = at; column < at + 32 && column < width; column += 16 * kN) {
                    if (kN == 2 && column + 32 > width)
                        this->template weigh_values<R, 1, ahead>(a, c.block_begin, c.block_end, r, column, next, to.out);
                    else
                        this->template weigh_values<R, kN, ahead>(a, c.block_begin, c.block_end, r, column, next, to.out);
                }
            });
        });
    }
};

// What `write_rows` is to write: heads as wide as values.
PAGODA_INLINE AttendArgs of_values(const LatentArgs &a) {
    AttendArgs out = a;
    out.head_dim = static_cast<int>(width_of_values(a));
    return out;
}

template <class S>
PAGODA_INLINE void merge_values(Partial &total, const Partial &part, int rows, int64_t padded, int64_t width) {
    for (int r = 0; r < rows; ++r)
        merge_row<S>(total.out + r * padded, total.tops[r], total.sums[r], part.out + r * padded, part.tops[r], part.sums[r],
                     width);
}

template <class S, class Rows>
void attend_latents(const LatentArgs &given, int64_t column_bytes) {
    LatentArgs a = given;
    a.v_offset = a.k_offset + a.values_from * column_bytes;
    Rows rows(a);
    if (a.part) {
        Partial part(a.part, rows.rows, rows.padded);
        return rows.attend_keys(a, a.chunk, part);
    }
    Partial part(rows.end, rows.rows, rows.padded);
    Partial total = no_keys(rows.end + attend_part_floats(rows.rows, a.head_dim), rows.rows, rows.padded);
    for (int chunk = a.first_chunk(); chunk <= a.last_chunk(); ++chunk) {
        rows.attend_keys(a, chunk, part);
        merge_values<S>(total, part, rows.rows, rows.padded, width_of_values(a));
    }
    write_rows(of_values(a), total, rows.padded);
}

template <class S>
void merge_latents(const LatentArgs &a, const float *parts) {
    const int rows = a.tokens * a.group;
    const int64_t padded = a.head_dim, each = attend_part_floats(rows, a.head_dim);
    Partial total = no_keys(reinterpret_cast<float *>(a.scratch), rows, padded);
    for (int chunk = a.first_chunk(); chunk <= a.last_chunk(); ++chunk) {
        const Partial part(const_cast<float *>(parts) + chunk * each, rows, padded);
        merge_values<S>(total, part, rows, padded, width_of_values(a));
    }
    write_rows(of_values(a), total, padded);
}

template <class S, class Apart>
void attend_latent(const LatentArgs &a) {
    switch (a.type) {
        case KVType::F32: attend_latents<S, LatentFloats<S, KVType::F32>>(a, 4); break;
        case KVType::F16: attend_latents<S, LatentFloats<S, KVType::F16>>(a, 2); break;
        case KVType::BF16: attend_latents<S, LatentFloats<S, KVType::BF16>>(a, 2); break;
        case KVType::Int16: attend_latents<S, LatentCodes<S, Apart>>(a, 4); break;
        case KVType::Int8: attend_latents<S, LatentFloats<S, KVType::Int8>>(a, 1); break;
    }
}

template <class S, class Apart>
const LatentKernels *make_latent_kernels() {
    static const LatentKernels table{store_latent<S>, attend_latent<S, Apart>, merge_latents<S>};
    return &table;
}

}  // namespace
}  // namespace pagoda
