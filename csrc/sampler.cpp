// Sampling over a batch of logits.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace pagoda {
void bind_sampler(nb::module_ &) {}
}  // namespace pagoda
