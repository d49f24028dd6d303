// Every kernel, written once over 16 lanes (a struct S from simd_*.h); each instruction set includes this file.
#pragma once

#include <cmath>
#include <utility>

#include "kernels.h"

namespace pagoda {
namespace {

#include "kernels_rows.inl"
#include "kernels_gemm.inl"
#include "kernels_attend.inl"

template <class S>
Kernels make_kernels() {
    Kernels k{};
    k.name = S::kName;
    k.quantize = quantize<S>;
    k.rms_norm = rms_norm<S>;
    k.gated = gated<S>;
    k.add = add<S>;
    k.rope = rope<S>;
    k.store_kv = store_kv<S>;
    k.attend = attend<S>;
    const auto row = [&](Type t, void (*fn)(const GemmArgs &)) { k.gemm[static_cast<int>(t)] = fn; };
    row(Type::F32, gemm_float<S, ReadF32>);
    row(Type::F16, gemm_float<S, ReadF16>);
    row(Type::BF16, gemm_float<S, ReadBF16>);
    row(Type::Q4_0, gemm_int<S, ReadQ4_0>);
    row(Type::Q4_1, gemm_int<S, ReadQ4_1>);
    row(Type::Q5_0, gemm_int<S, ReadQ5_0>);
    row(Type::Q5_1, gemm_int<S, ReadQ5_1>);
    row(Type::Q8_0, gemm_int<S, ReadQ8_0>);
    row(Type::Q2_K, gemm_int<S, ReadQ2_K>);
    row(Type::Q3_K, gemm_int<S, ReadQ3_K>);
    row(Type::Q4_K, gemm_int<S, ReadQ4_K>);
    row(Type::Q5_K, gemm_int<S, ReadQ5_K>);
    row(Type::Q6_K, gemm_int<S, ReadQ6_K>);
    row(Type::IQ4_NL, gemm_int<S, ReadIQ4_NL>);
    row(Type::IQ4_XS, gemm_int<S, ReadIQ4_XS>);
    return k;
}

}  // namespace
}  // namespace pagoda
