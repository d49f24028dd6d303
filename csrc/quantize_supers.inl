// Super-blocks of 256: groups of 16 or 32 whose scales (and minima) are small integers times one f16 number.
//
// After each group's own search the integers and the f16 numbers are fitted together: every group tries the integers
// around its best, then least squares over the codes gives the f16 numbers, as long as the error falls.

constexpr int kSuper = 256;

// The lanes of the groups of each super-block: with groups of 32, two super-blocks lie side by side.
template <int N>
constexpr int kGroups = kSuper / N;

template <class S, int N>
PAGODA_INLINE void sum_supers(typename S::F v, double sums[2]) {
    alignas(64) float lanes[16];
    S::store(lanes, v);
    sums[0] = sums[1] = 0;
    for (int g = 0; g < 16; ++g) sums[g / kGroups<N>] += static_cast<double>(lanes[g]);
}

template <class S, int N>
PAGODA_INLINE typename S::F spread(const float per_super[2]) {
    alignas(64) float lanes[16];
    for (int g = 0; g < 16; ++g) lanes[g] = per_super[g / kGroups<N>];
    return S::load(lanes);
}

template <class S, int N>
PAGODA_INLINE void largest_of_supers(typename S::F v, float largest[2]) {
    alignas(64) float lanes[16];
    S::store(lanes, v);
    largest[0] = largest[1] = 0;
    for (int g = 0; g < 16; ++g) largest[g / kGroups<N>] = std::max(largest[g / kGroups<N>], lanes[g]);
}

PAGODA_INLINE float as_half(float v) { return half_to_float(float_to_half(v)); }

// What two super-blocks side by side (or one, of groups of 16) come down to; per lane: integers of scale and minimum.
template <class S, int N>
struct Super {
    using F = typename S::F;
    float d[2] = {0, 0}, dmin[2] = {0, 0};
    F scale, min;
    int8_t q[N][16];
};

// Q2_K, Q4_K, Q5_K: x = d * scale * code - dmin * min, integers 0 … Top.
template <class S, int N, int Max, int Top>
struct AffineSuper {
    using F = typename S::F;
    using G = Groups<S, N>;
    using Fit = Affine<S, N, Max>;

    struct State {
        float d[2], dmin[2];
        F scale, min;  // integers, per lane
        double error[2];
    };

    PAGODA_INLINE static F clamp(F v) { return S::max(S::zero(), S::min(S::set1(float(Top)), S::round(v))); }

    // The best integers around `scale` and `min` for the f16 numbers of `s`.
    static void settle(const G &g, State &s, int reach) {
        const F d = spread<S, N>(s.d), dmin = spread<S, N>(s.dmin), scale0 = s.scale, min0 = s.min;
        F least = S::set1(3e38f);
        for (int a = -reach; a <= reach; ++a)
            for (int b = -reach; b <= reach; ++b) {
                const F scale = clamp(S::add(scale0, S::set1(float(a)))), min = clamp(S::add(min0, S::set1(float(b))));
                const F e = Fit::error(g, S::mul(d, scale), neg<S>(S::mul(dmin, min)));
                s.scale = S::below(e, least, scale, s.scale);
                s.min = S::below(e, least, min, s.min);
                least = S::min(e, least);
            }
        sum_supers<S, N>(least, s.error);
    }

    // d and dmin of least squares for the codes that `s` gives.
    static void refit(const G &g, State &s) {
        const F scale = S::mul(spread<S, N>(s.d), s.scale), min = neg<S>(S::mul(spread<S, N>(s.dmin), s.min));
        const auto sums = Fit::sums(g, min, reciprocal<S>(scale));
        double qq[2], qm[2], mm[2], xq[2], xm[2];
        sum_supers<S, N>(S::mul(S::mul(s.scale, s.scale), sums.qq), qq);
        sum_supers<S, N>(S::mul(S::mul(s.scale, s.min), sums.q), qm);
        sum_supers<S, N>(S::mul(S::mul(s.min, s.min), g.sum_w), mm);
        sum_supers<S, N>(S::mul(s.scale, sums.xq), xq);
        sum_supers<S, N>(S::mul(s.min, g.sum_x), xm);
        for (int p = 0; p < 2; ++p) {
            const double det = qq[p] * mm[p] - qm[p] * qm[p];
            if (det > 1e-9 * qq[p] * mm[p]) {
                s.d[p] = as_half(static_cast<float>((xq[p] * mm[p] - xm[p] * qm[p]) / det));
                s.dmin[p] = as_half(static_cast<float>((xq[p] * qm[p] - xm[p] * qq[p]) / det));
            } else if (qq[p] > 0) {
                s.d[p] = as_half(static_cast<float>(xq[p] / qq[p]));
            }
            s.d[p] = std::max(s.d[p], 0.0f);
            s.dmin[p] = std::max(s.dmin[p], 0.0f);
        }
    }

    // The better of two states, super-block by super-block. → whether `s` won anywhere
    static bool keep(State &best, const State &s) {
        bool any = false;
        alignas(64) float scale[16], min[16], new_scale[16], new_min[16];
        S::store(scale, best.scale);
        S::store(min, best.min);
        S::store(new_scale, s.scale);
        S::store(new_min, s.min);
        for (int p = 0; p < 16 / kGroups<N>; ++p) {
            if (!(s.error[p] < best.error[p])) continue;
            any = true;
            best.d[p] = s.d[p];
            best.dmin[p] = s.dmin[p];
            best.error[p] = s.error[p];
            for (int i = p * kGroups<N>; i < (p + 1) * kGroups<N>; ++i) {
                scale[i] = new_scale[i];
                min[i] = new_min[i];
            }
        }
        best.scale = S::load(scale);
        best.min = S::load(min);
        return any;
    }

    static Super<S, N> encode(const G &g, float first, float step, int steps, int rounds) {
        const Fit fit = Fit::template search<true>(g, first, step, steps, 2);
        const F low = neg<S>(fit.min);
        float top_scale[2], top_min[2];
        largest_of_supers<S, N>(fit.scale, top_scale);
        largest_of_supers<S, N>(low, top_min);
        State best;
        best.error[0] = best.error[1] = HUGE_VAL;
        best.scale = best.min = S::zero();
        State s;
        for (int p = 0; p < 2; ++p) {
            s.d[p] = as_half(top_scale[p] / float(Top));
            s.dmin[p] = as_half(top_min[p] / float(Top));
        }
        s.scale = clamp(S::mul(fit.scale, reciprocal<S>(spread<S, N>(s.d))));
        s.min = clamp(S::mul(low, reciprocal<S>(spread<S, N>(s.dmin))));
        for (int i = 0; i < rounds; ++i) {
            settle(g, s, 1);
            if (!keep(best, s)) break;
            refit(g, s);
        }
        return finish(g, best);
    }

    static Super<S, N> finish(const G &g, const State &s) {
        Super<S, N> out;
        std::copy(s.d, s.d + 2, out.d);
        std::copy(s.dmin, s.dmin + 2, out.dmin);
        out.scale = s.scale;
        out.min = s.min;
        const F scale = S::mul(spread<S, N>(s.d), s.scale), min = neg<S>(S::mul(spread<S, N>(s.dmin), s.min));
        const F inverse = reciprocal<S>(scale);
        for (int i = 0; i < N; ++i) S::store_i8(out.q[i], Fit::code(g.x[i], min, inverse));
        return out;
    }
};

// Q3_K, Q6_K, IQ4_XS: x = d * scale * code, integers -Top … Top - 1.
template <class S, int N, class Codes, int Top>
struct SymmetricSuper {
    using F = typename S::F;
    using G = Groups<S, N>;
    using Fit = Symmetric<S, N, Codes>;

    struct State {
        float d[2];
        F scale;
        double error[2];
    };

    PAGODA_INLINE static F clamp(F v) {
        return S::max(S::set1(float(-Top)), S::min(S::set1(float(Top - 1)), S::round(v)));
    }

    static void settle(const G &g, State &s, int reach) {
        const F d = spread<S, N>(s.d), scale0 = s.scale;
        F least = S::set1(3e38f);
        for (int a = -reach; a <= reach; ++a) {
            const F scale = clamp(S::add(scale0, S::set1(float(a))));
            const F e = Fit::error(g, S::mul(d, scale));
            s.scale = S::below(e, least, scale, s.scale);
            least = S::min(e, least);
        }
        sum_supers<S, N>(least, s.error);
    }

    static void refit(const G &g, State &s) {
        const auto sums = Fit::sums(g, reciprocal<S>(S::mul(spread<S, N>(s.d), s.scale)));
        double qq[2], xq[2];
        sum_supers<S, N>(S::mul(S::mul(s.scale, s.scale), sums.qq), qq);
        sum_supers<S, N>(S::mul(s.scale, sums.xq), xq);
        for (int p = 0; p < 2; ++p)
            if (qq[p] > 0) s.d[p] = as_half(static_cast<float>(xq[p] / qq[p]));
    }

    static bool keep(State &best, const State &s) {
        bool any = false;
        alignas(64) float scale[16], new_scale[16];
        S::store(scale, best.scale);
        S::store(new_scale, s.scale);
        for (int p = 0; p < 16 / kGroups<N>; ++p) {
            if (!(s.error[p] < best.error[p])) continue;
            any = true;
            best.d[p] = s.d[p];
            best.error[p] = s.error[p];
            std::copy(new_scale + p * kGroups<N>, new_scale + (p + 1) * kGroups<N>, scale + p * kGroups<N>);
        }
        best.scale = S::load(scale);
        return any;
    }

    // The scale of largest magnitude gets the integer -Top, which reaches farther than Top - 1.
    static void start(F scale, State &s) {
        alignas(64) float lanes[16];
        S::store(lanes, scale);
        float far[2] = {0, 0};
        for (int g = 0; g < 16; ++g) {
            float &f = far[g / kGroups<N>];
            if (std::fabs(lanes[g]) > std::fabs(f)) f = lanes[g];
        }
        for (int p = 0; p < 2; ++p) s.d[p] = as_half(far[p] / float(-Top));
        s.scale = clamp(S::mul(scale, reciprocal<S>(spread<S, N>(s.d))));
    }

    static Super<S, N> encode(const G &g, float first, float step, int steps, int reach, int rounds) {
        State best, s;
        best.error[0] = best.error[1] = HUGE_VAL;
        best.d[0] = best.d[1] = 0;
        best.scale = S::zero();
        start(Fit::search(g, first, step, steps, 2), s);
        for (int i = 0; i < rounds; ++i) {
            settle(g, s, reach);
            if (!keep(best, s)) break;
            refit(g, s);
        }
        Super<S, N> out;
        std::copy(best.d, best.d + 2, out.d);
        out.scale = best.scale;
        out.min = S::zero();
        const F inverse = reciprocal<S>(S::mul(spread<S, N>(best.d), best.scale));
        for (int i = 0; i < N; ++i) S::store_i8(out.q[i], Codes::index(S::mul(g.x[i], inverse)));
        return out;
    }
};
