// What a static libstdc++ and libgcc built on a newer system expect of the C library and glibc 2.28
// lacks. Linked into our libraries where they are made for it (CARAFE_GLIBC_STUBS), and hidden
// there.
#include <link.h>

#include <cstdint>

struct dl_find_object;

extern "C" {

/// glibc 2.32: true lets libstdc++ count references without atomics. False is always right.
char __libc_single_threaded = 0;

/// glibc 2.36: libstdc++ names it for std::random_device, which nothing here uses.
std::uint32_t arc4random() {
    __builtin_trap();
}

/// glibc 2.35: finds the object that holds `pc` and its exception tables. Here by walking the list
/// of loaded objects, as libgcc did before.
int _dl_find_object(void* pc, dl_find_object* result);
}

namespace {

/// The struct as glibc lays it out on machines without a data base (x86-64, aarch64).
struct FoundObject {
    unsigned long long flags;
    void* map_start;
    void* map_end;
    link_map* map;
    void* eh_frame;
    unsigned long long reserved[7];
};

struct Search {
    std::uintptr_t pc;
    FoundObject* found;
};

int visit(dl_phdr_info* object, std::size_t, void* argument) {
    auto const& search = *static_cast<Search*>(argument);
    std::uintptr_t start = 0, end = 0, eh_frame = 0;
    for (int i = 0; i < object->dlpi_phnum; ++i) {
        auto const& segment = object->dlpi_phdr[i];
        std::uintptr_t const first = object->dlpi_addr + segment.p_vaddr;
        if (segment.p_type == PT_LOAD && search.pc >= first &&
            search.pc < first + segment.p_memsz) {
            start = first;
            end = first + segment.p_memsz;
        }
        if (segment.p_type == PT_GNU_EH_FRAME) eh_frame = first;
    }
    if (end == 0 || eh_frame == 0) return 0;
    *search.found = {};
    search.found->map_start = reinterpret_cast<void*>(start);
    search.found->map_end = reinterpret_cast<void*>(end);
    search.found->eh_frame = reinterpret_cast<void*>(eh_frame);
    return 1;
}

}  // namespace

int _dl_find_object(void* pc, dl_find_object* result) {
    Search search{reinterpret_cast<std::uintptr_t>(pc), reinterpret_cast<FoundObject*>(result)};
    return dl_iterate_phdr(visit, &search) == 1 ? 0 : -1;
}
