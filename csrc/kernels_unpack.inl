// A panel's weights as plain numbers, for who multiplies by the transposed matrix: what training does on its way back.
// Included by kernels_gemm_*.cpp after kernels_gemm.inl.
//
// out[column][row] of the panel's 16 rows, `stride` numbers from column to column: the rows are lanes, so no weight
// moves. Vectors are the compiler's own, which become whatever the file's flags allow.

typedef uint32_t Lanes32 __attribute__((vector_size(64)));
typedef int32_t SignedLanes32 __attribute__((vector_size(64)));
typedef float FloatLanes __attribute__((vector_size(64)));
typedef uint16_t Lanes16 __attribute__((vector_size(32)));

PAGODA_INLINE void put_lanes(float *to, const FloatLanes &x) { std::memcpy(to, &x, 64); }

// To nearest even. A NaN may become another number: a weight that is none has made the way there NaN already.
PAGODA_INLINE void put_lanes(uint16_t *to, const FloatLanes &x) {
    Lanes32 bits;
    std::memcpy(&bits, &x, 64);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Lanes16 halves = __builtin_convertvector(bits, Lanes16);
    std::memcpy(to, &halves, 32);
}

// What the codes of 16 rows in byte C of each quad stand for, before scales.
template <class Codes, int C>
PAGODA_INLINE void code_lanes(const uint8_t *quads, const Weight &w, FloatLanes &out) {
    Lanes32 v;
    std::memcpy(&v, quads, 64);
    if constexpr (Codes::kTables == 2) {
        for (int r = 0; r < 16; ++r) out[r] = static_cast<float>(w.codebook.at(quads[4 * r + C]));
    } else if constexpr (Codes::kMax < 0) {  // signed bytes, or looked up already
        const SignedLanes32 high = reinterpret_cast<const SignedLanes32 &>(v) << (24 - 8 * C);
        out = __builtin_convertvector(high >> 24, FloatLanes);
    } else {
        const Lanes32 code = (v >> (8 * C)) & 255u;
        out = __builtin_convertvector(reinterpret_cast<const SignedLanes32 &>(code) - Codes::kOffset, FloatLanes);
    }
}

template <class S, class B, class Number>
void unpack_block_panel(const Weight &w, int64_t panel, Number *out, int64_t stride) {
    using Codes = typename B::Codes;
    using Scales = typename B::Scales;
    constexpr int kQuads = 8 / Scales::kHalves;
    alignas(64) float scales[2 * 16], mins[2 * 16];
    alignas(64) uint8_t quads[64];
    for (int64_t b = 0; b < w.blocks; ++b) {
        const uint8_t *codes = w.codes(panel) + b * w.shape().codes;
        read_scales<S, Scales>(w, panel, b, b + 1, {scales, mins});
        unroll<8>([&](auto j) __attribute__((always_inline)) {
            constexpr int J = j, H = J / kQuads;
            auto q = quad<S, Codes::kBits, J>(codes);
            if constexpr (Codes::kTables == 1) q = S::lookup(B::kTable, q);
            S::store_b(quads, q);
            FloatLanes scale, min;
            std::memcpy(&scale, scales + 16 * H, 64);
            if constexpr (Scales::kMin) std::memcpy(&min, mins + 16 * H, 64);
            unroll<4>([&](auto c) __attribute__((always_inline)) {
                constexpr int C = c;
                FloatLanes x;
                code_lanes<Codes, C>(quads, w, x);
                x *= scale;
                if constexpr (Scales::kMin) x += min;
                put_lanes(out + (32 * b + 4 * J + C) * stride, x);
            });
        });
    }
}

template <class S, class R, class Number>
void unpack_float_panel(const Weight &w, int64_t panel, Number *out, int64_t stride) {
    const uint8_t *codes = w.codes(panel);
    for (int64_t k = 0; k < w.columns; ++k) {
        alignas(64) float row[16];
        S::store(row, R::template row16<S>(codes + k * kPanelRows * R::kBytes));
        FloatLanes x;
        std::memcpy(&x, row, 64);
        put_lanes(out + k * stride, x);
    }
}

template <class S>
void set_unpackers(Kernels &k) {
    const auto set = [&](Type type, auto to_float, auto to_bfloat) {
        k.unpack[static_cast<int>(type)] = to_float;
        k.unpack_bfloat[static_cast<int>(type)] = to_bfloat;
    };
    set(Type::F32, unpack_float_panel<S, ReadF32, float>, unpack_float_panel<S, ReadF32, uint16_t>);
    set(Type::F16, unpack_float_panel<S, ReadF16, float>, unpack_float_panel<S, ReadF16, uint16_t>);
    set(Type::BF16, unpack_float_panel<S, ReadBF16, float>, unpack_float_panel<S, ReadBF16, uint16_t>);
#define PAGODA_TYPE(name) \
    set(Type::name, unpack_block_panel<S, blocks::name, float>, unpack_block_panel<S, blocks::name, uint16_t>);
    PAGODA_BLOCK_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
}
