// Every kernel but the matrix products, written once over 16 lanes (a struct S from simd_*.h); each instruction set
// includes this file, and kernels_gemm.inl in a file of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels.h"

namespace pagoda {
namespace {

#include "tiles.inl"
#include "kernels_rows.inl"
#include "kernels_store.inl"
#include "kernels_bursts.inl"
#include "kernels_attend.inl"

template <class S>
Kernels make_kernels() {
    Kernels k{};
    k.name = S::kName;
    k.quantize = quantize<S>;
    k.quantize8 = quantize8<S>;
    k.rms_norm = rms_norm<S>;
    k.layer_norm = layer_norm<S>;
    k.activated = activated<S>;
    k.gated = gated<S>;
    k.add = add<S>;
    k.rope = rope<S>;
    k.store_kv = store_kv<S>;
    k.attend = attend<S>;
    k.merge_attended = merge_attended<S>;
    k.int8_burst = int8_burst<S>;
    k.fp32_burst = fp32_burst<S>;
    k.fp32_operations = kChains<S> * 16 * 2;
    k.read_burst = read_burst<S>;
    return k;
}

}  // namespace
}  // namespace pagoda
