// Matrix products: 16 rows (a panel) times a few tokens at a time. Included by kernels_gemm_*.cpp.
//
// A panel is multiplied a stretch of blocks (of 32 columns) at a time, tile after tile of tokens. For a few tokens, codes
// are unpacked on the way into the product, in each tile anew; for many, codes and scales are unpacked into scratch first. For
// one (row, token) the order of operations is the same in every tile: blocks in order, one accumulator.
//
// Compiling is kept short: the product of unpacked codes is shared by all types of one `Kind`. Loops over constant counts
// are unrolled by UNROLL where a plain loop will do, and by `unroll` where a template needs the index: each of its steps is a
// function that the compiler has to inline first.

// Quad J of a block of a panel, see weights.h.
template <class S, int Bits, int J>
PAGODA_INLINE typename S::B quad(const uint8_t *block) {
    if constexpr (Bits == 8) {
        return S::load_b(block + 64 * J);
    } else if constexpr (Bits < 4) {
        const auto low = S::template field<2 * (J % 4), 0>(S::load_b(block + 64 * (J / 4)), 0x03);
        if constexpr (Bits == 2) return low;
        else return S::or_b(low, S::template field<J, 2>(S::load_b(block + 128), 0x04));
    } else {
        const auto low = S::template field<J < 4 ? 0 : 4, 0>(S::load_b(block + 64 * (J % 4)), 0x0f);
        if constexpr (Bits == 4) return low;
        else if constexpr (Bits == 5) return S::or_b(low, S::template field<J, 4>(S::load_b(block + 256), 0x10));
        else return S::or_b(low, S::template field<2 * (J % 4), 4>(S::load_b(block + 256 + 64 * (J / 4)), 0x30));
    }
}

// What 4-bit codes stand for, of types with tables.
struct Tables {
    const int8_t *first, *second;
};
template <class S, class B>
Tables tables_of(const Weight &w) {
    if constexpr (B::Codes::kTables < 2) return {w.table(), nullptr};
    else if constexpr (S::kWide) return {w.codebook.high, w.codebook.low};
    else return {w.codebook.coarse, w.codebook.fine};
}

// The planes in which an instruction set multiplies codes: two bytes of a codebook's values are two where it takes bytes.
template <class S, class Codes>
constexpr int kPlanesOf = Codes::kTables == 2 && !S::kWide ? 2 : 1;

// Part P of quad J in plane L as the instruction set multiplies it, less Offset.
template <class S, class Codes, int J, int P, int L, int Offset>
PAGODA_INLINE typename S::W packed_part(const uint8_t *block, const Tables &tables) {
    const auto codes = quad<S, Codes::kBits, J>(block);
    if constexpr (Codes::kTables == 2 && S::kWide)
        return S::template wide_part<P>(S::lookup(tables.first, codes), S::lookup(tables.second, codes));
    else if constexpr (Codes::kTables > 0)
        return S::template part<P, true, Offset>(S::lookup(L == 0 ? tables.first : tables.second, codes));
    else
        return S::template part<P, (Codes::kMax < 0), Offset>(codes);
}

// 2^ this is left to subtract from codes as a kernel multiplies them; kNothing: nothing is.
constexpr int kNothing = -1;
constexpr int log2_of(int x) { return x == 0 ? kNothing : x == 1 ? 0 : 1 + log2_of(x / 2); }
template <class S, class Codes>
constexpr int kPackedLeft = log2_of(Codes::kOffset + (Codes::kMax < 0 && !S::kSigned ? 128 : 0));
template <class S, class Codes>
constexpr int kUnpackedLeft = S::kSigned ? kNothing : kPackedLeft<S, Codes>;

// What a kernel knows at compile time of the codes that it multiplies: how many runs of a block's columns share a scale,
// whether minima are added, what is left to subtract, in how many planes they come, and, where it matters, how large they
// are.
template <int Halves, bool Min, int Left, int Planes, int Max>
struct Kind {
    static constexpr int kHalves = Halves, kQuads = 8 / Halves, kLeft = Left, kPlanes = Planes, kMax = Max;
    static constexpr bool kMin = Min;
};
// Whether a kernel multiplies sums by the factor of their bytes as it adds products; it then cares for the size of codes, and
// subtracts what is left in floats, where that is shorter.
template <class S>
constexpr bool kFolds = S::kBits == 8 && S::kWeighed;
template <class S, class Codes, class Scales, int Left>
using KindOf = Kind<Scales::kHalves, Scales::kMin, Left, kPlanesOf<S, Codes>, kFolds<S> ? Codes::kMax : 0>;

// Scales of 16 rows in float32, and minima, of the blocks of a stretch: [blocks][halves][16].
struct ScaleRows {
    float *scales, *mins;
    static constexpr int64_t bytes(int64_t blocks, int halves) { return blocks * halves * 2 * 64; }
    static ScaleRows at(uint8_t *scratch, int64_t blocks, int halves) {
        float *scales = reinterpret_cast<float *>(scratch);
        return {scales, scales + blocks * halves * 16};
    }
};

template <class S, class Scales>
void read_scales(const Weight &w, int64_t panel, int64_t begin, int64_t end, const ScaleRows &to) {
    float *scales = to.scales, *mins = to.mins;
    for (int64_t b = begin; b < end; ++b)
        for (int h = 0; h < Scales::kHalves; ++h, scales += 16, mins += 16) {
            const ScalesAt at{w.scales_of(panel, b), w.super_of(panel, b), static_cast<int>(b % 8)};
            S::store(scales, Scales::template scale<S>(at, h));
            if constexpr (Scales::kMin) S::store(mins, Scales::template min<S>(at, h));
        }
}

// A stretch of a panel of type B, to be unpacked on the way into the product.
template <class S, class B>
struct Packed {
    using Codes = typename B::Codes;
    using Scales = typename B::Scales;
    using K = KindOf<S, Codes, Scales, kPackedLeft<S, Codes>>;
    static constexpr int kBlockBytes = 64 * Codes::kBits;
    const uint8_t *codes, *scales, *super;
    Tables tables;
    int64_t first;  // block, a multiple of 8
    int group_shift;

    Packed(const Weight &w, int64_t panel, int64_t begin)
        : codes(w.codes(panel) + begin * kBlockBytes), super(w.super_of(panel, begin)), tables(tables_of<S, B>(w)),
          first(begin), group_shift(w.group_shift) {
        scales = Scales::kGroups ? w.scales(panel) : w.scales_of(panel, begin);
    }
    template <int J, int P, int L>
    PAGODA_INLINE typename S::W part(int64_t b) const {
        return packed_part<S, Codes, J, P, L, 0>(codes + kBlockBytes * b, tables);
    }
    PAGODA_INLINE ScalesAt scales_at(int64_t b) const {
        return {scales + (Scales::kGroups ? (first + b) >> group_shift : b) * Scales::kBytes,
                super + b / 8 * Scales::kSuperBytes, static_cast<int>(b % 8)};
    }
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const { return Scales::template scale<S>(scales_at(b), half); }
    PAGODA_INLINE typename S::F min(int64_t b, int half) const { return Scales::template min<S>(scales_at(b), half); }
};

// A stretch of a panel, unpacked into scratch.
template <class S, class Kind>
struct Unpacked {
    using K = Kind;
    static constexpr int64_t kPlaneBytes = 512 * S::kParts, kBlockBytes = kPlaneBytes * K::kPlanes;
    uint8_t *codes;
    ScaleRows rows;
    template <int J, int P, int L>
    PAGODA_INLINE static constexpr int64_t at(int64_t b) { return kBlockBytes * b + kPlaneBytes * L + 64 * (S::kParts * J + P); }
    template <int J, int P, int L>
    PAGODA_INLINE typename S::W part(int64_t b) const { return S::load_w(codes + at<J, P, L>(b)); }
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const { return S::load(rows.scales + (K::kHalves * b + half) * 16); }
    PAGODA_INLINE typename S::F min(int64_t b, int half) const { return S::load(rows.mins + (K::kHalves * b + half) * 16); }
};

// The code of `blocks` blocks, unpacked.
template <class S, class Codes, class K>
void unpack_codes(const uint8_t *from, int64_t blocks, const Tables &tables, uint8_t *to) {
    for (int64_t b = 0; b < blocks; ++b, from += 64 * Codes::kBits)
        unroll<8>([&](auto j) __attribute__((always_inline)) {
            unroll<S::kParts * K::kPlanes>([&](auto i) __attribute__((always_inline)) {
                constexpr int P = i % S::kParts, L = i / S::kParts;
                S::store_w(to + Unpacked<S, K>::template at<j, P, L>(b),
                           packed_part<S, Codes, j, P, L, S::kSigned ? Codes::kOffset : 0>(from, tables));
            });
        });
}

// The activations of a tile of tokens from the first block of a stretch on.
template <class S, class K>
struct TileInput {
    static constexpr int kQuadBytes = S::kBits / 2;
    const uint8_t *q;  // of the first token, as are the others
    const int32_t *sums;
    const float *float_sums;
    const uint32_t *factors;
    int64_t stride, blocks;  // from token to token: bytes of codes, blocks

    TileInput(const Quantized &a, int64_t token, int64_t block)
        : stride(kQuadBytes * a.k / 4), blocks(a.k / 32) {
        const int64_t at = token * blocks + block;
        q = a.q + 8 * kQuadBytes * at;
        sums = (K::kHalves == 1 ? a.sum32 : a.sum16) + K::kHalves * at;
        float_sums = (K::kHalves == 1 ? a.float32 : a.float16) + K::kHalves * at;
        factors = a.factor + at;
    }
};

template <class S, class K, bool = S::kBits == 8>
struct DotOf {
    using Type = typename S::Dot;
};
template <class S, class K>
struct DotOf<S, K, true> {
    using Type = typename S::template Dot<K::kMax, K::kQuads>;
};

// acc[n][t] += half H of block b of panel n · codes of token t, for N panels and T tokens.
template <class S, class W, int N, int T, int H>
PAGODA_INLINE void multiply_half(const W *w, const TileInput<S, typename W::K> &x, int64_t b, typename S::F (*acc)[T]) {
    using F = typename S::F;
    using K = typename W::K;
    constexpr int kQuads = K::kQuads, kQuadBytes = S::kBits / 2;
    constexpr bool kFold = kFolds<S> && K::kLeft != kNothing;
    const uint8_t *q = x.q + kQuadBytes * (8 * b + kQuads * H);
    typename DotOf<S, K>::Type dot[N][K::kPlanes][T];
    unroll<kQuads * S::kParts * K::kPlanes>([&](auto i) __attribute__((always_inline)) {
        constexpr int J = i / S::kParts % kQuads, P = i % S::kParts, L = i / (S::kParts * kQuads);
        typename S::W codes[N];
        UNROLL for (int n = 0; n < N; ++n) codes[n] = w[n].template part<H * kQuads + J, P, L>(b);
        UNROLL for (int t = 0; t < T; ++t) UNROLL for (int n = 0; n < N; ++n) {
            if constexpr (S::kBits == 8)
                dot[n][L][t].template mac<J, P>(codes[n], q + t * x.stride, x.factors[t * x.blocks + b]);
            else
                dot[n][L][t].template mac<J, P>(codes[n], q + t * x.stride);
        }
    });
    const auto sum_at = [&](int t) __attribute__((always_inline)) { return K::kHalves * (t * x.blocks + b) + H; };
    F scale[N], offset[N];
    UNROLL for (int n = 0; n < N; ++n) {
        scale[n] = w[n].scale(b, H);
        if constexpr (kFold) offset[n] = S::mul(scale[n], S::set1(static_cast<float>(-(1 << K::kLeft))));
    }
    UNROLL for (int t = 0; t < T; ++t) {
        const auto less = [&](auto sum) __attribute__((always_inline)) {
            if constexpr (K::kLeft != kNothing && !kFold) return S::sub_shifted(sum, x.sums + sum_at(t), K::kLeft);
            else return sum;
        };
        UNROLL for (int n = 0; n < N; ++n) {
            auto sum = less(dot[n][0][t].sum());
            if constexpr (K::kPlanes == 2) sum = S::sixteen_times(sum, less(dot[n][1][t].sum()));
            F product = S::to_float(sum);
            if constexpr (S::kBits == 8 && !S::kWeighed)
                product = S::mul(product, S::set1(bits_to_float(x.factors[t * x.blocks + b])));
            acc[n][t] = S::fma(product, scale[n], acc[n][t]);
            if constexpr (kFold) acc[n][t] = S::fma(offset[n], S::set1(x.float_sums[sum_at(t)]), acc[n][t]);
        }
    }
    if constexpr (K::kMin) {
        F min[N];
        UNROLL for (int n = 0; n < N; ++n) min[n] = w[n].min(b, H);
        UNROLL for (int t = 0; t < T; ++t) {
            const F sum = S::set1(x.float_sums[sum_at(t)]);
            UNROLL for (int n = 0; n < N; ++n) acc[n][t] = S::fma(min[n], sum, acc[n][t]);
        }
    }
}

template <class S, class W, int N, int T>
PAGODA_INLINE void multiply_block(const W *w, const TileInput<S, typename W::K> &x, int64_t b, typename S::F (*acc)[T]) {
    multiply_half<S, W, N, T, 0>(w, x, b, acc);
    if constexpr (W::K::kHalves == 2) multiply_half<S, W, N, T, 1>(w, x, b, acc);
}

template <class S>
PAGODA_INLINE void finish(const GemmArgs &g, int64_t panel, int64_t t, typename S::F acc) {
    float *out = g.out + t * g.out_stride + panel * kPanelRows;
    if (g.scale != 1.0f) acc = S::mul(acc, S::set1(g.scale));
    if (g.bias) acc = S::add(acc, S::load(g.bias + panel * kPanelRows));
    if (g.accumulate) acc = S::add(acc, S::load(out));
    S::store(out, acc);
}

// Of N panels and T tokens: what earlier stretches came to, [T][N][16], is taken up at the start of a stretch, and kept at
// its end or, at the last one's, finished.
template <class S, int N, int T>
PAGODA_INLINE void take_up(const float *kept, bool first, typename S::F (*acc)[T]) {
    UNROLL for (int t = 0; t < T; ++t)
        UNROLL for (int n = 0; n < N; ++n) acc[n][t] = first ? S::zero() : S::load(kept + 16 * (t * N + n));
}
template <class S, int N, int T>
PAGODA_INLINE void keep(const GemmArgs &g, int64_t panel, int64_t token, float *kept, bool last,
                        const typename S::F (*acc)[T]) {
    UNROLL for (int t = 0; t < T; ++t) UNROLL for (int n = 0; n < N; ++n) {
        if (last)
            finish<S>(g, panel + n, token + t, S::mul(acc[n][t], S::set1(g.act.scale[token + t])));
        else
            S::store(kept + 16 * (t * N + n), acc[n][t]);
    }
}

constexpr int64_t kMaxGemmTokens = 4096;  // what so many tokens keep fits in the scratch
constexpr int64_t kStretch = 16;          // blocks: packed, they and their tokens' codes stay in the first-level cache
constexpr int64_t kAhead = 16;            // blocks between what is multiplied and what is read ahead

template <class S, class B, int T>
PAGODA_NOINLINE void multiply_packed(const GemmArgs &g, const Packed<S, B> &w, int64_t p, int64_t t, int64_t blocks) {
    using W = Packed<S, B>;
    const TileInput<S, typename W::K> x(g.act, t, w.first);
    // Past a panel's end the next one begins. A tile of one or two is no slower than memory, and wants all close by.
    const uint8_t *codes = w.codes + kAhead * W::kBlockBytes;
    float *kept = reinterpret_cast<float *>(g.scratch) + (t - g.token_begin) * 16;
    typename S::F acc[1][T];
    take_up<S, 1, T>(kept, w.first == 0, acc);
    for (int64_t b = 0; b < blocks; ++b, codes += W::kBlockBytes) {
        UNROLL for (int i = 0; i < W::kBlockBytes; i += 64) __builtin_prefetch(codes + i, 0, T <= 2 ? 3 : 2);
        multiply_block<S, W, 1, T>(&w, x, b, acc);
    }
    keep<S, 1, T>(g, p, t, kept, w.first + blocks == g.weight->blocks, acc);
}

template <class S, class B>
void gemm_packed(const GemmArgs &g) {
    const int64_t all = g.weight->blocks, step = g.token_end - g.token_begin <= S::kDirectTile ? all : kStretch;
    for (int64_t p = g.panel_begin; p < g.panel_end; ++p)
        for (int64_t begin = 0; begin < all; begin += step) {
            const Packed<S, B> w(*g.weight, p, begin);
            for_tiles<S::kDirectTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) {
                multiply_packed<S, B, size>(g, w, p, t, std::min(step, all - begin));
            });
        }
}

// Panels that share a tile of unpacked codes: what is read of a token serves all of them. The codes of so many blocks of
// theirs stay in the first-level cache.
template <class S, class K>
constexpr int kPanels = std::max(S::kPanels / K::kPlanes, 1);
template <class S, class K>
constexpr int64_t kUnpackedStretch = 16384 / (kPanels<S, K> * Unpacked<S, K>::kBlockBytes);

// Asks for block b of N panels from `panel` on, or, past their end, of the next N.
template <int N>
PAGODA_INLINE void read_ahead(const Weight &w, int64_t panel, int64_t b) {
    const int64_t bytes = w.shape().codes;
    if (b >= w.blocks) {
        b -= w.blocks;
        panel += N;
    }
    for (int n = 0; n < N; ++n)
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(w.codes(panel + n) + b * bytes + i, 0, 2);
}

// How a type's panels are read by the kernels of a Kind.
struct Format {
    Tables tables;
    void (*unpack_codes)(const uint8_t *from, int64_t blocks, const Tables &, uint8_t *to);
    void (*read_scales)(const Weight &, int64_t panel, int64_t begin, int64_t end, const ScaleRows &);
};

template <class S, class K, int N, int T>
PAGODA_NOINLINE void multiply_unpacked(const GemmArgs &g, const Unpacked<S, K> *w, int64_t p, int64_t t, int64_t begin,
                                       int64_t end, float *kept) {
    const TileInput<S, K> x(g.act, t, begin);
    typename S::F acc[N][T];
    take_up<S, N, T>(kept, begin == 0, acc);
    for (int64_t b = 0; b < end - begin; ++b) {
        if (t == g.token_begin) read_ahead<N>(*g.weight, p, begin + b + kUnpackedStretch<S, K>);
        multiply_block<S, Unpacked<S, K>, N, T>(w, x, b, acc);
    }
    keep<S, N, T>(g, p, t, kept, end == g.weight->blocks, acc);
}

// Of whole tiles: kPanels panels times S::kTile tokens or a multiple of kLeastTile.
constexpr int kLeastTile = 2;
template <class S, class K>
void gemm_unpacked(const GemmArgs &g, const Format &format) {
    using U = Unpacked<S, K>;
    constexpr int N = kPanels<S, K>;
    constexpr int64_t kBlocks = kUnpackedStretch<S, K>, kCodes = kBlocks * U::kBlockBytes;
    constexpr int64_t kBytes = kCodes + ScaleRows::bytes(kBlocks, K::kHalves);
    static_assert(N * (kBytes + kMaxGemmTokens * 64) <= static_cast<int64_t>(kGemmScratch));
    float *partial = reinterpret_cast<float *>(g.scratch + N * kBytes);  // [tokens][N][16]
    const Weight &weight = *g.weight;
    U w[N];
    for (int n = 0; n < N; ++n) {
        uint8_t *scratch = g.scratch + n * kBytes;
        w[n] = {scratch, ScaleRows::at(scratch + kCodes, kBlocks, K::kHalves)};
    }
    for (int64_t p = g.panel_begin; p < g.panel_end; p += N)
        for (int64_t begin = 0; begin < weight.blocks; begin += kBlocks) {
            const int64_t end = std::min(begin + kBlocks, weight.blocks);
            for (int n = 0; n < N; ++n) {
                format.unpack_codes(weight.codes(p + n) + begin * weight.shape().codes, end - begin, format.tables, w[n].codes);
                format.read_scales(weight, p + n, begin, end, w[n].rows);
            }
            for_tiles<S::kTile, kLeastTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) {
                multiply_unpacked<S, K, N, size>(g, w, p, t, begin, end, partial + (t - g.token_begin) * N * 16);
            });
        }
}

// Panels and tokens that make no whole tile are left to gemm_packed.
template <class S, class B>
void gemm_block(const GemmArgs &g) {
    if constexpr (S::kUnpackTokens > 0) {
        using Codes = typename B::Codes;
        using K = KindOf<S, Codes, typename B::Scales, kUnpackedLeft<S, Codes>>;
        const int64_t tokens = g.token_end - g.token_begin, panels = g.panel_end - g.panel_begin;
        if (tokens >= S::kUnpackTokens / K::kHalves) {  // two scales a block make it longer to read as it is
            GemmArgs whole = g, rest = g;
            whole.panel_end = g.panel_end - panels % kPanels<S, K>;
            whole.token_end = g.token_end - tokens % S::kTile % kLeastTile;
            gemm_unpacked<S, K>(whole, {tables_of<S, B>(*g.weight), unpack_codes<S, Codes, K>,
                                        read_scales<S, typename B::Scales>});
            rest.panel_begin = whole.panel_end;
            gemm_packed<S, B>(rest);
            rest = whole;
            rest.token_begin = whole.token_end;
            rest.token_end = g.token_end;
            return gemm_packed<S, B>(rest);
        }
    }
    gemm_packed<S, B>(g);
}

struct ReadF32 {
    static constexpr int kBytes = 4;
    template <class S>
    PAGODA_INLINE static typename S::F row16(const uint8_t *p) { return S::load(reinterpret_cast<const float *>(p)); }
};
struct ReadF16 {
    static constexpr int kBytes = 2;
    template <class S>
    PAGODA_INLINE static typename S::F row16(const uint8_t *p) { return S::load_half(p); }
};
struct ReadBF16 {
    static constexpr int kBytes = 2;
    template <class S>
    PAGODA_INLINE static typename S::F row16(const uint8_t *p) { return S::load_bfloat(p); }
};

template <class S, class R>
void gemm_float(const GemmArgs &g) {
    const int64_t columns = g.weight->blocks * kActBlock;
    for (int64_t p = g.panel_begin; p < g.panel_end; ++p) {
        const uint8_t *w = g.weight->codes(p);
        for_tiles<S::kFloatTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) __attribute__((always_inline)) {
            constexpr int T = size;
            typename S::F acc[T];
            const float *x = g.x + t * g.x_stride;
            UNROLL for (int i = 0; i < T; ++i) acc[i] = S::zero();
            for (int64_t k = 0; k < columns; ++k) {
                const auto row = R::template row16<S>(w + k * kPanelRows * R::kBytes);
                UNROLL for (int i = 0; i < T; ++i) acc[i] = S::fma(row, S::set1(x[i * g.x_stride + k]), acc[i]);
            }
            UNROLL for (int i = 0; i < T; ++i) finish<S>(g, p, t + i, acc[i]);
        });
    }
}

template <class S>
void set_gemms(Kernels &k) {
    k.gemm[static_cast<int>(Type::F32)] = gemm_float<S, ReadF32>;
    k.gemm[static_cast<int>(Type::F16)] = gemm_float<S, ReadF16>;
    k.gemm[static_cast<int>(Type::BF16)] = gemm_float<S, ReadBF16>;
#define PAGODA_TYPE(name) k.gemm[static_cast<int>(Type::name)] = gemm_block<S, blocks::PanelOf<blocks::name>>;
    PAGODA_BLOCK_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
}

// Of activations in 8 bits. S is the instruction set's struct of bytes.
template <class S>
void set_byte_gemms(Kernels &k) {
#define PAGODA_TYPE(name) \
    if constexpr (S::takes(blocks::name::Codes::kMax)) \
        k.gemm8[static_cast<int>(Type::name)] = gemm_block<S, blocks::PanelOf<blocks::name>>;
    PAGODA_BLOCK_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
}
