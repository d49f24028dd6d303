// A panel's weights as plain numbers, for who multiplies by the transposed matrix: what training does on its way back.
// Included by kernels_gemm_*.cpp after kernels_gemm.inl.
//
// out[column][row] of the panel's 16 rows: the rows are lanes, so no weight moves. Vectors are the compiler's own, which
// become whatever the file's flags allow.

typedef uint32_t Lanes32 __attribute__((vector_size(64)));
typedef int32_t SignedLanes32 __attribute__((vector_size(64)));
typedef float FloatLanes __attribute__((vector_size(64)));
typedef uint16_t Lanes16 __attribute__((vector_size(32)));

// What the codes of 16 rows in the low byte of each quad stand for, before scales. Signed bytes, or looked up already,
// where Codes has no largest.
template <class Codes>
PAGODA_INLINE void code_lanes(const Lanes32 &quads, const Weight &w, FloatLanes &out) {
    const Lanes32 code = quads & 255u;
    if constexpr (requires { Codes::kFloats; }) {  // bits of a float32, but for the exponent's bias
        const Lanes32 bits = (code & 127u) << 20 | (code & 128u) << 24;
        std::memcpy(&out, &bits, 64);
        out *= 0x1p120f;
    } else if constexpr (Codes::kTables == 2) {
        for (int r = 0; r < 16; ++r) out[r] = static_cast<float>(w.codebook.at(static_cast<int>(code[r])));
    } else if constexpr (Codes::kMax < 0) {
        const SignedLanes32 high = reinterpret_cast<const SignedLanes32 &>(code) << 24;
        out = __builtin_convertvector(high >> 24, FloatLanes);
    } else {
        out = __builtin_convertvector(reinterpret_cast<const SignedLanes32 &>(code) - Codes::kOffset, FloatLanes);
    }
}

// Blocks [begin, end) of a panel.
template <class S, class B>
void unpack_blocks(const Weight &w, int64_t panel, int64_t begin, int64_t end, float *out) {
    using Codes = typename B::Codes;
    using Scales = typename B::Scales;
    constexpr int kQuads = 8 / Scales::kHalves;
    alignas(64) float scales[2 * 16], mins[2 * 16];
    for (int64_t b = begin; b < end; ++b) {
        const uint8_t *codes = w.codes(panel) + b * w.shape().codes;
        read_scales<S, Scales>(w, panel, b, b + 1, {scales, mins});
        unroll<8>([&](auto j) __attribute__((always_inline)) {
            constexpr int J = j, H = J / kQuads;
            auto q = quad<S, Codes::kBits, J>(codes);
            if constexpr (Codes::kTables == 1) q = S::lookup(w.table(), q);
            Lanes32 quads;
            S::store_b(&quads, q);
            FloatLanes scale, min;
            std::memcpy(&scale, scales + 16 * H, 64);
            if constexpr (Scales::kMin) std::memcpy(&min, mins + 16 * H, 64);
            float *to = out + 16 * (32 * (b - begin) + 4 * J);
            for (int c = 0; c < 4; ++c, quads >>= 8, to += 16) {
                FloatLanes x;
                code_lanes<Codes>(quads, w, x);
                x *= scale;
                if constexpr (Scales::kMin) x += min;
                std::memcpy(to, &x, 64);
            }
        });
    }
}

template <class S, class B>
void unpack_block_panel(const Weight &w, int64_t panel, float *out) {
    unpack_blocks<S, B>(w, panel, 0, w.blocks, out);
}

// The product of weights that no kernel multiplies as they are: a stretch of a panel is decoded, and meets all tokens.
template <class S, class B>
void gemm_decoded(const GemmArgs &g) {
    constexpr int64_t kBlocks = 8;
    const Weight &w = *g.weight;
    float *weights = reinterpret_cast<float *>(g.scratch), *kept = weights + kBlocks * 32 * 16;  // [tokens][16]
    for (int64_t p = g.panel_begin; p < g.panel_end; ++p)
        for (int64_t begin = 0; begin < w.blocks; begin += kBlocks) {
            const int64_t end = std::min(begin + kBlocks, w.blocks), columns = 32 * (end - begin);
            unpack_blocks<S, B>(w, p, begin, end, weights);
            for_tiles<S::kFloatTile>(g.token_begin, g.token_end, [&](auto size, int64_t t) __attribute__((always_inline)) {
                constexpr int T = size;
                typename S::F acc[T];
                const float *x = g.x + t * g.x_stride + 32 * begin;
                float *sums = kept + 16 * (t - g.token_begin);
                UNROLL for (int i = 0; i < T; ++i) acc[i] = begin == 0 ? S::zero() : S::load(sums + 16 * i);
                for (int64_t k = 0; k < columns; ++k) {
                    const auto row = S::load(weights + 16 * k);
                    UNROLL for (int i = 0; i < T; ++i) acc[i] = S::fma(row, S::set1(x[i * g.x_stride + k]), acc[i]);
                }
                UNROLL for (int i = 0; i < T; ++i) {
                    if (end == w.blocks) finish<S>(g, p, t + i, acc[i]);
                    else S::store(sums + 16 * i, acc[i]);
                }
            });
        }
}

template <class S, class R>
void unpack_float_panel(const Weight &w, int64_t panel, float *out) {
    const uint8_t *codes = w.codes(panel);
    for (int64_t k = 0; k < w.columns; ++k) S::store(out + 16 * k, R::template row16<S>(codes + k * kPanelRows * R::kBytes));
}

// To nearest even. A NaN may become another number: a weight that is none has made the way there NaN already.
inline void to_bfloat(const float *rows, int64_t n, uint16_t *out, int64_t stride) {
    for (int64_t i = 0; i < n; ++i, rows += 16, out += stride) {
        Lanes32 bits;
        std::memcpy(&bits, rows, 64);
        bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const Lanes16 halves = __builtin_convertvector(bits, Lanes16);
        std::memcpy(out, &halves, 32);
    }
}

template <class S>
void set_unpackers(Kernels &k) {
    k.to_bfloat = to_bfloat;
    k.unpack[static_cast<int>(Type::F32)] = unpack_float_panel<S, ReadF32>;
    k.unpack[static_cast<int>(Type::F16)] = unpack_float_panel<S, ReadF16>;
    k.unpack[static_cast<int>(Type::BF16)] = unpack_float_panel<S, ReadBF16>;
#define PAGODA_TYPE(name) k.unpack[static_cast<int>(Type::name)] = unpack_block_panel<S, blocks::PanelOf<blocks::name>>;
    PAGODA_BLOCK_TYPES(PAGODA_TYPE) PAGODA_DECODED_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
#define PAGODA_TYPE(name) k.gemm[static_cast<int>(Type::name)] = gemm_decoded<S, blocks::PanelOf<blocks::name>>;
    PAGODA_DECODED_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
}
