#include "weights.h"

#include <algorithm>
#include <stdexcept>

#include "block_types.h"

namespace pagoda {

Weight::Weight(Type t, int64_t r, int64_t c, int shift)
    : type(t), rows(r), columns(c), panels(ceil_div(r, kPanelRows)), blocks(ceil_div(c, kActBlock)),
      group_shift(shift), groups(ceil_div(blocks, int64_t{1} << shift)), shape_(traits(t).shape) {
    if (r <= 0 || c <= 0) throw std::invalid_argument("a weight needs rows and columns");
    if (c % info(t).elements != 0) throw std::invalid_argument("columns are no multiple of the block");
    scales_at_ = round_up(panels * blocks * shape_.codes, 64);
    super_at_ = round_up(scales_at_ + panels * groups * shape_.scales, 64);
    memory_ = Piece(static_cast<size_t>(super_at_ + panels * (blocks / 8) * shape_.super + 64));
}

namespace {

// Writes the codes of one row's 32 columns into the panel's codes; `to` points at the block, `r` is the row in it.
PAGODA_INLINE void scatter_codes(int bits, const uint8_t *q, int r, uint8_t *to) {
    uint32_t quad[8];
    std::memcpy(quad, q, 32);
    const auto put = [&](int vec, uint32_t v) { std::memcpy(to + 64 * vec + 4 * r, &v, 4); };
    if (bits == 8) {
        for (int j = 0; j < 8; ++j) put(j, quad[j]);
        return;
    }
    int next = 0;
    if (bits >= 4) {  // low nibbles
        for (int j = 0; j < 4; ++j) put(j, (quad[j] & 0x0f0f0f0fu) | (quad[j + 4] & 0x0f0f0f0fu) << 4);
        next = 4;
    } else {  // low two bits: four quads to a byte
        for (int half = 0; half < 2; ++half) {
            uint32_t v = 0;
            for (int j = 0; j < 4; ++j) v |= (quad[4 * half + j] & 0x03030303u) << (2 * j);
            put(half, v);
        }
        next = 2;
    }
    if (bits == 6) {  // two more bits as two planes of four quads
        for (int half = 0; half < 2; ++half) {
            uint32_t v = 0;
            for (int j = 0; j < 4; ++j) v |= (quad[4 * half + j] >> 4 & 0x03030303u) << (2 * j);
            put(next + half, v);
        }
    } else if (bits == 3 || bits == 5) {  // one more bit as one plane of eight quads
        const int shift = bits - 1;
        uint32_t v = 0;
        for (int j = 0; j < 8; ++j) v |= (quad[j] >> shift & 0x01010101u) << j;
        put(next, v);
    }
}

// Block `index` of up to 16 rows, the first at `data`, into a panel. A function a type: loading a model is this.
using PackRows = void (*)(const uint8_t *data, int64_t stride, int64_t index, int rows, uint8_t *codes, uint8_t *scales,
                          uint8_t *super);
template <class B>
void pack_rows(const uint8_t *data, int64_t stride, int64_t index, int rows, uint8_t *codes, uint8_t *scales, uint8_t *super) {
    constexpr int kPer = B::kInfo.elements / kActBlock;
    const uint8_t *from = data + index / kPer * B::kInfo.bytes;
    const int part = static_cast<int>(index % kPer);
    Block32 b{};
    for (int r = 0; r < rows; ++r, from += stride) {
        B::unpack(from, part, b);
        scatter_codes(B::Codes::kBits, b.q, r, codes);
        B::Scales::pack(b, r, scales, super);
    }
}

PackRows packer(Type type) {
    switch (type) {
#define PAGODA_TYPE(name) case Type::name: return pack_rows<blocks::name>;
        PAGODA_FILE_BLOCK_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
        default: return nullptr;
    }
}

}  // namespace

void Weight::pack_block(const uint8_t *data, int64_t panel, int64_t block) {
    uint8_t *codes_to = const_cast<uint8_t *>(codes(panel)) + block * shape_.codes;
    uint8_t *scales_to = const_cast<uint8_t *>(scales_of(panel, block));
    uint8_t *super_to = const_cast<uint8_t *>(super_of(panel, block));
    const int64_t stride = row_bytes(type, columns), first = panel * kPanelRows;
    const int count = static_cast<int>(std::min<int64_t>(kPanelRows, rows - first));
    packer(type)(data + first * stride, stride, block, count, codes_to, scales_to, super_to);
}

void Weight::pack_float_block(const uint8_t *data, int64_t panel, int64_t block) {
    const int64_t size = info(type).bytes;
    uint8_t *to = const_cast<uint8_t *>(codes(panel)) + block * shape_.codes;
    for (int r = 0; r < kPanelRows; ++r) {
        const int64_t row = panel * kPanelRows + r;
        if (row >= rows) break;
        const uint8_t *from = data + (row * columns + block * kActBlock) * size;
        const int64_t n = columns - block * kActBlock < kActBlock ? columns - block * kActBlock : kActBlock;
        for (int64_t i = 0; i < n; ++i) std::memcpy(to + (i * kPanelRows + r) * size, from + i * size, size);
    }
}

void Weight::pack_grouped_row(const GroupedSource &from, int64_t panel, int64_t row) {
    const int r = static_cast<int>(row % kPanelRows);
    uint8_t *codes_to = const_cast<uint8_t *>(codes(panel));
    uint8_t *scales_to = const_cast<uint8_t *>(scales(panel));
    const uint8_t *row_codes = from.codes + row * columns;
    const int bits = traits(type).code_bits;
    uint8_t q[kActBlock];
    for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t i = 0; i < kActBlock; ++i) {
            const int64_t c = b * kActBlock + i;
            q[i] = c < columns ? row_codes[from.order ? from.order[c] : c] : uint8_t{0};
        }
        scatter_codes(bits, q, r, codes_to + b * shape_.codes);
    }
    const int halves = traits(type).halves;
    for (int64_t g = 0; g < groups; ++g) {
        uint8_t *to = scales_to + g * shape_.scales + 4 * r;
        for (int h = 0; h < halves; ++h) std::memcpy(to + 64 * h, from.scales + row * num_scales() + g * halves + h, 4);
        if (from.mins) std::memcpy(to + 64, from.mins + row * groups + g, 4);
    }
}

void Weight::pack_panels(const GroupedSource &from, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
        for (int64_t row = p * kPanelRows; row < (p + 1) * kPanelRows && row < rows; ++row)
            pack_grouped_row(from, p, row);
}

void Weight::pack_panels(const uint8_t *data, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
        for (int64_t b = 0; b < blocks; ++b)
            if (is_float(type))
                pack_float_block(data, p, b);
            else
                pack_block(data, p, b);
}

}  // namespace pagoda
