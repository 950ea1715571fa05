// The gating matrix of a grid and its gradient: the recurrence with one number per edge and source
// where plstm_2d has a K x V state.
//
// Gates of a problem (one image and head): (corners, N, 8), N = Y X nodes in image coordinates,
//   s0 s1 t00 t01 t10 t11 m0 m1   (direction 0 along x, 1 along y; t[out][in]).
// orders: two bits per corner, whether it scans leftward (1) and upward (2).

#include <algorithm>
#include <memory>

#include "native.h"

namespace {

struct Scan {
  int64_t rows, columns;
  bool leftward, upward;

  int64_t nodes() const { return rows * columns; }
  // What the scan meets at its step (row, column).
  int64_t node(int64_t row, int64_t column) const {
    return (upward ? rows - 1 - row : row) * columns + (leftward ? columns - 1 - column : column);
  }
  // The sources that have been passed at the end of a row.
  int64_t first(int64_t row) const { return upward ? (rows - 1 - row) * columns : 0; }
  int64_t last(int64_t row) const { return (upward ? rows : row + 1) * columns; }
};

Scan scan_of(int64_t rows, int64_t columns, int64_t orders, int64_t corner) {
  const int64_t order = orders >> (2 * corner);
  return {rows, columns, bool(order & 1), bool(order & 2)};
}

// What the edges carry of every source: along the current row, and down every column.
template <typename T>
struct Lanes {
  int64_t down_size;
  std::unique_ptr<T[]> across, down;
  Lanes(int64_t rows, int64_t columns)
      : down_size(rows * columns * columns),
        across(new T[rows * columns]),
        down(new T[down_size]) {}
  void clear() { std::fill(down.get(), down.get() + down_size, T(0)); }
};

// Visits every node with the lanes that arrive there, then takes them through its transition.
template <typename T, typename Visit>
void scan_forward(const Scan& scan, const T* gates, Lanes<T>& lanes, Visit visit) {
  lanes.clear();
  T* __restrict h = lanes.across.get();
  for (int64_t row = 0; row < scan.rows; ++row) {
    const int64_t first = scan.first(row), last = scan.last(row);
    std::fill(h + first, h + last, T(0));
    for (int64_t column = 0; column < scan.columns; ++column) {
      const int64_t node = scan.node(row, column);
      const T* g = gates + 8 * node;
      const T t00 = g[2], t01 = g[3], t10 = g[4], t11 = g[5];
      T* __restrict c = lanes.down.get() + column * scan.nodes();
      visit(node, g, first, last, h, c);
      for (int64_t s = first; s < last; ++s) {
        const T a0 = h[s], a1 = c[s];
        h[s] = t00 * a0 + t01 * a1;
        c[s] = t10 * a0 + t11 * a1;
      }
      h[node] += g[0];
      c[node] += g[1];
    }
  }
}

// out (N, N) += what every node reads of every source.
template <typename T>
void add_reads(const Scan& scan, const T* gates, T* out, Lanes<T>& lanes) {
  const int64_t nodes = scan.nodes();
  scan_forward(scan, gates, lanes,
               [=](int64_t node, const T* g, int64_t first, int64_t last, const T* h, const T* c) {
                 const T m0 = g[6], m1 = g[7];
                 T* __restrict read = out + node * nodes;
                 for (int64_t s = first; s < last; ++s) read[s] += m0 * h[s] + m1 * c[s];
               });
}

// Fills grad_gates (N, 8). On the way back the lanes carry the gradients of what leaves a node.
// arrived (N, 2, N): room for what arrives there.
template <typename T>
void gradients(const Scan& scan, const T* gates, const T* grad, T* grad_gates, Lanes<T>& lanes,
               T* arrived) {
  const int64_t nodes = scan.nodes();
  scan_forward(scan, gates, lanes,
               [=](int64_t node, const T*, int64_t first, int64_t last, const T* h, const T* c) {
                 T* kept = arrived + 2 * node * nodes;
                 std::copy(h + first, h + last, kept + first);
                 std::copy(c + first, c + last, kept + nodes + first);
               });
  lanes.clear();
  T* __restrict h = lanes.across.get();
  for (int64_t row = scan.rows; row-- > 0;) {
    const int64_t first = scan.first(row), last = scan.last(row);
    std::fill(h + first, h + last, T(0));
    for (int64_t column = scan.columns; column-- > 0;) {
      const int64_t node = scan.node(row, column);
      const T* g = gates + 8 * node;
      const T t00 = g[2], t01 = g[3], t10 = g[4], t11 = g[5], m0 = g[6], m1 = g[7];
      T* __restrict c = lanes.down.get() + column * nodes;
      const T* __restrict a0_at = arrived + 2 * node * nodes;
      const T* __restrict a1_at = a0_at + nodes;
      const T* __restrict read_at = grad + node * nodes;
      const T s0 = h[node], s1 = c[node];
      T d00 = 0, d01 = 0, d10 = 0, d11 = 0, e0 = 0, e1 = 0;
      for (int64_t s = first; s < last; ++s) {
        const T a0 = a0_at[s], a1 = a1_at[s], g0 = h[s], g1 = c[s], read = read_at[s];
        d00 += g0 * a0;
        d01 += g0 * a1;
        d10 += g1 * a0;
        d11 += g1 * a1;
        e0 += read * a0;
        e1 += read * a1;
        h[s] = t00 * g0 + t10 * g1 + m0 * read;
        c[s] = t01 * g0 + t11 * g1 + m1 * read;
      }
      const T sums[] = {s0, s1, d00, d01, d10, d11, e0, e1};
      std::copy(sums, sums + 8, grad_gates + 8 * node);
    }
  }
}

// gates (problems, corners, N, 8), direct (problems, N) -> out (problems, N, N)
template <typename T>
void gating(const T* gates, const T* direct, T* out, int64_t problems, int64_t corners,
            int64_t rows, int64_t columns, int64_t orders, int64_t threads) {
  const int64_t nodes = rows * columns;
  parallel(problems, threads, [=] {
    return [=, lanes = Lanes<T>(rows, columns)](int64_t problem) mutable {
      T* matrix = out + problem * nodes * nodes;
      std::fill(matrix, matrix + nodes * nodes, T(0));
      for (int64_t node = 0; node < nodes; ++node)
        matrix[node * (nodes + 1)] = direct[problem * nodes + node];
      for (int64_t corner = 0; corner < corners; ++corner)
        add_reads(scan_of(rows, columns, orders, corner),
                  gates + (problem * corners + corner) * nodes * 8, matrix, lanes);
    };
  });
}

// grad (problems, N, N) -> grad_gates and grad_direct, shaped as gates and direct
template <typename T>
void gating_backward(const T* gates, const T* grad, T* grad_gates, T* grad_direct,
                     int64_t problems, int64_t corners, int64_t rows, int64_t columns,
                     int64_t orders, int64_t threads) {
  const int64_t nodes = rows * columns;
  parallel(problems, threads, [=] {
    return [=, lanes = Lanes<T>(rows, columns),
            arrived = std::unique_ptr<T[]>(new T[2 * nodes * nodes])](int64_t problem) mutable {
      const T* matrix = grad + problem * nodes * nodes;
      for (int64_t node = 0; node < nodes; ++node)
        grad_direct[problem * nodes + node] = matrix[node * (nodes + 1)];
      for (int64_t corner = 0; corner < corners; ++corner) {
        const int64_t offset = (problem * corners + corner) * nodes * 8;
        gradients(scan_of(rows, columns, orders, corner), gates + offset, matrix,
                  grad_gates + offset, lanes, arrived.get());
      }
    };
  });
}

}  // namespace

#define GATING(T)                                                                       \
  (const T* gates, const T* direct, T* out, int64_t problems, int64_t corners,          \
   int64_t rows, int64_t columns, int64_t orders, int64_t threads)
EXPORT(gating, GATING, (gates, direct, out, problems, corners, rows, columns, orders, threads))

#define GATING_BACKWARD(T)                                                              \
  (const T* gates, const T* grad, T* grad_gates, T* grad_direct, int64_t problems,      \
   int64_t corners, int64_t rows, int64_t columns, int64_t orders, int64_t threads)
EXPORT(gating_backward, GATING_BACKWARD,
       (gates, grad, grad_gates, grad_direct, problems, corners, rows, columns, orders, threads))
