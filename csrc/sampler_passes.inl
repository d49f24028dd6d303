// The passes for vectors of kWidth floats. Included by sampler_passes.cpp once for each instruction set, inside its
// namespace and compiled for it; no include guard. Logical lanes are 16 whatever the width, so sums are the same.

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));

constexpr size_t kVectors = kBlock / kWidth;     // in one block
constexpr size_t kLaneVectors = kLanes / kWidth;  // in one set of logical lanes

inline Floats load(const float *x) {
    Floats v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

inline void store(float *x, Floats v) { std::memcpy(x, &v, sizeof v); }

inline Floats broadcast(float x) { return Floats{} + x; }

inline Floats greater_of(Floats a, Floats b) { return a > b ? a : b; }

inline Floats exp2_nonpositive(Floats t) {
    t = greater_of(t, broadcast(kLowest));
    const Floats shifted = t + kRound;
    const Floats r = t - (shifted - kRound);
    const Floats r2 = r * r;
    const Floats high = (kExp2[2] + kExp2[3] * r) + r2 * (kExp2[4] + kExp2[5] * r);
    const Floats y = (kExp2[0] + kExp2[1] * r) + r2 * high;
    return (Floats)((Ints)y + ((Ints)shifted << 23));
}

inline Floats weigh(Floats x, Scale scale) { return exp2_nonpositive((x - scale.max) * scale.slope); }

inline size_t total(Ints counts) {
    size_t sum = 0;
    for (size_t j = 0; j < kWidth; ++j) sum += static_cast<size_t>(counts[j]);
    return sum;
}

inline float max_of_block(const float *x) {
    Floats top[kLaneVectors];
    Ints unordered = {};
    for (size_t j = 0; j < kLaneVectors; ++j) top[j] = load(x + j * kWidth);
    for (size_t i = 0; i < kVectors; ++i) {
        const Floats v = load(x + i * kWidth);
        unordered |= v != v;
        top[i % kLaneVectors] = greater_of(v, top[i % kLaneVectors]);
    }
    for (size_t j = 1; j < kLaneVectors; ++j) top[0] = greater_of(top[0], top[j]);
    float max = top[0][0];
    int32_t any = unordered[0];
    for (size_t j = 1; j < kWidth; ++j) {
        max = top[0][j] > max ? top[0][j] : max;
        any |= unordered[j];
    }
    return any ? NAN : max;
}

void block_maxima(const float *x, size_t n, float *maxima) {
    const size_t whole = n / kBlock;
    for (size_t b = 0; b < whole; ++b) maxima[b] = max_of_block(x + b * kBlock);
    if (whole * kBlock < n) maxima[whole] = max_or_nan(x + whole * kBlock, n - whole * kBlock);
}

inline double fold_vectors(const Floats (&sums)[kLaneVectors]) {
    float lanes[kLanes];
    for (size_t j = 0; j < kLaneVectors; ++j) store(lanes + j * kWidth, sums[j]);
    return fold(lanes);
}

inline double sum_of_block(const float *x, Scale scale) {
    Floats sums[kLaneVectors] = {};
    for (size_t i = 0; i < kVectors; ++i) sums[i % kLaneVectors] += weigh(load(x + i * kWidth), scale);
    return fold_vectors(sums);
}

void block_sums(const float *x, size_t n, const float *maxima, Scale scale, double *sums) {
    const size_t whole = n / kBlock;
    for (size_t b = 0; b < whole; ++b) {
        const bool weightless = (maxima[b] - scale.max) * scale.slope <= kLowest;
        sums[b] = weightless ? 0.0 : sum_of_block(x + b * kBlock, scale);
    }
    if (whole * kBlock < n) sums[whole] = plain_sum(x + whole * kBlock, n - whole * kBlock, scale);
}

void weights(const float *x, size_t n, Scale scale, float *out) {
    const size_t whole = n / kWidth * kWidth;
    for (size_t i = 0; i < whole; i += kWidth) store(out + i, weigh(load(x + i), scale));
    for (size_t i = whole; i < n; ++i) out[i] = weight(x[i], scale);
}

Share share_from(const float *x, const float *weights, size_t n, float lowest) {
    const size_t whole = n / kBlock * kBlock;
    Ints counts = {};
    double mass = 0.0;
    for (size_t b = 0; b < whole; b += kBlock) {
        Floats sums[kLaneVectors] = {};
        for (size_t i = 0; i < kVectors; ++i) {
            const Ints in = load(x + b + i * kWidth) >= lowest;
            sums[i % kLaneVectors] += (Floats)(in & (Ints)load(weights + b + i * kWidth));
            counts -= in;
        }
        mass += fold_vectors(sums);
    }
    size_t count = total(counts);
    for (size_t i = whole; i < n; ++i) {
        if (x[i] < lowest) continue;
        mass += static_cast<double>(weights[i]);
        ++count;
    }
    return {count, mass};
}

size_t count_greater(const float *x, size_t n, float value) {
    const size_t whole = n / kWidth * kWidth;
    Ints counts = {};
    for (size_t i = 0; i < whole; i += kWidth) counts -= load(x + i) > value;
    size_t count = total(counts);
    for (size_t i = whole; i < n; ++i) count += x[i] > value;
    return count;
}

constexpr Passes passes{kName, block_maxima, block_sums, weights, share_from, count_greater};
