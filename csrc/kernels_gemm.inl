// Matrix products: 16 rows (a panel) times a few tokens at a time. Included by kernels_gemm_*.cpp.
//
// Each weight format is a small reader that hands out, for a block of 32 columns, the codes of a quad and the scales
// of 16 rows. A few tokens multiply what the reader hands out. For many, panels are first unpacked into scratch by a
// function of the format (`fill`) and then multiplied by a kernel that formats of one `Kind` share. For one (row, token)
// the order of operations is the same in every tile: blocks in order, one accumulator.
//
// Loops over constant counts are unrolled by UNROLL where a plain loop will do, and by `unroll` where a template needs
// the index: each of its steps is a function that the compiler must first inline, which is most of the time it takes.

struct PanelReader {
    static constexpr bool kFine = false;
    const uint8_t *codes, *scales, *super;
    PanelReader(const Weight &w, int64_t panel) : codes(w.codes(panel)), scales(w.scales(panel)), super(w.super(panel)) {}
};

// Traits of a format: kCodeBytes for 32 columns; kSub columns share a scale; codes are 0 … kMax, or signed bytes (kMax -1); kOffset is
// subtracted from every code; kMin says whether a min is added; kFine that codes have 12 bits, which byte products take in
// two planes, 16 times the one and the other.
struct Nibbles : PanelReader {
    using PanelReader::PanelReader;
    static constexpr int kCodeBytes = 256;
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
    static constexpr int kCodeBytes = 320;
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
    static constexpr int kCodeBytes = 512;
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
    static constexpr int kCodeBytes = 384;
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
    static constexpr int kCodeBytes = 192;
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
    static constexpr int kCodeBytes = 128;
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

// 2^ this is left to subtract from a reader's codes, and from codes unpacked by it; none: nothing is.
constexpr int kNothing = -1;
constexpr int log2_of(int x) { return x == 0 ? kNothing : x == 1 ? 0 : 1 + log2_of(x / 2); }
template <class S, class R>
constexpr int kLeftOf = log2_of(R::kOffset + (R::kMax < 0 && !S::kSigned ? 128 : 0));
template <class S, class R>
constexpr int kUnpackedLeftOf = S::kSigned ? kNothing : kLeftOf<S, R>;

// What a kernel knows at compile time of the codes that it multiplies: columns that share a scale, whether minima are
// added, whether something is subtracted from every code, in how many planes they come, and, where it matters, how large
// they are.
template <int Sub, bool Min, bool Left, int Planes, int Max>
struct Kind {
    static constexpr int kSub = Sub, kHalves = 32 / Sub, kQuads = Sub / 4, kPlanes = Planes, kMax = Max;
    static constexpr bool kMin = Min, kLeft = Left;
};
template <class S, class R, bool Left>
using KindOf = Kind<R::kSub, R::kMin, Left, kPlanes<S, R>, S::kBits == 8 && S::kWeighed ? R::kMax : 0>;
template <class S, class R>
using UnpackedKindOf = KindOf<S, R, kUnpackedLeftOf<S, R> != kNothing>;

// Panels that share a tile of unpacked codes: what is read of a token serves all of them.
template <class S, class K>
constexpr int kPanels = std::max(S::kPanels / K::kPlanes, 1);

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

// A panel of format R as a kernel reads it, unpacking as it goes.
template <class S, class R>
struct Packed {
    using K = KindOf<S, R, kLeftOf<S, R> != kNothing>;
    R reader;
    static constexpr int left() { return kLeftOf<S, R>; }
    template <int J, int P, int L>
    PAGODA_INLINE typename S::W part(int64_t b) const { return packed_part<S, J, P, L, 0>(reader, b); }
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const { return reader.template scale<S>(b, half); }
    PAGODA_INLINE typename S::F min(int64_t b, int half) const { return reader.template min<S>(b, half); }
};

// A stretch of a panel, unpacked into scratch.
template <class S, class Kind>
struct Unpacked {
    using K = Kind;
    static constexpr int64_t kPlaneBytes = 512 * S::kParts, kBlockBytes = kPlaneBytes * K::kPlanes;
    // Of 32 columns: the codes of all panels that share a tile stay in the first-level cache.
    static constexpr int64_t kBlocks = 16384 / (kPanels<S, K> * kBlockBytes);
    static constexpr size_t kBytes = kBlocks * (kBlockBytes + 2 * 128);
    uint8_t *codes;
    float *scales, *mins;
    int64_t first;  // block
    int offset;

    Unpacked() = default;
    Unpacked(uint8_t *scratch, int64_t first_block, int left)
        : codes(scratch), scales(reinterpret_cast<float *>(scratch + kBlocks * kBlockBytes)), mins(scales + kBlocks * 32),
          first(first_block), offset(left) {}

    PAGODA_INLINE int left() const { return offset; }
    template <int J, int P, int L>
    PAGODA_INLINE uint8_t *at(int64_t b) const {
        return codes + kBlockBytes * (b - first) + kPlaneBytes * L + 64 * (S::kParts * J + P);
    }
    template <int J, int P, int L>
    PAGODA_INLINE typename S::W part(int64_t b) const { return S::load_w(at<J, P, L>(b)); }
    PAGODA_INLINE int64_t scale_at(int64_t b, int half) const { return ((b - first) * K::kHalves + half) * 16; }
    PAGODA_INLINE typename S::F scale(int64_t b, int half) const { return S::load(scales + scale_at(b, half)); }
    PAGODA_INLINE typename S::F min(int64_t b, int half) const { return S::load(mins + scale_at(b, half)); }
};

// Unpacks the blocks from to.first to `end`.
template <class S, class R>
void fill(const Weight &weight, int64_t panel, int64_t end, const Unpacked<S, UnpackedKindOf<S, R>> &to) {
    using K = UnpackedKindOf<S, R>;
    const R from(weight, panel);
    for (int64_t b = to.first; b < end; ++b) {
        unroll<8>([&](auto j) __attribute__((always_inline)) {
            unroll<S::kParts * K::kPlanes>([&](auto i) __attribute__((always_inline)) {
                constexpr int P = i % S::kParts, L = i / S::kParts;
                S::store_w(to.template at<j, P, L>(b), packed_part<S, j, P, L, S::kSigned ? R::kOffset : 0>(from, b));
            });
        });
        for (int h = 0; h < K::kHalves; ++h) {
            S::store(to.scales + to.scale_at(b, h), from.template scale<S>(b, h));
            if constexpr (K::kMin) S::store(to.mins + to.scale_at(b, h), from.template min<S>(b, h));
        }
    }
}

template <class S, class K, bool = S::kBits == 8>
struct DotOf {
    using Type = typename S::Dot;
};
template <class S, class K>
struct DotOf<S, K, true> {
    using Type = typename S::template Dot<K::kMax, K::kQuads>;
};

// acc[n][t] += half H of block b of panel n · codes of token t0 + t, for N panels and T tokens.
template <class S, class W, int N, int T, int H>
PAGODA_INLINE void int_half(const W *w, const Quantized &a, int64_t t0, int64_t b, typename S::F (*acc)[T]) {
    using F = typename S::F;
    using K = typename W::K;
    constexpr int kQuads = K::kQuads, kHalves = K::kHalves, kL = K::kPlanes, kQuadBytes = S::kBits / 2;
    constexpr bool kFold = K::kLeft && S::kBits == 8 && S::kWeighed;  // subtract offsets in floats, where that is shorter
    const int64_t nb = a.k / 32, stride = kQuadBytes * a.k / 4;
    const uint8_t *q = a.q + t0 * stride + kQuadBytes * (8 * b + kQuads * H);
    typename DotOf<S, K>::Type dot[N][kL][T];
    unroll<kQuads * S::kParts * kL>([&](auto i) __attribute__((always_inline)) {
        constexpr int J = i / S::kParts % kQuads, P = i % S::kParts, L = i / (S::kParts * kQuads);
        typename S::W codes[N];
        UNROLL for (int n = 0; n < N; ++n) codes[n] = w[n].template part<H * kQuads + J, P, L>(b);
        UNROLL for (int t = 0; t < T; ++t) UNROLL for (int n = 0; n < N; ++n) {
            if constexpr (S::kBits == 8)
                dot[n][L][t].template mac<J, P>(codes[n], q + t * stride, a.factor[(t0 + t) * nb + b]);
            else
                dot[n][L][t].template mac<J, P>(codes[n], q + t * stride);
        }
    });
    const int64_t at = t0 * nb + b;
    const auto sum_at = [&](int t) __attribute__((always_inline)) { return kHalves * (at + t * nb) + H; };
    const int32_t *sums = kHalves == 1 ? a.sum32 : a.sum16;
    const float *float_sums = kHalves == 1 ? a.float32 : a.float16;
    F scale[N], offset[N];
    UNROLL for (int n = 0; n < N; ++n) {
        scale[n] = w[n].scale(b, H);
        if constexpr (kFold) offset[n] = S::mul(scale[n], S::set1(static_cast<float>(-(1 << w[0].left()))));
    }
    UNROLL for (int t = 0; t < T; ++t) {
        const auto less = [&](auto sum) __attribute__((always_inline)) {
            if constexpr (K::kLeft && !kFold) return S::sub_shifted(sum, sums + sum_at(t), w[0].left());
            else return sum;
        };
        UNROLL for (int n = 0; n < N; ++n) {
            auto sum = less(dot[n][0][t].sum());
            if constexpr (kL == 2) sum = S::sixteen_times(sum, less(dot[n][1][t].sum()));
            F product = S::to_float(sum);
            if constexpr (S::kBits == 8 && !S::kWeighed)
                product = S::mul(product, S::set1(bits_to_float(a.factor[at + t * nb])));
            acc[n][t] = S::fma(product, scale[n], acc[n][t]);
            if constexpr (kFold) acc[n][t] = S::fma(offset[n], S::set1(float_sums[sum_at(t)]), acc[n][t]);
        }
    }
    if constexpr (K::kMin) {
        F min[N];
        UNROLL for (int n = 0; n < N; ++n) min[n] = w[n].min(b, H);
        UNROLL for (int t = 0; t < T; ++t) {
            const F sum = S::set1(float_sums[sum_at(t)]);
            UNROLL for (int n = 0; n < N; ++n) acc[n][t] = S::fma(min[n], sum, acc[n][t]);
        }
    }
}

template <class S, class W, int N, int T>
PAGODA_INLINE void int_block(const W *w, const Quantized &a, int64_t t0, int64_t b, typename S::F (*acc)[T]) {
    int_half<S, W, N, T, 0>(w, a, t0, b, acc);
    if constexpr (W::K::kHalves == 2) int_half<S, W, N, T, 1>(w, a, t0, b, acc);
}

template <class S>
PAGODA_INLINE void finish(const GemmArgs &g, int64_t panel, int64_t t, typename S::F acc) {
    float *out = g.out + t * g.out_stride + panel * kPanelRows;
    if (g.scale != 1.0f) acc = S::mul(acc, S::set1(g.scale));
    if (g.bias) acc = S::add(acc, S::load(g.bias + panel * kPanelRows));
    if (g.accumulate) acc = S::add(acc, S::load(out));
    S::store(out, acc);
}

// Of N panels and T tokens that are computed a stretch of blocks at a time: what was summed before, [T][N][16], is taken up
// at the start of a stretch, and kept at its end or, at the last one's, finished.
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

constexpr int64_t kAhead = 16;  // blocks

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

constexpr int64_t kMaxGemmTokens = 4096;  // partial sums of so many tokens fit in the scratch
constexpr int64_t kStretch = 16;  // blocks that several tiles of tokens multiply one after the other, from the first-level cache

template <class S, class R, int T>
void direct_tile(const GemmArgs &g, const Packed<S, R> &w, int64_t p, int64_t t, int64_t begin, int64_t end) {
    float *kept = reinterpret_cast<float *>(g.scratch) + (t - g.token_begin) * 16;
    typename S::F acc[1][T];
    take_up<S, 1, T>(kept, begin == 0, acc);
    const uint8_t *ahead = g.weight->codes(p) + (begin + kAhead) * R::kCodeBytes;  // past its end the next panel begins
    for (int64_t b = begin; b < end; ++b, ahead += R::kCodeBytes) {
        UNROLL for (int i = 0; i < R::kCodeBytes; i += 64) __builtin_prefetch(ahead + i, 0, T <= 2 ? 3 : 2);
        int_block<S, Packed<S, R>, 1, T>(&w, g.act, t, b, acc);
    }
    keep<S, 1, T>(g, p, t, kept, end == g.weight->blocks, acc);
}

template <class S, class R>
void gemm_direct(const GemmArgs &g) {
    const int64_t blocks = g.weight->blocks, step = g.token_end - g.token_begin <= S::kDirectTile ? blocks : kStretch;
    for (int64_t p = g.panel_begin; p < g.panel_end; ++p) {
        const Packed<S, R> w{R(*g.weight, p)};
        for (int64_t begin = 0; begin < blocks; begin += step)
            for_tiles<S::kDirectTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) {
                direct_tile<S, R, size>(g, w, p, t, begin, std::min(begin + step, blocks));
            });
    }
}

template <class S, class K>
using FillFn = void (*)(const Weight &, int64_t panel, int64_t end, const Unpacked<S, K> &);

// Of whole tiles: kPanels panels times S::kTile tokens.
template <class S, class K>
void gemm_unpacked(const GemmArgs &g, FillFn<S, K> fill_from, int left) {
    using U = Unpacked<S, K>;
    constexpr int N = kPanels<S, K>, T = S::kTile;
    static_assert(N * (U::kBytes + kMaxGemmTokens * 64) <= kGemmScratch);
    float *partial = reinterpret_cast<float *>(g.scratch + N * U::kBytes);  // [tokens][N][16]
    const int64_t blocks = g.weight->blocks;
    for (int64_t p = g.panel_begin; p < g.panel_end; p += N)
        for (int64_t begin = 0; begin < blocks; begin += U::kBlocks) {
            const int64_t end = std::min(begin + U::kBlocks, blocks);
            U w[N];
            for (int n = 0; n < N; ++n) {
                w[n] = U(g.scratch + n * U::kBytes, begin, left);
                fill_from(*g.weight, p + n, end, w[n]);
            }
            for (int64_t t = g.token_begin; t < g.token_end; t += T) {
                float *kept = partial + (t - g.token_begin) * N * 16;
                typename S::F acc[N][T];
                take_up<S, N, T>(kept, begin == 0, acc);
                for (int64_t b = begin; b < end; ++b) {
                    if (t == g.token_begin) read_ahead<N>(*g.weight, p, b + U::kBlocks);
                    int_block<S, U, N, T>(w, g.act, t, b, acc);
                }
                keep<S, N, T>(g, p, t, kept, end == blocks, acc);
            }
        }
}

// Tiles that are not whole are left to gemm_direct.
template <class S, class R>
void gemm_int(const GemmArgs &g) {
    if constexpr (S::kUnpackTokens > 0) {
        using K = UnpackedKindOf<S, R>;
        const int64_t tokens = g.token_end - g.token_begin, panels = g.panel_end - g.panel_begin;
        if (tokens >= S::kUnpackTokens / K::kHalves) {  // with two scales a block, unpacking takes longer
            GemmArgs whole = g, rest = g;
            whole.panel_end = g.panel_end - panels % kPanels<S, K>;
            whole.token_end = g.token_end - tokens % S::kTile;
            gemm_unpacked<S, K>(whole, fill<S, R>, kUnpackedLeftOf<S, R>);
            rest.panel_begin = whole.panel_end;
            gemm_direct<S, R>(rest);
            rest = whole;
            rest.token_begin = whole.token_end;
            rest.token_end = g.token_end;
            return gemm_direct<S, R>(rest);
        }
    }
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
            UNROLL for (int i = 0; i < T; ++i) acc[i] = S::zero();
            for (int64_t k = 0; k < columns; ++k) {
                const auto row = R::template row16<S>(w + k * kPanelRows * R::kBytes);
                UNROLL for (int i = 0; i < T; ++i) acc[i] = S::fma(row, S::set1(x[i * g.x_stride + k]), acc[i]);
            }
            UNROLL for (int i = 0; i < T; ++i) finish<S>(g, p, t + i, acc[i]);
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
