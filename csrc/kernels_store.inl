// Keys and values into the KV cache. Included by kernels.inl.

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

// Bounds that keep sums of products of codes within 32 bits: see kernels_attend_codes.inl.
constexpr float kLongest = 46300.0f;         // (kLongest + sqrt(kMaxHeadDim) / 2)^2 < 2^31
constexpr float kLargest16 = 32767.0f;
constexpr float kLargestValue = 16383.0f;
constexpr float kLargestSum = 130000.0f;     // (kLargestSum + 256 / 2) * kLargestValue < 2^31
constexpr float kLargestStored = 1e15f;      // of what is stored; its square is finite

// value = scale * code; of numbers that are not finite the scale is NaN.
struct CodeScale {
    float scale, inverse;
    PAGODA_INLINE explicit CodeScale(float least) : scale(least), inverse(0.0f) {
        if (!std::isfinite(least)) scale = NAN;
        else if (least > 1e-30f) inverse = 1.0f / least;
    }
};

// 16 numbers of a row of n from `at` on, zeros beyond it.
template <class S>
PAGODA_INLINE typename S::F row_part(const float *x, int at, int n) {
    if (at + 16 <= n) return S::load(x + at);
    float part[16] = {};
    std::memcpy(part, x + at, static_cast<size_t>(n - at) * 4);
    return S::load(part);
}

// As what is stored: NaN becomes the largest, too.
template <class S>
PAGODA_INLINE typename S::F within(typename S::F x, float limit) {
    const auto top = S::set1(limit);
    return S::max(S::below(x, top, x, top), S::sub(S::zero(), top));
}

// The scale of a row of numbers that part(d) gives 16 at a time, so that its codes are at most kLongest long.
template <class S, class Part>
PAGODA_INLINE CodeScale scale_by_length(int n, Part &&part) {
    auto largest = S::zero(), squares = S::zero();
    for (int d = 0; d < n; d += 16) {
        const auto v = part(d);
        largest = S::max(largest, S::abs(v));
        squares = S::fma(v, v, squares);
    }
    const float by_length = std::sqrt(lanes_sum<S>(squares)) / kLongest, by_size = lanes_max<S>(largest) / kLargest16;
    return CodeScale(by_length < by_size ? by_size : by_length);
}

template <class S>
PAGODA_INLINE typename S::I codes_of(typename S::F x, const CodeScale &scale) {
    return S::round_int(S::mul(x, S::set1(scale.inverse)));
}

// Codes of 16 bits. A block keeps K as [pairs of columns][16 tokens][2] and V as [8 pairs of tokens][padded][2].
template <class S>
void store_kv_codes(const float *k, const float *v, int head_dim, int slot, uint8_t *k_to, uint8_t *v_to, float *k_scale,
                    float *v_scale) {
    const auto of = [&](const float *x, int d) { return within<S>(row_part<S>(x, d, head_dim), kLargestStored); };
    const CodeScale by_length = scale_by_length<S>(head_dim, [&](int d) { return of(k, d); });
    auto largest = S::zero();
    for (int d = 0; d < head_dim; d += 16) largest = S::max(largest, S::abs(of(v, d)));
    const CodeScale by_size(lanes_max<S>(largest) / kLargestValue);
    int16_t codes[16], *to = reinterpret_cast<int16_t *>(v_to) + slot / 2 * round_up(head_dim, 16) * 2 + slot % 2;
    for (int d = 0; d < head_dim; d += 16) {
        S::store_i16(codes, codes_of<S>(of(k, d), by_length));
        for (int i = 0; i < 16 && d + i < head_dim; i += 2)
            std::memcpy(k_to + ((d + i) / 2 * kBlockTokens + slot) * 4, codes + i, 4);
        const auto values = codes_of<S>(of(v, d), by_size);
        if (d + 16 <= head_dim) {
            S::store_every_other(to + 2 * d, values);
        } else {
            S::store_i16(codes, values);
            for (int i = 0; d + i < head_dim; ++i) to[2 * (d + i)] = codes[i];
        }
    }
    k_scale[slot] = by_length.scale;
    v_scale[slot] = by_size.scale;
}

PAGODA_INLINE float largest_magnitude(const float *x, int n) {
    float m = 0.0f;
    for (int i = 0; i < n; ++i) m = std::fabs(x[i]) > m ? std::fabs(x[i]) : m;
    return finite(m, 1e30f);
}

// A block keeps K as [head_dim][16 tokens] and V as [16 tokens][head_dim padded to 16], but for codes of 16 bits.
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
        case KVType::Int16:
            store_kv_codes<S>(k, v, head_dim, slot, k_to, v_to, k_scale, v_scale);
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
