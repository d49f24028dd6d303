// Products with 16-bit float weights by AVX512-BF16: pairs of columns multiply pairs of bfloat16, sums are float32. Rows and
// tokens are as in kernels_gemm.inl. Activations are rounded to bfloat16; so are F16 weights, which have three bits more.
#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "kernels.h"

namespace pagoda {
namespace {
#include "tiles.inl"

constexpr int64_t kColumns = 256;      // of a stretch: the weights of two panels and a tile's activations stay in L1
constexpr int64_t kPairs = kColumns / 2;
constexpr int64_t kMostTokens = 128;   // whose activations are rounded at a time
constexpr int kTokens = 12, kPanels = 2;
constexpr int64_t kWeightBytes = kPairs * 64;

struct Scratch {
    uint8_t *weights;   // [kPanels][pairs][16 rows][2]
    uint8_t *x;         // [tokens][pairs of all columns of the stretch at hand][2]
    float *kept;        // [panels][tokens][16]
    explicit Scratch(uint8_t *memory)
        : weights(memory), x(memory + kPanels * kWeightBytes),
          kept(reinterpret_cast<float *>(x + kMostTokens * kPairs * 4)) {}
};
constexpr int64_t kMostPanels =
    (static_cast<int64_t>(kGemmScratch) - kPanels * kWeightBytes - kMostTokens * kPairs * 4) / (kMostTokens * 64);

inline __m512i rounded(__m512 first, __m512 second) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

struct BF16 {
    static __m512i two_columns(const uint8_t *p) { return _mm512_loadu_si512(p); }
};
struct F16 {
    static __m512i two_columns(const uint8_t *p) {
        const __m256i *h = reinterpret_cast<const __m256i *>(p);
        return rounded(_mm512_cvtph_ps(_mm256_loadu_si256(h)), _mm512_cvtph_ps(_mm256_loadu_si256(h + 1)));
    }
};

// Panels as they are packed: of each row both columns of a pair are brought side by side on the way into the product.
template <class Read>
struct Packed {
    const uint8_t *from[kPanels];
    __m512i order;
    Packed() {
        alignas(64) uint16_t places[32];
        for (uint16_t r = 0; r < 16; ++r) places[2 * r] = r, places[2 * r + 1] = static_cast<uint16_t>(16 + r);
        order = _mm512_load_si512(places);
    }
    PAGODA_INLINE __m512i pair(int n, int64_t i) const {
        __builtin_prefetch(from[n] + 64 * i + kAhead, 0, 2);
        return _mm512_permutexvar_epi16(order, Read::two_columns(from[n] + 64 * i));
    }
    static constexpr int64_t kAhead = 2048;  // bytes
};

// Or as they lie in the scratch.
struct Unpacked {
    uint8_t *weights;
    PAGODA_INLINE __m512i pair(int n, int64_t i) const { return _mm512_load_si512(weights + n * kWeightBytes + 64 * i); }
};
constexpr int64_t kFewTokens = 4;  // for which panels are not unpacked first

// Columns [begin, begin + 2 * pairs) of the tokens' rows; pairs is a multiple of 16.
void round_rows(const GemmArgs &g, int64_t token, int64_t tokens, int64_t begin, int64_t pairs, uint8_t *to) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float *x = g.x + (token + t) * g.x_stride + begin;
        for (int64_t i = 0; i < pairs; i += 16)
            _mm512_store_si512(to + 4 * (t * pairs + i),
                               rounded(_mm512_loadu_ps(x + 2 * i), _mm512_loadu_ps(x + 2 * i + 16)));
    }
}

inline __m512bh broadcast(const uint8_t *p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

inline void finish(const GemmArgs &g, int64_t panel, int64_t t, __m512 sum) {
    float *out = g.out + t * g.out_stride + panel * kPanelRows;
    if (g.scale != 1.0f) sum = _mm512_mul_ps(sum, _mm512_set1_ps(g.scale));
    if (g.bias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(g.bias + panel * kPanelRows));
    if (g.accumulate) sum = _mm512_add_ps(sum, _mm512_loadu_ps(out));
    _mm512_storeu_ps(out, sum);
}

// One stretch of N panels from `panel` on times T tokens.
template <int N, int T, class Weights>
PAGODA_NOINLINE void multiply(const GemmArgs &g, const Weights &weights, int64_t panel, int64_t token, const uint8_t *x, int64_t pairs,
                              float *kept, int64_t kept_stride, bool first, bool last) {
    __m512 acc[N][T];
    UNROLL for (int n = 0; n < N; ++n) UNROLL for (int t = 0; t < T; ++t)
        acc[n][t] = first ? _mm512_setzero_ps() : _mm512_load_ps(kept + n * kept_stride + 16 * t);
    for (int64_t i = 0; i < pairs; ++i, x += 4) {
        __m512bh w[N];
        UNROLL for (int n = 0; n < N; ++n) w[n] = reinterpret_cast<__m512bh>(weights.pair(n, i));
        UNROLL for (int t = 0; t < T; ++t) {
            const __m512bh pair = broadcast(x + 4 * t * pairs);
            UNROLL for (int n = 0; n < N; ++n) acc[n][t] = _mm512_dpbf16_ps(acc[n][t], w[n], pair);
        }
    }
    UNROLL for (int n = 0; n < N; ++n) UNROLL for (int t = 0; t < T; ++t) {
        if (last) finish(g, panel + n, token + t, acc[n][t]);
        else _mm512_store_ps(kept + n * kept_stride + 16 * t, acc[n][t]);
    }
}

// Panels [begin, end) times at most kMostTokens tokens.
template <class Read>
void multiply_panels(const GemmArgs &g, int64_t begin, int64_t end, int64_t token, int64_t tokens) {
    const Scratch s(g.scratch);
    Packed<Read> packed;
    const int64_t columns = g.weight->blocks * kActBlock;
    for (int64_t k = 0; k < columns; k += kColumns) {
        const int64_t pairs = std::min(kColumns, columns - k) / 2;
        const bool first = k == 0, last = k + kColumns >= columns;
        round_rows(g, token, tokens, k, pairs, s.x);
        const auto panels = [&](auto count, int64_t p) {
            constexpr int N = count;
            for (int n = 0; n < N; ++n) packed.from[n] = g.weight->codes(p + n) + k * kPanelRows * 2;
            float *kept = s.kept + (p - begin) * tokens * 16;
            const auto tile = [&](auto size, int64_t t, const auto &weights) {
                multiply<N, size>(g, weights, p, token + t, s.x + 4 * t * pairs, pairs, kept + 16 * t, tokens * 16, first, last);
            };
            if (tokens <= kFewTokens)
                return for_tiles<kFewTokens>(0, tokens, [&](auto size, int64_t t) { tile(size, t, packed); });
            for (int n = 0; n < N; ++n)
                for (int64_t i = 0; i < pairs; ++i)
                    _mm512_store_si512(s.weights + n * kWeightBytes + 64 * i, packed.pair(n, i));
            for_tiles<kTokens>(0, tokens, [&](auto size, int64_t t) { tile(size, t, Unpacked{s.weights}); });
        };
        int64_t p = begin;
        for (; p + 2 <= end; p += 2) panels(std::integral_constant<int, 2>{}, p);
        if (p < end) panels(std::integral_constant<int, 1>{}, p);
    }
}

template <class Read>
void gemm_bf16(const GemmArgs &g) {
    for (int64_t t = g.token_begin; t < g.token_end; t += kMostTokens)
        for (int64_t p = g.panel_begin; p < g.panel_end; p += kMostPanels)
            multiply_panels<Read>(g, p, std::min(p + kMostPanels, g.panel_end), t, std::min(kMostTokens, g.token_end - t));
}

}  // namespace

void set_bf16_gemms_avx512(Kernels &k) {
    k.gemm_bf16[static_cast<int>(Type::F16)] = gemm_bf16<F16>;
    k.gemm_bf16[static_cast<int>(Type::BF16)] = gemm_bf16<BF16>;
}
}  // namespace pagoda
