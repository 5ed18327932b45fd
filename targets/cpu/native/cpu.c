// What this CPU can do, by the names that Linux gives its features, and which level of the artifact fits it.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cores.h"
#include "internal.h"

#ifdef __linux__
#include <sys/syscall.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };
enum { XMM_YMM = 0x6, ZMM = 0xe6, TILES = 0x60000 };  // state that the system must save: bits of XCR0

static const struct {
  const char *name;
  unsigned leaf, subleaf, place, bit, state;
} FEATURES[] = {
  {"sse4_2", 1, 0, ECX, 20, 0},           {"fma", 1, 0, ECX, 12, XMM_YMM},
  {"f16c", 1, 0, ECX, 29, XMM_YMM},       {"avx", 1, 0, ECX, 28, XMM_YMM},
  {"avx2", 7, 0, EBX, 5, XMM_YMM},        {"bmi1", 7, 0, EBX, 3, 0},
  {"bmi2", 7, 0, EBX, 8, 0},              {"avx512f", 7, 0, EBX, 16, ZMM},
  {"avx512dq", 7, 0, EBX, 17, ZMM},       {"avx512cd", 7, 0, EBX, 28, ZMM},
  {"avx512bw", 7, 0, EBX, 30, ZMM},       {"avx512vl", 7, 0, EBX, 31, ZMM},
  {"avx512_vnni", 7, 0, ECX, 11, ZMM},    {"avx512vbmi", 7, 0, ECX, 1, ZMM},
  {"avx512_vbmi2", 7, 0, ECX, 6, ZMM},    {"avx512_fp16", 7, 0, EDX, 23, ZMM},
  {"avx512_bf16", 7, 1, EAX, 5, ZMM},     {"avx_vnni", 7, 1, EAX, 4, XMM_YMM},
  {"amx_bf16", 7, 0, EDX, 22, TILES},     {"amx_tile", 7, 0, EDX, 24, TILES},
  {"amx_int8", 7, 0, EDX, 25, TILES},
};

static unsigned saved_state(void) {
  unsigned registers[4], low, high;
  if (!__get_cpuid(1, &registers[EAX], &registers[EBX], &registers[ECX], &registers[EDX])) return 0;
  if (!(registers[ECX] >> 27 & 1)) return 0;  // OSXSAVE
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux gives a process tiles only if it asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
static bool granted(unsigned state) {
#ifdef __linux__
  return state != TILES || syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return state != TILES;
#endif
}

bool cpu_has(const char *feature) {
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++) {
    if (strcmp(FEATURES[i].name, feature) != 0) continue;
    unsigned r[4] = {0}, state = FEATURES[i].state;
    if (!__get_cpuid_count(FEATURES[i].leaf, FEATURES[i].subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX])) return false;
    return (r[FEATURES[i].place] >> FEATURES[i].bit & 1) && (saved_state() & state) == state && granted(state);
  }
  return false;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static const struct {
  const char *name;
  unsigned long word, bit;
} FEATURES[] = {
  {"fp", AT_HWCAP, 0},       {"asimd", AT_HWCAP, 1},   {"atomics", AT_HWCAP, 8}, {"fphp", AT_HWCAP, 9},
  {"asimdhp", AT_HWCAP, 10}, {"asimddp", AT_HWCAP, 20}, {"asimdfhm", AT_HWCAP, 23}, {"sve", AT_HWCAP, 22},
  {"sve2", AT_HWCAP2, 1},    {"i8mm", AT_HWCAP2, 13},  {"bf16", AT_HWCAP2, 14},
};

bool cpu_has(const char *feature) {
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
    if (strcmp(FEATURES[i].name, feature) == 0) return getauxval(FEATURES[i].word) >> FEATURES[i].bit & 1;
  return false;
}

#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static const struct {
  const char *name, *key;
} FEATURES[] = {
  {"asimd", "hw.optional.AdvSIMD"},           {"asimdhp", "hw.optional.arm.FEAT_FP16"},
  {"asimddp", "hw.optional.arm.FEAT_DotProd"}, {"i8mm", "hw.optional.arm.FEAT_I8MM"},
  {"bf16", "hw.optional.arm.FEAT_BF16"},
};

bool cpu_has(const char *feature) {
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++) {
    int found = 0;
    size_t size = sizeof found;
    if (strcmp(FEATURES[i].name, feature) == 0) return !sysctlbyname(FEATURES[i].key, &found, &size, 0, 0) && found;
  }
  return false;
}

#else
#error "the native library knows the features of x86-64 and aarch64"
#endif

// The next of the names in DSV3C_WITHOUT, which commas or spaces join: behind `at`, the first for NULL. NULL at the end.
static const char *next_unwanted(const char *at, size_t *length) {
  static const char between[] = ", \t\r\n";
  if (at) at += *length;
  else if (!(at = getenv("DSV3C_WITHOUT"))) return 0;
  at += strspn(at, between);
  *length = strcspn(at, between);
  return *length ? at : 0;
}

static bool same(const char *name, const char *other, size_t length) {
  return length == strlen(name) && strncmp(name, other, length) == 0;
}

static bool unwanted(const char *name) {
  size_t length;
  for (const char *at = 0; (at = next_unwanted(at, &length));)
    if (same(name, at, length)) return true;
  return false;
}

static bool is_feature(const char *name, size_t length) {
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
    if (same(FEATURES[i].name, name, length)) return true;
  return false;
}

static dsv3c_status require_known(void) {
  size_t length, used = 0;
  char known[sizeof FEATURES] = "";
  for (const char *at = 0; (at = next_unwanted(at, &length));) {
    if (is_feature(at, length)) continue;
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
      used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", FEATURES[i].name);
    return dsv3c_fail(DSV3C_ISA_UNKNOWN, "DSV3C_WITHOUT names %.*s; the features that kernels may ask for: %s",
                      length < 64 ? (int)length : 64, at, known);
  }
  return DSV3C_OK;
}

static const char *lacks(const plan_level *level) {
  for (const char *const *feature = level->requires; *feature; feature++)
    if (unwanted(*feature) || !cpu_has(*feature)) return *feature;
  return 0;
}

dsv3c_status cpu_choose(const plan_level *levels, size_t count, const plan_level **chosen) {
  const char *forced = getenv("DSV3C_ISA"), *missing = "";
  bool known = false;
  dsv3c_status status = require_known();
  if (status != DSV3C_OK) return status;
  for (size_t i = count; i-- > 0;) {
    if (forced && *forced && strcmp(levels[i].name, forced) != 0) continue;
    known = true;
    if (!(missing = lacks(&levels[i]))) {
      *chosen = &levels[i];
      return DSV3C_OK;
    }
  }
  if (known)
    return dsv3c_fail(DSV3C_ISA_UNSUPPORTED, "%s %s, which the level %s needs",
                      unwanted(missing) ? "DSV3C_WITHOUT names" : "the CPU lacks", missing,
                      forced && *forced ? forced : levels[0].name);
  return dsv3c_fail(DSV3C_ISA_UNKNOWN, "DSV3C_ISA names the level %s, which the artifact does not have", forced);
}

int cpu_threads(void) { return cores_default(); }
