#include "formats.h"

#include <stdexcept>
#include <string>

namespace pagoda {

Type type_from_name(const char *name) {
    for (int i = 0; i < static_cast<int>(Type::Count); ++i)
        if (std::strcmp(kTypes[i].name, name) == 0) return static_cast<Type>(i);
    throw std::invalid_argument(std::string("no such tensor type: ") + name);
}

Type file_type_from_name(const char *name) {
    const Type type = type_from_name(name);
    if (is_grouped(type)) throw std::invalid_argument(std::string("no file holds tensors of type ") + name);
    return type;
}

namespace {

void nibbles(const uint8_t *qs, uint8_t *q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = qs[i] & 15;
        q[i + 16] = qs[i] >> 4;
    }
}

void fifth_bits(const uint8_t *qh, uint8_t *q) {
    const uint32_t bits = load_u32(qh);
    for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>((bits >> i & 1) << 4);
}

// 6-bit scale and min of sub-block j of Q4_K and Q5_K.
void scale_min_k4(const uint8_t *s, int j, int8_t &scale, uint8_t &min) {
    if (j < 4) {
        scale = static_cast<int8_t>(s[j] & 63);
        min = s[j + 4] & 63;
    } else {
        scale = static_cast<int8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        min = static_cast<uint8_t>((s[j + 4] >> 4) | (s[j] >> 6) << 4);
    }
}

// 6-bit scale of sub-block j (16 weights) of Q3_K: four low bits in s[0..7], two high ones in s[8..11].
int8_t scale_q3k(const uint8_t *s, int j) {
    const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    const int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
    return static_cast<int8_t>((low | high << 4) - 32);
}

void unpack_q2k(const uint8_t *b, int s, Block32 &o) {
    const uint8_t *qs = b + 16 + 32 * (s / 4);
    for (int i = 0; i < 32; ++i) o.q[i] = qs[i] >> (2 * (s % 4)) & 3;
    for (int h = 0; h < 2; ++h) {
        o.scale[h] = static_cast<int8_t>(b[2 * s + h] & 15);
        o.min[h] = b[2 * s + h] >> 4;
    }
    o.d = load_u16(b + 80);
    o.m = load_u16(b + 82);
}

void unpack_q3k(const uint8_t *b, int s, Block32 &o) {
    const uint8_t *hmask = b, *qs = b + 32 + 32 * (s / 4), *scales = b + 96;
    for (int i = 0; i < 32; ++i)
        o.q[i] = static_cast<uint8_t>((qs[i] >> (2 * (s % 4)) & 3) | (hmask[i] >> s & 1) << 2);
    for (int h = 0; h < 2; ++h) o.scale[h] = scale_q3k(scales, 2 * s + h);
    o.d = load_u16(b + 108);
}

void unpack_q45k(const uint8_t *b, int s, bool five, Block32 &o) {
    const uint8_t *qs = b + (five ? 48 : 16) + 32 * (s / 2), *qh = b + 16;
    for (int i = 0; i < 32; ++i) {
        o.q[i] = s % 2 ? qs[i] >> 4 : qs[i] & 15;
        if (five) o.q[i] |= static_cast<uint8_t>((qh[i] >> s & 1) << 4);
    }
    scale_min_k4(b + 4, s, o.scale[0], o.min[0]);
    o.scale[1] = o.scale[0];
    o.min[1] = o.min[0];
    o.d = load_u16(b);
    o.m = load_u16(b + 2);
}

void unpack_q6k(const uint8_t *b, int s, Block32 &o) {
    const int n = s / 4, part = s % 4;
    const uint8_t *ql = b + 64 * n + 32 * (part % 2), *qh = b + 128 + 32 * n;
    for (int i = 0; i < 32; ++i) {
        const int low = part < 2 ? ql[i] & 15 : ql[i] >> 4;
        o.q[i] = static_cast<uint8_t>(low | (qh[i] >> (2 * part) & 3) << 4);
    }
    for (int h = 0; h < 2; ++h) o.scale[h] = static_cast<int8_t>(b[192 + 2 * s + h]);
    o.d = load_u16(b + 208);
}

void unpack_iq4xs(const uint8_t *b, int s, Block32 &o) {
    nibbles(b + 8 + 16 * s, o.q);
    const int low = b[4 + s / 2] >> (4 * (s % 2)) & 15;
    const int high = load_u16(b + 2) >> (2 * s) & 3;
    o.scale[0] = o.scale[1] = static_cast<int8_t>((low | high << 4) - 32);
    o.d = load_u16(b);
}

}  // namespace

void unpack32(Type type, const uint8_t *row, int64_t index, Block32 &o) {
    const int per = info(type).elements / 32;
    const uint8_t *b = row + index / per * info(type).bytes;
    const int s = static_cast<int>(index % per);
    switch (type) {
        case Type::Q4_0:
        case Type::IQ4_NL:
            o.d = load_u16(b);
            nibbles(b + 2, o.q);
            break;
        case Type::Q4_1:
            o.d = load_u16(b);
            o.m = load_u16(b + 2);
            nibbles(b + 4, o.q);
            break;
        case Type::Q5_0:
            o.d = load_u16(b);
            nibbles(b + 6, o.q);
            fifth_bits(b + 2, o.q);
            break;
        case Type::Q5_1:
            o.d = load_u16(b);
            o.m = load_u16(b + 2);
            nibbles(b + 8, o.q);
            fifth_bits(b + 4, o.q);
            break;
        case Type::Q8_0:
            o.d = load_u16(b);
            std::memcpy(o.q, b + 2, 32);
            break;
        case Type::Q2_K: unpack_q2k(b, s, o); break;
        case Type::Q3_K: unpack_q3k(b, s, o); break;
        case Type::Q4_K: unpack_q45k(b, s, false, o); break;
        case Type::Q5_K: unpack_q45k(b, s, true, o); break;
        case Type::Q6_K: unpack_q6k(b, s, o); break;
        case Type::IQ4_XS: unpack_iq4xs(b, s, o); break;
        default: throw std::invalid_argument("unpack32: not a block type");
    }
}

namespace {

float decode(Type type, const Block32 &b, int i) {
    const float d = half_to_float(b.d);
    const int h = i / 16;
    switch (type) {
        case Type::Q4_0: return d * static_cast<float>(b.q[i] - 8);
        case Type::Q5_0: return d * static_cast<float>(b.q[i] - 16);
        case Type::Q8_0: return d * static_cast<float>(static_cast<int8_t>(b.q[i]));
        case Type::Q4_1:
        case Type::Q5_1: return d * static_cast<float>(b.q[i]) + half_to_float(b.m);
        case Type::Q2_K:
        case Type::Q4_K:
        case Type::Q5_K:
            return d * static_cast<float>(b.scale[h]) * static_cast<float>(b.q[i]) -
                   half_to_float(b.m) * static_cast<float>(b.min[h]);
        case Type::Q3_K: return d * static_cast<float>(b.scale[h]) * static_cast<float>(b.q[i] - 4);
        case Type::Q6_K: return d * static_cast<float>(b.scale[h]) * static_cast<float>(b.q[i] - 32);
        case Type::IQ4_NL: return d * static_cast<float>(kIq4Values[b.q[i]]);
        case Type::IQ4_XS: return d * static_cast<float>(b.scale[h]) * static_cast<float>(kIq4Values[b.q[i]]);
        default: return 0.0f;
    }
}

}  // namespace

void dequantize_row(Type type, const uint8_t *row, int64_t columns, float *out) {
    if (type == Type::F32) {
        std::memcpy(out, row, static_cast<size_t>(columns) * 4);
        return;
    }
    if (type == Type::F16 || type == Type::BF16) {
        for (int64_t i = 0; i < columns; ++i) {
            const uint16_t h = load_u16(row + 2 * i);
            out[i] = type == Type::F16 ? half_to_float(h) : bfloat_to_float(h);
        }
        return;
    }
    Block32 block{};
    for (int64_t b = 0; b < columns / 32; ++b) {
        unpack32(type, row, b, block);
        for (int i = 0; i < 32; ++i) out[32 * b + i] = decode(type, block, i);
    }
}

}  // namespace pagoda
