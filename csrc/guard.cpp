// Mapped files that are cut short while they are read. A page past a file's end raises SIGBUS, which ends the process
// without a word; in a guarded mapping such a page is replaced by zeros, and counted, so that who serves from it can
// say what happened and stop. Everything that the handler does is safe in a signal handler (mmap is a system call).
#include <nanobind/nanobind.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace nb = nanobind;

namespace pagoda {

namespace {

struct Guarded {
    std::atomic<uintptr_t> begin{0}, end{0};  // end 0: the place is free
};

constexpr int kMaxGuarded = 4096;  // mapped files at once
Guarded guarded[kMaxGuarded];
std::atomic<int64_t> num_lost{0};
struct sigaction previous;
uintptr_t page_size;

bool replace(uintptr_t address) {
    for (const Guarded &mapping : guarded) {
        if (address < mapping.begin.load() || address >= mapping.end.load()) continue;
        void *page = reinterpret_cast<void *>(address - address % page_size);
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        return mmap(page, page_size, PROT_READ, flags, -1, 0) != MAP_FAILED;
    }
    return false;
}

void on_bus_error(int signal, siginfo_t *info, void *) {
    if (replace(reinterpret_cast<uintptr_t>(info->si_addr)))
        num_lost++;
    else
        sigaction(signal, &previous, nullptr);  // the instruction faults again, and whoever was there before is asked
}

// From now on pages of the mapping that are gone read as zeros. False: no place is left for one more.
bool guard(uintptr_t address, uintptr_t bytes) {
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    if (page_size == 0) {
        page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
        struct sigaction action = {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &previous);
    }
    for (Guarded &mapping : guarded) {
        if (mapping.end.load() != 0) continue;
        mapping.begin = address;
        mapping.end = address + bytes;
        return true;
    }
    return false;
}

// To be called before the mapping is unmapped.
void unguard(uintptr_t address) {
    for (Guarded &mapping : guarded) {
        if (mapping.begin.load() != address || mapping.end.load() == 0) continue;
        mapping.begin = UINTPTR_MAX;  // matches nothing while the place is being freed
        mapping.end = 0;
        return;
    }
}

}  // namespace

void bind_guard(nb::module_ &m) {
    using namespace nb::literals;
    m.def("guard_mapping", &guard, "address"_a, "bytes"_a);
    m.def("unguard_mapping", &unguard, "address"_a);
    m.def("num_lost_pages", [] { return num_lost.load(); });
}

}  // namespace pagoda
