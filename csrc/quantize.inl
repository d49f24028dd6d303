// The encoders of one instruction set, written once over its 16 lanes; see quantize.h.
#include <algorithm>
#include <cmath>

#include "block_types.h"
#include "quantize.h"
#include "quantize_pack.h"

namespace pagoda {
namespace {

#include "quantize_groups.inl"

#include "quantize_blocks.inl"
#include "quantize_supers.inl"

// The weight of each number's error: its column's importance, if that is known, times four parts of the group's mean
// magnitude and one of its own. Few weights are large, and what they meet often is, too: without their part, layers with
// such weights lost up to a fifth of what a plain search of scales keeps, though their root mean square error was less.
template <class S, int N>
void weigh(Groups<S, N> &g, const float *const importance[16]) {
    typename S::F mean = S::zero();
    for (int i = 0; i < N; ++i) mean = S::add(mean, S::abs(g.x[i]));
    mean = S::mul(mean, S::set1(4.0f / N));
    for (int i = 0; i < N; ++i) {
        const auto own = S::add(mean, S::abs(g.x[i]));
        g.w[i] = importance[0] == nullptr ? own : S::mul(g.w[i], own);
    }
    g.sum();
}

template <class S>
void encode_super(Type type, const float *const src[16], const float *const importance[16], int count, uint8_t *out) {
    const auto put = [&](const auto &super, int groups) {
        alignas(64) float scale[16], min[16];
        S::store(scale, super.scale);
        S::store(min, super.min);
        const int offset = type == Type::Q3_K || type == Type::IQ4_XS ? 32 : 0;
        const int n = 256 / groups;
        for (int p = 0; p < count; ++p) {
            SuperFields f{};
            f.d = float_to_half(super.d[p]);
            f.dmin = float_to_half(super.dmin[p]);
            for (int j = 0; j < groups; ++j) {
                f.scale[j] = static_cast<uint8_t>(static_cast<int>(scale[p * groups + j]) + offset);
                f.min[j] = static_cast<uint8_t>(min[p * groups + j]);
                for (int i = 0; i < n; ++i) f.q[j * n + i] = static_cast<uint8_t>(super.q[i][p * groups + j]);
            }
            pack_super(type, f, out + p * info(type).bytes);
        }
    };
    if (type == Type::Q4_K || type == Type::Q5_K || type == Type::IQ4_XS) {
        Groups<S, 32> g;
        g.load(src, importance);
        weigh<S, 32>(g, importance);
        if (type == Type::Q4_K) put(AffineSuper<S, 32, 15, 63>::encode(g, -1.0f, 0.1f, 21, 3), 8);
        else if (type == Type::Q5_K) put(AffineSuper<S, 32, 31, 63>::encode(g, -1.0f, 0.1f, 21, 3), 8);
        else put(SymmetricSuper<S, 32, Uneven<S>, 32>::encode(g, -7.0f, 1.0f, 15, 1, 3), 8);
    } else {
        Groups<S, 16> g;
        g.load(src, importance);
        weigh<S, 16>(g, importance);
        if (type == Type::Q2_K) put(AffineSuper<S, 16, 3, 15>::encode(g, -0.9f, 0.05f, 37, 3), 16);
        else if (type == Type::Q3_K) put(SymmetricSuper<S, 16, Even<S, 4>, 32>::encode(g, -0.9f, 0.1f, 19, 1, 3), 16);
        else put(SymmetricSuper<S, 16, Even<S, 32>, 128>::encode(g, -0.9f, 0.1f, 19, 1, 3), 16);
    }
}

// The groups of `count` super-blocks from `first` on, as lanes; lanes too many repeat the last.
void point_supers(const float *x, const float *importance, int64_t columns, int64_t first, int count, int group,
                  const float *src[16], const float *imp[16]) {
    const int groups = 256 / group;
    for (int g = 0; g < 16; ++g) {
        const int64_t at = (first + std::min(g / groups, count - 1)) * 256 + g % groups * group;
        src[g] = x + at;
        imp[g] = importance ? importance + at % columns : nullptr;
    }
}

template <class S>
void encode_supers(Type type, const float *x, const float *importance, int64_t rows, int64_t columns, uint8_t *out) {
    const int group = type == Type::Q4_K || type == Type::Q5_K || type == Type::IQ4_XS ? 32 : 16, side = group / 16;
    const int64_t total = rows * columns / 256;
    const float *src[16], *imp[16];
    for (int64_t i = 0; i < total; i += side) {
        const int count = static_cast<int>(std::min<int64_t>(side, total - i));
        point_supers(x, importance, columns, i, count, group, src, imp);
        encode_super<S>(type, src, imp, count, out + i * info(type).bytes);
    }
}

// Blocks of 32 whose scale is searched for, 16 at a time.
template <class S>
void encode_searched(Type type, const float *x, const float *importance, int64_t rows, int64_t columns, uint8_t *out) {
    const int64_t total = rows * columns / 32;
    const float *src[16], *imp[16];
    Groups<S, 32> g;
    for (int64_t b = 0; b < total; b += 16) {
        const int count = static_cast<int>(std::min<int64_t>(16, total - b));
        for (int i = 0; i < 16; ++i) {
            const int64_t at = (b + std::min(i, count - 1)) * 32;
            src[i] = x + at;
            imp[i] = importance ? importance + at % columns : nullptr;
        }
        g.load(src, imp);
        weigh<S, 32>(g, imp);
        uint8_t *to = out + b * info(type).bytes;
        switch (type) {
            case Type::Q4_0: searched_symmetric<S, Even<S, 8>>(type, count, g, 0.1f, 19, to); break;
            case Type::Q5_0: searched_symmetric<S, Even<S, 16>>(type, count, g, 0.1f, 19, to); break;
            case Type::Q4_1: searched_affine<S, 15>(type, count, g, to); break;
            case Type::Q5_1: searched_affine<S, 31>(type, count, g, to); break;
            default: searched_symmetric<S, Uneven<S>>(type, count, g, 1.0f, 15, to); break;
        }
    }
}

template <class S>
void encode_plain(Type type, const float *x, int64_t rows, int64_t columns, uint8_t *out) {
    const int64_t total = rows * columns / 32;
    for (int64_t b = 0; b < total; ++b, x += 32, out += info(type).bytes) switch (type) {
        case Type::Q8_0: plain_q8_0<S>(x, out); break;
        case Type::Q4_0: plain_symmetric<S, 8>(type, x, out); break;
        case Type::Q5_0: plain_symmetric<S, 16>(type, x, out); break;
        case Type::Q4_1: plain_affine<S, 15>(type, x, out); break;
        default: plain_affine<S, 31>(type, x, out); break;
    }
}

void encode_floats(Type type, const float *x, int64_t count, uint8_t *out) {
    if (type == Type::F32) {
        std::memcpy(out, x, static_cast<size_t>(count) * 4);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint16_t h = type == Type::F16 ? float_to_half(x[i]) : float_to_bfloat(x[i]);
        std::memcpy(out + 2 * i, &h, 2);
    }
}

template <class S>
void encode(Type type, const float *x, const float *importance, int64_t rows, int64_t columns, uint8_t *out) {
    if (is_float(type)) return encode_floats(type, x, rows * columns, out);
    if (info(type).elements == 256) return encode_supers<S>(type, x, importance, rows, columns, out);
    if (type == Type::IQ4_NL || (importance && type != Type::Q8_0))
        return encode_searched<S>(type, x, importance, rows, columns, out);
    encode_plain<S>(type, x, rows, columns, out);
}

}  // namespace
}  // namespace pagoda
