#include "quantize_pack.h"

namespace pagoda {

namespace {

void put16(uint16_t v, uint8_t *out) { std::memcpy(out, &v, 2); }

// Bits 2s and 2s + 1 of byte 32h + l hold the two low bits of weight 128h + 32s + l.
void put_crumbs(const uint8_t *q, uint8_t *out) {
    for (int h = 0; h < 2; ++h)
        for (int l = 0; l < 32; ++l) {
            int byte = 0;
            for (int s = 0; s < 4; ++s) byte |= (q[128 * h + 32 * s + l] & 3) << (2 * s);
            out[32 * h + l] = static_cast<uint8_t>(byte);
        }
}

// Bit s of byte l is bit `bit` of weight 32s + l.
void put_bits(const uint8_t *q, int bit, uint8_t *out) {
    for (int l = 0; l < 32; ++l) {
        int byte = 0;
        for (int s = 0; s < 8; ++s) byte |= (q[32 * s + l] >> bit & 1) << s;
        out[l] = static_cast<uint8_t>(byte);
    }
}

// Byte 32p + l: low nibbles of weights 64p + l and 64p + 32 + l.
void put_nibble_pairs(const uint8_t *q, uint8_t *out) {
    for (int p = 0; p < 4; ++p)
        for (int l = 0; l < 32; ++l)
            out[32 * p + l] = static_cast<uint8_t>((q[64 * p + l] & 15) | (q[64 * p + 32 + l] & 15) << 4);
}

void put_k4_scales(const uint8_t *scale, const uint8_t *min, uint8_t *out) {
    for (int j = 0; j < 4; ++j) {
        out[j] = static_cast<uint8_t>(scale[j] | (scale[j + 4] >> 4) << 6);
        out[j + 4] = static_cast<uint8_t>(min[j] | (min[j + 4] >> 4) << 6);
        out[j + 8] = static_cast<uint8_t>((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
}

void pack_q2k(const SuperFields &f, uint8_t *out) {
    for (int j = 0; j < 16; ++j) out[j] = static_cast<uint8_t>(f.scale[j] | f.min[j] << 4);
    put_crumbs(f.q, out + 16);
    put16(f.d, out + 80);
    put16(f.dmin, out + 82);
}

void pack_q3k(const SuperFields &f, uint8_t *out) {
    put_bits(f.q, 2, out);
    put_crumbs(f.q, out + 32);
    uint8_t *s = out + 96;
    for (int j = 0; j < 8; ++j) s[j] = static_cast<uint8_t>((f.scale[j] & 15) | (f.scale[j + 8] & 15) << 4);
    for (int j = 0; j < 4; ++j) {
        int byte = 0;
        for (int k = 0; k < 4; ++k) byte |= (f.scale[j + 4 * k] >> 4) << (2 * k);
        s[8 + j] = static_cast<uint8_t>(byte);
    }
    put16(f.d, out + 108);
}

void pack_q45k(const SuperFields &f, bool five, uint8_t *out) {
    put16(f.d, out);
    put16(f.dmin, out + 2);
    put_k4_scales(f.scale, f.min, out + 4);
    if (five) put_bits(f.q, 4, out + 16);
    put_nibble_pairs(f.q, out + (five ? 48 : 16));
}

void pack_q6k(const SuperFields &f, uint8_t *out) {
    for (int h = 0; h < 2; ++h) {
        const uint8_t *q = f.q + 128 * h;
        for (int l = 0; l < 64; ++l) out[64 * h + l] = static_cast<uint8_t>((q[l] & 15) | (q[l + 64] & 15) << 4);
        for (int l = 0; l < 32; ++l) {
            int byte = 0;
            for (int s = 0; s < 4; ++s) byte |= (q[32 * s + l] >> 4) << (2 * s);
            out[128 + 32 * h + l] = static_cast<uint8_t>(byte);
        }
    }
    std::memcpy(out + 192, f.scale, 16);
    put16(f.d, out + 208);
}

void pack_iq4xs(const SuperFields &f, uint8_t *out) {
    put16(f.d, out);
    uint32_t high = 0;
    for (int j = 0; j < 8; ++j) high |= static_cast<uint32_t>(f.scale[j] >> 4) << (2 * j);
    put16(static_cast<uint16_t>(high), out + 2);
    for (int j = 0; j < 4; ++j) out[4 + j] = static_cast<uint8_t>((f.scale[2 * j] & 15) | (f.scale[2 * j + 1] & 15) << 4);
    for (int b = 0; b < 8; ++b)
        for (int i = 0; i < 16; ++i)
            out[8 + 16 * b + i] = static_cast<uint8_t>((f.q[32 * b + i] & 15) | (f.q[32 * b + 16 + i] & 15) << 4);
}

}  // namespace

void pack_super(Type type, const SuperFields &f, uint8_t *out) {
    switch (type) {
        case Type::Q2_K: return pack_q2k(f, out);
        case Type::Q3_K: return pack_q3k(f, out);
        case Type::Q4_K: return pack_q45k(f, false, out);
        case Type::Q5_K: return pack_q45k(f, true, out);
        case Type::Q6_K: return pack_q6k(f, out);
        default: return pack_iq4xs(f, out);
    }
}

}  // namespace pagoda
