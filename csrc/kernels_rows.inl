// Kernels that work on one row at a time: quantize, norms, activations, rope. Included by kernels.inl.

// exp(r) to about 1 ulp for |r| <= ln(2) / 2: a polynomial of degree 6.
template <class S>
PAGODA_INLINE typename S::F exp_of_rest(typename S::F r) {
    typename S::F p = S::set1(1.9875691500e-4f);
    p = S::fma(p, r, S::set1(1.3981999507e-3f));
    p = S::fma(p, r, S::set1(8.3334519073e-3f));
    p = S::fma(p, r, S::set1(4.1665795894e-2f));
    p = S::fma(p, r, S::set1(1.6666665459e-1f));
    p = S::fma(p, r, S::set1(5.0000001201e-1f));
    return S::fma(p, S::mul(r, r), S::add(r, S::set1(1.0f)));
}

// What is left of x without n times ln(2), by Cody and Waite.
template <class S>
PAGODA_INLINE typename S::F without_powers(typename S::F x, typename S::F n) {
    const auto r = S::fma(n, S::set1(-0.693359375f), x);
    return S::fma(n, S::set1(2.12194440e-4f), r);
}

// The least x that exp_within takes, which it makes 0 of.
template <class S>
constexpr float kLeastOfExp = requires(typename S::F x) { S::times_pow2(x, x); }     ? -104.0f
                              : requires(typename S::F x) { S::pow2_of_low_bits(x); } ? -88.0f
                                                                                     : -87.5f;

// exp(x) to about 1 ulp for x from -87 to 88, 0 far below.
template <class S>
PAGODA_INLINE typename S::F exp_within(typename S::F x) {
    using F = typename S::F;
    const F log2e = S::set1(1.44269504088896341f);
    if constexpr (requires { S::pow2_of_low_bits(x); }) {
        constexpr float kBiased = 0x1.8p23f + 127.0f;  // added, leaves a whole number and an exponent's bias in the low bits
        const F biased = S::fma(x, log2e, S::set1(kBiased)), n = S::sub(biased, S::set1(kBiased));
        return S::mul(exp_of_rest<S>(without_powers<S>(x, n)), S::pow2_of_low_bits(biased));
    } else {
        const F n = S::round(S::mul(x, log2e)), p = exp_of_rest<S>(without_powers<S>(x, n));
        if constexpr (requires { S::times_pow2(x, x); }) return S::times_pow2(p, n);  // which makes 0 of what is too small
        else return S::below(x, S::set1(-87.0f), S::zero(), S::mul(p, S::pow2(n)));
    }
}

template <class S>
PAGODA_INLINE typename S::F exp_of_negative(typename S::F x) {  // x <= 0; NaN stays NaN
    return exp_within<S>(S::max(S::set1(kLeastOfExp<S>), x));
}

template <class S>
PAGODA_INLINE typename S::F exp(typename S::F x) {
    return exp_of_negative<S>(S::min(S::set1(88.0f), x));
}

template <class S>
PAGODA_INLINE typename S::F sigmoid(typename S::F x) {
    const auto one = S::set1(1.0f), below = S::add(one, exp<S>(S::sub(S::zero(), x)));
    if constexpr (requires { S::reciprocal(x); }) return S::reciprocal(below);
    else return S::div(one, below);
}

template <class S>
PAGODA_INLINE typename S::F tanh(typename S::F x) {  // 2 sigmoid(2x) - 1
    const auto two = S::set1(2.0f);
    return S::fma(two, sigmoid<S>(S::mul(two, x)), S::set1(-1.0f));
}

// The lanes' sum, as a fixed tree.
template <class S>
PAGODA_INLINE float lanes_sum(typename S::F x) {
    if constexpr (requires { S::reduce_add(x); }) return S::reduce_add(x);
    float v[16];
    S::store(v, x);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) v[i] += v[i + width];
    return v[0];
}

template <class S>
PAGODA_INLINE float lanes_max(typename S::F x) {
    if constexpr (requires { S::reduce_max(x); }) return S::reduce_max(x);
    float v[16];
    S::store(v, x);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) v[i] = v[i + width] > v[i] ? v[i + width] : v[i];
    return v[0];
}

// The largest magnitude of a row whose length is a multiple of 32, or something that is not finite where a value is not.
template <class S>
PAGODA_INLINE float row_top(const float *x, int64_t n) {
    auto largest = S::zero(), nothing = S::zero();
    for (int64_t i = 0; i < n; i += 32) {
        const auto x0 = S::load(x + i), x1 = S::load(x + i + 16);
        largest = S::max(S::max(S::abs(x0), S::abs(x1)), largest);
        nothing = S::fma(S::add(x0, x1), S::zero(), nothing);  // NaN once a value is not finite
    }
    return lanes_max<S>(largest) + lanes_sum<S>(nothing);
}

// The largest lane of each of 16 vectors, side by side; and the sum of each one's lanes.
template <class S>
PAGODA_INLINE typename S::F largest_of_each(const typename S::F (&x)[16]) {
    if constexpr (requires { S::largest_of_each(x); }) return S::largest_of_each(x);
    float largest[16];
    for (int i = 0; i < 16; ++i) largest[i] = lanes_max<S>(x[i]);
    return S::load(largest);
}
template <class S>
PAGODA_INLINE typename S::I sum_of_each(const typename S::I (&x)[16]) {
    if constexpr (requires { S::sum_of_each(x); }) return S::sum_of_each(x);
    int32_t sums[16];
    typename S::I all;
    for (int i = 0; i < 16; ++i) sums[i] = S::sum_int(x[i]);
    static_assert(sizeof all == sizeof sums);
    std::memcpy(&all, sums, sizeof all);
    return all;
}

constexpr int64_t kHalves = 16;  // of blocks, that quantizers work on at a time: sums and scales of 256 columns are a vector

// The sums of blocks from `at` on: those of the codes of `halves` halves of blocks, and what they are to be multiplied by.
template <class S, class Halves>
PAGODA_INLINE void store_sums(const Quantized &to, int64_t at, Halves halves, const typename S::I (&codes)[kHalves],
                              const typename S::F &factors) {
    const auto sums = sum_of_each<S>(codes);
    const auto floats = S::to_float(sums);  // exact: below 2^24
    if constexpr (requires { S::store_even_lanes(to.sum32, sums); } && !std::is_same_v<Halves, int64_t>) {
        const auto both = S::add(floats, S::swap_pairs(floats));
        std::memcpy(to.sum16 + 2 * at, &sums, sizeof sums);
        S::store(to.float16 + 2 * at, S::mul(floats, factors));
        S::store_even_lanes(to.sum32 + at, S::round_int(both));
        S::store_even_lanes(to.float32 + at, S::mul(both, factors));
        return;
    }
    int32_t s[kHalves];
    float factor[kHalves];
    std::memcpy(s, &sums, sizeof s);
    S::store(factor, factors);
    for (int64_t i = 0; i < halves; ++i) {
        to.sum16[2 * at + i] = s[i];
        to.float16[2 * at + i] = static_cast<float>(s[i]) * factor[i];
    }
    for (int64_t i = 0; i < halves / 2; ++i) {
        to.sum32[at + i] = s[2 * i] + s[2 * i + 1];
        to.float32[at + i] = static_cast<float>(to.sum32[at + i]) * factor[2 * i];
    }
}

// Calls fn(first half, number of halves) for stretches of a row of n columns; the number is a constant but at the end.
template <class Fn>
PAGODA_INLINE void for_stretches(int64_t n, Fn &&fn) {
    int64_t i = 0;
    for (; i + 16 * kHalves <= n; i += 16 * kHalves) fn(i, std::integral_constant<int64_t, kHalves>{});
    if (i < n) fn(i, (n - i) / 16);
}

// code = round(x / scale), scale = max|x| / kLargestCode. A row that is not finite gets a scale of NaN, and so do its
// products.
template <class S>
void quantize(const float *x, int64_t n, const Quantized &to, int64_t token) {
    const float top = row_top<S>(x, n);
    const bool finite = std::isfinite(top);
    to.scale[token] = finite ? top / kLargestCode : NAN;
    const auto inverse = S::set1(finite && top > 1e-30f ? kLargestCode / top : 0.0f);
    uint8_t *q = to.q + token * 2 * n;
    for_stretches(n, [&](int64_t i, auto halves) __attribute__((always_inline)) {
        typename S::I codes[kHalves];
        UNROLL for (int64_t h = 0; h < kHalves; ++h) {
            codes[h] = S::zero_int();
            if (h >= halves) continue;
            codes[h] = S::round_int(S::mul(S::load(x + i + 16 * h), inverse));
            S::store_quads(q + 2 * (i + 16 * h), codes[h]);
        }
        store_sums<S>(to, token * (n / 32) + i / 32, halves, codes, S::set1(1.0f));
    });
}

// code = round(x / (scale * factor)), scale = max|x| / (127 * 16383), and the least factor that keeps 32 codes in a byte.
template <class S>
void quantize8(const float *x, int64_t n, const Quantized &to, int64_t token) {
    const float top = row_top<S>(x, n);
    const bool finite = std::isfinite(top), usable = finite && top > 1e-30f;
    to.scale[token] = finite ? top / (kLargestByte * kLargestFactor) : NAN;
    const float steps = usable ? kLargestFactor / top : 0.0f;
    uint8_t *q = to.q + token * n;
    for_stretches(n, [&](int64_t i, auto halves) __attribute__((always_inline)) {
        const int64_t at = token * (n / 32) + i / 32;
        typename S::F size[kHalves];
        UNROLL for (int64_t h = 0; h < kHalves; ++h)
            size[h] = h < halves && usable ? S::abs(S::load(x + i + 16 * h)) : S::zero();
        const auto of_halves = largest_of_each<S>(size);
        const auto most = S::mul(S::max(of_halves, S::swap_pairs(of_halves)), S::set1(steps));
        const auto near = S::round(most), one = S::set1(1.0f);
        const auto factors = S::max(S::below(near, most, S::add(near, one), near), one);  // most, rounded up
        float factor[kHalves], inverse[kHalves];
        S::store(factor, factors);
        S::store(inverse, S::div(S::set1(steps * kLargestByte), factors));
        typename S::I codes[kHalves];
        UNROLL for (int64_t h = 0; h < kHalves; ++h) {
            codes[h] = S::zero_int();
            if (h >= halves) continue;
            const auto code = S::round(S::mul(S::load(x + i + 16 * h), S::set1(inverse[h])));
            S::store_i8(reinterpret_cast<int8_t *>(q + i + 16 * h), code);
            codes[h] = S::round_int(code);
        }
        for (int64_t b = 0; b < halves / 2; ++b) to.factor[at + b] = S::factor(static_cast<int>(factor[2 * b]));
        store_sums<S>(to, at, halves, codes, factors);
    });
}

template <class S>
void rms_norm(const float *x, const float *weight, float eps, int64_t n, float *out) {
    auto squares = S::zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) squares = S::fma(S::load(x + i), S::load(x + i), squares);
    float sum = lanes_sum<S>(squares);
    for (; i < n; ++i) sum += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    const auto f = S::set1(factor);
    for (i = 0; i + 16 <= n; i += 16) S::store(out + i, S::mul(S::mul(S::load(x + i), f), S::load(weight + i)));
    for (; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

template <class S>
void layer_norm(const float *x, const float *weight, const float *bias, float eps, int64_t n, float *out) {
    auto sums = S::zero(), squares = S::zero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sums = S::add(sums, S::load(x + i));
    float sum = lanes_sum<S>(sums);
    for (; i < n; ++i) sum += x[i];
    const float mean = sum / static_cast<float>(n);
    const auto m = S::set1(mean);
    for (i = 0; i + 16 <= n; i += 16) {
        const auto away = S::sub(S::load(x + i), m);
        squares = S::fma(away, away, squares);
    }
    float square = lanes_sum<S>(squares);
    for (; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt(square / static_cast<float>(n) + eps);
    const auto f = S::set1(factor);
    for (i = 0; i + 16 <= n; i += 16)
        S::store(out + i, S::fma(S::mul(S::sub(S::load(x + i), m), f), S::load(weight + i), S::load(bias + i)));
    for (; i < n; ++i) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

constexpr float kSwigluLimit = 7.0f, kSwigluAlpha = 1.702f;  // gpt-oss's

template <class S>
PAGODA_INLINE typename S::F activate(typename S::F x, Activation kind) {
    if (kind == Activation::Silu) return S::mul(x, sigmoid<S>(x));
    if (kind == Activation::Sigmoid) return sigmoid<S>(x);
    if (kind == Activation::ClampedSwiglu) {  // with y = min(x, 7): y * sigmoid(1.702 y)
        const auto y = S::min(S::set1(kSwigluLimit), x);
        return S::mul(y, sigmoid<S>(S::mul(S::set1(kSwigluAlpha), y)));
    }
    if (kind == Activation::GeluTanh) {  // x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
        const auto cube = S::mul(S::mul(x, x), x);
        const auto inner = S::fma(S::set1(0.044715f), cube, x);
        return S::mul(x, sigmoid<S>(S::mul(S::set1(1.5957691216057308f), inner)));
    }
    if (kind == Activation::Relu2) {
        const auto positive = S::max(x, S::zero());
        return S::mul(positive, positive);
    }
    // max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, with erfc within 1.5e-7: Abramowitz and Stegun, 7.1.26
    const auto size = S::abs(x), z = S::mul(size, S::set1(0.70710678118654752f));
    const auto t = S::div(S::set1(1.0f), S::fma(S::set1(0.3275911f), z, S::set1(1.0f)));
    auto p = S::fma(S::set1(1.061405429f), t, S::set1(-1.453152027f));
    p = S::fma(p, t, S::set1(1.421413741f));
    p = S::fma(p, t, S::set1(-0.284496736f));
    p = S::mul(S::fma(p, t, S::set1(0.254829592f)), t);
    const auto erfc = S::mul(p, exp<S>(S::sub(S::zero(), S::mul(z, z))));
    return S::sub(S::max(x, S::zero()), S::mul(size, S::mul(S::set1(0.5f), erfc)));
}

template <class S>
void activated(const float *x, Activation kind, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) S::store(out + i, activate<S>(S::load(x + i), kind));
    if (i < n) {
        float v[16] = {};
        std::memcpy(v, x + i, static_cast<size_t>(n - i) * 4);
        S::store(v, activate<S>(S::load(v), kind));
        std::memcpy(out + i, v, static_cast<size_t>(n - i) * 4);
    }
}

// What the activated gate is multiplied by: up itself, or, clamped to [-7, 7], one more.
template <class S>
PAGODA_INLINE typename S::F beside_gate(typename S::F up, Activation kind) {
    if (kind != Activation::ClampedSwiglu) return up;
    return S::add(S::max(S::set1(-kSwigluLimit), S::min(S::set1(kSwigluLimit), up)), S::set1(1.0f));
}

template <class S>
void gated(const float *gate, const float *up, Activation kind, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        S::store(out + i, S::mul(activate<S>(S::load(gate + i), kind), beside_gate<S>(S::load(up + i), kind)));
    if (i < n) {
        float g[16] = {}, u[16] = {}, o[16];
        std::memcpy(g, gate + i, static_cast<size_t>(n - i) * 4);
        std::memcpy(u, up + i, static_cast<size_t>(n - i) * 4);
        S::store(o, S::mul(activate<S>(S::load(g), kind), beside_gate<S>(S::load(u), kind)));
        std::memcpy(out + i, o, static_cast<size_t>(n - i) * 4);
    }
}

template <class S>
void add(float *x, const float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) S::store(x + i, S::add(S::load(x + i), S::load(y + i)));
    for (; i < n; ++i) x[i] += y[i];
}

// out[i] = x[i] cos + x[partner of i] (-sin or sin): `turn` holds [rotary_dim] cosines and as many signed sines, as the
// elements of a head take them.
template <class S>
void rope(float *x, const float *turn, int rotary_dim, bool neox) {
    const float *c = turn, *s = turn + rotary_dim;
    const int half = rotary_dim / 2;
    const auto turned = [&](auto at, auto partner, int i) __attribute__((always_inline)) {
        return S::add(S::mul(at, S::load(c + i)), S::mul(partner, S::load(s + i)));
    };
    int i = 0;
    if (neox) {
        for (; i + 16 <= half; i += 16) {
            const auto a = S::load(x + i), b = S::load(x + half + i);
            S::store(x + i, turned(a, b, i));
            S::store(x + half + i, turned(b, a, half + i));
        }
        for (; i < half; ++i) {
            const float a = x[i], b = x[half + i];
            x[i] = a * c[i] + b * s[i];
            x[half + i] = b * c[half + i] + a * s[half + i];
        }
        return;
    }
    for (; i + 16 <= rotary_dim; i += 16) {
        const auto v = S::load(x + i);
        S::store(x + i, turned(v, S::swap_pairs(v), i));
    }
    for (; i < rotary_dim; i += 2) {
        const float a = x[i], b = x[i + 1];
        x[i] = a * c[i] + b * s[i];
        x[i + 1] = b * c[i + 1] + a * s[i + 1];
    }
}
