// A test binary counts its checks and ends with `return report();`.
//
//     BATCHNORM_TEST_ISA=avx2   the instruction set that must be in use
//     BATCHNORM_TEST_QUICK=1    fewer cases, for an emulated processor
#pragma once

#include <batchnorm/core.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

inline int passed = 0, failed = 0;
inline std::string context;  // what is being tested, for the message of a failure

inline bool check_that(bool condition, const char* text, const char* file, int line, const std::string& detail = "") {
    ++(condition ? passed : failed);
    if (!condition && failed <= 20)
        std::printf("%s:%d: %s failed [%s] %s\n", file, line, text, context.c_str(), detail.c_str());
    return condition;
}

#define CHECK(condition) check_that((condition), #condition, __FILE__, __LINE__)
#define CHECK_DETAIL(condition, detail) check_that((condition), #condition, __FILE__, __LINE__, detail)

inline std::string environment(const char* variable) {
    const char* value = std::getenv(variable);
    return value ? value : "";
}

inline bool quick() { return !environment("BATCHNORM_TEST_QUICK").empty(); }

// A binary that checked nothing has failed too.
inline int report() {
    const bool something = passed + failed > 0;
    const std::string isa = batchnorm::isa() ? batchnorm::isa() : "none", wanted = environment("BATCHNORM_TEST_ISA");
    if (!wanted.empty()) CHECK_DETAIL(isa == wanted, isa + " instead of " + wanted);
    std::printf("isa %s, available:", isa.c_str());
    for (int i = 0; batchnorm::available_isa(i); ++i) std::printf(" %s", batchnorm::available_isa(i));
    std::printf("\nthreads by %s\n%d passed, %d failed\n", batchnorm::threading(), passed, failed);
    return something && failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
