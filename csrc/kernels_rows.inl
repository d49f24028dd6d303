// Kernels that work on one row at a time: quantize, norms, activations, rope, KV store. Included by kernels.inl.
// Included by kernels.inl.

// exp(x) to about 1 ulp in [-87, 88], 0 below: Cody-Waite reduction and a degree-6 polynomial.
template <class S>
PAGODA_INLINE typename S::F exp(typename S::F x) {
    using F = typename S::F;
    const F low = S::set1(-87.0f);
    const F clamped = S::max(S::min(x, S::set1(88.0f)), low);
    const F n = S::round(S::mul(clamped, S::set1(1.44269504088896341f)));
    F r = S::fma(n, S::set1(-0.693359375f), clamped);
    r = S::fma(n, S::set1(2.12194440e-4f), r);
    F p = S::set1(1.9875691500e-4f);
    p = S::fma(p, r, S::set1(1.3981999507e-3f));
    p = S::fma(p, r, S::set1(8.3334519073e-3f));
    p = S::fma(p, r, S::set1(4.1665795894e-2f));
    p = S::fma(p, r, S::set1(1.6666665459e-1f));
    p = S::fma(p, r, S::set1(5.0000001201e-1f));
    p = S::fma(p, S::mul(r, r), S::add(r, S::set1(1.0f)));
    return S::below(x, low, S::zero(), S::mul(p, S::pow2(n)));
}

template <class S>
PAGODA_INLINE typename S::F sigmoid(typename S::F x) {
    const auto one = S::set1(1.0f);
    return S::div(one, S::add(one, exp<S>(S::sub(S::zero(), x))));
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

// The sums of block `at` from those of its halves' codes.
PAGODA_INLINE void store_sums(const Quantized &to, int64_t at, int32_t s0, int32_t s1, int factor) {
    to.sum32[at] = s0 + s1;
    to.sum16[2 * at] = s0;
    to.sum16[2 * at + 1] = s1;
    to.float32[at] = static_cast<float>(factor * (s0 + s1));
    to.float16[2 * at] = static_cast<float>(factor * s0);
    to.float16[2 * at + 1] = static_cast<float>(factor * s1);
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
    for (int64_t i = 0; i < n; i += 32) {
        const auto c0 = S::round_int(S::mul(S::load(x + i), inverse)), c1 = S::round_int(S::mul(S::load(x + i + 16), inverse));
        S::store_quads(q + 2 * i, c0);
        S::store_quads(q + 2 * i + 32, c1);
        store_sums(to, token * (n / 32) + i / 32, S::sum_int(c0), S::sum_int(c1), 1);
    }
}

// code = round(x / (scale * factor)), scale = max|x| / (127 * 16383), and the least factor that keeps 32 codes in a byte.
template <class S>
void quantize8(const float *x, int64_t n, const Quantized &to, int64_t token) {
    const float top = row_top<S>(x, n);
    const bool finite = std::isfinite(top), usable = finite && top > 1e-30f;
    to.scale[token] = finite ? top / (kLargestByte * kLargestFactor) : NAN;
    const float steps = usable ? kLargestFactor / top : 0.0f;
    uint8_t *q = to.q + token * n;
    for (int64_t i = 0; i < n; i += 32) {
        const auto x0 = S::load(x + i), x1 = S::load(x + i + 16);
        const float most = usable ? lanes_max<S>(S::max(S::abs(x0), S::abs(x1))) : 0.0f;
        const int factor = std::max(static_cast<int>(std::ceil(most * steps)), 1);
        const auto inverse = S::set1(steps * kLargestByte / static_cast<float>(factor));
        const auto c0 = S::round(S::mul(x0, inverse)), c1 = S::round(S::mul(x1, inverse));
        S::store_i8(reinterpret_cast<int8_t *>(q + i), c0);
        S::store_i8(reinterpret_cast<int8_t *>(q + i + 16), c1);
        const int64_t at = token * (n / 32) + i / 32;
        store_sums(to, at, S::sum_int(S::round_int(c0)), S::sum_int(S::round_int(c1)), factor);
        to.factor[at] = S::factor(factor);
    }
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

// What is stored stays finite: a later reader multiplies masked slots by zero, and zero times infinity is NaN.
PAGODA_INLINE float finite(float x, float limit) { return x < limit ? (x > -limit ? x : -limit) : limit; }

template <class Store>
PAGODA_INLINE void store_kv_as(const float *k, const float *v, int head_dim, int slot, uint8_t *k_to, uint8_t *v_to,
                               float limit, Store convert) {
    using E = decltype(convert(0.0f));
    E *kt = reinterpret_cast<E *>(k_to), *vt = reinterpret_cast<E *>(v_to);
    const int64_t padded = round_up(head_dim, 16);
    for (int d = 0; d < head_dim; ++d) kt[d * kBlockTokens + slot] = convert(finite(k[d], limit));
    for (int d = 0; d < head_dim; ++d) vt[slot * padded + d] = convert(finite(v[d], limit));
}

template <class S>
PAGODA_INLINE void store_kv_half(const float *k, const float *v, int head_dim, int slot, uint8_t *k_to, uint8_t *v_to) {
    uint16_t *kt = reinterpret_cast<uint16_t *>(k_to), *vt = reinterpret_cast<uint16_t *>(v_to) + slot * round_up(head_dim, 16);
    const auto top = S::set1(65504.0f), bottom = S::set1(-65504.0f);
    const auto halves = [&](const float *x, uint16_t *to) __attribute__((always_inline)) {
        const auto v = S::load(x);
        S::store_half(to, S::max(S::below(v, top, v, top), bottom));  // NaN becomes the largest, too
    };
    int d = 0;
    for (; d + 16 <= head_dim; d += 16) {
        uint16_t column[16];
        halves(k + d, column);
        for (int i = 0; i < 16; ++i) kt[(d + i) * kBlockTokens + slot] = column[i];
        halves(v + d, vt + d);
    }
    for (; d < head_dim; ++d) {
        kt[d * kBlockTokens + slot] = float_to_half(finite(k[d], 65504.0f));
        vt[d] = float_to_half(finite(v[d], 65504.0f));
    }
}

PAGODA_INLINE float largest_magnitude(const float *x, int n) {
    float m = 0.0f;
    for (int i = 0; i < n; ++i) m = std::fabs(x[i]) > m ? std::fabs(x[i]) : m;
    return finite(m, 1e30f);
}

// A block keeps K as [head_dim][16 tokens] and V as [16 tokens][head_dim padded to 16].
template <class S>
void store_kv(const float *k, const float *v, int head_dim, int slot, KVType type, uint8_t *k_to, uint8_t *v_to,
              float *k_scale, float *v_scale) {
    switch (type) {
        case KVType::F32:
            store_kv_as(k, v, head_dim, slot, k_to, v_to, 3e38f, [](float x) { return x; });
            break;
        case KVType::F16:
            store_kv_half<S>(k, v, head_dim, slot, k_to, v_to);
            break;
        case KVType::BF16:
            store_kv_as(k, v, head_dim, slot, k_to, v_to, 3e38f, [](float x) { return float_to_bfloat(x); });
            break;
        case KVType::Int8: {
            const float ks = largest_magnitude(k, head_dim) / 127.0f, vs = largest_magnitude(v, head_dim) / 127.0f;
            const float ki = ks > 0.0f ? 1.0f / ks : 0.0f, vi = vs > 0.0f ? 1.0f / vs : 0.0f;
            int8_t *kt = reinterpret_cast<int8_t *>(k_to), *vt = reinterpret_cast<int8_t *>(v_to);
            const int64_t padded = round_up(head_dim, 16);
            const auto code = [](float x) { return static_cast<int8_t>(std::nearbyint(finite(x, 127.0f))); };
            for (int d = 0; d < head_dim; ++d) kt[d * kBlockTokens + slot] = code(k[d] * ki);
            for (int d = 0; d < head_dim; ++d) vt[slot * padded + d] = code(v[d] * vi);
            k_scale[slot] = ks;
            v_scale[slot] = vs;
            break;
        }
    }
}
