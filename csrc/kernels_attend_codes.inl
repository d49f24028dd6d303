// Attention to keys and values kept as 16-bit codes (kernels_store.inl): pairs of codes are multiplied by pairs, twice as many
// products an instruction as of floats. Included by kernels_attend.inl.
//
// Products are added up in 32 bits, exactly. That they fit is settled by norms: a score is at most the length of the query
// times the length of the key (Cauchy and Schwarz), whose codes are at most kLongest long; values are codes of at most
// kLargestValue, weighed by the softmax's numerators, whose codes add up to at most kLargestSum in a chunk.

// What is added to numerators before they are rounded, evenly spread over (-1/2, 1/2): many that are alike, or less than half a
// code, would all be rounded alike. Zero stays zero.
struct Dither {
    alignas(64) float at[kAttendChunk];
    constexpr Dither() : at() {
        for (int i = 0; i < kAttendChunk; ++i) {
            const double turns = 0.6180339887498949 * (i + 1);  // by the golden ratio
            at[i] = static_cast<float>(0.998 * (turns - static_cast<int>(turns) - 0.5));
        }
    }
};
constexpr Dither kDither;

// How many vectors of codes are worked on side by side for R rows.
template <class S, int R>
constexpr int kCodesBeside = 2 * R <= S::kCodeSums ? 2 : 1;

// acc[n][r] += codes of N vectors · the pair at rows[r * stride].
template <class S, int R, int N>
PAGODA_INLINE void add_pairs(const typename S::B (&codes)[N], const int16_t *rows, int64_t stride, typename S::I (&acc)[N][R]) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
        const auto pair = S::pair(rows + r * stride);
        unroll<N>([&](auto n) __attribute__((always_inline)) { acc[n][r] = S::add_pairs(acc[n][r], codes[n], pair); });
    });
}

// A call's rows, as far as they are codes, in its scratch.
template <class S>
struct CodeRows {
    int rows, pairs;
    int64_t padded;
    int16_t *q, *p;                         // [rows][2 * pairs], a tile after the other; [rows][kAttendChunk]
    float *q_scales, *p_scales;             // [rows]
    float *k_scales, *v_scales;             // [kAttendChunk] of the keys at hand
    float *scores, *end;                    // [rows][kAttendChunk]; what is left of the scratch

    explicit CodeRows(const AttendArgs &a)
        : rows(a.tokens * a.group), pairs((a.head_dim + 1) / 2), padded(round_up(a.head_dim, 16)) {
        scores = reinterpret_cast<float *>(a.scratch);
        k_scales = scores + rows * kAttendChunk;
        v_scales = k_scales + kAttendChunk;
        q_scales = v_scales + kAttendChunk;
        p_scales = q_scales + kAttendRows;
        p = reinterpret_cast<int16_t *>(p_scales + kAttendRows);
        q = p + rows * kAttendChunk;
        end = reinterpret_cast<float *>(q + round_up(rows * 2 * pairs, 32));
        for_tiles<S::kCodeRows>(0, rows, [&](int size, int64_t first) { quantize_queries(a, static_cast<int>(first), size); });
    }

    // The queries of a tile of rows as codes, [pairs][size][2].
    void quantize_queries(const AttendArgs &a, int first, int size) {
        for (int r = first; r < first + size; ++r) {
            const float *from = a.q + r / a.group * a.q_stride + r % a.group * a.head_dim;
            int16_t *to = q + first * 2 * pairs + 2 * (r - first);
            const auto part = [&](int d) { return row_part<S>(from, d, a.head_dim); };
            const CodeScale scale = scale_by_length<S>(a.head_dim, part);
            q_scales[r] = scale.scale * a.scale;
            for (int d = 0; d < a.head_dim; d += 16) {
                int16_t codes[16];
                S::store_i16(codes, codes_of<S>(part(d), scale));
                for (int i = 0; i < 16 && d + i < 2 * pairs; i += 2) std::memcpy(to + (d + i) * size, codes + i, 4);
            }
        }
    }

    // The scales of a chunk's keys and values side by side; 0 where a window has left them behind.
    PAGODA_INLINE void read_scales(const AttendArgs &a, int block_begin, int block_end) {
        for (int b = block_begin; b < block_end; ++b) {
            const auto at = [&](int64_t offset) {
                if (a.table[b] < 0) return S::zero();
                return S::load(reinterpret_cast<const float *>(a.kv + a.table[b] * a.block_stride + offset));
            };
            S::store(k_scales + (b - block_begin) * kBlockTokens, at(a.k_scale_offset));
            S::store(v_scales + (b - block_begin) * kBlockTokens, at(a.v_scale_offset));
        }
    }

    // scores[r][16 n … 16 n + 15] of R rows from `row` on against the 16 keys of N blocks, the chunk's `at`th and further. Not
    // inlined: among others of its kind GCC keeps these sums in memory.
    template <int R, int N, bool Ahead>
    PAGODA_NOINLINE void score_blocks(const uint8_t *const *keys, const uint8_t *const *values, int64_t row, int at) {
        typename S::I s[N][R];
        unroll<N * R>([&](auto i) __attribute__((always_inline)) { s[i / R][i % R] = S::zero_int(); });
        const int16_t *from = q + row * 2 * pairs;  // of the tile's rows side by side
        for (int64_t d = 0; d < 64 * pairs; d += 64, from += 2 * R) {
            typename S::B k[N];
            unroll<N>([&](auto n) __attribute__((always_inline)) {
                if constexpr (Ahead) read_ahead<64>(values[n] + d);
                k[n] = S::load_b(keys[n] + d);
            });
            add_pairs<S, R, N>(k, from, 2, s);
        }
        unroll<N * R>([&](auto i) __attribute__((always_inline)) {
            constexpr int kN = i / R, kR = i % R;
            const int column = (at + kN) * kBlockTokens;
            const auto scale = S::mul(S::load(k_scales + column), S::set1(q_scales[row + kR]));
            S::store(scores + (row + kR) * kAttendChunk + column, S::mul(S::to_float(s[kN][kR]), scale));
        });
    }

    PAGODA_INLINE void score_chunk(const AttendArgs &a, int block_begin, int block_end) {
        const auto score = [&](auto count, int b) __attribute__((always_inline)) {
            constexpr int N = count;
            const uint8_t *keys[N], *values[N];
            for (int n = 0; n < N; ++n) {
                keys[n] = a.kv + a.table[b + n] * a.block_stride + a.k_offset;
                values[n] = a.kv + a.table[b + n] * a.block_stride + a.v_offset;
            }
            for_tiles<S::kCodeRows>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) {
                constexpr int R = size, kAtOnce = kCodesBeside<S, R> < N ? 1 : N;
                with_ahead<S, R, S::kCodeRows>(rows, [&](auto ahead) __attribute__((always_inline)) {
                    for (int n = 0; n < N; n += kAtOnce)
                        score_blocks<R, kAtOnce, ahead>(keys + n, values + n, r, b - block_begin + n);
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
    }

    // Row r's softmax: the numerators, times the scales of their values, as codes; their largest score and their sum.
    PAGODA_NOINLINE void weigh_row(int r, int width, float &top, float &sum) {
        float *s = scores + r * kAttendChunk;
        int16_t *codes = p + r * kAttendChunk;
        auto most = S::load(s);
        for (int i = 16; i < width; i += 16) most = S::max(most, S::load(s + i));
        top = lanes_max<S>(most);
        if (top == -INFINITY) {
            std::memset(codes, 0, static_cast<size_t>(width) * 2);
            p_scales[r] = sum = 0.0f;
            return;
        }
        const auto shift = S::set1(top);
        auto all = S::zero(), largest = S::zero(), total = S::zero();
        for (int i = 0; i < width; i += 16) {
            const auto e = exp_of_negative<S>(S::sub(S::load(s + i), shift)), w = S::mul(e, S::load(v_scales + i));
            S::store(s + i, w);
            all = S::add(all, e);
            largest = S::max(largest, w);
            total = S::add(total, w);
        }
        sum = lanes_sum<S>(all);
        const float by_sum = lanes_sum<S>(total) / kLargestSum, by_size = lanes_max<S>(largest) / kLargest16;
        const CodeScale scale(by_sum < by_size ? by_size : by_sum);
        const auto inverse = S::set1(scale.inverse);
        for (int i = 0; i < width; i += 16)
            S::store_i16(codes + i, S::round_int(S::fma(S::load(s + i), inverse, S::load(kDither.at + i))));
        p_scales[r] = scale.scale;
    }

    // to[r][at … at + 16 N) of R rows from `row` on; with Ahead the keys of `next` are read meanwhile.
    template <int R, int N, bool Ahead>
    PAGODA_INLINE void weigh_values(const AttendArgs &a, int block_begin, int block_end, int64_t row, int64_t at,
                                    const Upcoming &next, float *to) {
        typename S::I o[N][R];
        unroll<N * R>([&](auto i) __attribute__((always_inline)) { o[i / R][i % R] = S::zero_int(); });
        for (int b = block_begin; b < block_end; ++b) {
            if (a.table[b] < 0) continue;
            const int i = b - block_begin;
            const uint8_t *values = a.kv + a.table[b] * a.block_stride + a.v_offset + 4 * at;
            const bool more = i < next.blocks && next.table[i] >= 0;
            const uint8_t *ahead = more ? next.keys + next.table[i] * next.block_stride + 2 * kBlockTokens * at : values;
            const int16_t *weights = p + row * kAttendChunk + i * kBlockTokens;
            for (int t = 0; t < kBlockTokens / 2; ++t, weights += 2) {
                if constexpr (Ahead) read_ahead<64 * N>(ahead + 64 * N * t);
                typename S::B v[N];
                unroll<N>([&](auto n) __attribute__((always_inline)) { v[n] = S::load_b(values + 4 * t * padded + 64 * n); });
                add_pairs<S, R, N>(v, weights, kAttendChunk, o);
            }
        }
        unroll<N * R>([&](auto i) __attribute__((always_inline)) {
            constexpr int kN = i / R, kR = i % R;
            S::store(to + (row + kR) * padded + at + 16 * kN, S::mul(S::to_float(o[kN][kR]), S::set1(p_scales[row + kR])));
        });
    }

    void attend_keys(const AttendArgs &a, int chunk, Partial &to) {
        const ChunkOfKeys c(a, chunk);
        read_scales(a, c.block_begin, c.block_end);
        score_chunk(a, c.block_begin, c.block_end);
        for (int r = 0; r < rows; ++r) {
            mask_row<S>(a, a.position + r / a.group, c.first_key, c.width, scores + r * kAttendChunk);
            weigh_row(r, c.width, to.tops[r], to.sums[r]);
        }
        const Upcoming next = upcoming(a, chunk);
        for (int64_t at = 0; at < padded; at += 32)
            for_tiles<S::kCodeRows>(0, rows, [&](auto size, int64_t r) __attribute__((always_inline)) {
                constexpr int R = size;
                with_ahead<S, R, S::kCodeRows>(rows, [&](auto ahead) __attribute__((always_inline)) {
                    const auto weigh = [&](auto beside, int64_t column) __attribute__((always_inline)) {
                        weigh_values<R, beside, ahead>(a, c.block_begin, c.block_end, r, column, next, to.out);
                    };
                    if (kCodesBeside<S, R> == 2 && at + 32 <= padded)
                        return weigh(std::integral_constant<int, kCodesBeside<S, R>>{}, at);
                    for (int64_t column = at; column < at + 32 && column < padded; column += 16)
                        weigh(std::integral_constant<int, 1>{}, column);
                });
            });
    }
};
