// The Python module pagoda._native. Each source file binds what it holds.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace pagoda {
void bind_guard(nb::module_ &m);
void bind_machine(nb::module_ &m);
void bind_program(nb::module_ &m);
void bind_quantize(nb::module_ &m);
void bind_sampler(nb::module_ &m);
}  // namespace pagoda

NB_MODULE(_native, m) {
    m.doc() = "Pagoda's native kernels.";
    nanobind::set_leak_warnings(false);  // a thread that still computes when the process ends holds its engine
    pagoda::bind_guard(m);
    pagoda::bind_machine(m);
    pagoda::bind_program(m);
    pagoda::bind_quantize(m);
    pagoda::bind_sampler(m);
}
