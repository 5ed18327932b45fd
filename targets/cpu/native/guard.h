// Files that are mapped for reading, watched: where one can no longer be read, its memory becomes zeros and that is noted.
#ifndef DSV3C_GUARD_H
#define DSV3C_GUARD_H

#include <stddef.h>

#ifndef DSV3C_SHARED
#define DSV3C_SHARED __attribute__((visibility("default")))
#endif

// Watch [base, base + size), which begins a page. Returns what becomes 1 when it could not be read, NULL where it cannot
// be watched. The first call takes the signal SIGBUS, for good: this code must then stay loaded.
DSV3C_SHARED int *dsv3c_watch(void *base, size_t size);
// Before the memory is given back. NULL is fine.
DSV3C_SHARED void dsv3c_unwatch(int *lost);

#endif
