// The CUDA part, which lies beside the library that this is compiled into.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "work.hpp"

namespace batchnorm::cuda {
namespace {

struct Loaded {
    const Table* table = nullptr;
    char why_not[512] = "";

    Loaded() noexcept {
        char path[4096];
        void* library = nullptr;
        Dl_info own;
        if (dladdr(reinterpret_cast<const void*>(&load), &own) && own.dli_fname) {
            const char* const slash = std::strrchr(own.dli_fname, '/');
            const int folder = slash ? static_cast<int>(slash - own.dli_fname) + 1 : 0;
            std::snprintf(path, sizeof path, "%.*s%s", folder, own.dli_fname, library_name);
            library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
        // A program that this library is linked into statically may have the CUDA part elsewhere.
        if (!library) library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            std::snprintf(why_not, sizeof why_not, "the CUDA part cannot be loaded: %.400s", dlerror());
            return;
        }
        const auto* const found = static_cast<const Table*>(dlsym(library, table_symbol));
        if (found && found->work_size == sizeof(Work))
            table = found;
        else
            std::snprintf(why_not, sizeof why_not, "%s is not of this version of batchnorm", library_name);
    }
};

}  // namespace

const Table* load(const char*& why_not) noexcept {
    static const Loaded loaded;
    why_not = loaded.why_not;
    return loaded.table;
}

}  // namespace batchnorm::cuda
