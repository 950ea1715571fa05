// Gates of a grid from the activations of a layer, in the layout that the kernels read.
//
// activated (B, N, F), N = Y X nodes. Columns, each group over (corners, H), direct over H:
//   mode P   s m d(H) t         S = s (a, 1 - a), M = (m, m), T[0, :] = a t, T[1, :] = (1 - a) t
//   mode D   s(2) m(2) d(H) t(3)           S = s, M = m, T = diag(t0, t1) and one turn t2
// angle (B, N, corners H), a of mode P.
// Gates: source, mark (B, H, corners, N, 2), transition (.., 4) [out, in], direct (B, H, N).
// turn: index of the turn in T, 1 or 2; 0 in mode P.

#include "native.h"

namespace {

struct Columns {
  int64_t edges, mark, direct, transition, count;

  Columns(int64_t corners, int64_t heads, int64_t turn) : edges(turn ? 2 : 1) {
    const int64_t scans = corners * heads;
    mark = scans * edges;
    direct = 2 * mark;
    transition = direct + heads;
    count = transition + (turn ? 3 : 1) * scans;
  }
};

template <typename T>
void gates(const T* activated, const T* angle, T* source, T* transition, T* mark, T* direct, int64_t batch,
           int64_t nodes, int64_t heads, int64_t corners, int64_t turn, int64_t threads) {
  const Columns columns(corners, heads, turn);
  const int64_t scans = corners * heads;
  parallel(batch * heads, threads, [=] {
    return [=](int64_t problem) {
      const int64_t head = problem % heads;
      const T* rows = activated + problem / heads * nodes * columns.count;
      for (int64_t node = 0; node < nodes; ++node)
        direct[problem * nodes + node] = rows[node * columns.count + columns.direct + head];
      for (int64_t corner = 0; corner < corners; ++corner) {
        const int64_t scan = corner * heads + head;
        const int64_t first = (problem * corners + corner) * nodes;
        T *s = source + 2 * first, *m = mark + 2 * first, *t = transition + 4 * first;
        const T *x = rows, *angles = angle + problem / heads * nodes * scans + scan;
        for (int64_t node = 0; node < nodes; ++node) {
          const T *xs = x + scan * columns.edges, *xm = xs + columns.mark;
          if (turn) {
            const T* xt = x + columns.transition + 3 * scan;
            s[0] = xs[0], s[1] = xs[1], m[0] = xm[0], m[1] = xm[1];
            t[0] = xt[0], t[3] = xt[1], t[turn] = xt[2], t[3 - turn] = 0;
          } else {
            const T a = angles[node * scans], b = 1 - a, factor = x[columns.transition + scan];
            s[0] = a * *xs, s[1] = b * *xs, m[0] = m[1] = *xm;
            t[0] = t[1] = a * factor, t[2] = t[3] = b * factor;
          }
          x += columns.count, s += 2, m += 2, t += 4;
        }
      }
    };
  });
}

// Overwrites every activation and angle with the gradient of its logit.
template <typename T>
void gates_backward(const T* dsource, const T* dtransition, const T* dmark, const T* ddirect,
                    T* activated, T* angle, int64_t batch, int64_t nodes, int64_t heads, int64_t corners,
                    int64_t turn, int64_t threads) {
  const Columns columns(corners, heads, turn);
  const int64_t scans = corners * heads;
  const auto sigmoid = [](T& y, T grad) { y = grad * y * (1 - y); };
  const auto tanh = [](T& y, T grad) { y = 5 * grad * (1 - y * y); };
  parallel(batch * heads, threads, [=] {
    return [=](int64_t problem) {
      const int64_t head = problem % heads;
      T* rows = activated + problem / heads * nodes * columns.count;
      for (int64_t node = 0; node < nodes; ++node)
        sigmoid(rows[node * columns.count + columns.direct + head], ddirect[problem * nodes + node]);
      for (int64_t corner = 0; corner < corners; ++corner) {
        const int64_t scan = corner * heads + head;
        const int64_t first = (problem * corners + corner) * nodes;
        const T *ds = dsource + 2 * first, *dm = dmark + 2 * first, *dt = dtransition + 4 * first;
        T *x = rows, *angles = angle + problem / heads * nodes * scans + scan;
        for (int64_t node = 0; node < nodes; ++node) {
          T *xs = x + scan * columns.edges, *xm = xs + columns.mark;
          if (turn) {
            T* xt = x + columns.transition + 3 * scan;
            sigmoid(xs[0], ds[0]), sigmoid(xs[1], ds[1]);
            sigmoid(xm[0], dm[0]), sigmoid(xm[1], dm[1]);
            tanh(xt[0], dt[0]), tanh(xt[1], dt[3]), tanh(xt[2], dt[turn]);
          } else {
            T *xa = angles + node * scans, *xt = x + columns.transition + scan;
            const T s = *xs, a = *xa, t = *xt, dt0 = dt[0] + dt[1], dt1 = dt[2] + dt[3];
            sigmoid(*xs, a * ds[0] + (1 - a) * ds[1]);
            sigmoid(*xm, dm[0] + dm[1]);
            sigmoid(*xa, s * (ds[0] - ds[1]) + t * (dt0 - dt1));
            tanh(*xt, a * dt0 + (1 - a) * dt1);
          }
          x += columns.count, ds += 2, dm += 2, dt += 4;
        }
      }
    };
  });
}

}  // namespace

#define SIZES \
  int64_t batch, int64_t nodes, int64_t heads, int64_t corners, int64_t turn, int64_t threads

#define GATES(T)                                                                       \
  (const T* activated, const T* angle, T* source, T* transition, T* mark, T* direct, SIZES)
EXPORT(gates, GATES,
       (activated, angle, source, transition, mark, direct, batch, nodes, heads, corners, turn,
        threads))

#define GATES_BACKWARD(T)                                                                        \
  (const T* dsource, const T* dtransition, const T* dmark, const T* ddirect, T* activated, T* angle, \
   SIZES)
EXPORT(gates_backward, GATES_BACKWARD,
       (dsource, dtransition, dmark, ddirect, activated, angle, batch, nodes, heads, corners, turn,
        threads))
