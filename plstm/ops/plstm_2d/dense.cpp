// Scores times the gating matrix of a grid, and gradients. The matrix follows the recurrence of
// plstm_2d with one number per edge and source node in place of a K x V state.
//
// A problem is one head of one image. Gates (problems, corners, ...) and orders as in grid.h.

#include <algorithm>
#include <memory>

#include "grid.h"
#include "native.h"

namespace {

// Weight of every source node on the edges: along the current row, and down every column.
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

// Visits every node with the lanes that arrive there, then applies its transition.
template <typename T, typename Visit>
void scan_forward(const Scan& scan, Gates<const T> gates, Lanes<T>& lanes, Visit visit) {
  lanes.clear();
  T* __restrict h = lanes.across.get();
  for (int64_t row = 0; row < scan.rows; ++row) {
    const int64_t first = scan.first(row), last = scan.last(row);
    std::fill(h + first, h + last, T(0));
    for (int64_t column = 0; column < scan.columns; ++column) {
      const int64_t node = scan.node(row, column);
      const Gates<const T> g = gates.from(node);
      const T t00 = g.transition[0], t01 = g.transition[1];
      const T t10 = g.transition[2], t11 = g.transition[3];
      T* __restrict c = lanes.down.get() + column * scan.nodes();
      visit(node, first, last, h, c);
      for (int64_t s = first; s < last; ++s) {
        const T a0 = h[s], a1 = c[s];
        h[s] = t00 * a0 + t01 * a1;
        c[s] = t10 * a0 + t11 * a1;
      }
      h[node] += g.source[0];
      c[node] += g.source[1];
    }
  }
}

// out (N, N) += what every node reads from every source node. If KEEP, writes what arrives at every
// node to arrived (N, 2, N).
template <bool KEEP, typename T>
void add_reads(const Scan& scan, Gates<const T> gates, T* out, Lanes<T>& lanes, T* arrived) {
  const int64_t nodes = scan.nodes();
  scan_forward(scan, gates, lanes,
               [=](int64_t node, int64_t first, int64_t last, const T* h, const T* c) {
                 const T m0 = gates.mark[2 * node], m1 = gates.mark[2 * node + 1];
                 T* __restrict read = out + node * nodes;
                 for (int64_t s = first; s < last; ++s) read[s] += m0 * h[s] + m1 * c[s];
                 if (KEEP) {
                   T* kept = arrived + 2 * node * nodes;
                   std::copy(h + first, h + last, kept + first);
                   std::copy(c + first, c + last, kept + nodes + first);
                 }
               });
}

// Writes the gradients of the gates, given that of the matrix (N, N). Backwards, the lanes carry
// the gradients of what leaves a node.
template <typename T>
void gradients(const Scan& scan, Gates<const T> gates, const T* grad, Gates<T> grad_gates,
               Lanes<T>& lanes, const T* arrived) {
  const int64_t nodes = scan.nodes();
  lanes.clear();
  T* __restrict h = lanes.across.get();
  for (int64_t row = scan.rows; row-- > 0;) {
    const int64_t first = scan.first(row), last = scan.last(row);
    std::fill(h + first, h + last, T(0));
    for (int64_t column = scan.columns; column-- > 0;) {
      const int64_t node = scan.node(row, column);
      const Gates<const T> g = gates.from(node);
      const T t00 = g.transition[0], t01 = g.transition[1], m0 = g.mark[0];
      const T t10 = g.transition[2], t11 = g.transition[3], m1 = g.mark[1];
      T* __restrict c = lanes.down.get() + column * nodes;
      const T* __restrict a0_at = arrived + 2 * node * nodes;
      const T* __restrict a1_at = a0_at + nodes;
      const T* __restrict read_at = grad + node * nodes;
      const Gates<T> to = grad_gates.from(node);
      to.source[0] = h[node], to.source[1] = c[node];
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
      to.transition[0] = d00, to.transition[1] = d01;
      to.transition[2] = d10, to.transition[3] = d11;
      to.mark[0] = e0, to.mark[1] = e1;
    }
  }
}

// Initializes a matrix with the direct gates on its diagonal.
template <typename T>
void start(T* matrix, const T* direct, int64_t nodes) {
  std::fill(matrix, matrix + nodes * nodes, T(0));
  for (int64_t node = 0; node < nodes; ++node) matrix[node * (nodes + 1)] = direct[node];
}

template <typename T>
void multiply(T* __restrict to, const T* __restrict by, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] *= by[i];
}

// scores (problems, N, N) *= the gating matrix of gates and direct (problems, N)
template <typename T>
void gate(Gates<const T> gates, const T* direct, T* scores, int64_t problems, int64_t corners,
          int64_t rows, int64_t columns, int64_t orders, int64_t threads) {
  const int64_t nodes = rows * columns, entries = nodes * nodes;
  parallel(problems, threads, [=] {
    return [=, lanes = Lanes<T>(rows, columns),
            matrix = std::unique_ptr<T[]>(new T[entries])](int64_t problem) mutable {
      start(matrix.get(), direct + problem * nodes, nodes);
      for (int64_t corner = 0; corner < corners; ++corner)
        add_reads<false, T>(Scan(rows, columns, orders, corner),
                            gates.from((problem * corners + corner) * nodes), matrix.get(), lanes,
                            nullptr);
      multiply(scores + problem * entries, matrix.get(), entries);
    };
  });
}

// scores as in `gate`; replaces grad (problems, N, N), of its result, by the gradient of scores.
template <typename T>
void gate_backward(Gates<const T> gates, const T* direct, T* scores, T* grad, Gates<T> grad_gates,
                   T* grad_direct, int64_t problems, int64_t corners, int64_t rows,
                   int64_t columns, int64_t orders, int64_t threads) {
  const int64_t nodes = rows * columns, entries = nodes * nodes;
  parallel(problems, threads, [=] {
    return [=, lanes = Lanes<T>(rows, columns),
            scratch = std::unique_ptr<T[]>(new T[4 * entries])](int64_t problem) mutable {
      T *matrix = scratch.get(), *grad_matrix = matrix + entries, *arrived = grad_matrix + entries;
      T *score = scores + problem * entries, *grad_gated = grad + problem * entries;
      std::copy(score, score + entries, grad_matrix);
      multiply(grad_matrix, grad_gated, entries);
      start(matrix, direct + problem * nodes, nodes);
      for (int64_t node = 0; node < nodes; ++node)
        grad_direct[problem * nodes + node] = grad_matrix[node * (nodes + 1)];
      for (int64_t corner = 0; corner < corners; ++corner) {
        const int64_t first = (problem * corners + corner) * nodes;
        const Scan scan(rows, columns, orders, corner);
        add_reads<true>(scan, gates.from(first), matrix, lanes, arrived);
        gradients(scan, gates.from(first), grad_matrix, grad_gates.from(first), lanes, arrived);
      }
      multiply(score, matrix, entries);
      multiply(grad_gated, matrix, entries);
    };
  });
}

}  // namespace

#define SIZES                                                                              \
  int64_t problems, int64_t corners, int64_t rows, int64_t columns, int64_t orders, int64_t threads

#define GATE(T) \
  (const T* source, const T* transition, const T* mark, const T* direct, T* scores, SIZES)
EXPORT(gate, GATE,
       ({source, transition, mark}, direct, scores, problems, corners, rows, columns, orders,
        threads))

#define GATE_BACKWARD(T)                                                                        \
  (const T* source, const T* transition, const T* mark, const T* direct, T* scores, T* grad,    \
   T* dsource, T* dtransition, T* dmark, T* ddirect, SIZES)
EXPORT(gate_backward, GATE_BACKWARD,
       ({source, transition, mark}, direct, scores, grad, {dsource, dtransition, dmark}, ddirect,
        problems, corners, rows, columns, orders, threads))
