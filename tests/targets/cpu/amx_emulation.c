// The tile functions of a kernel library (targets/cpu/tiles.py) in plain C, for machines without AMX.
//
// After the Intel 64 and IA-32 Architectures Software Developer's Manual: volume 1, "Programming with Intel AMX", for
// palette 1 (eight tiles of sixteen rows of 64 bytes), and volume 2, the operations of LDTILECFG, TILELOADD, TILESTORED,
// TILEZERO, TILERELEASE and TDPBSUD. What raises #GP or #UD there is kept here as a thread's first fault; amx_fault
// returns and clears the first one of all threads. A faulting instruction does nothing.

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, BYTES = 64, DEPTH = 16 };  // of palette 1; TMUL multiplies at most DEPTH rows

static _Thread_local struct {
  bool configured;
  uint8_t rows[TILES];
  uint16_t bytes[TILES];  // of a row
  uint8_t data[TILES][ROWS][BYTES];
} state;

static _Atomic(const char *) first_fault;
static atomic_long products;

static int fault(const char *what) {
  const char *none = 0;
  atomic_compare_exchange_strong(&first_fault, &none, what);
  return 0;
}

const char *amx_fault(void) { return atomic_exchange(&first_fault, (const char *)0); }

// Products since the last call.
long amx_products(void) { return atomic_exchange(&products, 0); }

// Whether the calling thread has its tiles configured: what a switch of threads would have to save.
int amx_configured(void) { return state.configured; }

static bool all_zero(const uint8_t *bytes, int from, int to) {
  for (int i = from; i < to; i++)
    if (bytes[i] != 0) return false;
  return true;
}

static bool valid(int tile) { return state.configured && state.rows[tile] != 0 && state.bytes[tile] != 0; }

int dsv3c_tile_configure(const uint8_t *config) {
  if (config[0] > 1) return fault("LDTILECFG: #GP, unknown palette");
  if (!all_zero(config, 2, 16)) return fault("LDTILECFG: #GP, reserved bytes 2..15 are not zero");
  if (config[0] == 0) {
    memset(&state, 0, sizeof state);
    return 0;
  }
  if (!all_zero(config, 32, 48) || !all_zero(config, 56, 64)) return fault("LDTILECFG: #GP, more tiles than there are");
  uint16_t bytes[TILES];
  memcpy(bytes, config + 16, sizeof bytes);
  for (int tile = 0; tile < TILES; tile++) {
    if (bytes[tile] > BYTES) return fault("LDTILECFG: #GP, rows of more bytes than there are");
    if (config[48 + tile] > ROWS) return fault("LDTILECFG: #GP, more rows than there are");
    if ((bytes[tile] == 0) != (config[48 + tile] == 0)) return fault("LDTILECFG: #GP, rows without bytes or the reverse");
  }
  memset(&state, 0, sizeof state);
  state.configured = true;
  memcpy(state.bytes, bytes, sizeof bytes);
  memcpy(state.rows, config + 48, sizeof state.rows);
  return 0;
}

int dsv3c_tile_release(void) {
  memset(&state, 0, sizeof state);
  return 0;
}

static int zero(int tile) {
  if (!valid(tile)) return fault("TILEZERO: #UD, the tile is not configured");
  memset(state.data[tile], 0, sizeof state.data[tile]);
  return 0;
}

static int load(int tile, const uint8_t *p, int64_t stride) {
  if (!valid(tile)) return fault("TILELOADD: #UD, the tile is not configured");
  memset(state.data[tile], 0, sizeof state.data[tile]);
  for (int row = 0; row < state.rows[tile]; row++) memcpy(state.data[tile][row], p + row * stride, state.bytes[tile]);
  return 0;
}

static int store(int tile, uint8_t *p, int64_t stride) {
  if (!valid(tile)) return fault("TILESTORED: #UD, the tile is not configured");
  for (int row = 0; row < state.rows[tile]; row++) memcpy(p + row * stride, state.data[tile][row], state.bytes[tile]);
  return 0;
}

// TDPBSUD acc, x, codes: signed bytes of x by unsigned bytes of codes.
static int multiply(int acc, int x, int codes) {
  if (!state.configured) return fault("TDPBSUD: #UD, the tiles are not configured");
  if (acc == x || acc == codes || x == codes) return fault("TDPBSUD: #UD, the same tile twice");
  if (!valid(acc) || !valid(x) || !valid(codes)) return fault("TDPBSUD: #UD, a tile is not configured");
  if (state.bytes[acc] % 4 || state.bytes[x] % 4 || state.bytes[codes] % 4)
    return fault("TDPBSUD: #UD, rows are no whole numbers of four bytes");
  if (state.rows[acc] != state.rows[x]) return fault("TDPBSUD: #UD, rows of the sums are not those of x");
  if (state.bytes[x] / 4 != state.rows[codes]) return fault("TDPBSUD: #UD, columns of x are not rows of codes");
  if (state.bytes[acc] != state.bytes[codes]) return fault("TDPBSUD: #UD, columns of the sums are not those of codes");
  if (state.rows[codes] > DEPTH) return fault("TDPBSUD: #UD, deeper than TMUL");
  for (int m = 0; m < state.rows[acc]; m++) {
    int32_t row[BYTES / 4];
    memcpy(row, state.data[acc][m], sizeof row);
    for (int k = 0; k < state.rows[codes]; k++)
      for (int n = 0; n < state.bytes[acc] / 4; n++)
        for (int i = 0; i < 4; i++)
          row[n] += (int32_t)(int8_t)state.data[x][m][4 * k + i] * (int32_t)state.data[codes][k][4 * n + i];
    memcpy(state.data[acc][m], row, state.bytes[acc]);  // the rest of the row is zero, as of a loaded tile
  }
  atomic_fetch_add_explicit(&products, 1, memory_order_relaxed);
  return 0;
}

#define SUMS(tile) \
  int dsv3c_tile_zero##tile(void) { return zero(tile); } \
  int dsv3c_tile_store##tile(uint8_t *p, int64_t stride) { return store(tile, p, stride); }
#define OPERAND(tile) \
  int dsv3c_tile_load##tile(const uint8_t *p, int64_t stride) { return load(tile, p, stride); }
#define MULTIPLY(acc, x, codes) \
  int dsv3c_tile_multiply##acc##x##codes(void) { return multiply(acc, x, codes); }

SUMS(0)
SUMS(1)
SUMS(2)
SUMS(3)
OPERAND(4)
OPERAND(5)
OPERAND(6)
OPERAND(7)
MULTIPLY(0, 4, 6)
MULTIPLY(1, 5, 6)
MULTIPLY(2, 4, 7)
MULTIPLY(3, 5, 7)
