// Weights as the kernels stream them: panels of 16 output rows, interleaved.
//
// A panel holds, for each block of 32 columns, its codes, its scales and (for super-block types) every 256 columns
// its super scales, in three arrays so that each stream stays aligned:
//
//   codes   quad j (columns 4j … 4j+3) is 64 bytes: byte 4r + b is row r, column 4j + b. 4-bit types keep quad j in
//           the low nibbles and quad j + 4 in the high nibbles of the same 64 bytes; further bits follow as planes.
//   scales  16 rows side by side, in the file's own precision.
//   super   16 rows side by side, f16; six-bit scales in the bytes that files have them in.
//
// Grouped types have float32 scales (then minima, added) of 16 rows for each 2^group_shift blocks: weight = scale * (code
// - 8) or scale * code + min of 4 bits, the same of signed bytes, scale * codebook[code], of 12-bit values, or scale * code of
// 8-bit floats. Fp4Halves has two scales for each block.
//
// Float types keep, for each column, 16 rows side by side.
#pragma once

#include <vector>

#include "formats.h"

namespace pagoda {

// A weight of a grouped type as it comes. Column c of the panel is column order[c] here.
struct GroupedSource {
    const uint8_t *codes;   // [rows][columns]; bytes of 8-bit types are signed
    const float *scales;    // [rows][groups * halves], of the columns in the panel's order
    const float *mins;      // as scales, or null
    const int32_t *order;   // [columns], or null: as they are
};

// 16 values of at most kLargest, so that 32 products with activations fit in 32 bits; as bytes to look up.
struct Codebook {
    static constexpr int kLargest = 16 * 127 + 7;
    int8_t coarse[16] = {}, fine[16] = {};  // value = 16 coarse + fine, fine from -8 to 7
    int8_t high[16] = {}, low[16] = {};     // the bytes of the value in 16 bits
    void set(int code, int value) {
        fine[code] = static_cast<int8_t>(((value + 8) & 15) - 8);
        coarse[code] = static_cast<int8_t>((value - fine[code]) / 16);
        high[code] = static_cast<int8_t>(value >> 8);
        low[code] = static_cast<int8_t>(value & 255);
    }
    int at(int code) const { return 16 * coarse[code] + fine[code]; }
};

class Weight {
  public:
    // Allocates; fill it with pack_panels over [0, panels).
    Weight(Type type, int64_t rows, int64_t columns, int group_shift = 0);

    // Packs panels [begin, end) from the file's rows at `data`.
    void pack_panels(const uint8_t *data, int64_t begin, int64_t end);
    // The same for a grouped type.
    void pack_panels(const GroupedSource &from, int64_t begin, int64_t end);

    Type type;
    int64_t rows, columns;
    int64_t panels;  // of 16 rows, the last one padded with zeros
    int64_t blocks;  // of 32 columns, the last one padded with zeros
    int group_shift;  // 2^group_shift blocks share scales
    int64_t groups;
    Codebook codebook;  // what codes of Codebook4 stand for

    const uint8_t *codes(int64_t panel) const { return memory_.data() + panel * blocks * shape_.codes; }
    const uint8_t *scales(int64_t panel) const {
        return memory_.data() + scales_at_ + panel * groups * shape_.scales;
    }
    // Where the scales of block b (of its group) lie, and the super scales.
    const uint8_t *scales_of(int64_t panel, int64_t b) const { return scales(panel) + (b >> group_shift) * shape_.scales; }
    const uint8_t *super_of(int64_t panel, int64_t b) const { return super(panel) + b / 8 * shape_.super; }
    const uint8_t *super(int64_t panel) const {
        return memory_.data() + super_at_ + panel * (blocks / 8) * shape_.super;
    }
    int64_t num_scales() const { return groups * traits(type).halves; }  // of a row
    size_t bytes() const { return memory_.bytes(); }
    const PanelShape &shape() const { return shape_; }
    const int8_t *table() const { return traits(type).table; }  // see TypeTraits

  private:
    void pack_grouped_row(const GroupedSource &from, int64_t panel, int64_t row);

    PanelShape shape_;
    int64_t scales_at_, super_at_;
    Piece memory_;
};

}  // namespace pagoda
