// The peak in a type that no kernel computes in; those of the others are the kernels' own (kernels_bursts.inl).
#pragma once

#include <cstdint>

namespace pagoda {

// A loop in registers; `run(rounds)` does `operations` a round (a multiplication and an addition are two) and returns
// something that depends on them.
struct Burst {
    int64_t operations;
    float (*run)(int64_t rounds);
};

// In bfloat16, added up in float32; run is null where the machine has no instruction for it.
Burst bf16_burst();

}  // namespace pagoda
