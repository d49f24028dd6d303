// Loops that keep one part of a core as busy as it can be, for each instruction set that the machine has: the peaks
// that machine.cpp measures.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagoda {

// A loop in registers; `run(rounds)` does `operations` a round (a multiplication and an addition are two) and returns
// something that depends on them.
struct Burst {
    const char *isa;
    int64_t operations;
    float (*run)(int64_t rounds);
};

// The best there is on this machine; run is null where no instruction computes in this type.
Burst fp32_burst();
Burst bf16_burst();

// Reads `bytes` (a multiple of 512, 64-byte aligned) with the widest loads and returns something that depends on them.
using ReadLoop = uint64_t (*)(const uint8_t *data, size_t bytes);
ReadLoop read_loop();

}  // namespace pagoda
