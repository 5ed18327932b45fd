// numpy's generator, PCG64 seeded by SeedSequence: numpy/random/bit_generator.pyx, src/pcg64.

#include "sampler.h"

static uint32_t hash_word(uint32_t value, uint32_t *constant, uint32_t factor) {
  value ^= *constant;
  *constant *= factor;
  value *= *constant;
  return value ^ value >> 16;
}

static uint32_t mix(uint32_t x, uint32_t y) {
  uint32_t mixed = 0xca01f9ddu * x - 0x4973f715u * y;
  return mixed ^ mixed >> 16;
}

static void next_state(random_state *r) {
  const uint128 factor = (uint128)0x2360ed051fc65da4ull << 64 | 0x4385df649fccf645ull;
  r->state = r->state * factor + r->increment;
}

void random_seed(random_state *r, uint64_t value) {
  uint32_t pool[4], constant = 0x43b0d7e5u, output = 0x8b51f9ddu, word[8];
  for (int i = 0; i < 4; i++) pool[i] = hash_word(i < 2 ? (uint32_t)(value >> 32 * i) : 0, &constant, 0x931e8875u);
  for (int source = 0; source < 4; source++)
    for (int target = 0; target < 4; target++)
      if (source != target) pool[target] = mix(pool[target], hash_word(pool[source], &constant, 0x931e8875u));
  for (int i = 0; i < 8; i++) word[i] = hash_word(pool[i % 4], &output, 0x58f38dedu);
  uint64_t half[4];
  for (int i = 0; i < 4; i++) half[i] = (uint64_t)word[2 * i + 1] << 32 | word[2 * i];
  r->state = 0;
  r->increment = ((uint128)half[2] << 64 | half[3]) << 1 | 1;
  next_state(r);
  r->state += (uint128)half[0] << 64 | half[1];
  next_state(r);
}

double random_number(random_state *r) {
  next_state(r);
  uint64_t folded = (uint64_t)(r->state >> 64) ^ (uint64_t)r->state;
  unsigned turn = (unsigned)(r->state >> 122);
  uint64_t bits = folded >> turn | folded << (-turn & 63);
  return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}
