// Shared by all kernels: a parallel loop over independent problems.
#pragma once

#include <cstdint>

// Splits the problems [0, count) among OpenMP threads, the ones PyTorch uses. Each thread calls
// make_work() once to allocate its scratch memory, then work(problem) for each of its problems.
template <typename MakeWork>
void parallel(int64_t count, int64_t threads, MakeWork make_work) {
#pragma omp parallel num_threads(threads)
  {
    auto work = make_work();
#pragma omp for schedule(dynamic)
    for (int64_t problem = 0; problem < count; ++problem) work(problem);
  }
}

// Exports kernel<float> as kernel_f32 and kernel<double> as kernel_f64, with C linkage.
#define EXPORT(kernel, parameters, arguments)                                   \
  extern "C" void kernel##_f32 parameters(float) { kernel<float> arguments; } \
  extern "C" void kernel##_f64 parameters(double) { kernel<double> arguments; }
