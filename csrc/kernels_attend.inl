// Paged attention of a few query rows against one KV head. Included by kernels.inl.
//
// Keys are taken in chunks of 256 at fixed positions. Each chunk has its own softmax from scratch, and chunks are
// merged in order; so a row's result depends on its own keys alone, whoever shares the call, and whether one call or
// several went over the chunks.

template <class S, KVType Type>
PAGODA_INLINE typename S::F load_kv(const uint8_t *base, int64_t element) {
    if constexpr (Type == KVType::F32) return S::load(reinterpret_cast<const float *>(base) + element);
    if constexpr (Type == KVType::F16) return S::load_half(base + 2 * element);
    if constexpr (Type == KVType::BF16) return S::load_bfloat(base + 2 * element);
    if constexpr (Type == KVType::Int8) return S::load_i8(base + element);
}

// Memory that will be wanted is asked for line by line between products: a core has few misses under way at once, and a
// burst of requests would keep the products waiting.
template <int Bytes>
PAGODA_INLINE void read_ahead(const uint8_t *from) {
    for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

template <KVType Type>
constexpr int kElement = Type == KVType::F32 ? 4 : Type == KVType::Int8 ? 1 : 2;  // bytes

// How many vectors of keys, or of values, are worked on side by side for R rows: sums enough to hide a product's latency,
// within the registers.
template <class S, int R>
constexpr int kBeside = 2 * R <= S::kRows ? 2 : 1;

// The same pointer, of which the compiler knows nothing where N vectors share what is read through it: that is loaded
// anew for each, rather than kept in registers that the sums need.
template <int N>
PAGODA_INLINE const float *unknown(const float *p) {
    if constexpr (N > 1) asm volatile("" : "+r"(p));
    return p;
}

constexpr int kStreamedRows = 8;  // so few rows of a call wait for memory rather than for arithmetic

// scores[r][16 n … 16 n + 15] of R rows against the 16 keys of N blocks; with Ahead their values are read meanwhile.
template <class S, KVType Type, int R, int N, bool Ahead>
PAGODA_INLINE void score_blocks(const uint8_t *const *keys, const uint8_t *const *values, const float *q, int head_dim,
                                float *scores) {
    constexpr int kStep = kBlockTokens * kElement<Type>;
    typename S::F s[N][R];
    unroll<N * R>([&](auto i) __attribute__((always_inline)) { s[i / R][i % R] = S::zero(); });
    for (int d = 0; d < head_dim; ++d, ++q)
        unroll<N>([&](auto n) __attribute__((always_inline)) {
            if constexpr (Ahead) read_ahead<kStep>(values[n] + d * kStep);
            const auto k = load_kv<S, Type>(keys[n] + d * kStep, 0);
            const float *at = unknown<N>(q);
            unroll<R>([&](auto r) __attribute__((always_inline)) {
                s[n][r] = S::fma(k, S::set1(at[r * head_dim]), s[n][r]);
            });
        });
    unroll<N * R>([&](auto i) __attribute__((always_inline)) {
        S::store(scores + i % R * kAttendChunk + i / R * kBlockTokens, s[i / R][i % R]);
    });
}

// Keys that will be wanted after those at hand.
struct Upcoming {
    const uint8_t *keys;
    const int32_t *table;
    int64_t block_stride;
    int blocks;
};

// out[r][at … at + 16 N) = sum over the chunk's keys of p[r][key] * V[key][at …); with Ahead the keys of `next` are read
// meanwhile.
template <class S, KVType Type, int R, int N, bool Ahead>
PAGODA_INLINE void weigh_values(const AttendArgs &a, int block_begin, int block_end, int64_t padded, int64_t at,
                                const float *p, const Upcoming &next, float *out) {
    constexpr int kStep = 16 * N * kElement<Type>;
    typename S::F o[N][R];
    unroll<N * R>([&](auto i) __attribute__((always_inline)) { o[i / R][i % R] = S::zero(); });
    for (int b = block_begin; b < block_end; ++b) {
        if (a.table[b] < 0) continue;
        const int i = b - block_begin;
        const uint8_t *values = a.kv + a.table[b] * a.block_stride + a.v_offset + kElement<Type> * at;
        const bool more = i < next.blocks && next.table[i] >= 0;
        const uint8_t *ahead =
            more ? next.keys + next.table[i] * next.block_stride + kBlockTokens * kElement<Type> * at : values;
        const float *weights = p + i * kBlockTokens;
        for (int t = 0; t < kBlockTokens; ++t) {
            if constexpr (Ahead) read_ahead<kStep>(ahead + kStep * t);
            unroll<N>([&](auto n) __attribute__((always_inline)) {
                const auto v = load_kv<S, Type>(values, t * padded + 16 * n);
                const float *w = unknown<N>(weights + t);
                unroll<R>([&](auto r) __attribute__((always_inline)) {
                    o[n][r] = S::fma(v, S::set1(w[r * kAttendChunk]), o[n][r]);
                });
            });
        }
    }
    unroll<N * R>([&](auto i) __attribute__((always_inline)) {
        S::store(out + i % R * padded + at + 16 * (i / R), o[i / R][i % R]);
    });
}

// Softmax numerators of one row of a chunk, in place; returns their maximum score and their sum.
template <class S>
PAGODA_INLINE void softmax_row(float *s, int width, float &top, float &sum) {
    auto largest = S::load(s);
    for (int i = 16; i < width; i += 16) largest = S::max(largest, S::load(s + i));
    top = lanes_max<S>(largest);
    if (top == -INFINITY) {
        std::memset(s, 0, static_cast<size_t>(width) * 4);
        sum = 0.0f;
        return;
    }
    auto total = S::zero();
    const auto shift = S::set1(top);
    for (int i = 0; i < width; i += 16) {
        const auto e = exp_of_negative<S>(S::sub(S::load(s + i), shift));
        S::store(s + i, e);
        total = S::add(total, e);
    }
    sum = lanes_sum<S>(total);
}

// Whether the calls of `fn`, for R of `rows` rows, read ahead: all but the full tiles of many rows.
template <class S, int R, int Full = S::kRows, class Fn>
PAGODA_INLINE void with_ahead(int rows, Fn &&fn) {
    if (R < Full || rows <= kStreamedRows) return fn(std::true_type{});
    if constexpr (R == Full) fn(std::false_type{});
}

template <class S, KVType Type>
PAGODA_INLINE void score_chunk(const AttendArgs &a, const float *q, int rows, int block_begin, int block_end, float *scores) {
    const auto block = [&](int b) { return a.kv + a.table[b] * a.block_stride; };
    const auto score = [&](auto count, int b) __attribute__((always_inline)) {
        constexpr int N = count;
        const uint8_t *keys[N], *values[N];
        for (int n = 0; n < N; ++n) {
            keys[n] = block(b + n) + a.k_offset;
            values[n] = block(b + n) + a.v_offset;
        }
        for_tiles<S::kRows>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) {
            constexpr int R = size, kAtOnce = kBeside<S, R> < N ? 1 : N;
            float *to = scores + r * kAttendChunk + (b - block_begin) * kBlockTokens;
            with_ahead<S, R>(rows, [&](auto ahead) __attribute__((always_inline)) {
                for (int n = 0; n < N; n += kAtOnce)
                    score_blocks<S, Type, R, kAtOnce, ahead>(keys + n, values + n, q + r * a.head_dim, a.head_dim,
                                                             to + n * kBlockTokens);
            });
        });
    };
    for (int b = block_begin; b < block_end; ++b) {
        if (a.table[b] < 0) {
            for (int r = 0; r < rows; ++r)
                S::store(scores + r * kAttendChunk + (b - block_begin) * kBlockTokens, S::set1(-INFINITY));
        } else if (b + 1 < block_end && a.table[b + 1] >= 0) {
            score(std::integral_constant<int, 2>{}, b++);
        } else {
            score(std::integral_constant<int, 1>{}, b);
        }
    }
    if constexpr (Type == KVType::Int8)
        for (int b = block_begin; b < block_end; ++b) {
            if (a.table[b] < 0) continue;
            const auto k_scale = S::load(reinterpret_cast<const float *>(block(b) + a.k_scale_offset));
            float *at = scores + (b - block_begin) * kBlockTokens;
            for (int r = 0; r < rows; ++r) S::store(at + r * kAttendChunk, S::mul(S::load(at + r * kAttendChunk), k_scale));
        }
}

// Soft cap, then what a row may not see: keys after it or, where all are seen, beyond the last; and keys that its window has
// left behind.
template <class S>
PAGODA_INLINE void mask_row(const AttendArgs &a, int position, int first_key, int width, float *s) {
    if (a.softcap > 0.0f)
        for (int i = 0; i < width; i += 16)
            S::store(s + i, S::mul(S::set1(a.softcap), tanh<S>(S::mul(S::load(s + i), S::set1(1.0f / a.softcap)))));
    const int end = (a.causal ? position + 1 : a.keys) - first_key;
    for (int i = end > 0 ? end : 0; i < width; ++i) s[i] = -INFINITY;
    if (a.window > 0)
        for (int i = 0; i < width && first_key + i <= position - a.window; ++i) s[i] = -INFINITY;
}

template <class S, KVType Type>
PAGODA_INLINE void scale_by_values(const AttendArgs &a, int block_begin, int block_end, int rows, float *p) {
    if constexpr (Type == KVType::Int8)
        for (int b = block_begin; b < block_end; ++b) {
            if (a.table[b] < 0) continue;
            const uint8_t *block = a.kv + a.table[b] * a.block_stride;
            const auto v_scale = S::load(reinterpret_cast<const float *>(block + a.v_scale_offset));
            float *at = p + (b - block_begin) * kBlockTokens;
            for (int r = 0; r < rows; ++r) S::store(at + r * kAttendChunk, S::mul(S::load(at + r * kAttendChunk), v_scale));
        }
}

// total = total * exp(top_old - top) + part * exp(top_part - top)
template <class S>
PAGODA_INLINE void merge_row(float *total, float &top, float &sum, const float *part, float part_top, float part_sum,
                             int64_t padded) {
    if (part_top == -INFINITY) return;
    const float next = part_top > top ? part_top : top;
    float factors[16] = {top - next, part_top - next};
    S::store(factors, exp<S>(S::load(factors)));
    const float keep = top == -INFINITY ? 0.0f : factors[0], take = factors[1];
    sum = sum * keep + part_sum * take;
    top = next;
    const auto k = S::set1(keep), n = S::set1(take);
    for (int64_t d = 0; d < padded; d += 16)
        S::store(total + d, S::fma(S::load(part + d), n, S::mul(S::load(total + d), k)));
}

// What a chunk adds, or all chunks together, before the division by the sums.
struct Partial {
    float *out;          // [rows][head_dim padded to 16]
    float *tops, *sums;  // [rows]: largest score, sum of the numerators
    Partial(float *memory, int rows, int64_t padded)
        : out(memory), tops(memory + rows * padded), sums(memory + rows * padded + rows) {}
};

template <class S>
PAGODA_INLINE void merge(Partial &total, const Partial &part, int rows, int64_t padded) {
    for (int r = 0; r < rows; ++r)
        merge_row<S>(total.out + r * padded, total.tops[r], total.sums[r], part.out + r * padded, part.tops[r], part.sums[r],
                     padded);
}

PAGODA_INLINE Partial no_keys(float *memory, int rows, int64_t padded) {
    Partial p(memory, rows, padded);
    std::memset(p.out, 0, static_cast<size_t>(rows * padded) * 4);
    std::memset(p.sums, 0, static_cast<size_t>(rows) * 4);
    for (int r = 0; r < rows; ++r) p.tops[r] = -INFINITY;
    return p;
}

PAGODA_INLINE void write_rows(const AttendArgs &a, const Partial &total, int64_t padded) {
    for (int r = 0; r < a.tokens * a.group; ++r) {
        float *to = a.out + r / a.group * a.out_stride + r % a.group * a.head_dim;
        const float sink = a.sinks ? std::exp(a.sinks[r % a.group] - total.tops[r]) : 0.0f;
        const float inverse = 1.0f / (total.sums[r] + sink);
        for (int d = 0; d < a.head_dim; ++d) to[d] = total.out[r * padded + d] * inverse;
    }
}

PAGODA_INLINE void scale_queries(const AttendArgs &a, float *q) {
    for (int r = 0; r < a.tokens * a.group; ++r) {
        const float *from = a.q + r / a.group * a.q_stride + r % a.group * a.head_dim;
        for (int d = 0; d < a.head_dim; ++d) q[r * a.head_dim + d] = from[d] * a.scale;
    }
}

// The keys of the next chunk, or the first of the next call.
PAGODA_INLINE Upcoming upcoming(const AttendArgs &a, int chunk) {
    constexpr int kBlocks = kAttendChunk / kBlockTokens;
    if (a.part || chunk == a.last_chunk()) return {a.next_keys, a.next_table, a.block_stride, a.next_blocks};
    const int first = (chunk + 1) * kBlocks, all = (a.keys - 1) / kBlockTokens + 1;
    return {a.kv + a.k_offset, a.table + first, a.block_stride, all - first < kBlocks ? all - first : kBlocks};
}

// Where a chunk's keys lie.
struct ChunkOfKeys {
    int first_key, block_begin, block_end, width;
    ChunkOfKeys(const AttendArgs &a, int chunk) : first_key(chunk * kAttendChunk), block_begin(first_key / kBlockTokens) {
        const int keys = a.keys - first_key < kAttendChunk ? a.keys - first_key : kAttendChunk;
        block_end = block_begin + static_cast<int>(ceil_div(keys, kBlockTokens));
        width = (block_end - block_begin) * kBlockTokens;
    }
};

// A call's rows as floats, in its scratch.
template <class S, KVType Type>
struct FloatRows {
    int rows;
    int64_t padded;
    float *q, *scores, *end;  // end: what is left of the scratch

    explicit FloatRows(const AttendArgs &a) : rows(a.tokens * a.group), padded(round_up(a.head_dim, 16)) {
        q = reinterpret_cast<float *>(a.scratch);
        scores = q + round_up(rows * a.head_dim, 16);
        end = scores + rows * kAttendChunk;
        scale_queries(a, q);
    }

    void attend_keys(const AttendArgs &a, int chunk, Partial &to) {
        const ChunkOfKeys c(a, chunk);
        score_chunk<S, Type>(a, q, rows, c.block_begin, c.block_end, scores);
        for (int r = 0; r < rows; ++r) {
            mask_row<S>(a, a.position + r / a.group, c.first_key, c.width, scores + r * kAttendChunk);
            softmax_row<S>(scores + r * kAttendChunk, c.width, to.tops[r], to.sums[r]);
        }
        scale_by_values<S, Type>(a, c.block_begin, c.block_end, rows, scores);
        const Upcoming next = upcoming(a, chunk);
        for (int64_t at = 0; at < padded; at += 32)  // of the values so many columns stay in the first-level cache
            for_tiles<S::kRows>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) {
                constexpr int R = size;
                with_ahead<S, R>(rows, [&](auto ahead) __attribute__((always_inline)) {
                    const auto weigh = [&](auto beside, int64_t column) __attribute__((always_inline)) {
                        weigh_values<S, Type, R, beside, ahead>(a, c.block_begin, c.block_end, padded, column,
                                                                scores + r * kAttendChunk, next, to.out + r * padded);
                    };
                    if (kBeside<S, R> == 2 && at + 32 <= padded) return weigh(std::integral_constant<int, kBeside<S, R>>{}, at);
                    for (int64_t column = at; column < at + 32 && column < padded; column += 16)
                        weigh(std::integral_constant<int, 1>{}, column);
                });
            });
    }
};

#include "kernels_attend_codes.inl"

template <class S, class Rows>
void attend_with(const AttendArgs &a) {
    Rows rows(a);
    if (a.part) {
        Partial part(a.part, rows.rows, rows.padded);
        return rows.attend_keys(a, a.chunk, part);
    }
    Partial part(rows.end, rows.rows, rows.padded);
    Partial total = no_keys(rows.end + attend_part_floats(rows.rows, a.head_dim), rows.rows, rows.padded);
    for (int chunk = a.first_chunk(); chunk <= a.last_chunk(); ++chunk) {
        rows.attend_keys(a, chunk, part);
        merge<S>(total, part, rows.rows, rows.padded);
    }
    write_rows(a, total, rows.padded);
}

template <class S>
void merge_attended(const AttendArgs &a, const float *parts) {
    const int rows = a.tokens * a.group;
    const int64_t padded = round_up(a.head_dim, 16), each = attend_part_floats(rows, a.head_dim);
    Partial total = no_keys(reinterpret_cast<float *>(a.scratch), rows, padded);
    for (int chunk = a.first_chunk(); chunk <= a.last_chunk(); ++chunk) {
        const Partial part(const_cast<float *>(parts) + chunk * each, rows, padded);
        merge<S>(total, part, rows, padded);
    }
    write_rows(a, total, padded);
}

template <class S>
void attend(const AttendArgs &a) {
    switch (a.type) {
        case KVType::F32: attend_with<S, FloatRows<S, KVType::F32>>(a); break;
        case KVType::F16: attend_with<S, FloatRows<S, KVType::F16>>(a); break;
        case KVType::BF16: attend_with<S, FloatRows<S, KVType::BF16>>(a); break;
        case KVType::Int16: attend_with<S, CodeRows<S>>(a); break;
        case KVType::Int8: attend_with<S, FloatRows<S, KVType::Int8>>(a); break;
    }
}
