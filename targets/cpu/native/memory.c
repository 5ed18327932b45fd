// Memory that kernels touch: 64-byte aligned and allocated once; files are mapped and never copied.

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
  *block = (memory_block){data, (size_t)size, base, mapped};
  return DSV3C_OK;
}

char *memory_path(const char *artifact, const char *path) {
  size_t folder = strlen(artifact), name = strlen(path);
  char *joined = malloc(folder + name + 2);
  if (!joined) return 0;
  memcpy(joined, artifact, folder);
  joined[folder] = '/';
  memcpy(joined + folder + 1, path, name + 1);
  return joined;
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

static dsv3c_status map_descriptor(int descriptor, const plan_file *file, memory_block *block) {
  struct stat status;
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode))
    return dsv3c_fail(DSV3C_FILE_MISSING, "%s is not a regular file", file->path);
  if ((uint64_t)status.st_size != file->bytes)
    return dsv3c_fail(DSV3C_FILE_DAMAGED, "%s has %lld bytes, this library was built with %llu", file->path,
                      (long long)status.st_size, (unsigned long long)file->bytes);
  void *base = mmap(0, file->bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED)
    return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "%s cannot be mapped: %s", file->path, strerror(errno));
  madvise(base, file->bytes, MADV_WILLNEED);
  *block = (memory_block){base, file->bytes, base, file->bytes};
  if (crc32_of(base, file->checked) == file->crc) return DSV3C_OK;
  memory_free(block);
  return dsv3c_fail(DSV3C_FILE_DAMAGED, "%s is another file than the one this library was built with", file->path);
}

dsv3c_status memory_map(const char *artifact, const plan_file *file, memory_block *block) {
  char *path = memory_path(artifact, file->path);
  if (!path) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a path");
  int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  dsv3c_status status = descriptor < 0 ? dsv3c_fail(DSV3C_FILE_MISSING, "cannot open %s: %s", path, strerror(errno))
                                       : map_descriptor(descriptor, file, block);
  if (descriptor >= 0) close(descriptor);
  free(path);
  return status;
}

void memory_free(memory_block *block) {
  if (block->base) munmap(block->base, block->mapped);
  *block = (memory_block){0};
}
