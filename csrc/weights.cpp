#include "weights.h"

#include <algorithm>
#include <stdexcept>

#include "pack_panel.h"

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

// Writes the codes of one row's 32 columns, in 4 or 8 bits, into the panel's codes; `to` points at the block, `r` is the row
// in it.
PAGODA_INLINE void scatter_codes(int bits, const uint8_t *q, int r, uint8_t *to) {
    uint32_t quad[8];
    std::memcpy(quad, q, 32);
    for (int j = 0; j < bits; ++j) {
        const uint32_t v = bits == 8 ? quad[j] : (quad[j] & 0x0f0f0f0fu) | (quad[j + 4] & 0x0f0f0f0fu) << 4;
        std::memcpy(to + 64 * j + 4 * r, &v, 4);
    }
}

}  // namespace

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
    const PackPanel pack = panel_packer(type);
    const int64_t stride = row_bytes(type, columns);
    const auto at = [](const uint8_t *part) { return const_cast<uint8_t *>(part); };
    for (int64_t p = begin; p < end; ++p) {
        const int64_t first = p * kPanelRows;
        const int count = static_cast<int>(std::min<int64_t>(kPanelRows, rows - first));
        pack(data + first * stride, stride, count, columns, {at(codes(p)), at(scales(p)), at(super(p))});
    }
}

}  // namespace pagoda
