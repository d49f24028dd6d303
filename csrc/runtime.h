// What Python's Runtime holds: threads, and the kernels of one instruction set.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "pool.h"

namespace pagoda {

struct Runtime {
    std::shared_ptr<Pool> pool;
    const Kernels *kernels;
    int activation_bits;
    bool bf16_products;

    Runtime(int threads, const std::optional<std::string> &isa, int bits, bool bf16)
        : kernels(nullptr), activation_bits(bits), bf16_products(bf16) {
        if (threads < 1) throw std::invalid_argument("at least one thread is needed");
        if (bits != 8 && bits != 16) throw std::invalid_argument("activations have 8 or 16 bits");
        for (const Kernels *k : available_kernels())
            if (!kernels && (!isa || *isa == k->name)) kernels = k;
        if (!kernels) throw std::invalid_argument("this machine or build has no kernels for isa '" + *isa + "'");
        pool = std::make_shared<Pool>(threads);
    }
};

// Products with one weight outside of any program; see products.cpp.
void bind_products(nanobind::class_<Runtime> &runtime);

}  // namespace pagoda
