// Random calls of every function: results against the formulas of core.hpp, element by element; nothing touched beside
// what a call is about; and calls with one fault, refused without a byte written.
//
//     test_random_calls [seed [calls]]    a call depends on its seed alone, which a failure tells: test_random_calls 17
#include "random_call.hpp"

namespace {

class Case : public RandomCall {
  public:
    explicit Case(std::uint64_t seed) : RandomCall(seed), seed_(seed) {
        if (is_forward() || is({Op::moments})) expect_forward();
        if (is_backward()) expect_backward();
        if (has_directions()) expect_directions();
        draw_workspace();
        for (Operand& one : operands_) one.array.remember();
    }

    // The call as it is, or with a fault.
    void check() {
        const std::string fault = one_in(4) ? spoil() : too_few_values() ? "too few values" : "";
        context = text() + fault + "; again: test_random_calls " + std::to_string(seed_);
        fault_message = context.c_str();
        const Status status = run();
        if (!fault.empty()) {
            CHECK(!status.ok());
            CHECK_DETAIL(std::string(status.message).rfind(function() + ": ", 0) == 0, status.message);
        } else if (CHECK_DETAIL(status.ok(), status.message)) {
            for (const Operand& one : operands_)
                if (one.written) check_values(one);
            if (call_.mask && is({Op::batch_norm, Op::normalize})) check_mask();
        }
        for (const Operand& one : operands_)
            CHECK_DETAIL(one.written && fault.empty() ? one.array.unchanged_beside_elements() : one.array.unchanged(),
                         std::string(one.name) + " was changed");
        const bool writes_mask = fault.empty() && is({Op::batch_norm, Op::normalize});
        if (mask_) CHECK(mask_->unchanged(mask_->data(), {0}, writes_mask ? mask_bytes_ : 0));
        if (workspace_) CHECK(workspace_->unchanged(workspace_data_, {0}, workspace_bytes_));
    }

  private:
    // ------------------------------------------------------------------------------------------------ the formulas

    void expect_forward() {
        u = reference::u64;
        Statistics s;
        if (is({Op::batch_norm, Op::moments})) s = statistics_of_x();
        for (std::size_t k = 0; k < statistics_ && !is({Op::batch_norm, Op::moments}); ++k) {
            s.mean.push_back(exact(mean_[k]));
            s.var.push_back(is_frozen() ? exact(var_[k]) : count_[k] > 0 ? exact(m2_[k]) / count_[k] : Number{});
            s.inv_std.push_back(inv_std_of(s.var[k]));
        }
        Numbers counts;
        for (const double count : count_) counts.push_back({count, sum_error() * count});
        const bool may_be_one = !call_.options.weights && group_size_ == 0;
        if (is({Op::moments})) {
            result(call_.result[0], "mean", stat_shape_, s.mean);
            result(call_.result[1], "m2", stat_shape_, s.m2);
            return result(call_.result[2], "count", stat_shape_, counts, may_be_one);
        }

        Numbers y;
        for (std::size_t i = 0; i < x_.size(); ++i) {
            const std::size_t k = statistic_of(i), c = kept_of(i);
            u = reference::u64;
            const Number scale = s.inv_std[k] * exact(gamma_[c]);
            u = elements_u();
            Number v = centred(exact(x_[i]), s.mean[k]) * rounded(scale) + rounded(exact(beta_[c]));
            if (call_.options.residual) v = v + exact(residual_[i]);
            before_activation_.push_back(v);
            y.push_back(activates() ? activated(v) : v);
        }
        if (inplace_) {
            operands_.front().written = true;
            operands_.front().expected = y;
            call_.out = operands_.front().array.mut();
        } else {
            output(call_.out, "out", {"x"}).expected = y;
        }
        if (is_frozen()) return;
        result(call_.result[0], "mean", stat_shape_, s.mean);
        result(call_.result[1], "inv_std", stat_shape_, s.inv_std);
        result(call_.result[2], "var", stat_shape_, s.var);
        result(call_.stored_count, "count", stat_shape_, counts, may_be_one);
    }

    // Either side of 0 where v may be on either.
    Number activated(Number v) const {
        const Number below = rounded(exact(slope())) * v;
        if (std::fabs(v.value) > v.error) return v.value > 0 ? v : below;
        return std::isnan(v.value)
                   ? v
                   : Number{v.value, v.error + std::fabs(v.value) + std::fabs(below.value) + below.error};
    }

    // dy before the activation.
    Number before(std::size_t i) const {
        return !activates() || through_[i] ? exact(dy_[i]) : rounded(exact(slope())) * exact(dy_[i]);
    }
    // x - mean, or, from the output, the activation's input - beta.
    Number difference(std::size_t i) const {
        if (!from_output()) return centred(exact(x_[i]), exact(mean_[statistic_of(i)]));
        const Number v = !activates() || through_[i] ? exact(x_[i]) : rounded(exact(1 / slope())) * exact(x_[i]);
        return centred(v, exact(beta_[kept_of(i)]));
    }

    void expect_backward() {
        std::vector<Sum> sum_dy(statistics_), sum_dy_xmu(statistics_);
        for (std::size_t i = 0; i < x_.size(); ++i) {
            const std::size_t k = statistic_of(i);
            u = elements_u();
            const Number g = before(i);
            if (!from_output() || !activates()) u = reference::u64;
            const Number d = difference(i);
            u = reference::u64;
            sum_dy[k].add(g);
            sum_dy_xmu[k].add(g * d, std::fabs(g.value) * lost(from_output() ? beta_[kept_of(i)] : mean_[k]));
        }
        Numbers sums(statistics_), sums_xmu(statistics_), counts(statistics_), inv_std(statistics_),
            to_xhat(statistics_);
        Numbers dgamma(problem_->statistics), dbeta(problem_->statistics);
        for (std::size_t k = 0; k < statistics_; ++k) {
            const std::size_t c = k % problem_->statistics;
            sums[k] = is({Op::input_grad}) ? exact(sum_dy_[k]) : sum_dy[k].total(sum_error());
            sums_xmu[k] = is({Op::input_grad}) ? exact(sum_dy_xmu_[k]) : sum_dy_xmu[k].total(sum_error());
            counts[k] = {count_[k], sum_error() * count_[k]};
            if (!is({Op::grad_sums})) inv_std[k] = is_frozen() ? inv_std_of(exact(var_[k])) : exact(inv_std_[k]);
            to_xhat[k] = from_output() ? exact(1) / gamma_[c] : inv_std[k];
            dbeta[c] = dbeta[c] + sums[k];
            dgamma[c] = dgamma[c] + sums_xmu[k] * to_xhat[k];
        }
        if (is({Op::grad_sums})) {
            result(call_.result[0], "sum_dy", stat_shape_, sums);
            result(call_.result[1], "sum_dy_xmu", stat_shape_, sums_xmu);
            return result(call_.result[2], "count", stat_shape_, counts, !call_.options.weights && group_size_ == 0);
        }

        Numbers dx, dresidual;
        for (std::size_t i = 0; i < x_.size(); ++i) {
            const std::size_t k = statistic_of(i);
            u = reference::u64;
            const Number a = inv_std[k] * exact(gamma_[kept_of(i)]);
            const bool moves = !is_frozen() && weights_[i] > 0 && count_[k] > 0;  // the mean and the variance
            const Number c = moves ? a * sums[k] / count_[k] : Number{};
            const Number b = moves ? a * sums_xmu[k] * to_xhat[k] / count_[k] : Number{};
            u = elements_u();
            dresidual.push_back(before(i));
            Number one = rounded(a) * before(i);
            if (moves)
                one = one - exact(weights_[i]) * (rounded(b) * (difference(i) * rounded(to_xhat[k])) + rounded(c));
            dx.push_back(one);
        }
        output(call_.out, "out", {"dy", from_output() ? "y" : "x"}).expected = dx;
        if (!from_output() && one_in(3)) {
            output(dresidual_view_, "dresidual", {"dy", "x"}).expected = dresidual;
            call_.options.dresidual = &dresidual_view_;
        }
        result(call_.result[0], "dgamma", problem_->kept_shape, dgamma);
        result(call_.result[1], "dbeta", problem_->kept_shape, dbeta);
    }

    // Means over a statistic of v, of v * xhat and, where w is given, of (v - its mean) * w.
    struct Means {
        Numbers v, v_xhat, v_w;
    };

    Means means(const Values& v, const Values& w = {}) const {
        u = reference::u64;
        std::vector<Sum> sum(statistics_), sum_xmu(statistics_), sum_w(statistics_);
        for (std::size_t i = 0; i < v.size(); ++i) {
            const std::size_t k = statistic_of(i);
            sum[k].add(exact(v[i]));
            sum_xmu[k].add(exact(v[i]) * difference(i), std::fabs(v[i]) * lost(mean_[k]));
        }
        Means m;
        for (std::size_t k = 0; k < statistics_; ++k) {
            const double count = std::max(count_[k], 1.0);  // of an empty x the sums are 0
            m.v.push_back(sum[k].total(sum_error()) / count);
            m.v_xhat.push_back(sum_xmu[k].total(sum_error()) / count * exact(inv_std_[k]));
        }
        for (std::size_t i = 0; i < w.size(); ++i) {
            const Number mean = m.v[statistic_of(i)];
            sum_w[statistic_of(i)].add(centred(exact(v[i]), mean) * exact(w[i]), std::fabs(w[i]) * lost(mean.value));
        }
        for (std::size_t k = 0; k < statistics_; ++k)
            m.v_w.push_back(sum_w[k].total(sum_error()) / std::max(count_[k], 1.0));
        return m;
    }

    void expect_directions() {
        const bool twice = is({Op::batch_norm_double_backward});
        const Values& v = twice ? ddx_ : dy_;  // the direction
        const Means of_v = means(v, twice ? dy_ : Values{}), of_dy = means(dy_);
        Numbers ty, dx, dgamma(problem_->statistics);
        u = reference::u64;
        const auto k_of = [&](std::size_t k) { return of_v.v_w[k] - of_v.v_xhat[k] * of_dy.v_xhat[k]; };
        for (std::size_t k = 0; k < statistics_; ++k) {
            Number& one = dgamma[k % problem_->statistics];
            one = one + exact(count_[k]) * exact(inv_std_[k]) * k_of(k);
        }
        for (std::size_t i = 0; i < x_.size(); ++i) {
            const std::size_t k = statistic_of(i), c = kept_of(i);
            u = reference::u64;
            const Number r = exact(inv_std_[k]), a = r * exact(gamma_[c]), p = of_v.v_xhat[k], q = of_dy.v_xhat[k];
            const Number tgamma = exact(tgamma_[c]), to_xhat = tgamma - a * p;
            const Number dx_to_xhat = a * r * (exact(2) * p * q - k_of(k)) - tgamma * r * q;
            const Number dx_to_v = -(a * r * q), dx_to_dy = tgamma * r - a * r * p;
            u = elements_u();
            const Number xhat = difference(i) * rounded(r), from_mean = centred(exact(v[i]), of_v.v[k]);
            ty.push_back(rounded(a) * from_mean + rounded(to_xhat) * xhat + rounded(exact(tbeta_[c])));
            dx.push_back(rounded(dx_to_xhat) * xhat + rounded(dx_to_v) * from_mean +
                         rounded(dx_to_dy) * centred(exact(dy_[i]), of_dy.v[k]));
        }
        if (!twice) {
            output(call_.out, "out", {"dy", "x"}).expected = ty;
            return;
        }
        // Both may be written over inputs if dx is dy.
        Operand& out = output(call_.out, "dx", {"ddx", "dy", "x"});
        out.expected = dx;
        const std::string at = out.name;
        output(call_.ddy, "ddy",
               at == "dx"   ? std::initializer_list<const char*>{"ddx", "dy", "x"}
               : at == "dy" ? std::initializer_list<const char*>{"ddx", "x"}
                            : std::initializer_list<const char*>{})
            .expected = ty;
        result(call_.result[0], "dgamma", problem_->kept_shape, dgamma);
    }

    // --------------------------------------------------------------------------------------------------- the checks

    // A fault that the call can have; what it is.
    std::string spoil() {
        batchnorm::Options& o = call_.options;
        const bool full = !empty(), has_out = writes_out() && !inplace_, has_dy = is_backward() || has_directions();
        const auto rewrite = [](Operand* one, double value) {
            one->array.set(0, value);
            one->array.remember();
        };
        Operand *const weights = find("weights"), *const var = find("given var"), *const gamma = find("gamma");
        const int last = call_.x.rank - 1;
        Operand* input = nullptr;  // any that is more than checked
        for (Operand& one : operands_)
            if (!one.written && one.array.size() > 0 && (one.name != std::string("weights") || is({Op::batch_norm})))
                if (!input || one_in(2)) input = &one;
        const bool one_a_sample = op_ == Op::batch_norm && full && group_size_ == 0 && last >= 0 && !keeps_[0] &&
                                  values_of(0) == static_cast<double>(shape_[0]);
        struct Fault {
            const char* what;
            bool can_be;
            std::function<void()> make;
        };
        const std::vector<Fault> faults = {
            {"threads", true, [&] { o.threads = -1; }},
            {"axis out of range", true, [&] { call_.axes = any({last + 1, -last - 2}); }},
            {"axis twice", !axes_.empty() && last < 7, [&] { call_.axes.axis[call_.axes.count++] = axes_[0]; }},
            {"activation", true, [&] { o.activation = static_cast<Activation>(9); }},
            {"group_size", true, [&] { o.group_size = -1; }},
            {"groups of one value", one_a_sample,
             [&] {
                 o.group_size = 1;
                 for (auto* to : {&call_.result[0], &call_.result[1], &call_.result[2], &call_.stored_count}) *to = {};
             }},
            {"option not taken", !is({Op::batch_norm_inference_backward}), [&] { o.activation_output = &call_.x; }},
            {"type of x", true, [&] { call_.x.dtype = call_.out.dtype = static_cast<DType>(7); }},
            {"no x", full, [&] { call_.x.data = call_.out.data = nullptr; }},
            {"eps", is_forward() || is_frozen(), [&] { o.eps = any({0.0, -1e-5, std::nan("")}); }},
            {"type of dy", has_dy, [&] { call_.dy.dtype = dtype_ == DType::f64 ? DType::f32 : DType::f64; }},
            {"shape of dy", has_dy && last >= 0, [&] { ++call_.dy.shape[last]; }},
            {"type of out", has_out, [&] { call_.out.dtype = dtype_ == DType::f16 ? DType::bf16 : DType::f16; }},
            {"shape of out", has_out && last >= 0, [&] { ++call_.out.shape[0]; }},
            {"out over x", has_out && full,
             [&] {
                 call_.out = operands_.front().array.mut();
                 call_.out.data = static_cast<char*>(call_.out.data) + any({-1, 1});
             }},
            {"result over x", full && call_.result[0].data,
             [&] { call_.result[0].data = static_cast<char*>(operands_.front().array.mut().data) + 1; }},
            {"result over an input", input && full && call_.result[0].data,
             [&] { call_.result[0].data = static_cast<char*>(input->array.mut().data) + 1; }},
            {"out over an input", input && has_out && full,
             [&] { call_.out.data = static_cast<char*>(input->array.mut().data) + 1; }},
            {"out in one place", has_out && last >= 0 && full && shape_[0] > 1, [&] { call_.out.stride[0] = 0; }},
            {"shape of gamma", call_.gamma.rank > 0, [&] { ++call_.gamma.shape[0]; }},
            {"gamma of 0", gamma && gamma->array.size() > 0 && (from_output() || inplace_), [&] { rewrite(gamma, 0); }},
            {"relu", from_output() || inplace_, [&] { o.activation = Activation::relu; }},
            {"no mean", call_.mean.data != nullptr, [&] { call_.mean = {}; }},
            {"negative var", var && var->array.size() > 0, [&] { rewrite(var, -1); }},
            {"negative weight", weights && full, [&] { rewrite(weights, any({-1.0, std::nan("")})); }},
            {"no mask", call_.mask && full && is_backward(), [&] { call_.mask = nullptr; }},
            {"results in one place", full && call_.result[0].data && call_.result[1].data && !has_directions(),
             [&] { call_.result[1].data = call_.result[0].data; }},
            {"workspace", full && workspace_, [&] { --o.workspace.bytes; }},
        };
        for (;;) {
            const Fault& fault = faults[bits() % faults.size()];
            if (!fault.can_be) continue;
            fault.make();
            return fault.what;
        }
    }

    void check_values(const Operand& one) const {
        const DType type = one.array.dtype();
        const double largest = type == DType::f16 ? 65504 : type == DType::f64 ? 1e308 : 3e38;
        if (!CHECK_DETAIL(one.expected.size() == one.array.size(), one.name)) return;
        for (std::size_t i = 0; i < one.array.size(); ++i) {
            const Number want = one.expected[i];
            const double got = one.array.get(i), apart = std::fabs(got - want.value);
            // In float64 the formulas above round as the library does.
            const double bound = (dtype_ == DType::f64 ? 2 : 1) * want.error +
                                 reference::storage_error(type, std::fabs(want.value) + want.error) +
                                 reference::underflow(elements_u());
            const bool overflows = std::fabs(want.value) + bound > largest;
            if (std::isnan(want.value) ? std::isnan(got)
                : overflows            ? std::fabs(got) >= 0.99 * largest
                                       : apart <= bound)
                continue;
            CHECK_DETAIL(false, std::string(one.name) + " at " + std::to_string(i) + " is " + precise(got) + ", not " +
                                    precise(want.value) + " to " + precise(bound));
            return;
        }
    }

    // What backward finds in the mask that forward wrote: dresidual is dy, of 1, where the activation let it through.
    void check_mask() const {
        if (empty()) return;
        static const double one = 1;
        Tensor ones(dtype_, shape_), dx(dtype_, shape_), found(dtype_, shape_);
        ones.fill(Values(ones.size(), 1));
        const batchnorm::MutView dresidual = found.mut();
        const View any_value = batchnorm::view(&one, {});
        batchnorm::Options options;
        options.group_size = group_size_;
        options.activation = Activation::relu;
        options.dresidual = &dresidual;
        // x may be written by now, and is looked at for its shape and strides alone.
        CHECK(core::input_grad(ones.view(), call_.x, call_.axes, {any_value, any_value, {}, call_.mask},
                               {any_value, any_value, any_value}, {}, dx.mut(), {}, {}, options)
                  .ok());
        bool same = true;
        for (std::size_t i = 0; i < found.size(); ++i) {
            const Number v = before_activation_[i];
            same &= std::fabs(v.value) <= v.error || (found.get(i) != 0) == !(v.value <= 0);
        }
        CHECK(same);
    }

    std::uint64_t seed_;
    Numbers before_activation_;
};

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
    const std::uint64_t calls = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : argc > 1 ? 1 : quick() ? 100 : 2500;
    tell_faults();
    for (std::uint64_t i = 0; i < calls; ++i) {
        context = "drawing; again: test_random_calls " + std::to_string(seed + i);
        fault_message = context.c_str();
        Case one(seed + i);
        one.check();
    }
    return report();
}
