// Finding a scale (and a minimum) for groups of weights, 16 groups at a time, a lane each.
//
// The error is sum w (x - decoded)^2. Codes and scales are found in turn: scales from a fan of candidates give codes,
// codes give the scale (and minimum) of least squares, which gives better codes. What wins is judged by its error.

constexpr float kTiny = 1e-30f;

template <class S, int N>
struct Groups {
    using F = typename S::F;
    F x[N], w[N];
    F sum_w, sum_x, sum_xx;  // of w, w x, w x^2

    void load(const float *const src[16], const float *const importance[16]) {
        alignas(64) float lanes[N][16];
        for (int g = 0; g < 16; ++g)
            for (int i = 0; i < N; ++i) lanes[i][g] = src[g][i];
        for (int i = 0; i < N; ++i) x[i] = S::load(lanes[i]);
        if (importance[0] == nullptr) return;
        for (int g = 0; g < 16; ++g)
            for (int i = 0; i < N; ++i) lanes[i][g] = importance[g][i];
        for (int i = 0; i < N; ++i) w[i] = S::load(lanes[i]);
    }

    void sum() {
        sum_w = sum_x = sum_xx = S::zero();
        for (int i = 0; i < N; ++i) {
            const F wx = S::mul(w[i], x[i]);
            sum_w = S::add(sum_w, w[i]);
            sum_x = S::add(sum_x, wx);
            sum_xx = S::add(sum_xx, S::mul(wx, x[i]));
        }
    }
};

template <class S>
PAGODA_INLINE typename S::F neg(typename S::F a) {
    return S::sub(S::zero(), a);
}

template <class S>
PAGODA_INLINE typename S::F reciprocal(typename S::F a) {  // 0 for 0 and for what has no finite reciprocal
    return S::below(S::abs(a), S::set1(kTiny), S::zero(), S::div(S::set1(1.0f), a));
}

// Codes 0 … Max, x = scale * code + min.
template <class S, int N, int Max>
struct Affine {
    using F = typename S::F;
    using G = Groups<S, N>;
    F scale, min;

    PAGODA_INLINE static F code(F x, F min, F inverse) {
        const F c = S::round(S::mul(S::sub(x, min), inverse));
        return S::max(S::zero(), S::min(S::set1(float(Max)), c));
    }

    struct Sums { F q, qq, xq; };  // of w code, w code^2, w x code

    PAGODA_INLINE static Sums sums(const G &g, F min, F inverse) {
        Sums s{S::zero(), S::zero(), S::zero()};
        for (int i = 0; i < N; ++i) {
            const F c = code(g.x[i], min, inverse), wc = S::mul(g.w[i], c);
            s.q = S::add(s.q, wc);
            s.qq = S::add(s.qq, S::mul(wc, c));
            s.xq = S::add(s.xq, S::mul(wc, g.x[i]));
        }
        return s;
    }

    PAGODA_INLINE static F error(const G &g, F scale, F min) {
        const F inverse = reciprocal<S>(scale);
        F e = S::zero();
        for (int i = 0; i < N; ++i) {
            const F d = S::sub(g.x[i], S::add(S::mul(scale, code(g.x[i], min, inverse)), min));
            e = S::add(e, S::mul(g.w[i], S::mul(d, d)));
        }
        return e;
    }

    // Least squares for codes with these sums. With Clamp, min is at most 0. → its error by the sums.
    template <bool Clamp>
    PAGODA_INLINE static F solve(const G &g, const Sums &s, F min0, F &scale, F &min) {
        const F det = S::sub(S::mul(g.sum_w, s.qq), S::mul(s.q, s.q));
        const F flat = S::mul(S::set1(1e-5f), S::mul(g.sum_w, s.qq));  // (nearly) all codes alike: keep the minimum
        const F inv_det = reciprocal<S>(det), inv_qq = reciprocal<S>(s.qq);
        scale = S::mul(S::sub(S::mul(g.sum_w, s.xq), S::mul(g.sum_x, s.q)), inv_det);
        min = S::mul(S::sub(S::mul(s.qq, g.sum_x), S::mul(s.q, s.xq)), inv_det);
        const F lone = S::mul(S::sub(s.xq, S::mul(min0, s.q)), inv_qq);
        scale = S::below(flat, det, scale, lone);
        min = S::below(flat, det, min, min0);
        if (Clamp) {
            scale = S::below(S::zero(), min, S::mul(s.xq, inv_qq), scale);
            min = S::min(min, S::zero());
        }
        const F a = S::mul(scale, S::sub(S::mul(scale, s.qq), S::mul(S::set1(2.0f), S::sub(s.xq, S::mul(min, s.q)))));
        const F b = S::mul(min, S::sub(S::mul(min, g.sum_w), S::mul(S::set1(2.0f), g.sum_x)));
        return S::add(g.sum_xx, S::add(a, b));
    }

    // `steps` candidates: the range spread over Max + first, Max + first + step, … codes; then `rounds` of refinement.
    template <bool Clamp>
    static Affine search(const G &g, float first, float step, int steps, int rounds) {
        F low = g.x[0], high = g.x[0];
        for (int i = 1; i < N; ++i) {
            low = S::min(low, g.x[i]);
            high = S::max(high, g.x[i]);
        }
        if (Clamp) low = S::min(low, S::zero());
        const F inv_range = reciprocal<S>(S::sub(high, low));
        Affine best{S::zero(), low};
        F least = error(g, best.scale, best.min);
        const auto consider = [&](F min, F inverse) {
            const Sums s = sums(g, min, inverse);
            Affine a;
            F e = solve<Clamp>(g, s, low, a.scale, a.min);
            e = S::below(S::zero(), a.scale, e, least);
            best.scale = S::below(e, least, a.scale, best.scale);
            best.min = S::below(e, least, a.min, best.min);
            least = S::min(e, least);
        };
        for (int i = 0; i < steps; ++i) consider(low, S::mul(S::set1(float(Max) + first + step * float(i)), inv_range));
        for (int i = 0; i < rounds; ++i) consider(best.min, reciprocal<S>(best.scale));
        return best;
    }
};

// Codes -Half … Half - 1, x = scale * code.
template <class S, int Half>
struct Even {
    using F = typename S::F;
    static constexpr int kEnd = Half;        // the code farthest from 0, negated
    static constexpr int kOffset = Half;     // what is added to codes that are stored
    PAGODA_INLINE static F code(F v) {
        return S::max(S::set1(float(-Half)), S::min(S::set1(float(Half - 1)), S::round(v)));
    }
    PAGODA_INLINE static F index(F v) { return S::add(code(v), S::set1(float(Half))); }
};

// The 16 uneven levels of IQ4_NL and IQ4_XS, x = scale * level.
template <class S>
struct Uneven {
    using F = typename S::F;
    static constexpr int kEnd = 127;
    template <class Pick>
    PAGODA_INLINE static F nearest(F v, Pick pick) {
        F r = S::set1(pick(0));
        for (int i = 1; i < 16; ++i)
            r = S::below(v, S::set1(0.5f * (float(blocks::kIq4Values[i - 1]) + float(blocks::kIq4Values[i]))), r, S::set1(pick(i)));
        return r;
    }
    PAGODA_INLINE static F code(F v) {
        return nearest(v, [](int i) { return float(blocks::kIq4Values[i]); });
    }
    PAGODA_INLINE static F index(F v) {
        return nearest(v, [](int i) { return float(i); });
    }
};

template <class S, int N, class Codes>
struct Symmetric {
    using F = typename S::F;
    using G = Groups<S, N>;

    PAGODA_INLINE static F error(const G &g, F scale) {
        const F inverse = reciprocal<S>(scale);
        F e = S::zero();
        for (int i = 0; i < N; ++i) {
            const F d = S::sub(g.x[i], S::mul(scale, Codes::code(S::mul(g.x[i], inverse))));
            e = S::add(e, S::mul(g.w[i], S::mul(d, d)));
        }
        return e;
    }

    struct Sums { F qq, xq; };  // of w code^2, w x code

    PAGODA_INLINE static Sums sums(const G &g, F inverse) {
        Sums s{S::zero(), S::zero()};
        for (int i = 0; i < N; ++i) {
            const F c = Codes::code(S::mul(g.x[i], inverse)), wc = S::mul(g.w[i], c);
            s.qq = S::add(s.qq, S::mul(wc, c));
            s.xq = S::add(s.xq, S::mul(wc, g.x[i]));
        }
        return s;
    }

    // Scales that map the largest |x| to `first`, `first` + `step`, … codes from the farthest code, with either sign.
    static F search(const G &g, float first, float step, int steps, int rounds) {
        F high = S::abs(g.x[0]);
        for (int i = 1; i < N; ++i) high = S::max(high, S::abs(g.x[i]));
        const F inv_high = reciprocal<S>(high);
        F best = S::zero(), gain = S::zero();
        const auto consider = [&](F inverse) {
            const Sums s = sums(g, inverse);
            const F scale = S::mul(s.xq, reciprocal<S>(s.qq)), now = S::mul(scale, s.xq);
            best = S::below(gain, now, scale, best);
            gain = S::max(gain, now);
        };
        for (int i = 0; i < steps; ++i) {
            const F inverse = S::mul(S::set1(float(Codes::kEnd) + first + step * float(i)), inv_high);
            consider(inverse);
            consider(neg<S>(inverse));
        }
        for (int i = 0; i < rounds; ++i) consider(reciprocal<S>(best));
        return best;
    }
};
