// Matrix products: 16 rows (a panel) times a few tokens at a time. Included by kernels_gemm_*.cpp.
//
// Each weight format is a small reader that hands out, for a block of 32 columns, the codes of a quad and the scales
// of 16 rows. For many tokens a panel is unpacked once into scratch (`Unpacked`, the same interface) and used for
// all of them. For one (row, token) the order of operations is the same in every tile: blocks in order, one
// accumulator.

struct PanelReader {
    static constexpr bool kUnpacked = false, kFine = false;
    const uint8_t *codes, *scales, *super;
    PanelReader(const Weight &w, int64_t panel) : codes(w.codes(panel)), scales(w.scales(panel)), super(w.super(panel)) {}
};

// Traits of a format: kSub columns share a scale; codes are 0 … kMax, or signed bytes (kMax -1); kOffset is
// subtracted from every code; kMin says whether a min is added; kFine that codes have 12 bits, which byte products take in
// two planes, 16 times the one and the other.
struct Nibbles : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kSub = 32, kMax = 15, kOffset = 0;
    static constexpr bool kMin = false;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        const auto v = S::load_b(codes + 256 * b + 64 * (J % 4));
        if constexpr (J < 4) return S::template field<0, 0>(v, 0x0f);
        return S::template field<4, 0>(v, 0x0f);
    }
};

struct ReadQ4_0 : Nibbles {
    using Nibbles::Nibbles;
    static constexpr int kOffset = 8;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load_half(scales + 32 * b); }
};

struct ReadQ4_1 : Nibbles {
    using Nibbles::Nibbles;
    static constexpr bool kMin = true;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load_half(scales + 64 * b); }
    template <class S>
    PAGODA_INLINE typename S::F min(int64_t b, int) const { return S::load_half(scales + 64 * b + 32); }
};

template <class Base>
struct SuperMin : Base {  // scale = d * sc, min = -dmin * m, eight blocks to a super-block
    using Base::Base;
    static constexpr bool kMin = true;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const {
        return S::mul(S::load_half(this->super + 64 * (b / 8)), S::load_i8(this->scales + 32 * b));
    }
    template <class S>
    PAGODA_INLINE typename S::F min(int64_t b, int) const {
        const auto m = S::mul(S::load_half(this->super + 64 * (b / 8) + 32), S::load_i8(this->scales + 32 * b + 16));
        return S::sub(S::zero(), m);
    }
};
using ReadQ4_K = SuperMin<Nibbles>;

struct FiveBits : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kSub = 32, kMax = 31, kOffset = 0;
    static constexpr bool kMin = false;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        const uint8_t *at = codes + 320 * b;
        const auto v = S::load_b(at + 64 * (J % 4)), plane = S::load_b(at + 256);
        const auto low = S::template field<J < 4 ? 0 : 4, 0>(v, 0x0f);
        return S::or_b(low, S::template field<J, 4>(plane, 0x10));
    }
};

struct ReadQ5_0 : FiveBits {
    using FiveBits::FiveBits;
    static constexpr int kOffset = 16;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load_half(scales + 32 * b); }
};

struct ReadQ5_1 : FiveBits {
    using FiveBits::FiveBits;
    static constexpr bool kMin = true;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load_half(scales + 64 * b); }
    template <class S>
    PAGODA_INLINE typename S::F min(int64_t b, int) const { return S::load_half(scales + 64 * b + 32); }
};
using ReadQ5_K = SuperMin<FiveBits>;

struct ReadQ8_0 : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kSub = 32, kMax = -1, kOffset = 0;
    static constexpr bool kMin = false;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const { return S::load_b(codes + 512 * b + 64 * J); }
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load_half(scales + 32 * b); }
};

template <class Base>
struct SuperHalves : Base {  // scale = d * sc, one sc for each 16 columns
    using Base::Base;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const {
        return S::mul(S::load_half(this->super + 32 * (b / 8)), S::load_i8(this->scales + 32 * b + 16 * half));
    }
};

struct SixBits : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kSub = 16, kMax = 63, kOffset = 32;
    static constexpr bool kMin = false;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        const uint8_t *at = codes + 384 * b;
        const auto v = S::load_b(at + 64 * (J % 4)), plane = S::load_b(at + 256 + 64 * (J / 4));
        const auto low = S::template field<J < 4 ? 0 : 4, 0>(v, 0x0f);
        return S::or_b(low, S::template field<2 * (J % 4), 4>(plane, 0x30));
    }
};
using ReadQ6_K = SuperHalves<SixBits>;

struct ThreeBits : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kSub = 16, kMax = 7, kOffset = 4;
    static constexpr bool kMin = false;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        const uint8_t *at = codes + 192 * b;
        const auto v = S::load_b(at + 64 * (J / 4)), plane = S::load_b(at + 128);
        const auto low = S::template field<2 * (J % 4), 0>(v, 0x03);
        return S::or_b(low, S::template field<J, 2>(plane, 0x04));
    }
};
using ReadQ3_K = SuperHalves<ThreeBits>;

struct ReadQ2_K : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kSub = 16, kMax = 3, kOffset = 0;
    static constexpr bool kMin = true;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        return S::template field<2 * (J % 4), 0>(S::load_b(codes + 128 * b + 64 * (J / 4)), 0x03);
    }
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const {
        return S::mul(S::load_half(super + 64 * (b / 8)), S::load_u4(scales + 32 * b + 16 * half, 0));
    }
    template <class S>
    PAGODA_INLINE typename S::F min(int64_t b, int half) const {
        const auto m = S::mul(S::load_half(super + 64 * (b / 8) + 32), S::load_u4(scales + 32 * b + 16 * half, 4));
        return S::sub(S::zero(), m);
    }
};

struct Iq4 : Nibbles {
    using Nibbles::Nibbles;
    static constexpr int kMax = -1;
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        return S::lookup(kIq4Values, Nibbles::quad<S, J>(b));
    }
};
struct ReadIQ4_NL : Iq4 {
    using Iq4::Iq4;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load_half(scales + 32 * b); }
};
struct ReadIQ4_XS : Iq4 {
    using Iq4::Iq4;
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const {
        return S::mul(S::load_half(super + 32 * (b / 8)), S::load_i8(scales + 16 * b));
    }
};

// Float scales, and minima, that 2^shift blocks share.
template <class Base, bool Min>
struct Grouped : Base {
    static constexpr bool kMin = Min;
    int shift;
    Grouped(const Weight &w, int64_t panel) : Base(w, panel), shift(w.group_shift) {}
    PAGODA_INLINE const float *of(int64_t b) const {
        return reinterpret_cast<const float *>(this->scales) + (Min ? 32 : 16) * (b >> shift);
    }
    template <class S>
    PAGODA_INLINE typename S::F scale(int64_t b, int) const { return S::load(of(b)); }
    template <class S>
    PAGODA_INLINE typename S::F min(int64_t b, int) const { return S::load(of(b) + 16); }
};
struct CodebookNibbles : Nibbles {
    static constexpr int kMax = -1;
    static constexpr bool kFine = true;
    const Codebook &book;
    CodebookNibbles(const Weight &w, int64_t panel) : Nibbles(w, panel), book(w.codebook) {}
    template <class S, int J>
    PAGODA_INLINE typename S::B quad(int64_t b) const {
        return S::lookup(S::kWide ? book.high : book.coarse, Nibbles::quad<S, J>(b));
    }
    template <class S, int J>
    PAGODA_INLINE typename S::B fine(int64_t b) const {
        return S::lookup(S::kWide ? book.low : book.fine, Nibbles::quad<S, J>(b));
    }
};
using ReadGrouped4 = Grouped<ReadQ4_0, false>;
using ReadGrouped4Min = Grouped<Nibbles, true>;
using ReadGrouped8 = Grouped<ReadQ8_0, false>;
using ReadGrouped8Min = Grouped<ReadQ8_0, true>;
using ReadCodebook4 = Grouped<CodebookNibbles, false>;

template <class S, class R>
constexpr int kPlanes = R::kFine && !S::kWide ? 2 : 1;

// Panels that share a tile: what is read of a token serves all of them.
template <class S, class R>
constexpr int kPanels = std::max(S::kPanels / kPlanes<S, R>, 1);

// Part P of quad J in plane L as the instruction set multiplies it, less Offset.
template <class S, int J, int P, int L, int Offset, class R>
PAGODA_INLINE typename S::W packed_part(const R &w, int64_t b) {
    if constexpr (R::kFine && S::kWide)
        return S::template wide_part<P>(w.template quad<S, J>(b), w.template fine<S, J>(b));
    else if constexpr (L == 1)
        return S::template part<P, true, Offset>(w.template fine<S, J>(b));
    else
        return S::template part<P, (R::kMax < 0), Offset>(w.template quad<S, J>(b));
}

// The same of a panel, packed or not, and what is left to subtract from its codes.
template <class S, int J, int P, int L, class R>
PAGODA_INLINE typename S::W part(const R &w, int64_t b) {
    if constexpr (R::kUnpacked)
        return w.template part<J, P, L>(b);
    else
        return packed_part<S, J, P, L, 0>(w, b);
}
template <class S, class R>
constexpr int offset_left() {
    if constexpr (R::kUnpacked && S::kSigned) return 0;
    return R::kOffset + (R::kMax < 0 && !S::kSigned ? 128 : 0);
}

// A stretch of a panel of format R, unpacked into scratch.
template <class S, class R>
struct Unpacked {
    static constexpr int kSub = R::kSub, kMax = R::kMax, kOffset = R::kOffset, kScales = 32 / kSub;
    static constexpr bool kMin = R::kMin, kUnpacked = true, kFine = R::kFine;
    static constexpr int64_t kPlaneBytes = 512 * S::kParts, kBlockBytes = kPlaneBytes * kPlanes<S, R>;
    // Of 32 columns: the codes of all panels that share a tile stay in the first-level cache.
    static constexpr int64_t kBlocks = 16384 / (kPanels<S, R> * kBlockBytes);
    uint8_t *codes;
    float *scales, *mins;
    int64_t first;

    Unpacked() = default;
    Unpacked(uint8_t *scratch, int64_t first_block)
        : codes(scratch), scales(reinterpret_cast<float *>(scratch + kBlocks * kBlockBytes)), mins(scales + kBlocks * 32),
          first(first_block) {}
    static constexpr size_t kBytes = kBlocks * (kBlockBytes + 2 * 128);

    PAGODA_INLINE void fill(const R &from, int64_t end) {
        for (int64_t b = first; b < end; ++b) {
            unroll<8>([&](auto j) __attribute__((always_inline)) {
                unroll<S::kParts * kPlanes<S, R>>([&](auto i) __attribute__((always_inline)) {
                    constexpr int P = i % S::kParts, L = i / S::kParts;
                    S::store_w(at<j, P, L>(b), packed_part<S, j, P, L, S::kSigned ? kOffset : 0>(from, b));
                });
            });
            for (int h = 0; h < kScales; ++h) {
                const int64_t at = ((b - first) * kScales + h) * 16;
                S::store(scales + at, from.template scale<S>(b, h));
                if constexpr (kMin) S::store(mins + at, from.template min<S>(b, h));
            }
        }
    }
    template <int J, int P, int L>
    PAGODA_INLINE uint8_t *at(int64_t b) const {
        return codes + kBlockBytes * (b - first) + kPlaneBytes * L + 64 * (S::kParts * J + P);
    }
    template <int J, int P, int L>
    PAGODA_INLINE typename S::W part(int64_t b) const { return S::load_w(at<J, P, L>(b)); }
    template <class>
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const {
        return S::load(scales + ((b - first) * kScales + half) * 16);
    }
    template <class>
    PAGODA_INLINE typename S::F min(int64_t b, int half) const {
        return S::load(mins + ((b - first) * kScales + half) * 16);
    }
};

template <class S, class R, bool = S::kBits == 8>
struct DotOf {
    using Type = typename S::Dot;
};
template <class S, class R>
struct DotOf<S, R, true> {
    using Type = typename S::template Dot<R::kMax, R::kSub / 4>;
};

// acc[n][t] += block b of panel n · codes of token t0 + t, for N panels and T tokens.
template <class S, class R, int N, int T>
PAGODA_INLINE void int_block(const R *w, const Quantized &a, int64_t t0, int64_t b, typename S::F (*acc)[T]) {
    constexpr int kQuads = R::kSub / 4, kHalves = 32 / R::kSub, kLeft = offset_left<S, R>(), kL = kPlanes<S, R>;
    constexpr int kQuadBytes = S::kBits / 2;
    constexpr bool kFold = kLeft != 0 && S::kBits == 8 && S::kWeighed;  // subtract offsets in floats, where that is shorter
    const int64_t nb = a.k / 32, stride = kQuadBytes * a.k / 4;
    const uint8_t *q = a.q + t0 * stride + 8 * kQuadBytes * b;
    unroll<kHalves>([&](auto h) __attribute__((always_inline)) {
        typename DotOf<S, R>::Type dot[N][kL][T];
        unroll<kQuads * S::kParts * kL>([&](auto i) __attribute__((always_inline)) {
            constexpr int J = i / S::kParts % kQuads, P = i % S::kParts, L = i / (S::kParts * kQuads);
            typename S::W codes[N];
            unroll<N>([&](auto n) __attribute__((always_inline)) { codes[n] = part<S, h * kQuads + J, P, L>(w[n], b); });
            unroll<T>([&](auto t) __attribute__((always_inline)) {
                const uint8_t *quads = q + t * stride + kQuadBytes * kQuads * h;
                unroll<N>([&](auto n) __attribute__((always_inline)) {
                    if constexpr (S::kBits == 8)
                        dot[n][L][t].template mac<J, P>(codes[n], quads, a.factor[(t0 + t) * nb + b]);
                    else
                        dot[n][L][t].template mac<J, P>(codes[n], quads);
                });
            });
        });
        typename S::F scale[N], offset[N];
        unroll<N>([&](auto n) __attribute__((always_inline)) {
            scale[n] = w[n].template scale<S>(b, h);
            offset[n] = S::mul(scale[n], S::set1(-kLeft));
        });
        unroll<T>([&](auto t) __attribute__((always_inline)) {
            const int64_t at = (t0 + t) * nb + b;
            const auto less = [&](auto sum) __attribute__((always_inline)) {
                if constexpr (kLeft == 0 || kFold) return sum;
                else return S::sub_int(sum, kLeft * (kHalves == 1 ? a.sum32[at] : a.sum16[2 * at + h]));
            };
            unroll<N>([&](auto n) __attribute__((always_inline)) {
                auto sum = less(dot[n][0][t].sum());
                if constexpr (kL == 2) sum = S::sixteen_times(sum, less(dot[n][1][t].sum()));
                auto product = S::to_float(sum);
                if constexpr (S::kBits == 8 && !S::kWeighed)
                    product = S::mul(product, S::set1(bits_to_float(a.factor[at])));
                acc[n][t] = S::fma(product, scale[n], acc[n][t]);
                if constexpr (kFold)
                    acc[n][t] = S::fma(offset[n], S::set1(kHalves == 1 ? a.float32[at] : a.float16[2 * at + h]), acc[n][t]);
            });
        });
        if constexpr (R::kMin) {
            typename S::F min[N];
            unroll<N>([&](auto n) __attribute__((always_inline)) { min[n] = w[n].template min<S>(b, h); });
            unroll<T>([&](auto t) __attribute__((always_inline)) {
                const auto sum = S::set1(kHalves == 1 ? a.float32[(t0 + t) * nb + b] : a.float16[2 * ((t0 + t) * nb + b) + h]);
                unroll<N>([&](auto n) __attribute__((always_inline)) { acc[n][t] = S::fma(min[n], sum, acc[n][t]); });
            });
        }
    });
}

template <class S>
PAGODA_INLINE void finish(const GemmArgs &g, int64_t panel, int64_t t, typename S::F acc) {
    float *out = g.out + t * g.out_stride + panel * kPanelRows;
    if (g.scale != 1.0f) acc = S::mul(acc, S::set1(g.scale));
    if (g.bias) acc = S::add(acc, S::load(g.bias + panel * kPanelRows));
    if (g.accumulate) acc = S::add(acc, S::load(out));
    S::store(out, acc);
}

template <class S>
PAGODA_INLINE void finish_int(const GemmArgs &g, int64_t panel, int64_t t, typename S::F acc) {
    finish<S>(g, panel, t, S::mul(acc, S::set1(g.act.scale[t])));
}

constexpr int64_t kAhead = 8;  // blocks

PAGODA_INLINE void prefetch(const uint8_t *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

template <class S, class R>
void gemm_direct(const GemmArgs &g) {
    for (int64_t p = g.panel_begin; p < g.panel_end; ++p) {
        const R w(*g.weight, p);
        constexpr int kTile = std::max(S::kDirectTile / kPlanes<S, R>, 1);
        for_tiles<kTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) __attribute__((always_inline)) {
            constexpr int T = size;
            typename S::F acc[1][T];
            unroll<T>([&](auto i) __attribute__((always_inline)) { acc[0][i] = S::zero(); });
            for (int64_t b = 0; b < g.weight->blocks; ++b) {
                prefetch(w.codes + (b + kAhead) * g.weight->shape().codes, g.weight->shape().codes);
                int_block<S, R, 1, T>(&w, g.act, t, b, acc);
            }
            unroll<T>([&](auto i) __attribute__((always_inline)) { finish_int<S>(g, p, t + i, acc[0][i]); });
        });
    }
}

// N panels from p on.
template <class S, class R, int N>
PAGODA_INLINE void unpacked_panels(const GemmArgs &g, int64_t p) {
    using U = Unpacked<S, R>;
    float *partial = reinterpret_cast<float *>(g.scratch + N * U::kBytes);  // [tokens][N][16]
    const int64_t blocks = g.weight->blocks;
    for (int64_t begin = 0; begin < blocks; begin += U::kBlocks) {
        const int64_t end = begin + U::kBlocks < blocks ? begin + U::kBlocks : blocks;
        U w[N];
        unroll<N>([&](auto n) __attribute__((always_inline)) {
            w[n] = U(g.scratch + n * U::kBytes, begin);
            w[n].fill(R(*g.weight, p + n), end);
        });
        for_tiles<S::kTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) __attribute__((always_inline)) {
            constexpr int T = size;
            typename S::F acc[N][T];
            float *kept = partial + (t - g.token_begin) * N * 16;
            unroll<N * T>([&](auto i) __attribute__((always_inline)) {
                acc[i % N][i / N] = begin == 0 ? S::zero() : S::load(kept + 16 * i);
            });
            for (int64_t b = begin; b < end; ++b) int_block<S, U, N, T>(w, g.act, t, b, acc);
            unroll<N * T>([&](auto i) __attribute__((always_inline)) {
                if (end < blocks)
                    S::store(kept + 16 * i, acc[i % N][i / N]);
                else
                    finish_int<S>(g, p + i % N, t + i / N, acc[i % N][i / N]);
            });
        });
    }
}

template <class S, class R>
void gemm_unpacked(const GemmArgs &g) {
    int64_t p = g.panel_begin;
    for (; p + kPanels<S, R> <= g.panel_end; p += kPanels<S, R>) unpacked_panels<S, R, kPanels<S, R>>(g, p);
    if constexpr (kPanels<S, R> > 1)
        for (; p < g.panel_end; ++p) unpacked_panels<S, R, 1>(g, p);
}

constexpr int64_t kUnpackTokens = 8;       // from here on unpacking a panel first pays
constexpr int64_t kMaxGemmTokens = 4096;   // partial sums of so many tokens fit in the scratch

template <class S, class R>
void gemm_int(const GemmArgs &g) {
    static_assert(kPanels<S, R> * (Unpacked<S, R>::kBytes + kMaxGemmTokens * 64) <= kGemmScratch);
    if constexpr (S::kUnpack)
        if (g.token_end - g.token_begin >= kUnpackTokens) return gemm_unpacked<S, R>(g);
    gemm_direct<S, R>(g);
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
            unroll<T>([&](auto i) __attribute__((always_inline)) { acc[i] = S::zero(); });
            for (int64_t k = 0; k < columns; ++k) {
                const auto row = R::template row16<S>(w + k * kPanelRows * R::kBytes);
                unroll<T>([&](auto i) __attribute__((always_inline)) {
                    acc[i] = S::fma(row, S::set1(x[i * g.x_stride + k]), acc[i]);
                });
            }
            unroll<T>([&](auto i) __attribute__((always_inline)) { finish<S>(g, p, t + i, acc[i]); });
        });
    }
}

// Every block type's reader, by fn.operator()<Reader>(type).
template <class Fn>
void for_block_types(Fn fn) {
    fn.template operator()<ReadQ4_0>(Type::Q4_0);
    fn.template operator()<ReadQ4_1>(Type::Q4_1);
    fn.template operator()<ReadQ5_0>(Type::Q5_0);
    fn.template operator()<ReadQ5_1>(Type::Q5_1);
    fn.template operator()<ReadQ8_0>(Type::Q8_0);
    fn.template operator()<ReadQ2_K>(Type::Q2_K);
    fn.template operator()<ReadQ3_K>(Type::Q3_K);
    fn.template operator()<ReadQ4_K>(Type::Q4_K);
    fn.template operator()<ReadQ5_K>(Type::Q5_K);
    fn.template operator()<ReadQ6_K>(Type::Q6_K);
    fn.template operator()<ReadIQ4_NL>(Type::IQ4_NL);
    fn.template operator()<ReadIQ4_XS>(Type::IQ4_XS);
    fn.template operator()<ReadGrouped4>(Type::Grouped4);
    fn.template operator()<ReadGrouped4Min>(Type::Grouped4Min);
    fn.template operator()<ReadGrouped8>(Type::Grouped8);
    fn.template operator()<ReadGrouped8Min>(Type::Grouped8Min);
    fn.template operator()<ReadCodebook4>(Type::Codebook4);
}

template <class S>
void set_gemms(Kernels &k) {
    k.gemm[static_cast<int>(Type::F32)] = gemm_float<S, ReadF32>;
    k.gemm[static_cast<int>(Type::F16)] = gemm_float<S, ReadF16>;
    k.gemm[static_cast<int>(Type::BF16)] = gemm_float<S, ReadBF16>;
    for_block_types([&]<class R>(Type t) { k.gemm[static_cast<int>(t)] = gemm_int<S, R>; });
}

// Of activations in 8 bits. S is the instruction set's struct of bytes.
template <class S>
void set_byte_gemms(Kernels &k) {
    for_block_types([&]<class R>(Type t) {
        if constexpr (S::takes(R::kMax)) k.gemm8[static_cast<int>(t)] = gemm_int<S, R>;
    });
}
