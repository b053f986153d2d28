#include "thread_count.hpp"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "status.hpp"

namespace batchnorm {
namespace {

// The start of a small file, read without allocating; empty if there is none.
struct FileText {
    char text[512];
    explicit FileText(const char* path) noexcept {
        const int file = open(path, O_RDONLY | O_CLOEXEC);
        const ssize_t n = file < 0 ? 0 : read(file, text, sizeof text - 1);
        if (file >= 0) close(file);
        text[n > 0 ? n : 0] = '\0';
    }
};

int at_least_one(double cpus) noexcept { return cpus < 1 ? 1 : static_cast<int>(cpus); }

int affinity_cpus() noexcept {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    return at_least_one(static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN)));
}

// The processor quota of this process' control group and those above it, or of version 1's root, which is a container's
// own; `otherwise` without one.
int quota_cpus(int otherwise) noexcept {
    int least = otherwise;
    const auto limit = [&](double quota, double period) {
        if (quota > 0 && period > 0 && at_least_one(quota / period) < least) least = at_least_one(quota / period);
    };

    const FileText groups("/proc/self/cgroup");
    if (const char* v2 = std::strstr(groups.text, "0::/")) {
        char path[400];
        std::snprintf(path, sizeof path, "%s", v2 + 3);
        path[std::strcspn(path, "\n")] = '\0';
        for (;;) {
            char file[480];
            std::snprintf(file, sizeof file, "/sys/fs/cgroup%s/cpu.max", path);
            double quota = 0, period = 0;
            if (std::sscanf(FileText(file).text, "%lf %lf", &quota, &period) == 2) limit(quota, period);
            char* slash = std::strrchr(path, '/');
            if (!slash || path[0] == '\0') break;
            *slash = '\0';
        }
    }
    limit(std::atof(FileText("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").text),
          std::atof(FileText("/sys/fs/cgroup/cpu/cpu.cfs_period_us").text));
    return least;
}

// The first number of a variable such as "4" or "4,2"; 0 if there is none.
int environment_threads(const char* variable) noexcept {
    const char* value = std::getenv(variable);
    const int threads = value ? std::atoi(value) : 0;
    return threads > 0 ? threads : 0;
}

int default_threads() noexcept {
    const int cpus = quota_cpus(affinity_cpus());
    int wanted = environment_threads("BATCHNORM_NUM_THREADS");
    if (wanted == 0) wanted = environment_threads("OMP_NUM_THREADS");
    return wanted > 0 && wanted < cpus ? wanted : cpus;
}

std::atomic<int> thread_count{0};  // 0: not asked for yet

Team at_most(const Team& team, std::int64_t threads) noexcept {
    Team few = team;
    if (threads < few.threads) few.threads = threads > 1 ? static_cast<int>(threads) : 1;
    return few;
}

}  // namespace

int get_num_threads() noexcept {
    int threads = thread_count.load(std::memory_order_relaxed);
    if (threads == 0) {
        threads = default_threads();
        thread_count.store(threads, std::memory_order_relaxed);
    }
    return threads;
}

Status core::set_num_threads(int threads) noexcept {
    if (threads < 1 || threads > max_threads)
        return failure(Code::invalid_value, "set_num_threads: threads must be from 1 to %d, got %d", max_threads,
                       threads);
    thread_count.store(threads, std::memory_order_relaxed);
    return {};
}

Team make_team(const Options& options, std::int64_t elements, std::int64_t each) noexcept {
    Team team;
    team.executor = options.executor;
    if (options.threads > 0) {
        team.threads = options.threads;
        return team;
    }
    if (elements < 2 * each) return team;
    team.threads = options.executor.run ? options.executor.threads : get_num_threads();
    return at_most(team, elements / each);
}

Team smaller_team(const Team& team, std::int64_t elements) noexcept {
    return at_most(team, elements / most_elements_per_thread);
}

}  // namespace batchnorm
