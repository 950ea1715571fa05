// Shared by all kernels: a loop over independent problems, spread over threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// Splits the problems [0, count) over threads. Each thread calls make_work() once, for what it needs
// as scratch, and the result, work(problem), for each of its problems.
template <typename MakeWork>
void parallel(int64_t count, int64_t threads, MakeWork make_work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    auto work = make_work();
    for (int64_t problem = next++; problem < count; problem = next++) work(problem);
  };
  std::vector<std::thread> helpers;
  for (int64_t t = 1; t < threads && t < count; ++t) helpers.emplace_back(run);
  run();
  for (auto& helper : helpers) helper.join();
}

// kernel<float> as kernel_f32 and kernel<double> as kernel_f64, callable from outside.
#define EXPORT(kernel, parameters, arguments)                                   \
  extern "C" void kernel##_f32 parameters(float) { kernel<float> arguments; } \
  extern "C" void kernel##_f64 parameters(double) { kernel<double> arguments; }
