// The order in which a corner visits the nodes of a grid, and where its gates are.
#pragma once

#include <cstdint>

// orders: two bits per corner, whether it scans leftward (1) and upward (2).
struct Scan {
  int64_t rows, columns;
  bool leftward, upward;

  Scan(int64_t rows, int64_t columns, int64_t orders, int64_t corner)
      : rows(rows), columns(columns), leftward(orders >> (2 * corner) & 1),
        upward(orders >> (2 * corner) & 2) {}

  int64_t nodes() const { return rows * columns; }
  // The node that the scan visits at its step (row, column).
  int64_t node(int64_t row, int64_t column) const {
    return (upward ? rows - 1 - row : row) * columns + (leftward ? columns - 1 - column : column);
  }
  // Range of the sources visited up to the end of a row.
  int64_t first(int64_t row) const { return upward ? (rows - 1 - row) * columns : 0; }
  int64_t last(int64_t row) const { return (upward ? rows : row + 1) * columns; }
};

// Source and mark (..., N, 2), transition (..., N, 4) = t00 t01 t10 t11 of N nodes in image
// coordinates, with direction 0 along x, 1 along y; t[out][in].
template <typename T>
struct Gates {
  T *source, *transition, *mark;

  Gates from(int64_t node) const {
    return {source + 2 * node, transition + 4 * node, mark + 2 * node};
  }
};
