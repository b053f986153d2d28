// Run with BATCHNORM_ISA naming an instruction set that is not there: every function refuses, saying so.
#include "calls.hpp"
#include "check.hpp"

int main() {
    const std::string wanted = environment("BATCHNORM_ISA");
    context = "BATCHNORM_ISA=" + wanted;
    CHECK(!wanted.empty());
    CHECK(batchnorm::isa() == nullptr);
    CHECK(batchnorm::available_isa(0) != nullptr);
    for (int i = 0; batchnorm::available_isa(i); ++i) CHECK(batchnorm::available_isa(i) != wanted);
    for (const Op op : all_ops) {
        Example e({{4, 3, 5}, {1}});
        const batchnorm::Status status = run(op, e.call());
        const std::string message = status.message;
        CHECK_DETAIL(status.code == batchnorm::Code::unavailable, message);
        CHECK_DETAIL(message.find("BATCHNORM_ISA=" + wanted) != std::string::npos, message);
        CHECK_DETAIL(message.find("scalar") != std::string::npos, message);
        CHECK_DETAIL(e.untouched(), name(op));
    }
    return report();
}
