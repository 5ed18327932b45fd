// Memory that kernels touch: 64-byte aligned and allocated once; files are mapped and never copied.

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guard.h"
#include "internal.h"

static const size_t HUGE_PAGE = 2u << 20;

dsv3c_status memory_allocate(uint64_t size, const char *what, memory_block *block) {
  size_t alignment = size >= HUGE_PAGE ? HUGE_PAGE : PLAN_ALIGNMENT;
  size_t mapped = (size_t)(size > 0 ? size : 1) + alignment;
  void *base = MAP_FAILED;
  if (size < 1ull << 47) base = mmap(0, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "the system refused %llu bytes for %s", (unsigned long long)size, what);
#ifdef MADV_HUGEPAGE
  if (alignment == HUGE_PAGE) madvise(base, mapped, MADV_HUGEPAGE);
#endif
  unsigned char *data = (unsigned char *)base + (-(uintptr_t)base & (alignment - 1));
  *block = (memory_block){data, (size_t)size, base, mapped, 0};
  return DSV3C_OK;
}

static uint32_t crc32_of(const unsigned char *data, uint64_t size) {
  uint32_t table[256], crc = ~0u;
  for (uint32_t i = 0; i < 256; i++) {
    table[i] = i;
    for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
  }
  for (uint64_t i = 0; i < size; i++) crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
  return ~crc;
}

static dsv3c_status check_size(int descriptor, const plan_file *file) {
  // Not by fstat, whose symbol is of glibc 2.33. Only regular files can be sought to their end and read.
  off_t size = lseek(descriptor, 0, SEEK_END);
  char first;
  if (size < 0 || pread(descriptor, &first, 1, 0) < 0) return dsv3c_fail(DSV3C_FILE_MISSING, "%s is not a regular file", file->path);
  if ((uint64_t)size == file->bytes) return DSV3C_OK;
  return dsv3c_fail(DSV3C_FILE_DAMAGED, "%s has %lld bytes, this library was built with %llu", file->path,
                    (long long)size, (unsigned long long)file->bytes);
}

static dsv3c_status check_content(const memory_block *block, const plan_file *file) {
  if (crc32_of(block->data, file->checked) == file->crc) return memory_require(block, file);
  return dsv3c_fail(DSV3C_FILE_DAMAGED, "%s is another file than the one this library was built with", file->path);
}

static dsv3c_status map_open(int descriptor, const plan_file *file, memory_block *block) {
  TRY(check_size(descriptor, file));
  void *base = mmap(0, file->bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED)
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "%s cannot be mapped: %s", file->path, strerror(errno));
  *block = (memory_block){base, file->bytes, base, file->bytes, dsv3c_watch(base, file->bytes)};
  return check_content(block, file);
}

static dsv3c_status read_open(int descriptor, const plan_file *file, memory_block *block) {
  TRY(check_size(descriptor, file));
  TRY(memory_allocate(file->bytes, file->path, block));
  for (uint64_t done = 0; done < file->bytes;) {
    ssize_t count = pread(descriptor, block->data + done, file->bytes - done, (off_t)done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return dsv3c_fail(DSV3C_FILE_DAMAGED, "%s cannot be read to its end", file->path);
    done += (uint64_t)count;
  }
  return check_content(block, file);
}

static dsv3c_status open_file(int artifact, const plan_file *file, memory_block *block,
                              dsv3c_status (*take)(int, const plan_file *, memory_block *)) {
  int descriptor = openat(artifact, file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return dsv3c_fail(DSV3C_FILE_MISSING, "cannot open %s: %s", file->path, strerror(errno));
  dsv3c_status status = take(descriptor, file, block);
  close(descriptor);
  if (status != DSV3C_OK) memory_free(block);
  return status;
}

void memory_read_ahead(const memory_block *block) { madvise(block->base, block->mapped, MADV_WILLNEED); }

dsv3c_status memory_map(int artifact, const plan_file *file, memory_block *block) {
  return open_file(artifact, file, block, map_open);
}

dsv3c_status memory_read(int artifact, const plan_file *file, memory_block *block) {
  return open_file(artifact, file, block, read_open);
}

dsv3c_status memory_require(const memory_block *block, const plan_file *file) {
  if (!block->lost || !*(volatile int *)block->lost) return DSV3C_OK;
  return dsv3c_fail(DSV3C_FILE_DAMAGED, "%s could not be read while it was in use: it was made shorter, or its disk fails",
                    file->path);
}

void memory_free(memory_block *block) {
  dsv3c_unwatch(block->lost);
  if (block->base) munmap(block->base, block->mapped);
  *block = (memory_block){0};
}
