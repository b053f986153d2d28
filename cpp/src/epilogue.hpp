// What a call asks for beyond normalizing, as far as it is not an operand or the mask (box.hpp).
#pragma once

namespace batchnorm {

struct Epilogue {
    bool activates = false;
    double slope = 0;                  // of the activation, where its input is not above 0
    bool restores = false;             // x is the activation's output, and its input is wanted
    bool zeros_count_nothing = false;  // of dy, even beside an x that is not finite
};

}  // namespace batchnorm
