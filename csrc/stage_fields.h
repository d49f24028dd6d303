// From Python's keyword arguments to the fields of a stage (`stages.h`). Included by `program_module.cpp` alone.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "program.h"

namespace pagoda {
namespace {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::device::cpu>;
using ByteTable = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const int16_t, nb::shape<16>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<float> to_vector(const std::optional<Floats> &a) {
    std::vector<float> v;
    if (a) v.assign(a->data(), a->data() + a->shape(0));
    return v;
}

Activation activation_from_name(const std::string &name) {
    if (name == "silu") return Activation::Silu;
    if (name == "gelu_tanh") return Activation::GeluTanh;
    if (name == "gelu") return Activation::Gelu;
    if (name == "relu2") return Activation::Relu2;
    if (name == "sigmoid") return Activation::Sigmoid;
    if (name == "clamped_swiglu") return Activation::ClampedSwiglu;
    throw std::invalid_argument("no such activation: " + name);
}

Rows rows_from_name(const std::string &name) {
    for (size_t i = 0; i < std::size(kRowsNames); ++i)
        if (name == kRowsNames[i]) return static_cast<Rows>(i);
    throw std::invalid_argument("no such rows: " + name);
}

void read(nb::handle from, std::vector<float> &to) { to = to_vector(nb::cast<Floats>(from)); }
void read(nb::handle from, std::vector<int32_t> &to) {
    const auto values = nb::cast<Ints>(from);
    to.assign(values.data(), values.data() + values.shape(0));
}
EmbedBy embed_by_from_name(const std::string &name) {
    for (size_t i = 0; i < std::size(kEmbedByNames); ++i)
        if (name == kEmbedByNames[i]) return static_cast<EmbedBy>(i);
    throw std::invalid_argument("no such number of a token: " + name);
}

void read(nb::handle from, EmbedBy &to) { to = embed_by_from_name(nb::cast<std::string>(from)); }
void read(nb::handle from, std::optional<Activation> &to) { to = activation_from_name(nb::cast<std::string>(from)); }
void read(nb::handle from, Rows &to) { to = rows_from_name(nb::cast<std::string>(from)); }
void read(nb::handle from, Type &to) { to = file_type_from_name(nb::cast<std::string>(from).c_str()); }
void read(nb::handle from, FileRows &to) {
    const auto bytes = nb::cast<Bytes>(from);
    to = {bytes.data(), static_cast<int64_t>(bytes.shape(0)), std::make_shared<nb::object>(nb::borrow(from))};
}
template <class T>
void read(nb::handle from, T &to) {
    to = nb::cast<T>(from);
}

class Fields {
  public:
    Fields(const char *kind, const nb::kwargs &given) : kind_(kind), given_(given) {}

    template <class T>
    void operator()(const char *name, T &to, bool optional = false) {
        const bool present = given_.contains(name) && !given_[name].is_none();
        known_ += std::string(known_.empty() ? "" : ", ") + name;
        seen_ += given_.contains(name);
        if (!present && !optional) throw nb::type_error((kind_ + " needs " + name).c_str());
        if (!present) return;
        try {
            read(given_[name], to);
        } catch (const nb::cast_error &) {
            throw nb::type_error((kind_ + " takes no such " + name).c_str());
        }
    }

    void finish() const {
        if (seen_ != given_.size()) throw nb::type_error((kind_ + " has no fields but " + known_).c_str());
    }

  private:
    std::string kind_, known_;
    const nb::kwargs &given_;
    size_t seen_ = 0;
};

// Adds the stage of this kind, one of the alternatives of `Stage` from index I on.
template <size_t I = 0>
void add_stage(Program &program, const std::string &kind, const nb::kwargs &given) {
    if constexpr (I == std::variant_size_v<Stage>) {
        throw std::invalid_argument("no such stage: " + kind);
    } else {
        using S = std::variant_alternative_t<I, Stage>;
        if (kind != S::kKind) return add_stage<I + 1>(program, kind, given);
        S stage{};
        Fields fields(S::kKind, given);
        stage.fields(fields);
        fields.finish();
        program.add(std::move(stage));
    }
}

}  // namespace
}  // namespace pagoda
