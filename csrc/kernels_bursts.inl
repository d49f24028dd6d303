// Loops that keep one part of a core as busy as it can be: the peaks that speeds are stated beside. Included by
// kernels.inl.

// From memory, so that no compiler computes ahead.
volatile float burst_seed = 0.5f;

template <class S>
int32_t int8_burst(int64_t rounds) {
    alignas(64) int8_t codes[64], tokens[4][32];
    for (int i = 0; i < 64; ++i) codes[i] = static_cast<int8_t>(i % 16);
    for (int i = 0; i < 128; ++i) tokens[i / 32][i % 32] = static_cast<int8_t>(i);
    const auto w = S::load_b(codes);
    typename S::F total = S::zero();
    for (int64_t n = 0; n < rounds; ++n) {
        typename S::Burst dot[4];
        unroll<8>([&](auto j) __attribute__((always_inline)) {
            unroll<4>([&](auto t) __attribute__((always_inline)) { dot[t].template mac<j>(w, tokens[t] + 4 * j); });
        });
        for (const auto &d : dot) total = S::add(total, S::to_float(d.sum()));
        asm volatile("" : : "r"(codes), "r"(tokens) : "memory");
    }
    return static_cast<int32_t>(lanes_sum<S>(total));
}

// Chains of x = x * a + b. A float tile has more of them than the latency of an FMA times the pipes for it.
template <class S>
constexpr int kChains = S::kFloatTile > 1 ? S::kFloatTile : 2;

template <class S>
float fp32_burst(int64_t rounds) {
    typename S::F x[kChains<S>];
    const auto a = S::set1(burst_seed), b = S::set1(burst_seed);
    for (auto &v : x) v = S::set1(burst_seed);
    for (int64_t n = 0; n < rounds; ++n)
        unroll<kChains<S>>([&](auto i) __attribute__((always_inline)) { x[i] = S::fma(x[i], a, b); });
    auto total = S::zero();
    for (const auto &v : x) total = S::add(total, v);
    return lanes_sum<S>(total);
}

template <class S>
uint64_t read_burst(const uint8_t *data, size_t bytes) {
    typename S::B x[4];
    for (auto &v : x) v = S::load_b(data);
    for (size_t at = 0; at < bytes; at += 256)
        unroll<4>([&](auto i) __attribute__((always_inline)) { x[i] = S::or_b(x[i], S::load_b(data + at + 64 * i)); });
    uint64_t lanes[8], all = 0;
    S::store_b(lanes, S::or_b(S::or_b(x[0], x[1]), S::or_b(x[2], x[3])));
    for (const uint64_t lane : lanes) all |= lane;
    return all;
}
