// Super-blocks as bytes: where codes, integer scales and f16 numbers lie in ggml's block structs.
#pragma once

#include "formats.h"

namespace pagoda {

// What one super-block holds, before packing. scale and min have 8 or 16 entries, unsigned as they are stored.
struct SuperFields {
    uint16_t d, dmin;
    uint8_t scale[16], min[16];
    uint8_t q[256];
};

// Writes info(type).bytes bytes. Types: Q2_K … Q6_K, IQ4_XS.
void pack_super(Type type, const SuperFields &f, uint8_t *out);

}  // namespace pagoda
