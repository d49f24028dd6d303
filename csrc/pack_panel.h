// Rows of a file into a panel: see weights.h.
#pragma once

#include "formats.h"

namespace pagoda {

struct PanelMemory {  // zeros at first
    uint8_t *codes, *scales, *super;
};

// Packs the rows at `data`, `stride` bytes from one to the next: 16, or fewer in a weight's last panel.
using PackPanel = void (*)(const uint8_t *data, int64_t stride, int rows, int64_t columns, const PanelMemory &to);

PackPanel panel_packer(Type type);  // of a type that files hold

}  // namespace pagoda
