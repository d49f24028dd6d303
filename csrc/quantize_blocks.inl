// Blocks of 32 with one scale each. Without importance they are llama.cpp's to the byte: the same operations in the same
// order. With importance, and for IQ4_NL always, the scale is searched for.

struct Range { float low, high; };

template <class S>
PAGODA_INLINE float largest(typename S::F v) {
    alignas(64) float lanes[16];
    S::store(lanes, v);
    float m = lanes[0];
    for (int i = 1; i < 16; ++i) m = lanes[i] > m ? lanes[i] : m;
    return m;
}

template <class S>
PAGODA_INLINE Range range_of(const float *x) {
    const auto a = S::load(x), b = S::load(x + 16);
    Range r{-largest<S>(neg<S>(S::min(a, b))), largest<S>(S::max(a, b))};
    if (r.low == 0.0f)  // 0 or -0, whichever comes first
        for (int i = 31; i >= 0; --i)
            if (x[i] == 0.0f) r.low = x[i];
    if (r.high == 0.0f) r.high = r.low == 0.0f ? r.low : 0.0f;
    return r;
}

// The number of largest magnitude, the first of several.
template <class S>
PAGODA_INLINE float farthest(const float *x) {
    const Range r = range_of<S>(x);
    if (r.high > -r.low) return r.high;
    if (r.high < -r.low) return r.low;
    if (r.high == 0.0f) return 0.0f;
    for (int i = 0; i < 32; ++i)
        if (x[i] == r.high || x[i] == r.low) return x[i];
    return 0.0f;
}

template <class S>
PAGODA_INLINE typename S::F floor(typename S::F v) {
    const auto r = S::round(v);
    return S::below(v, r, S::sub(r, S::set1(1.0f)), r);
}

template <class S>
PAGODA_INLINE typename S::F round_half_away(typename S::F v) {
    const auto a = S::abs(v), r = S::round(a);
    const auto up = S::below(S::sub(a, r), S::set1(0.5f), r, S::add(r, S::set1(1.0f)));
    return S::below(v, S::zero(), neg<S>(up), up);
}

inline void put_nibbles(const uint8_t *q, uint8_t *out) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 16] << 4);
}

inline void put_fifth_bits(const uint8_t *q, uint8_t *out) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(q[i] >> 4 & 1) << i;
    std::memcpy(out, &bits, 4);
}

inline uint8_t *put_half(float v, uint8_t *out) {
    const uint16_t h = float_to_half(v);
    std::memcpy(out, &h, 2);
    return out + 2;
}

// scale[, min], [fifth bits], nibbles: how Q4_0, Q4_1, Q5_0, Q5_1 and IQ4_NL lie.
inline void put_block(Type type, float d, float m, const uint8_t *q, uint8_t *out) {
    out = put_half(d, out);
    if (type == Type::Q4_1 || type == Type::Q5_1) out = put_half(m, out);
    if (type == Type::Q5_0 || type == Type::Q5_1) {
        put_fifth_bits(q, out);
        out += 4;
    }
    put_nibbles(q, out);
}

template <class S>
void plain_q8_0(const float *x, uint8_t *out) {
    const auto a = S::load(x), b = S::load(x + 16);
    const float d = largest<S>(S::max(S::abs(a), S::abs(b))) / 127.0f;
    const auto id = S::set1(d != 0.0f ? 1.0f / d : 0.0f);
    int8_t *q = reinterpret_cast<int8_t *>(put_half(d, out));
    S::store_i8(q, round_half_away<S>(S::mul(a, id)));
    S::store_i8(q + 16, round_half_away<S>(S::mul(b, id)));
}

template <class S, int Half>
void plain_symmetric(Type type, const float *x, uint8_t *out) {  // Q4_0, Q5_0
    const float d = farthest<S>(x) / -float(Half);
    const auto id = S::set1(d != 0.0f ? 1.0f / d : 0.0f), top = S::set1(float(2 * Half - 1));
    int8_t q[32];
    for (int h = 0; h < 32; h += 16) {
        const auto v = S::add(S::mul(S::load(x + h), id), S::set1(float(Half) + 0.5f));
        S::store_i8(q + h, S::max(S::zero(), S::min(top, floor<S>(v))));
    }
    put_block(type, d, 0.0f, reinterpret_cast<const uint8_t *>(q), out);
}

template <class S, int Max>
void plain_affine(Type type, const float *x, uint8_t *out) {  // Q4_1, Q5_1
    const Range r = range_of<S>(x);
    const float d = (r.high - r.low) / float(Max);
    const auto id = S::set1(d != 0.0f ? 1.0f / d : 0.0f), low = S::set1(r.low), top = S::set1(float(Max));
    int8_t q[32];
    for (int h = 0; h < 32; h += 16) {
        const auto v = S::add(S::mul(S::sub(S::load(x + h), low), id), S::set1(0.5f));
        S::store_i8(q + h, S::max(S::zero(), S::min(top, floor<S>(v))));
    }
    put_block(type, d, r.low, reinterpret_cast<const uint8_t *>(q), out);
}

template <class S>
PAGODA_INLINE typename S::F through_half(typename S::F v) {
    alignas(64) float lanes[16];
    S::store(lanes, v);
    for (float &f : lanes) f = half_to_float(float_to_half(f));
    return S::load(lanes);
}

// 16 blocks, lane by lane, from their codes [32][16] and scales.
template <class S>
void put_blocks(Type type, int count, typename S::F d, typename S::F m, const int8_t (*q)[16], uint8_t *out) {
    alignas(64) float scales[16], minima[16];
    S::store(scales, d);
    S::store(minima, m);
    for (int g = 0; g < count; ++g) {
        uint8_t codes[32];
        for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(q[i][g]);
        put_block(type, scales[g], minima[g], codes, out + g * info(type).bytes);
    }
}

template <class S, class Codes>
void searched_symmetric(Type type, int count, Groups<S, 32> &g, float step, int steps, uint8_t *out) {
    using F = typename S::F;
    using Fit = Symmetric<S, 32, Codes>;
    const F scale = through_half<S>(Fit::search(g, -step * float(steps / 2), step, steps, 3));
    const F inverse = reciprocal<S>(scale);
    int8_t q[32][16];
    for (int i = 0; i < 32; ++i) S::store_i8(q[i], Codes::index(S::mul(g.x[i], inverse)));
    put_blocks<S>(type, count, scale, S::zero(), q, out);
}

template <class S, int Max>
void searched_affine(Type type, int count, Groups<S, 32> &g, uint8_t *out) {
    using F = typename S::F;
    using Fit = Affine<S, 32, Max>;
    const Fit fit = Fit::template search<false>(g, -0.9f, 0.1f, 20, 3);
    const F scale = through_half<S>(fit.scale), min = through_half<S>(fit.min), inverse = reciprocal<S>(scale);
    int8_t q[32][16];
    for (int i = 0; i < 32; ++i) S::store_i8(q[i], Fit::code(g.x[i], min, inverse));
    put_blocks<S>(type, count, scale, min, q, out);
}
