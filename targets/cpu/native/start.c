// Linked into the program where it is to start on systems with an older glibc: the code that calls `main` asks for
// __libc_start_main, which has a new version of its symbol since 2.34, and gets this by the linker's --wrap.

typedef int (*main_function)(int, char **, char **);
typedef void (*plain_function)(void);

int start_as_before(main_function, int, char **, plain_function, plain_function, plain_function, void *);
__asm__(".symver start_as_before,__libc_start_main@GLIBC_2.2.5");

int __wrap___libc_start_main(main_function entry, int count, char **arguments, plain_function before,
                             plain_function after, plain_function unload, void *stack) {
  return start_as_before(entry, count, arguments, before, after, unload, stack);
}
