// The grid recurrence in linear time, as a scan over K x V states, and its gradients.
//
// A state is split into tiles of a few rows (keys) and up to four vectors (values). Tiles are
// independent until they are read, so each is scanned over the whole grid separately, and the
// states of a row of nodes stay in the cache.
//
// Layouts: q, k (problems, Y, X, K), v (problems, Y, X, V), direct (problems, Y, X), the same for
// gradients; gates (problems, corners, Y, X, ...) and orders as in grid.h.
// A problem is one head of one image, a node a position (y, x) in it, a cell an entry of
// (problems, Y, X). V must be a multiple of the vector length.
//
// Letters as in the definition: a0, a1 arrive at a node, c0, c1 leave it; prefix d: gradient.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "grid.h"
#include "native.h"

#if !defined(__clang__)
// The sums are vectorized by hand; reordering spills registers and loses fused multiply-adds.
#pragma GCC optimize("no-associative-math")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int64_t VECTOR_BYTES = 32;
#else
constexpr int64_t VECTOR_BYTES = 16;
#endif
constexpr int64_t READ_ROWS = 16;         // per tile in the forward pass
constexpr int64_t GRADIENT_ROWS = 8;      // per tile in the backward pass
constexpr int64_t BLOCK_BYTES = 3 << 18;  // of states in the backward pass, fits in L2
// Vectors to sum at a node: 8 gates, dq and dk of each row; a multiple of the lanes.
constexpr int64_t SUMS = (8 + 2 * GRADIENT_ROWS + 15) / 16 * 16;

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int64_t LANES = VECTOR_BYTES / sizeof(T);

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <typename T>
inline void store(T* to, Vector<T> x) {
  std::memcpy(to, &x, sizeof x);
}

// Zeros, aligned to vectors.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : lines_(size * sizeof(T) / sizeof(Line) + 1) {}
  T* data() { return reinterpret_cast<T*>(lines_.data()); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> lines_;
};

struct Sizes {
  int64_t problems, rows, columns, corners, key_width, value_width, orders, parts;

  int64_t nodes() const { return rows * columns; }
  int64_t cells() const { return problems * nodes(); }
};

// Pointers to the data of a problem and a corner.
struct Places {
  int64_t first, gates, key_width, value_width;

  Places(const Sizes& sizes, int64_t problem, int64_t corner)
      : first(problem * sizes.nodes()),
        gates((problem * sizes.corners + corner) * sizes.nodes()),
        key_width(sizes.key_width), value_width(sizes.value_width) {}

  int64_t cell(int64_t node) const { return first + node; }
  int64_t key(int64_t node) const { return cell(node) * key_width; }
  int64_t value(int64_t node) const { return cell(node) * value_width; }
};

// Rows [key, key + rows) of all states of a problem and a corner, and some vectors of their columns
// from `value` on.
template <typename T>
struct Tile {
  Places at;
  const T *q, *k, *v;
  Gates<const T> gates;
  int64_t key, value, rows;

  const T* query(int64_t node) const { return q + at.key(node) + key; }
  const T* keys(int64_t node) const { return k + at.key(node) + key; }
  const T* values(int64_t node) const { return v + at.value(node) + value; }
  Gates<const T> gate(int64_t node) const { return gates.from(at.gates + node); }
};

template <int N>
using Vectors = std::integral_constant<int, N>;

// Moves the tile over the states and calls run(number of vectors in the tile).
template <typename T, typename Run>
void each_tile(Tile<T>& tile, int64_t max_rows, Run run) {
  for (tile.key = 0; tile.key < tile.at.key_width; tile.key += max_rows) {
    tile.rows = std::min(max_rows, tile.at.key_width - tile.key);
    int64_t left;
    for (tile.value = 0; (left = (tile.at.value_width - tile.value) / LANES<T>) > 0;) {
      if (left >= 4) {
        run(Vectors<4>());
        tile.value += 4 * LANES<T>;
      } else if (left >= 2) {
        run(Vectors<2>());
        tile.value += 2 * LANES<T>;
      } else {
        run(Vectors<1>());
        tile.value += LANES<T>;
      }
    }
  }
}

// c[g] = sum_h t[g][h] a[h] + s[g] k v^T at one node and, if READ, out += (sum_h m[h] a[h])^T q.
// The states that leave may overwrite those that arrive.
template <bool READ, int N, typename T>
inline void visit(const Tile<T>& tile, int64_t node, const T* a0, const T* a1, T* c0, T* c1,
                  T* out) {
  constexpr int64_t L = LANES<T>;
  const Gates<const T> g = tile.gate(node);
  const T *q = tile.query(node), *k = tile.keys(node), *v = tile.values(node);
  const T t00 = g.transition[0], t01 = g.transition[1];
  const T t10 = g.transition[2], t11 = g.transition[3];
  Vector<T> v0[N], v1[N], read0[N] = {}, read1[N] = {};
  for (int n = 0; n < N; ++n) {
    v0[n] = g.source[0] * load(v + n * L);
    v1[n] = g.source[1] * load(v + n * L);
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    const T key = k[row], query = q[row];
    for (int n = 0; n < N; ++n) {
      const int64_t at = (row * N + n) * L;
      const Vector<T> x0 = load(a0 + at), x1 = load(a1 + at);
      store(c0 + at, t00 * x0 + t01 * x1 + key * v0[n]);
      store(c1 + at, t10 * x0 + t11 * x1 + key * v1[n]);
      if (READ) {
        read0[n] += query * x0;
        read1[n] += query * x1;
      }
    }
  }
  if (READ)
    for (int n = 0; n < N; ++n)
      store(out + n * L, load(out + n * L) + g.mark[0] * read0[n] + g.mark[1] * read1[n]);
}

// out += read-out of one tile. h: one state, c: a row of states.
template <int N, typename T>
void read_tile(const Scan& grid, const Tile<T>& tile, T* h, T* c, T* out) {
  const int64_t state = tile.rows * N * LANES<T>;
  std::fill(c, c + grid.columns * state, T(0));
  for (int64_t row = 0; row < grid.rows; ++row) {
    std::fill(h, h + state, T(0));
    for (int64_t column = 0; column < grid.columns; ++column) {
      const int64_t node = grid.node(row, column);
      T* down = c + column * state;
      visit<true, N>(tile, node, h, down, h, down, out + tile.at.value(node) + tile.value);
    }
  }
}

// out = D (q . k) v
template <typename T>
void read_direct(const Tile<T>& all, int64_t nodes, const T* direct, T* out) {
  for (int64_t node = 0; node < nodes; ++node) {
    const T *q = all.query(node), *k = all.keys(node), *v = all.values(node);
    T score = 0;
    for (int64_t i = 0; i < all.at.key_width; ++i) score += q[i] * k[i];
    score *= direct[all.at.cell(node)];
    T* read = out + all.at.value(node);
    for (int64_t i = 0; i < all.at.value_width; ++i) read[i] = score * v[i];
  }
}

// out = read-out q of the recurrence with k and v. Part p of `parts` handles the corners p,
// p + parts, ... and the p-th output; part 0 has the direct term, the others must start at 0.
template <typename T>
void scan(const T* q, const T* k, const T* v, Gates<const T> gates, const T* direct, T* out,
          Sizes sizes, int64_t threads) {
  parallel(sizes.problems * sizes.parts, threads, [=] {
    const int64_t state = READ_ROWS * 4 * LANES<T>;
    return [=, h = Scratch<T>(state), c = Scratch<T>(sizes.columns * state)](int64_t job) mutable {
      const int64_t problem = job / sizes.parts, part = job % sizes.parts;
      T* to = out + part * sizes.cells() * sizes.value_width;
      for (int64_t corner = part; corner < sizes.corners; corner += sizes.parts) {
        const Scan grid(sizes.rows, sizes.columns, sizes.orders, corner);
        Tile<T> tile{Places(sizes, problem, corner), q, k, v, gates, 0, 0, 0};
        if (corner == 0) read_direct(tile, sizes.nodes(), direct, to);
        each_tile(tile, READ_ROWS, [&](auto vectors) {
          read_tile<vectors>(grid, tile, h.data(), c.data(), to);
        });
      }
    };
  });
}

template <typename T>
struct Gradients {
  T *q, *k, *v;
  Gates<T> gates;
};

// Sums of neighboring lanes, first of a, then of b.
template <typename V, size_t... I>
inline V fold(V a, V b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 2 * I...) + __builtin_shufflevector(a, b, 2 * I + 1 ...);
#else
  using Mask = decltype(a < b);
  return __builtin_shuffle(a, b, Mask{2 * I...}) + __builtin_shuffle(a, b, Mask{2 * I + 1 ...});
#endif
}

// The vector of the lane sums of x[0], x[1], ...; COUNT is the number of lanes.
template <typename T, int64_t COUNT>
inline Vector<T> sum_lanes(const Vector<T>* x) {
  if constexpr (COUNT == 1)
    return x[0];
  else
    return fold(sum_lanes<T, COUNT / 2>(x), sum_lanes<T, COUNT / 2>(x + COUNT / 2),
                std::make_index_sequence<LANES<T>>());
}

// Gradients at one node: d0, d1 hold those of what leaves it, then of what arrives there.
// sums: scratch memory of SUMS vectors.
template <int N, typename T>
inline void visit_backward(const Tile<T>& tile, int64_t node, const T* a0, const T* a1, T* d0,
                           T* d1, const T* grad, const Gradients<T>& to, Vector<T>* sums) {
  constexpr int64_t L = LANES<T>;
  const Gates<const T> g = tile.gate(node);
  const T *q = tile.query(node), *k = tile.keys(node), *v = tile.values(node);
  const T t00 = g.transition[0], t01 = g.transition[1];
  const T t10 = g.transition[2], t11 = g.transition[3];
  Vector<T> ds0 = {}, ds1 = {}, dt00 = {}, dt01 = {}, dt10 = {}, dt11 = {}, dm0 = {}, dm1 = {};
  Vector<T> dv0[N] = {}, dv1[N] = {};
  for (int64_t row = 0; row < tile.rows; ++row) {
    const T key = k[row], query = q[row];
    const T query0 = g.mark[0] * query, query1 = g.mark[1] * query;
    Vector<T> key0 = {}, key1 = {}, read0 = {}, read1 = {};
    for (int n = 0; n < N; ++n) {
      const int64_t at = (row * N + n) * L;
      const Vector<T> x0 = load(a0 + at), x1 = load(a1 + at), dx0 = load(d0 + at),
                      dx1 = load(d1 + at), dout = load(grad + n * L), value = load(v + n * L);
      read0 += x0 * dout;
      read1 += x1 * dout;
      key0 += dx0 * value;
      key1 += dx1 * value;
      dt00 += dx0 * x0;
      dt01 += dx0 * x1;
      dt10 += dx1 * x0;
      dt11 += dx1 * x1;
      dv0[n] += key * dx0;
      dv1[n] += key * dx1;
      store(d0 + at, t00 * dx0 + t10 * dx1 + query0 * dout);
      store(d1 + at, t01 * dx0 + t11 * dx1 + query1 * dout);
    }
    ds0 += key * key0;
    ds1 += key * key1;
    dm0 += query * read0;
    dm1 += query * read1;
    sums[8 + 2 * row] = g.mark[0] * read0 + g.mark[1] * read1;
    sums[9 + 2 * row] = g.source[0] * key0 + g.source[1] * key1;
  }
  T* dv = to.v + tile.at.value(node) + tile.value;
  for (int n = 0; n < N; ++n)
    store(dv + n * L, load(dv + n * L) + g.source[0] * dv0[n] + g.source[1] * dv1[n]);

  const Vector<T> of_gates[8] = {ds0, ds1, dt00, dt01, dt10, dt11, dm0, dm1};
  std::copy(of_gates, of_gates + 8, sums);
  T totals[SUMS];
  for (int64_t i = 0; i < 8 + 2 * tile.rows; i += L)
    store(totals + i, sum_lanes<T, L>(sums + i));
  const Gates<T> dg = to.gates.from(tile.at.gates + node);
  for (int64_t i = 0; i < 2; ++i) dg.source[i] += totals[i];
  for (int64_t i = 0; i < 4; ++i) dg.transition[i] += totals[2 + i];
  for (int64_t i = 0; i < 2; ++i) dg.mark[i] += totals[6 + i];
  T *dq = to.q + tile.at.key(node) + tile.key, *dk = to.k + tile.at.key(node) + tile.key;
  for (int64_t row = 0; row < tile.rows; ++row) {
    dq[row] += totals[8 + 2 * row];
    dk[row] += totals[9 + 2 * row];
  }
}

// What the backward pass of a tile stores: the states that enter every block of rows of nodes, all
// states that arrive in one block, and the gradients of what leaves a node and a row.
template <typename T>
struct Workspace {
  static constexpr int64_t STATE = GRADIENT_ROWS * 4 * LANES<T>;
  int64_t block, blocks;
  Scratch<T> entering, along, below, d0, d1, sums;

  explicit Workspace(const Sizes& sizes)
      : block(std::clamp(BLOCK_BYTES / int64_t(2 * sizes.columns * STATE * sizeof(T)), int64_t(1),
                         sizes.rows)),
        blocks((sizes.rows + block - 1) / block), entering(blocks * sizes.columns * STATE),
        along(block * (sizes.columns + 1) * STATE), below(block * sizes.columns * STATE),
        d0(STATE), d1(sizes.columns * STATE), sums(SUMS * LANES<T>) {}
};

// Adds the gradients of the read-out of one tile.
template <int N, typename T>
void gradient_tile(const Scan& grid, const Tile<T>& tile, const T* grad, const Gradients<T>& to,
                   Workspace<T>& work) {
  const int64_t state = tile.rows * N * LANES<T>, line = grid.columns * state;
  T *entering = work.entering.data(), *along = work.along.data(), *below = work.below.data();
  T *d0 = work.d0.data(), *d1 = work.d1.data();
  auto* sums = reinterpret_cast<Vector<T>*>(work.sums.data());

  std::fill(entering, entering + line, T(0));
  for (int64_t row = 0; row < (work.blocks - 1) * work.block; ++row) {
    T* to_next = entering + (row / work.block + 1) * line;
    const T* from = row % work.block ? to_next : to_next - line;
    std::fill(along, along + state, T(0));
    for (int64_t x = 0, at = 0; x < grid.columns; ++x, at += state)
      visit<false, N, T>(tile, grid.node(row, x), along, from + at, along, to_next + at, nullptr);
  }

  std::fill(d1, d1 + line, T(0));
  for (int64_t b = work.blocks; b-- > 0;) {
    const int64_t start = b * work.block, count = std::min(work.block, grid.rows - start);
    auto arriving = [=](int64_t row) {
      return row ? below + (row - 1) * line : entering + b * line;
    };
    for (int64_t row = 0; row < count; ++row) {
      T *a0 = along + row * (line + state), *c1 = below + row * line;
      const T* a1 = arriving(row);
      std::fill(a0, a0 + state, T(0));
      for (int64_t x = 0, at = 0; x < grid.columns; ++x, at += state)
        visit<false, N, T>(tile, grid.node(start + row, x), a0 + at, a1 + at, a0 + at + state,
                           c1 + at, nullptr);
    }
    for (int64_t row = count; row-- > 0;) {
      const T *a0 = along + row * (line + state), *a1 = arriving(row);
      std::fill(d0, d0 + state, T(0));
      for (int64_t x = grid.columns; x-- > 0;) {
        const int64_t node = grid.node(start + row, x), at = x * state;
        visit_backward<N>(tile, node, a0 + at, a1 + at, d0, d1 + at,
                          grad + tile.at.value(node) + tile.value, to, sums);
      }
    }
  }
}

// Gradients of read_direct
template <typename T>
void direct_gradients(const Tile<T>& all, int64_t nodes, const T* direct, const T* grad,
                      const Gradients<T>& to, T* ddirect) {
  for (int64_t node = 0; node < nodes; ++node) {
    const int64_t at = all.at.cell(node), key = all.at.key(node), value = all.at.value(node);
    const T *q = all.query(node), *k = all.keys(node), *v = all.values(node), *dout = grad + value;
    T score = 0, dgated = 0;
    for (int64_t i = 0; i < all.at.key_width; ++i) score += q[i] * k[i];
    for (int64_t i = 0; i < all.at.value_width; ++i) dgated += dout[i] * v[i];
    ddirect[at] = score * dgated;
    const T dscore = direct[at] * dgated, gated = direct[at] * score;
    for (int64_t i = 0; i < all.at.key_width; ++i) to.q[key + i] = dscore * k[i];
    for (int64_t i = 0; i < all.at.key_width; ++i) to.k[key + i] = dscore * q[i];
    for (int64_t i = 0; i < all.at.value_width; ++i) to.v[value + i] = gated * dout[i];
  }
}

// Gradients of scan. Those of q, k, v have one entry per part, like the output of scan.
template <typename T>
void scan_backward(const T* q, const T* k, const T* v, Gates<const T> gates, const T* direct,
                   const T* grad, T* dq, T* dk, T* dv, Gates<T> dgates, T* ddirect, Sizes sizes,
                   int64_t threads) {
  parallel(sizes.problems * sizes.parts, threads, [=] {
    return [=, work = Workspace<T>(sizes)](int64_t job) mutable {
      const int64_t problem = job / sizes.parts, part = job % sizes.parts;
      const int64_t keys = part * sizes.cells() * sizes.key_width;
      const int64_t values = part * sizes.cells() * sizes.value_width;
      for (int64_t corner = part; corner < sizes.corners; corner += sizes.parts) {
        const Scan grid(sizes.rows, sizes.columns, sizes.orders, corner);
        Tile<T> tile{Places(sizes, problem, corner), q, k, v, gates, 0, 0, 0};
        const Gradients<T> to{dq + keys, dk + keys, dv + values, dgates};
        if (corner == 0) direct_gradients(tile, sizes.nodes(), direct, grad, to, ddirect);
        each_tile(tile, GRADIENT_ROWS, [&](auto vectors) {
          gradient_tile<vectors>(grid, tile, grad, to, work);
        });
      }
    };
  });
}

}  // namespace

#define SIZES                                                                              \
  int64_t problems, int64_t rows, int64_t columns, int64_t corners, int64_t key_width, \
      int64_t value_width, int64_t orders, int64_t parts, int64_t threads

#define SCAN(T)                                                                             \
  (const T* q, const T* k, const T* v, const T* source, const T* transition, const T* mark, \
   const T* direct, T* out, SIZES)
EXPORT(scan, SCAN,
       (q, k, v, {source, transition, mark}, direct, out,
        {problems, rows, columns, corners, key_width, value_width, orders, parts}, threads))

#define SCAN_BACKWARD(T)                                                                    \
  (const T* q, const T* k, const T* v, const T* source, const T* transition, const T* mark, \
   const T* direct, const T* grad, T* dq, T* dk, T* dv, T* dsource, T* dtransition,         \
   T* dmark, T* ddirect, SIZES)
EXPORT(scan_backward, SCAN_BACKWARD,
       (q, k, v, {source, transition, mark}, direct, grad, dq, dk, dv,
        {dsource, dtransition, dmark}, ddirect,
        {problems, rows, columns, corners, key_width, value_width, orders, parts}, threads))
